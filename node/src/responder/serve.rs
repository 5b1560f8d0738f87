//! The two sockets' loops.

use super::dns::upstream::Upstream;
use super::identity::Signer;
use super::limits::{self, Limits};
use super::record::Record;
use super::token::TokenKey;
use super::{dhcp, imds};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_ip_ttl;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
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
const USUAL_HOPS: u32 = 64;
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

/// Answers DHCP for ever.
pub async fn dhcp(service: &Service, socket: &UdpSocket) -> Infallible {
    let mut buffer = [0u8; MAX_DATAGRAM_BYTES];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok((length, SocketAddr::V4(peer))) => (length, *peer.ip()),
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) => {
                tracing::warn!(%error, "receiving DHCP failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if service
            .limits
            .take(peer, limits::DATAGRAM, Instant::now())
            .is_err()
        {
            continue;
        }
        let Some(record) = service.record(peer) else {
            continue;
        };
        let Some(reply) = dhcp::answer(&buffer[..length], &record) else {
            continue;
        };
        if let Err(error) = socket.send_to(&reply, (peer, dhcp::PORT)).await {
            tracing::warn!(%peer, %error, "sending DHCP failed");
        }
    }
}

/// Answers HTTP for ever.
pub async fn imds(service: Arc<Service>, listener: &TcpListener) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let IpAddr::V4(peer) = peer.ip() else {
                    continue;
                };
                if let Some(permit) = service.limits.connect(peer, Instant::now()) {
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

async fn connection(service: &Service, stream: TcpStream, peer: Ipv4Addr) -> io::Result<()> {
    let reach = Reach {
        socket: rustix::io::fcntl_dupfd_cloexec(&stream, 0)?,
        hops: AtomicU32::new(USUAL_HOPS),
    };
    let handler = service_fn(|request| respond(service, &reach, peer, request));
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
    hops: AtomicU32,
}

impl Reach {
    fn limit(&self, hops: u32) -> io::Result<()> {
        let before = self.hops.fetch_min(hops, Ordering::Relaxed);
        Ok(set_ip_ttl(&self.socket, before.min(hops))?)
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
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    let hops = if request.method() == Method::PUT {
        u32::from(record.instance.http_put_response_hop_limit)
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
