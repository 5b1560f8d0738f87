//! The loops of the resolver's sockets.

use super::super::limits;
use super::super::serve::{Service, eni_of};
use super::{By, Question, Verdict, answer};
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

/// The longest question: names of 255 bytes, and options.
const MAX_QUESTION_BYTES: usize = 2048;
/// How long a connection may say nothing, or not take what it asked for.
const IDLE: Duration = Duration::from_secs(5);
/// No connection lives longer.
const LIFE: Duration = Duration::from_secs(60);
/// After an error of the system.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers datagrams for ever.
pub async fn datagrams(service: Arc<Service>, socket: Arc<UdpSocket>) -> Infallible {
    let mut buffer = [0; MAX_QUESTION_BYTES];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok((length, peer)) => (length, peer),
            Err(error) => {
                tracing::warn!(%error, "receiving a question failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let from = eni_of(peer);
        let now = Instant::now();
        if service.limits.take(from, limits::DATAGRAM, now).is_err() {
            continue;
        }
        let Some(record) = service.record(from) else {
            continue;
        };
        match answer(&buffer[..length], &record, By::Udp) {
            Verdict::Answer(bytes) => {
                let _ = socket.send_to(&bytes, peer).await;
            }
            Verdict::Ask(question) => {
                let Some(place) = service.limits.connect(from, now) else {
                    continue;
                };
                let (service, socket) = (Arc::clone(&service), Arc::clone(&socket));
                tokio::spawn(async move {
                    let bytes = ask(&service, &question).await;
                    // Who asked may be gone.
                    let _ = socket.send_to(&bytes, peer).await;
                    drop(place);
                });
            }
            Verdict::Silence => {}
        }
    }
}

async fn ask(service: &Service, question: &Question) -> Vec<u8> {
    let heard = service.upstream.ask(
        |id| question.message(id),
        |bytes, id| question.answered(bytes, id),
    );
    heard.await.unwrap_or_else(|| question.failed())
}

/// Answers connections for ever.
pub async fn connections(service: Arc<Service>, listener: Arc<TcpListener>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let peer = eni_of(peer);
                let Some(place) = service.limits.connect(peer, Instant::now()) else {
                    continue;
                };
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    // However it ended: its guest's business.
                    let _ = timeout(LIFE, connection(&service, stream, peer)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One question after the other, each behind its length (RFC 1035 §4.2.2).
async fn connection(service: &Service, mut stream: TcpStream, peer: Ipv4Addr) -> io::Result<()> {
    let mut buffer = [0; MAX_QUESTION_BYTES];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let Some(message) = buffer.get_mut(..length) else {
            return Ok(());
        };
        timeout(IDLE, stream.read_exact(message)).await??;
        while let Err(wait) = service.limits.take(peer, limits::REQUEST, Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        let Some(record) = service.record(peer) else {
            return Ok(());
        };
        let bytes = match answer(message, &record, By::Tcp) {
            Verdict::Answer(bytes) => bytes,
            Verdict::Ask(question) => ask(service, &question).await,
            Verdict::Silence => return Ok(()),
        };
        let Ok(length) = u16::try_from(bytes.len()) else {
            return Ok(());
        };
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
