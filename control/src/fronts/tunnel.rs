//! The tunnel front: `GET /openTunnel` with a WebSocket, as `aws ec2-instance-connect
//! open-tunnel` opens one, presigned for the service `ec2-instance-connect`.
//!
//! ```text
//!   client ═ WebSocket ═ this front ═ gRPC ═ the endpoint's node ═ TCP, by the ENI ═ instance
//! ```
//! The connection is there before the WebSocket is: what hinders it is an HTTP error, in JSON.
//! An empty message says that its sender has nothing more to say. Each hop takes only what the
//! next has taken, so what waits is bounded; so are tunnels, in number and time.

use super::call::{Front, request_id};
use super::listen::Peer;
use super::sigv4::Request as Signed;
use crate::audit::Trail;
use crate::ec2::connect_endpoints::{Destination, Way, way};
use crate::gateway::fleet::{AskError, Tunnel};
use crate::rows::{Account, ConnectEndpointId, Scope};
use crate::wire::{ApiError, query};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use ocs_node_api::{OpenTunnel, TunnelBytes};
use serde_json::json;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Where tunnels are opened.
pub const PATH: &str = "/openTunnel";
/// What a presigned request's credential is scoped to.
pub const SERVICE: &str = "ec2-instance-connect";
/// Longest time of a tunnel, and EC2's default (EC2 User Guide, "Connect using EC2 Instance
/// Connect Endpoint").
const MOST_S: u64 = 3_600;
/// Longest life of a presigned request: who finds one opens no tunnel much later.
const MOST_EXPIRES_S: u64 = 300;
/// Most tunnels of an endpoint (EC2's quota), and of all: they are among the listener's
/// connections.
const MOST_OF_ONE: usize = 20;
const MOST_OF_ALL: usize = 512;
/// How long a client may take to hear that its tunnel is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest message of a client, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The endpoint, by its id.
    pub endpoint: Option<String>,
    /// Whom to reach.
    pub to: Destination,
    /// At which port.
    pub port: NonZeroU16,
    /// For how long at most, in seconds.
    pub most_s: u64,
}

impl Asked {
    /// Parses a query string.
    ///
    /// # Errors
    /// `InvalidParameter` naming the parameter, `MissingParameter`.
    pub fn parse(raw_query: &str) -> Result<Self, ApiError> {
        let mut given = HashMap::new();
        for (name, value) in query::parse_form(raw_query)? {
            if given.insert(name.clone(), value).is_some() {
                return Err(wrong(&name, "is given twice"));
            }
        }
        let mut take = |name: &str| given.remove(name).filter(|value| !value.is_empty());
        if let Some(text) = take("X-Amz-Expires") {
            number(&text, "X-Amz-Expires", MOST_EXPIRES_S)?;
        }
        let port = take("remotePort").ok_or_else(|| ApiError::missing("remotePort"))?;
        let port = number(&port, "remotePort", u16::MAX.into())?;
        let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
        let most_s = match take("maxTunnelDuration") {
            Some(text) => number(&text, "maxTunnelDuration", MOST_S)?,
            None => MOST_S,
        };
        let to = match (take("privateIpAddress"), take("instanceId")) {
            (Some(text), None) => text
                .parse::<Ipv4Addr>()
                .map(Destination::Address)
                .map_err(|_| wrong("privateIpAddress", "is not an IPv4 address"))?,
            (None, Some(id)) => Destination::Instance(id),
            (None, None) => return Err(ApiError::missing("privateIpAddress")),
            (Some(_), Some(_)) => return Err(wrong("instanceId", "excludes privateIpAddress")),
        };
        let asked = Self {
            endpoint: take("instanceConnectEndpointId"),
            to,
            port: port.ok_or_else(|| wrong("remotePort", "is not from 1 to 65535"))?,
            most_s,
        };
        match given.keys().find(|name| !name.starts_with("X-Amz-")) {
            Some(name) => Err(wrong(name, "is not known")),
            None => Ok(asked),
        }
    }
}

fn wrong(parameter: &str, why: &str) -> ApiError {
    let message = format!("The parameter {parameter} {why}.");
    ApiError::new("InvalidParameter", message)
}

fn number(text: &str, parameter: &str, most: u64) -> Result<u64, ApiError> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| wrong(parameter, &format!("is not from 1 to {most}")))
}

/// How many tunnels there are.
#[derive(Debug, Default)]
pub struct Tunnels(Mutex<HashMap<ConnectEndpointId, usize>>);

/// One of them; it counts until it is dropped.
struct Slot {
    front: Arc<Front>,
    endpoint: ConnectEndpointId,
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectEndpointId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, if there may be.
    fn enter(&self, endpoint: ConnectEndpointId) -> bool {
        let mut held = self.lock();
        let (own, all) = (held.get(&endpoint), held.values().sum::<usize>());
        let may = own.is_none_or(|own| *own < MOST_OF_ONE) && all < MOST_OF_ALL;
        if may {
            *held.entry(endpoint).or_default() += 1;
        }
        may
    }

