//! Servers: echo over TCP and UDP, and HTTP.

use crate::console::say;
use crate::net::tcp::{Gone, Stream};
use crate::net::{Net, ring};
use crate::{clock, executor};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use core::cell::RefCell;
use ocs_probe_logic::http::{Method, head_len, parse_request};
use ocs_probe_logic::pattern;
use sha2::{Digest, Sha256};
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;

/// Connections that all TCP echo servers together hold at once, and one alone.
const ALL_SLOTS: usize = 48;
const MAX_SLOTS: usize = 16;
const ECHO_BUFFER_BYTES: usize = 4096;
/// Time for what is still to be sent.
const CLOSE_US: u64 = 10_000_000;
const HTTP_SLOTS: usize = 4;
const HTTP_BUFFER_BYTES: usize = 32 << 10;
const HTTP_CHUNK_BYTES: usize = 8 << 10;
const MAX_REQUEST_BYTES: usize = 4096;
const DATAGRAMS: usize = 16;
const DATAGRAM_BYTES: usize = 2048;
/// Without a whole request for this long a connection is closed.
const REQUEST_US: u64 = 10_000_000;

/// Connections that each of `listeners` echo servers holds at once.
pub fn slots(listeners: usize) -> usize {
    (ALL_SLOTS / listeners.max(1)).clamp(1, MAX_SLOTS)
}

/// Says who connected, at most once per interval; the count tells of the others.
struct Greeter {
    accepted_total: u64,
    speak_at_us: u64,
    report_us: u64,
}

impl Greeter {
    fn greet(&mut self, kind: &str, port: u16, from: IpEndpoint) {
        self.accepted_total += 1;
        let now_us = clock::now_us();
        if now_us >= self.speak_at_us {
            self.speak_at_us = now_us + self.report_us;
            say!(
                "listen: {kind} {port} from={from} accepted total={}",
                self.accepted_total
            );
        }
    }
}

/// A TCP echo server.
pub fn tcp(net: &Rc<Net>, port: u16, slots: usize, report_us: u64) {
    let greeter = Rc::new(RefCell::new(Greeter {
        accepted_total: 0,
        speak_at_us: 0,
        report_us,
    }));
    for _ in 0..slots {
        let Some(listener) = Stream::listener(net, ECHO_BUFFER_BYTES) else {
            say!("listen: tcp {port} error=no-socket");
            return;
        };
        let greeter = greeter.clone();
        executor::spawn(async move {
            let mut buffer = vec![0; ECHO_BUFFER_BYTES].into_boxed_slice();
            loop {
                if let Some(from) = listener.accept(port).await {
                    greeter.borrow_mut().greet("tcp", port, from);
                    // How an echo ends does not matter to the server.
                    let _ = echo(&listener, &mut buffer).await;
                    listener.close(CLOSE_US).await;
                }
            }
        });
    }
}

async fn echo(stream: &Stream, buffer: &mut Box<[u8]>) -> Result<(), Gone> {
    loop {
        let len = stream.recv(buffer).await?;
        if len == 0 {
            return Ok(());
        }
        stream.send_all(&buffer[..len]).await?;
    }
}

/// A UDP echo server.
pub async fn udp(net: Rc<Net>, port: u16) {
    let packets = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
            ring(DATAGRAMS * DATAGRAM_BYTES),
        )
    };
    let Some(socket) = net.add(udp::Socket::new(packets(), packets())) else {
        say!("listen: udp {port} error=no-socket");
        return;
    };
    if socket.with(|s: &mut udp::Socket| s.bind(port)).is_err() {
        say!("listen: udp {port} error=bind");
        return;
    }
    let mut buffer = vec![0; DATAGRAM_BYTES].into_boxed_slice();
    loop {
        let (len, from) = executor::wait(|| {
            socket.with(|s: &mut udp::Socket| match s.recv_slice(&mut buffer) {
                Ok((len, meta)) => Some(Some((len, meta.endpoint))),
                Err(udp::RecvError::Truncated) => Some(None),
                Err(udp::RecvError::Exhausted) => None,
            })
        })
        .await
        .unzip();
        if let (Some(len), Some(from)) = (len, from) {
            // A full send buffer loses the datagram, as networks do.
            let _ = socket.with(|s: &mut udp::Socket| s.send_slice(&buffer[..len], from));
        }
    }
}

/// A body that every GET gets.
struct Body {
    len: u64,
    sha256: String,
}

impl Body {
    async fn new(len: u64) -> Self {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; HTTP_CHUNK_BYTES];
        let mut at = 0;
        while at < len {
            let piece = piece(&mut chunk, at, len);
            hash.update(&*piece);
            at += piece.len() as u64;
            executor::yield_now().await;
        }
        Self {
            len,
            sha256: super::fetch::hex(&hash.finalize()),
        }
    }
}

/// The body's bytes from `at` on, as many as fit. Its size names the pattern.
fn piece(chunk: &mut [u8], at: u64, len: u64) -> &mut [u8] {
    let taken = usize::try_from(len - at).map_or(chunk.len(), |left| left.min(chunk.len()));
    let piece = &mut chunk[..taken];
    pattern::fill(piece, len, at);
    piece
}

/// An HTTP server.
pub async fn http(net: Rc<Net>, port: u16, body_bytes: u64) {
    let body = Rc::new(Body::new(body_bytes).await);
    say!(
        "listen: http {port} bytes={} sha256={}",
        body.len,
        body.sha256
    );
    for _ in 0..HTTP_SLOTS {
        let Some(listener) = Stream::listener(&net, HTTP_BUFFER_BYTES) else {
            say!("listen: http {port} error=no-socket");
            return;
        };
        let body = body.clone();
        executor::spawn(async move {
            let mut chunk = vec![0; HTTP_CHUNK_BYTES].into_boxed_slice();
            loop {
                if listener.accept(port).await.is_some() {
                    // How a request ends does not matter to the server.
                    let _ = serve(&listener, &body, &mut chunk).await;
                    listener.close(CLOSE_US).await;
                }
            }
        });
    }
}

async fn serve(stream: &Stream, body: &Body, chunk: &mut [u8]) -> Result<(), Gone> {
    let deadline_us = clock::now_us() + REQUEST_US;
    let method = executor::until(deadline_us, request(stream, chunk))
        .await
        .unwrap_or(Err(Gone))?;
    let Some(method) = method else {
        let refusal = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n\
            Content-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.send_all(refusal).await;
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nETag: \"{}\"\r\nX-Sha256: {}\r\nConnection: close\r\n\r\n",
        body.len, body.sha256, body.sha256
    );
    stream.send_all(head.as_bytes()).await?;
    let mut at = 0;
    while method == Method::Get && at < body.len {
        let piece = piece(chunk, at, body.len);
        stream.send_all(piece).await?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Reads a request head into `buffer`.
async fn request(stream: &Stream, buffer: &mut [u8]) -> Result<Option<Method>, Gone> {
    let mut filled = 0;
    loop {
        let len = stream.recv(&mut buffer[filled..MAX_REQUEST_BYTES]).await?;
        filled += len;
        if let Some(len) = head_len(&buffer[..filled]) {
            return Ok(parse_request(&buffer[..len]));
        }
        if len == 0 || filled == MAX_REQUEST_BYTES {
            return Err(Gone);
        }
    }
}
