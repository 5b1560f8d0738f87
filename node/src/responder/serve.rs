//! The two sockets' loops.

use super::dns::upstream::Upstream;
use super::identity::Signer;
use super::limits::{self, Limits};
use super::record::Record;
use super::token::TokenKey;
use super::{dhcp, dhcp6, imds, router};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use ocs_dataplane::shared::ipv6::layout::service_of;
use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A request's head must be here by then, the first as well as the next.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// No connection lives longer, however slowly its peer reads or writes.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: usize = 8192;
const MAX_HEADERS: usize = 64;
/// The largest UDP payload of an Ethernet frame without fragments, and room.
const MAX_DATAGRAM_BYTES: usize = 2048;
/// TTL of every answer until a token's PUT.
const USUAL_HOPS: u8 = 64;
/// After an error of the system, such as no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// What both loops share.
pub struct Service {
    /// The records' folder.
    pub records: PathBuf,
    /// Signs tokens.
    pub key: TokenKey,
    /// Each region's key for identity documents.
    pub signers: BTreeMap<String, Signer>,
    /// Every ENI's allowance.
    pub limits: Arc<Limits>,
    /// The host's resolvers.
    pub upstream: Arc<Upstream>,
}

impl Service {
    /// The record of a peer; a record that cannot be read is logged and is none.
    pub fn record(&self, peer: Ipv4Addr) -> Option<Record> {
        Record::read(&self.records, peer).unwrap_or_else(|error| {
            tracing::warn!(%peer, %error, "record refused");
            None
        })
    }
}

/// The service address of the ENI that a peer is: its own, or what its IPv6 address is made of.
pub fn eni_of(peer: SocketAddr) -> Ipv4Addr {
    match peer.ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => service_of(address.octets()).into(),
    }
}

/// Answers DHCP, or on a socket of IPv6 DHCPv6, for ever. Whoever is answered by IPv6 is told
/// of its router by another socket.
pub async fn dhcp(
    service: &Service,
    socket: &UdpSocket,
    router: Option<&std::net::UdpSocket>,
) -> Infallible {
    let mut buffer = [0u8; MAX_DATAGRAM_BYTES];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "receiving DHCP failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let eni = eni_of(peer);
        let now = Instant::now();
        if service.limits.take(eni, limits::DATAGRAM, now).is_err() {
            continue;
        }
        let Some(record) = service.record(eni) else {
            continue;
        };
        let asked = &buffer[..length];
        let (reply, port) = match peer {
            SocketAddr::V4(_) => (dhcp::answer(asked, &record), dhcp::PORT),
            SocketAddr::V6(_) => (dhcp6::answer(asked, &record), dhcp6::PORT),
        };
        let Some(reply) = reply else {
            continue;
        };
        if let Err(error) = socket.send_to(&reply, (peer.ip(), port)).await {
            tracing::warn!(%peer, %error, "sending DHCP failed");
        }
        if let (IpAddr::V6(address), Some(socket)) = (peer.ip(), router)
            && let Some(interface) = record.own_interface()
        {
            router::advertise(socket, interface, address);
        }
    }
}

/// Answers HTTP for ever.
pub async fn imds(service: Arc<Service>, listener: &TcpListener) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Some(permit) = service.limits.connect(eni_of(peer), Instant::now()) {
                    let service = Arc::clone(&service);
                    tokio::spawn(async move {
                        if let Err(error) = connection(&service, stream, peer).await {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                        drop(permit);
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(service: &Service, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let eni = eni_of(peer);
    let reach = Reach {
        socket: rustix::io::fcntl_dupfd_cloexec(&stream, 0)?,
        hops: AtomicU8::new(USUAL_HOPS),
        is_ipv6: peer.is_ipv6(),
    };
    let handler = service_fn(|request| respond(service, &reach, eni, request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(2 * MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), handler);
    match tokio::time::timeout(CONNECTION_TIMEOUT, serving).await {
        Ok(ended) => ended.map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// How far a connection's packets go. It never grows: what the kernel holds of a token's
/// answer, to send when the peer has room or to send again, must not go with a later one's TTL.
struct Reach {
    socket: OwnedFd,
    hops: AtomicU8,
    is_ipv6: bool,
}

impl Reach {
    fn limit(&self, hops: u8) -> io::Result<()> {
        let before = self.hops.fetch_min(hops, Ordering::Relaxed);
        let hops = before.min(hops);
        if self.is_ipv6 {
            return Ok(set_ipv6_unicast_hops(&self.socket, Some(hops))?);
        }
        Ok(set_ip_ttl(&self.socket, hops.into())?)
    }
}

async fn respond(
    service: &Service,
    reach: &Reach,
    peer: Ipv4Addr,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    while let Err(wait) = service.limits.take(peer, limits::REQUEST, Instant::now()) {
        tokio::time::sleep(wait).await;
    }
    let record = service
        .record(peer)
        .filter(|record| !reach.is_ipv6 || record.instance.http_protocol_ipv6)
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    let hops = if request.method() == Method::PUT {
        record.instance.http_put_response_hop_limit
    } else {
        USUAL_HOPS
    };
    reach.limit(hops)?;
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let response = imds::answer(
        request.method(),
        request.uri(),
        request.headers(),
        &record,
        &service.key,
        service.signers.get(&record.instance.region),
        now_s,
    );
    Ok(response.map(|body| Full::new(Bytes::from(body))))
}
