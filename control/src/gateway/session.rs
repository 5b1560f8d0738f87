//! One node's session.

use super::desired::{self, Told};
use super::fleet::{Downstream, Tunnel};
use super::{removal, reports};
use crate::core::Core;
use crate::rows::{Node, RemovedNode, Scope};
use crate::store::{Revision, Store as _, StoreError};
use crate::view::View;
use ocs_node_api::node_gateway_server::NodeGateway;
use ocs_node_api::{FromNode, Hello, Report, ToNode, TunnelBytes, from_node, to_node};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Version of the protocol.
const PROTOCOL: u32 = 1;
/// Reports that are written at once.
const MOST_REPORTS: usize = 256;
/// Messages that may wait for a slow node.
const QUEUE: usize = 64;

/// Pieces of a tunnel that may wait for a slow node.
const TUNNEL_QUEUE: usize = 2;

/// The gateway's service.
pub struct Gateway {
    /// The core.
    pub core: Arc<Core>,
}

#[tonic::async_trait]
impl NodeGateway for Gateway {
    type SessionStream = ReceiverStream<Result<ToNode, Status>>;
    type TunnelStream = ReceiverStream<Result<TunnelBytes, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let Certified { name, begins_s } = certified(&request)?;
        let mut upstream = request.into_inner();
        let hello = match upstream.message().await?.and_then(|first| first.message) {
            Some(from_node::Message::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("the first message is not Hello")),
        };
        if hello.node != name {
            return Err(Status::permission_denied(format!(
                "node {:?} has the certificate of {name:?}",
                hello.node
            )));
        }
        if hello.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "protocol {} is not {PROTOCOL}",
                hello.protocol
            )));
        }
        let underlay = underlay(&hello)?;
        let removed = self.core.peek(|view| is_removed(view, &name, begins_s));
        if removed {
            return Err(Status::new(
                ocs_node_api::REMOVED,
                format!("host {name:?} has been removed; `ocs host add {name}` lets it join anew"),
            ));
        }
        let (downstream, stream) = mpsc::channel(QUEUE);
        let core = Arc::clone(&self.core);
        tokio::spawn(async move {
            let session = core.fleet.connect(&name, downstream.clone());
            tracing::info!(node = name, boot_id = hello.boot_id, "node connected");
            let end = match know(&core, &name, begins_s, &hello, underlay).await {
                Ok(false) => End::Removed,
                Ok(true) => serve(&core, &name, session, hello, upstream, downstream).await,
                Err(_) => End::Store,
            };
            core.fleet.disconnect(&name, session);
            tracing::info!(node = name, reason = %end, "node disconnected");
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelBytes>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let Certified { name, begins_s } = certified(&request)?;
        if self.core.peek(|view| is_removed(view, &name, begins_s)) {
            return Err(Status::permission_denied("the host has been removed"));
        }
        let mut from_node = request.into_inner();
        let first = from_node.message().await?;
        let query = first.map_or(0, |first| first.query);
        let (to_node, stream) = mpsc::channel(TUNNEL_QUEUE);
        let tunnel = Tunnel { to_node, from_node };
        match self.core.fleet.opened(&name, query, tunnel) {
            true => Ok(Response::new(ReceiverStream::new(stream))),
            false => Err(Status::not_found("nobody waits for that tunnel")),
        }
    }
}

/// What the caller's certificate says.
struct Certified {
    /// Its common name.
    name: String,
    /// Since when it is valid, in Unix seconds.
    begins_s: i64,
}

/// What the caller's certificate says.
fn certified<T>(request: &Request<Streaming<T>>) -> Result<Certified, Status> {
    let unknown = || Status::unauthenticated("the caller has no certificate with a common name");
    let certificates = request.peer_certs().ok_or_else(unknown)?;
    let der = certificates.first().ok_or_else(unknown)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| unknown())?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|cn| cn.as_str().ok());
    Ok(Certified {
        name: name.map(str::to_owned).ok_or_else(unknown)?,
        begins_s: certificate.validity().not_before.timestamp(),
    })
}

/// Whether a node's certificate is void since the node was removed.
fn is_removed(view: &View, name: &str, begins_s: i64) -> bool {
    let row = view.get::<RemovedNode>(&Scope::global(), &name.to_owned());
    removal::is_void(row.map(AsRef::as_ref), begins_s)
}

/// Where other hosts reach the caller; an empty text: nowhere.
fn underlay(hello: &Hello) -> Result<Option<Ipv4Addr>, Status> {
    let text = &hello.underlay_address;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Status::invalid_argument(format!("underlay_address {text:?} is not IPv4"));
    text.parse().map(Some).map_err(wrong)
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the node has closed it")]
    Closed,
    #[error("the stream broke: {0}")]
    Broken(Status),
    #[error("the node has begun another")]
    Replaced,
    #[error("the node has been removed")]
    Removed,
    #[error("the store has failed")]
    Store,
}

