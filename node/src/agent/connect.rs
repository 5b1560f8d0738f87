//! Instance-connect endpoints: an ENI each, behind which is a network stack of the kernel's
//! that connects wherever control asks it to, as far as rules let it.
//!
//! ```text
//!  slice ─ desire ─▶ Endpoints ─ converge ─▶ stacks ─▶ Switchboard, as an instance's ENIs
//!  control ─ Query ─▶ connect: TCP from the ENI ─▶ carry: its bytes ═ Tunnel ═ control
//! ```
//! A stack lives as long as we do, and so do its connections: a restarted node makes it anew.
//! Bytes pass through here unread; frames never do.

use super::error::{Doing, EffectError};
use super::layout::is_plain_id;
use super::ledger::Ledger;
use super::policy::{Plugged, Switchboard};
use ocs_dataplane::fabric::{Stack, StackConfig};
use ocs_dataplane::model::Mac;
use ocs_node_api as api;
use ocs_node_api::node_gateway_client::NodeGatewayClient;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections of all endpoints.
const MOST_CONNECTIONS: usize = 256;
/// Bytes that are taken from a connection at once.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces that may wait for control.
const QUEUE: usize = 2;

/// The endpoints of this node.
pub struct Endpoints {
    desired: Mutex<BTreeMap<String, api::ConnectEndpoint>>,
    held: Mutex<BTreeMap<String, Held>>,
    connections: Arc<Semaphore>,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            desired: Mutex::default(),
            held: Mutex::default(),
            connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        }
    }
}

/// An endpoint that is there.
struct Held {
    config: StackConfig,
    service_address: Ipv4Addr,
    stack: Stack,
    /// Its connections end when this is dropped.
    alive: watch::Sender<()>,
}

/// A connection from an endpoint.
pub struct Connection {
    stream: TcpStream,
    alive: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Endpoints {
    /// States all that shall be there.
    pub fn desire(&self, endpoints: BTreeMap<String, api::ConnectEndpoint>) {
        *lock(&self.desired) = endpoints;
    }

    /// Makes what shall be there and states it to the switchboard, which has it once it is
    /// settled; then [`Self::collect`]. What cannot be made is tried again by the next call, and
    /// keeps no other from being made.
    pub fn converge(&self, board: &Switchboard, ledger: &Ledger) -> Result<(), EffectError> {
        let mut held = lock(&self.held);
        let mut outcome = Ok(());
        let desired = lock(&self.desired).clone();
        for (id, endpoint) in desired.iter().filter(|(_, endpoint)| present(endpoint)) {
            match one(&mut held, board, ledger, id, endpoint) {
                Ok(plugged) => board.plug(id, plugged),
                Err(error) => {
                    board.unplug(id);
                    outcome = Err(error.doing(format_args!("endpoint {id}")));
                }
            }
        }
        for id in held
            .keys()
            .filter(|id| !desired.get(*id).is_some_and(present))
        {
            board.unplug(id);
        }
        outcome
    }

    /// Takes away what shall no longer be there, and the packet path no longer has.
    pub fn collect(&self, board: &Switchboard, ledger: &Ledger) -> Result<(), EffectError> {
        let mut held = lock(&self.held);
        let desired = lock(&self.desired).clone();
        let gone = |id: &String| !desired.get(id).is_some_and(present);
        let ids: Vec<String> = held.keys().filter(|id| gone(id)).cloned().collect();
        for id in &ids {
            if let Some(one) = held.remove(id) {
                drop(one.alive);
                ledger.take_back(one.service_address);
                board.network().remove_stack(one.stack)?;
            }
        }
        match ids.is_empty() {
            true => Ok(()),
            false => board.network().collect_garbage(),
        }
    }

    /// Connects as control asks.
    pub async fn connect(self: Arc<Self>, wanted: &api::OpenTunnel) -> Result<Connection, String> {
        let port = u16::try_from(wanted.port).ok().filter(|port| *port != 0);
        let (Ok(ip), Some(port)) = (wanted.ip.parse::<Ipv4Addr>(), port) else {
            return Err(format!("{}:{} is no address", wanted.ip, wanted.port));
        };
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let permit = permit.map_err(|_| "the host has too many connections".to_owned())?;
        let id = wanted.endpoint.clone();
        // It takes a thread to another namespace.
        let made = tokio::task::spawn_blocking(move || self.socket(&id)).await;
        let (socket, alive) = made.map_err(|error| error.to_string())??;
        let connected = tokio::time::timeout(
            CONNECT_TIMEOUT,
            socket.connect(SocketAddrV4::new(ip, port).into()),
        );
        let stream = match connected.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err("the connection is refused".to_owned());
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("nothing answers".to_owned()),
        };
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        Ok(Connection {
            stream,
            alive,
            _permit: permit,
        })
    }

