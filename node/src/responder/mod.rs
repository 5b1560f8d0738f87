//! `ocs-responder`: DHCP, DHCPv6, the instance metadata service (IMDS) and DNS for guests.
//!
//! ```text
//!  guest ─ tap ─ XDP (source := the ENI's service address) ─▶ svc1, netns `svc`
//!                                                               │ UDP 67, 547, TCP 80, 53
//!    run/responder/169.254.x.y.json ◀── node              ┌─────▼─────┐
//!        [record]   └────────── read per request ────────▶│ peer addr │ identifies the ENI
//!                                                         └───────────┘
//! ```
//! The responder trusts nothing in a request but its peer's address. It needs no
//! process above it: what it may tell is in the records, and the key of its
//! tokens is on disk.

pub mod dhcp;
pub mod dhcp6;
pub mod dns;
mod identity;
mod imds;
mod limits;
mod place;
pub mod record;
mod router;
mod sandbox;
mod serve;
#[cfg(test)]
mod testing;
mod token;
mod tree;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// How often the responder looks whether its namespace is still the right one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where the responder works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The records' folder.
    pub records: PathBuf,
    /// The tokens' key, made where there is none.
    pub token_key: PathBuf,
    /// The folder with a key and a certificate a region, which sign identity documents;
    /// there or not.
    pub identities: PathBuf,
    /// What names the host's own resolvers, which are asked for what no VPC knows.
    pub resolv_conf: PathBuf,
    /// The namespace to serve in, waited for; the caller's own where there is none.
    pub netns: Option<PathBuf>,
    /// The interface that guests are behind.
    pub interface: String,
    /// Whom to become once the sockets are bound, uid and gid.
    pub identity: Option<(u32, u32)>,
}

/// Why the responder ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key cannot be read or made.
    #[error("token key {path}: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The keys of identity documents cannot be read.
    #[error("keys of identity documents: {0}")]
    Identities(io::Error),
    /// Namespace or sockets.
    #[error("entering {netns:?} to serve on {interface}: {source}")]
    Enter {
        /// The namespace.
        netns: Option<PathBuf>,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Root could not be given up.
    #[error("becoming uid {uid}, gid {gid}: {source}")]
    Identity {
        /// The uid.
        uid: u32,
        /// The gid.
        gid: u32,
        /// Why.
        source: io::Error,
    },
    /// The rest of the system could not be given up.
    #[error("entering the sandbox: {0}")]
    Sandbox(io::Error),
    /// The system refused what every process may do.
    #[error("starting to serve: {0}")]
    Runtime(#[from] io::Error),
    /// The namespace or the interface was replaced: to be started again.
    #[error("{interface} is not where guests are any more")]
    Replaced {
        /// The interface.
        interface: String,
    },
}

/// Serves until SIGTERM or SIGINT; an error means that it should be started again.
///
/// Call it from a process with one thread: namespace and identity are a thread's.
pub fn run(config: &Config) -> Result<(), Error> {
    let key = token::TokenKey::load_or_create(&config.token_key).map_err(|source| Error::Key {
        path: config.token_key.clone(),
        source,
    })?;
    let signers = identity::load(&config.identities).map_err(Error::Identities)?;
    // The host's resolvers are reached from the host's namespace, which is left next.
    let upstream = dns::upstream::open(&config.resolv_conf);
    let place = place::enter(config).map_err(|source| Error::Enter {
        netns: config.netns.clone(),
        interface: config.interface.clone(),
        source,
    })?;
    if let Some((uid, gid)) = config.identity {
        place::drop_privileges(uid, gid).map_err(|source| Error::Identity { uid, gid, source })?;
    }
    sandbox::enter(&config.records).map_err(Error::Sandbox)?;
    let records = config.records.clone();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            let service = Arc::new(serve::Service {
                records,
                key,
                signers,
                limits: Arc::default(),
                upstream: dns::upstream::Upstream::serve(upstream)?,
            });
            serve_in(place, service).await
        })
}

async fn serve_in(place: place::Place, service: Arc<serve::Service>) -> Result<(), Error> {
    let dhcp = UdpSocket::from_std(place.dhcp.try_clone()?)?;
    let imds = TcpListener::from_std(place.imds.try_clone()?)?;
    if let Some(place::Ipv6 { dhcp, imds, router }) = &place.ipv6 {
        let dhcp = UdpSocket::from_std(dhcp.try_clone()?)?;
        let router = router.try_clone()?;
        let imds = TcpListener::from_std(imds.try_clone()?)?;
        let asked = Arc::clone(&service);
        tokio::spawn(async move { serve::dhcp(&asked, &dhcp, Some(&router)).await });
        let asked = Arc::clone(&service);
        tokio::spawn(async move { serve::imds(asked, &imds).await });
    }
    for socket in &place.dns_datagrams {
        let socket = Arc::new(UdpSocket::from_std(socket.try_clone()?)?);
        tokio::spawn(dns::serve::datagrams(Arc::clone(&service), socket));
    }
    for listener in &place.dns_connections {
        let listener = Arc::new(TcpListener::from_std(listener.try_clone()?)?);
        tokio::spawn(dns::serve::connections(Arc::clone(&service), listener));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(interface = place.interface(), "serving");
    let gone = async {
        while !place.is_gone() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        never = serve::dhcp(&service, &dhcp, None) => match never {},
        never = serve::imds(Arc::clone(&service), &imds) => match never {},
        () = gone => Err(Error::Replaced { interface: place.interface().to_owned() }),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
