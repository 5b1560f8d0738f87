//! The null node: a host that does nothing and says at once that all is done.
//!
//! ```text
//!  null-node ── Hello, capacity without end ─▶ ocs-control
//!            ◀─ Snapshot, Delta ──────────────
//!            ── Report: UP, DOWN or GONE ────▶   each as desired, at once
//! ```
//! It takes the place of hosts in the rows that measure the API alone, speaks the
//! real protocol over mTLS, and is called `null-node` in whatever control shows.

use anyhow::{Context, Result};
use ocs_node_api::node_gateway_client::NodeGatewayClient;
use ocs_node_api::{
    Answer, Desired, FromNode, Hello, Instance, ObservedInstance, ObservedVolume, Phase, Report,
    ToNode, Volume, from_node, report, to_node,
};
use std::path::Path;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Its name, and its certificate's common name.
pub const NAME: &str = "null-node";
const BOOT_ID: &str = "00000000-0000-4000-8000-000000000000";
const PROTOCOL: u32 = 1;
const VCPUS: u32 = 1 << 20;
const MEMORY_MIB: u64 = 1 << 40;
const MAX_MESSAGE_BYTES: usize = 64 << 20;
const QUEUE: usize = 4096;

/// A connected null node, on a thread of its own; it leaves when dropped.
pub struct NullNode {
    _runtime: Runtime,
}

impl NullNode {
    /// Connects to control's node gateway with the certificate in `pki`.
    pub fn connect(address: &str, pki: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(NAME)
            .enable_all()
            .build()?;
        let session = runtime
            .block_on(Session::open(address, pki))
            .with_context(|| format!("{NAME} at {address}"))?;
        runtime.spawn(session.serve());
        Ok(Self { _runtime: runtime })
    }
}

struct Session {
    up: mpsc::Sender<FromNode>,
    down: tonic::Streaming<ToNode>,
}

impl Session {
    async fn open(address: &str, pki: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = pki.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("node.pem")?, read("node.key")?))
            .domain_name("localhost");
        let channel = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .connect()
            .await?;
        let (up, stream) = mpsc::channel(QUEUE);
        let hello = Hello {
            node: NAME.to_owned(),
            boot_id: BOOT_ID.to_owned(),
            protocol: PROTOCOL,
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            ..Hello::default()
        };
        up.send(FromNode {
            message: Some(from_node::Message::Hello(hello)),
        })
        .await?;
        let mut client =
            NodeGatewayClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let down = client
            .session(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Self { up, down })
    }

    /// Until control goes away.
    async fn serve(mut self) {
        while let Ok(Some(message)) = self.down.message().await {
            for answer in answers(message) {
                let message = FromNode {
                    message: Some(answer),
                };
                if self.up.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn answers(message: ToNode) -> Vec<from_node::Message> {
    let (volumes, instances) = match message.message {
        Some(to_node::Message::Snapshot(all)) => (all.volumes, all.instances),
        Some(to_node::Message::Delta(delta)) => (delta.volumes, delta.instances),
        Some(to_node::Message::Query(query)) => {
            return vec![from_node::Message::Answer(Answer {
                id: query.id,
                error: format!("{NAME} has no consoles"),
                ..Answer::default()
            })];
        }
        None => return Vec::new(),
    };
    let reports = volumes.into_iter().map(volume);
    reports
        .chain(instances.into_iter().map(instance))
        .map(from_node::Message::Report)
        .collect()
}

fn volume(desired: Volume) -> Report {
    let phase = match desired.desired() {
        Desired::Absent => Phase::Gone,
        _ => Phase::Up,
    };
    let observed = ObservedVolume {
        id: desired.id,
        phase: phase.into(),
        message: String::new(),
    };
    done(desired.generation, report::Object::Volume(observed))
}

fn instance(desired: Instance) -> Report {
    let phase = match desired.desired() {
        Desired::Running => Phase::Up,
        Desired::Stopped => Phase::Down,
        _ => Phase::Gone,
    };
    let observed = ObservedInstance {
        id: desired.id,
        phase: phase.into(),
        reboots: desired.reboots,
        ..ObservedInstance::default()
    };
    done(desired.generation, report::Object::Instance(observed))
}

fn done(generation: u64, object: report::Object) -> Report {
    Report {
        boot_id: BOOT_ID.to_owned(),
        generation,
        object: Some(object),
    }
}