    fn leave(&self, endpoint: ConnectEndpointId) {
        let mut held = self.lock();
        if let Some(own) = held.get_mut(&endpoint) {
            *own -= 1;
            if *own == 0 {
                held.remove(&endpoint);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.front.tunnels.leave(self.endpoint);
    }
}

/// Opens a tunnel.
pub async fn open(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let peer = parts.extensions.get::<Peer>();
    let mut trail = Trail {
        request_id: request_id(),
        front: "tunnel",
        action: "OpenTunnel".to_owned(),
        source: peer.map(|peer| peer.0.ip().to_string()).unwrap_or_default(),
        ..Trail::default()
    };
    let opened = match front.begin(&trail) {
        Ok(()) => connect(&front, &mut parts, &mut trail).await,
        Err(error) => Err(error),
    };
    let mut response = match front.end(&trail, opened) {
        Ok(opened) => {
            let accept = opened.accept.clone();
            tokio::spawn(opened.carry());
            switching(&accept)
        }
        Err(error) => refusal(&error),
    };
    if let Ok(value) = HeaderValue::from_str(&trail.request_id) {
        response.headers_mut().insert("x-amzn-requestid", value);
    }
    response
}

fn switching(accept: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(accept) {
        headers.insert("sec-websocket-accept", value);
    }
    response
}

/// An error as the service tells it.
fn refusal(error: &ApiError) -> Response {
    let body = json!({"ErrorCode": error.code, "Message": error.message});
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

/// A tunnel whose far end is there.
struct Opened {
    tunnel: Tunnel,
    upgrade: OnUpgrade,
    accept: String,
    most: Duration,
    slot: Slot,
}

async fn connect(
    front: &Arc<Front>,
    parts: &mut Parts,
    trail: &mut Trail,
) -> Result<Opened, ApiError> {
    let raw_query = parts.uri.query().unwrap_or_default();
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: raw_query,
        headers: &parts.headers,
        authority: None,
        body: &[],
    };
    let identity = front.authenticate(&signed, &[SERVICE], trail)?;
    let asked = Asked::parse(raw_query)?;
    let scope = Scope::new(&identity.region, &identity.account);
    let (limits, found) = front.core.peek(|view| {
        let account = view.get::<Account>(&Scope::global(), &identity.account);
        let limits = account.map(|row| row.limits).unwrap_or_default();
        (
            limits,
            way(view, &scope, asked.endpoint.as_deref(), &asked.to),
        )
    });
    let nothing = json!({});
    front.throttle.admit(
        limits,
        &identity.account,
        &identity.region,
        &trail.action,
        &nothing,
    )?;
    let Way { endpoint, node, ip } = found?;
    trail.parameters = json!({
        "InstanceConnectEndpointId": endpoint.to_string(),
        "PrivateIpAddress": ip.to_string(),
        "RemotePort": asked.port,
    });
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let accept = accept_key(&parts.method, &parts.headers);
    let (Some(accept), Some(upgrade)) = (accept, upgrade) else {
        let message = "A tunnel is a WebSocket of version 13 (RFC 6455).";
        return Err(ApiError::new("InvalidRequest", message));
    };
    if !front.tunnels.enter(endpoint) {
        return Err(ApiError::new(
            "RequestLimitExceeded",
            format!("There are {MOST_OF_ONE} tunnels of {endpoint}, or {MOST_OF_ALL} of all."),
        ));
    }
    let slot = Slot {
        front: Arc::clone(front),
        endpoint,
    };
    let wanted = OpenTunnel {
        endpoint: endpoint.to_string(),
        ip: ip.to_string(),
        port: u16::from(asked.port).into(),
    };
    let tunnel = front
        .core
        .fleet
        .tunnel(&node, wanted)
        .await
        .map_err(failed)?;
    Ok(Opened {
        tunnel,
        upgrade,
        accept,
        most: Duration::from_secs(asked.most_s),
        slot,
    })
}

fn failed(error: AskError) -> ApiError {
    match error {
        AskError::Refused(why) => {
            let mut error = ApiError::new("ConnectionFailed", format!("Unable to connect: {why}."));
            error.status = 504;
            error
        }
        other => ApiError::new(
            "Unavailable",
            format!("The endpoint does not answer: {other}."),
        ),
    }
}

/// What a WebSocket's handshake is answered with (RFC 6455 §4.2); nothing: it is none.
fn accept_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has = |name: &str, wanted: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let mut words = values.flat_map(|value| value.split(','));
        words.any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    let key = headers.get("sec-websocket-key")?.as_bytes();
    let whole = *method == Method::GET
        && key.len() == 24
        && has("connection", "upgrade")
        && has("upgrade", "websocket")
        && has("sec-websocket-version", "13");
    whole.then(|| derive_accept_key(key))
}

impl Opened {
    /// Carries bytes until a side is done with, or time is up.
    async fn carry(self) {
        let Self {
            tunnel,
            upgrade,
            most,
            slot: _slot,
            ..
        } = self;
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MOST_BYTES))
            .max_frame_size(Some(MOST_BYTES))
            .max_write_buffer_size(4 * MOST_BYTES);
        let io = hyper_util::rt::TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let (mut to_client, mut from_client) = socket.split();
        let Tunnel {
            to_node,
            mut from_node,
        } = tunnel;
        let down = async {
            while let Ok(Some(piece)) = from_node.message().await {
                let message = Message::Binary(piece.bytes.into());
                if to_client.send(message).await.is_err() {
                    return;
                }
            }
        };
        let up = async {
            while let Some(Ok(message)) = from_client.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes.into(),
                    Message::Ping(_) | Message::Pong(_) => continue,
                    Message::Text(_) | Message::Close(_) | Message::Frame(_) => return,
                };
                let piece = TunnelBytes { query: 0, bytes };
                if to_node.send(Ok(piece)).await.is_err() {
                    // The other direction says what is left to say.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = down => {}
            () = up => {}
            () = tokio::time::sleep(most) => {}
        }
        let goodbye = async {
            let _ = to_client.close().await;
            // What is not taken would make of our end a reset, which may overtake our last words.
            while let Some(Ok(_)) = from_client.next().await {}
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

#[cfg(test)]
mod tests;