    fn socket(&self, id: &str) -> Result<(TcpSocket, watch::Receiver<()>), String> {
        let held = lock(&self.held);
        let endpoint = held.get(id).ok_or("the endpoint is not there")?;
        let socket = endpoint.stack.tcp_socket();
        let socket = socket.map_err(|error| error.to_string())?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        Ok((socket, endpoint.alive.subscribe()))
    }
}

fn present(endpoint: &api::ConnectEndpoint) -> bool {
    endpoint.desired() == api::Desired::Present
}

/// Makes an endpoint as it is desired.
fn one(
    held: &mut BTreeMap<String, Held>,
    board: &Switchboard,
    ledger: &Ledger,
    id: &str,
    endpoint: &api::ConnectEndpoint,
) -> Result<Plugged, EffectError> {
    let invalid = || EffectError::Permanent(format!("its interface is not valid: {endpoint:?}"));
    let eni = endpoint.network_interface.as_ref().ok_or_else(invalid)?;
    let config = config(eni).ok_or_else(invalid)?;
    if held.get(id).is_none_or(|there| there.config != config) {
        let digits = eni.id.trim_start_matches("eni-");
        let name = format!("c{}", digits.get(..13).unwrap_or(digits));
        let made = board.network().create_stack(&name, &config)?;
        let before = held.remove(id).map(|there| there.service_address);
        let service_address = match before {
            Some(address) => address,
            None => ledger.lend().doing("ledger")?,
        };
        let there = Held {
            config,
            service_address,
            stack: made,
            alive: watch::Sender::new(()),
        };
        held.insert(id.to_owned(), there);
    }
    let there = held.get(id).ok_or_else(invalid)?;
    Ok(Plugged {
        enis: vec![eni.clone()],
        taps: BTreeMap::from([(eni.id.clone(), there.stack.ifindex)]),
        service_addresses: BTreeMap::from([(eni.id.clone(), there.service_address)]),
        account: endpoint.account_id.clone(),
        rate: api::NetworkRate::default(),
    })
}

fn config(eni: &api::NetworkInterface) -> Option<StackConfig> {
    is_plain_id(&eni.id).then_some(())?;
    Some(StackConfig {
        mac: Mac(ocs_vmm_spec::parse_mac(&eni.mac)?),
        address: eni.private_ip.parse().ok()?,
        subnet: eni.subnet_cidr.parse().ok()?,
        mtu: u16::try_from(eni.mtu).ok()?,
    })
}

impl Connection {
    /// Carries its bytes to control and back, until either is done, or the endpoint is gone.
    pub async fn carry(
        self,
        query: u64,
        mut control: NodeGatewayClient<Channel>,
    ) -> Result<(), tonic::Status> {
        let Self {
            stream, mut alive, ..
        } = self;
        let (mut from_guest, mut to_guest) = stream.into_split();
        let (up, queue) = mpsc::channel(QUEUE);
        let first = api::TunnelBytes {
            query,
            bytes: Vec::new(),
        };
        let _ = up.send(first).await;
        let tunnel = control.tunnel(ReceiverStream::new(queue)).await?;
        let mut down = tunnel.into_inner();
        let upward = async move {
            let mut bytes = vec![0; PIECE_BYTES];
            while let Ok(length @ 1..) = from_guest.read(&mut bytes).await {
                let bytes = bytes[..length].to_vec();
                if up.send(api::TunnelBytes { query, bytes }).await.is_err() {
                    break;
                }
            }
            // Control has all of it once it ends its side, too.
            drop(up);
            std::future::pending::<()>().await;
        };
        let downward = async {
            while let Some(piece) = down.message().await? {
                // What a guest no longer takes is lost; what it says is not.
                let _ = match piece.bytes.as_slice() {
                    [] => to_guest.shutdown().await,
                    bytes => to_guest.write_all(bytes).await,
                };
            }
            Ok(())
        };
        tokio::select! {
            () = upward => Ok(()),
            ended = downward => ended,
            _ = alive.changed() => Ok(()),
        }
    }
}