async fn serve(
    core: &Core,
    name: &str,
    session: u64,
    hello: Hello,
    mut upstream: Streaming<FromNode>,
    downstream: Downstream,
) -> End {
    if reports::take(core, name, &hello.observed).await.is_err() {
        return End::Store;
    }
    let mut watch = core.store().watch();
    let mut told = Told::default();
    let mut reached = match send_snapshot(core, name, &mut told, &downstream).await {
        Some(revision) => revision,
        None => return End::Closed,
    };
    loop {
        tokio::select! {
            message = upstream.message() => {
                if !core.fleet.is_current(name, session) {
                    return End::Replaced;
                }
                let (mut reports, end) = gather(core, name, message, &mut upstream).await;
                reports.retain(|report| report.boot_id == hello.boot_id);
                if reports::take(core, name, &reports).await.is_err() {
                    return End::Store;
                }
                if let Some(end) = end {
                    return end;
                }
            }
            changed = watch.changed() => {
                if changed.is_err() {
                    return End::Store;
                }
                if !core.fleet.is_current(name, session) {
                    return End::Replaced;
                }
                if core.peek(|view| view.get::<Node>(&Scope::global(), &name.to_owned()).is_none()) {
                    return End::Removed;
                }
                match send_changes(core, name, reached, &mut told, &downstream).await {
                    Some(revision) => reached = revision,
                    None => return End::Closed,
                }
            }
        }
    }
}

/// The reports among a message and those that have come meanwhile, which are written at
/// once: one fsync each would hold up whoever starts a thousand instances. Answers go where
/// they were asked for. And why the session ends, if it does.
async fn gather(
    core: &Core,
    name: &str,
    first: Result<Option<FromNode>, Status>,
    upstream: &mut Streaming<FromNode>,
) -> (Vec<Report>, Option<End>) {
    let (mut next, mut reports) = (first, Vec::new());
    loop {
        match next {
            Ok(Some(message)) => match message.message {
                Some(from_node::Message::Report(report)) => reports.push(report),
                Some(from_node::Message::Answer(answer)) => core.fleet.answered(name, answer),
                Some(from_node::Message::Hello(_)) | None => {}
            },
            Ok(None) => return (reports, Some(End::Closed)),
            Err(status) => return (reports, Some(End::Broken(status))),
        }
        if reports.len() >= MOST_REPORTS {
            return (reports, None);
        }
        next = tokio::select! {
            biased;
            next = upstream.message() => next,
            () = std::future::ready(()) => return (reports, None),
        };
    }
}

/// Writes the node's capacity, and how it is reached, down where that is new or has changed;
/// not of one that has been removed meanwhile.
async fn know(
    core: &Core,
    name: &str,
    begins_s: i64,
    hello: &Hello,
    underlay: Option<Ipv4Addr>,
) -> Result<bool, crate::wire::ApiError> {
    let scope = Scope::global();
    core.write(&scope, |tx| {
        if is_removed(tx.view, name, begins_s) {
            return Ok(false);
        }
        let before = tx.get::<Node>(&name.to_owned());
        let mut row = before.as_deref().cloned().unwrap_or_else(|| Node {
            name: name.to_owned(),
            vcpus: 0,
            memory_mib: 0,
            used_vcpus: 0,
            used_memory_mib: 0,
            underlay: None,
            guest_mtu: 0,
            outside: false,
        });
        (row.vcpus, row.memory_mib) = (hello.vcpus, hello.memory_mib);
        row.underlay = underlay;
        row.guest_mtu = hello.guest_mtu;
        row.outside = hello.outside;
        if before.as_deref() != Some(&row) {
            tx.put(row)?;
        }
        Ok(true)
    })
    .await
}

async fn send_snapshot(
    core: &Core,
    name: &str,
    told: &mut Told,
    downstream: &Downstream,
) -> Option<Revision> {
    let snapshot = core.peek(|view| desired::snapshot(view, name, told));
    let revision = snapshot.revision;
    let message = ToNode {
        message: Some(to_node::Message::Snapshot(snapshot)),
    };
    downstream.send(Ok(message)).await.ok().map(|()| revision)
}

/// Sends what changed after a revision, or all again where the log has lost it.
async fn send_changes(
    core: &Core,
    name: &str,
    after: Revision,
    told: &mut Told,
    downstream: &Downstream,
) -> Option<Revision> {
    let (revision, keys) = match core.store().changes_since(after) {
        Ok(changes) => changes,
        Err(StoreError::Compacted(_)) => return send_snapshot(core, name, told, downstream).await,
        Err(_) => return None,
    };
    let delta = core.peek(|view| desired::delta(view, name, &keys, revision, told));
    if let Some(delta) = delta {
        let message = ToNode {
            message: Some(to_node::Message::Delta(delta)),
        };
        downstream.send(Ok(message)).await.ok()?;
    }
    Some(revision)
}
