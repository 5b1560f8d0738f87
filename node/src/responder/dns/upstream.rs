//! The host's own resolvers, asked for what no VPC knows.
//!
//! The sockets are made in the host's network namespace before the responder enters its own,
//! and are connected: what others send there never arrives. Each question goes out with an
//! identifier of its own by one of many sockets, both random.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

const PORT: u16 = 53;
/// Servers of a resolver's configuration that count (resolv.conf(5)).
const MOST_SERVERS: usize = 3;
/// Sockets a server.
const SOCKETS: usize = 16;
/// The longest answer that is taken, and that servers are told.
pub const MAX_ANSWER_BYTES: u16 = 4096;
/// How long a server may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// After an error of the system.
const PAUSE: Duration = Duration::from_millis(100);

/// Sockets that are not served yet, by server.
pub type Unserved = Vec<Vec<std::net::UdpSocket>>;

/// Makes sockets to the servers that a `resolv.conf` names, in the caller's network
/// namespace. A server that cannot be had is left out.
pub fn open(resolv_conf: &Path) -> Unserved {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    let servers = servers(&text).into_iter().take(MOST_SERVERS);
    let all = servers.filter_map(|server| match sockets(server) {
        Ok(sockets) => Some(sockets),
        Err(error) => {
            tracing::warn!(%server, %error, "a name server cannot be asked");
            None
        }
    });
    all.collect()
}

fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().map(str::split_ascii_whitespace);
    lines
        .filter_map(|mut words| match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => address.parse().ok(),
            _ => None,
        })
        .collect()
}

fn sockets(server: IpAddr) -> io::Result<Vec<std::net::UdpSocket>> {
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let one = |_| {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(SocketAddr::from((server, PORT)))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    (0..SOCKETS).map(one).collect()
}

/// Questions that are out, by server, socket and identifier.
type Waiting = HashMap<(usize, usize, u16), oneshot::Sender<Vec<u8>>>;

/// The servers.
pub struct Upstream {
    servers: Vec<Vec<UdpSocket>>,
    waiting: Mutex<Waiting>,
}

impl Upstream {
    /// Serves the sockets, on the current runtime.
    pub fn serve(unserved: Unserved) -> io::Result<Arc<Self>> {
        let mut servers = Vec::with_capacity(unserved.len());
        for sockets in unserved {
            let sockets = sockets.into_iter().map(UdpSocket::from_std);
            servers.push(sockets.collect::<io::Result<Vec<_>>>()?);
        }
        let upstream = Arc::new(Self {
            servers,
            waiting: Mutex::default(),
        });
        for server in 0..upstream.servers.len() {
            for socket in 0..SOCKETS {
                tokio::spawn(Arc::clone(&upstream).listen(server, socket));
            }
        }
        Ok(upstream)
    }

    async fn listen(self: Arc<Self>, server: usize, socket: usize) {
        let mut buffer = vec![0; usize::from(MAX_ANSWER_BYTES)];
        loop {
            match self.servers[server][socket].recv(&mut buffer).await {
                Ok(length @ 2..) => {
                    let id = u16::from_be_bytes([buffer[0], buffer[1]]);
                    if let Some(waits) = self.lock().remove(&(server, socket, id)) {
                        // Who asked may have given up.
                        let _ = waits.send(buffer[..length].to_vec());
                    }
                }
                Ok(_) => {}
                // An ICMP error of an earlier question, mostly.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one server after the other; `message` makes the question with an identifier,
    /// `fits` says whether an answer is one to it.
    pub async fn ask<T>(
        &self,
        message: impl Fn(u16) -> Option<Vec<u8>>,
        fits: impl Fn(&[u8], u16) -> Option<T>,
    ) -> Option<T> {
        for server in 0..self.servers.len() {
            let ticket = Ticket::take(self, server)?;
            let (_, socket, id) = ticket.key;
            let question = message(id)?;
            if self.servers[server][socket].send(&question).await.is_err() {
                continue;
            }
            let heard = tokio::time::timeout(PATIENCE, ticket.answer()).await;
            if let Ok(Some(bytes)) = heard
                && let Some(answer) = fits(&bytes, id)
            {
                return Some(answer);
            }
        }
        None
    }
}

/// A place among those who wait; given up when dropped.
struct Ticket<'a> {
    upstream: &'a Upstream,
    key: (usize, usize, u16),
    answer: Option<oneshot::Receiver<Vec<u8>>>,
}

impl<'a> Ticket<'a> {
    fn take(upstream: &'a Upstream, server: usize) -> Option<Self> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).ok()?;
        let [low, high, socket, _] = random;
        let key = (
            server,
            usize::from(socket) % SOCKETS,
            u16::from_le_bytes([low, high]),
        );
        match upstream.lock().entry(key) {
            // One in a million: who asks asks again.
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                let (sender, receiver) = oneshot::channel();
                place.insert(sender);
                Some(Self {
                    upstream,
                    key,
                    answer: Some(receiver),
                })
            }
        }
    }

    async fn answer(mut self) -> Option<Vec<u8>> {
        self.answer.take()?.await.ok()
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.upstream.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolvers_configuration_names_its_servers() {
        let text = "# a comment\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver x\n";
        let expected: [IpAddr; 2] = [
            Ipv4Addr::new(192, 0, 2, 1).into(),
            "2001:db8::1".parse().unwrap(),
        ];
        assert_eq!(servers(text), expected);
        assert!(open(Path::new("/nonexistent")).is_empty());
    }

    #[tokio::test]
    async fn each_question_gets_its_own_answer_and_leaves_nothing() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sockets = (0..SOCKETS).map(|_| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server.local_addr().unwrap()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let upstream = Upstream::serve(vec![sockets.collect()]).unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            loop {
                let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
                // Another's identifier first: nobody waits for it.
                let mut wrong = buffer;
                wrong[0] ^= 0xff;
                server.send_to(&wrong[..length], peer).await.unwrap();
                server.send_to(&buffer[..length], peer).await.unwrap();
            }
        });
        let ask = |number: u8| {
            let message = move |id: u16| Some([&id.to_be_bytes()[..], &[number]].concat());
            let fits = |bytes: &[u8], _| bytes.get(2).copied();
            let upstream = Arc::clone(&upstream);
            async move { upstream.ask(message, fits).await }
        };
        let asked: Vec<_> = (0..50).map(|number| tokio::spawn(ask(number))).collect();
        for (number, one) in (0..50).zip(asked) {
            assert_eq!(one.await.unwrap(), Some(number));
        }
        assert!(upstream.lock().is_empty());
    }
}
