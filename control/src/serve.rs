//! The process: opens the state, serves until a signal, says when it is ready.

use crate::accounts::{self, Sealer, write_private};
use crate::admin;
use crate::audit::Audit;
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::core::Core;
use crate::fronts::{call::Front, grpc, listen, query, throttle::Throttle, tunnel::Tunnels};
use crate::gateway::session::Gateway;
use crate::janitor;
use crate::store::Store as _;
use anyhow::{Context, Result, ensure};
use ocs_node_api::node_gateway_server::NodeGatewayServer;
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// How often the images manifest is looked at.
const MANIFEST_PERIOD: Duration = Duration::from_secs(2);
/// How a node that went away without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Longest time that a gRPC call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest message of a node: a Hello with everything that it holds.
const MAX_NODE_MESSAGE_BYTES: usize = 64 << 20;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where the state, a certificate or a listener cannot be opened, or the store
/// fails later.
pub async fn run(config: Config) -> Result<()> {
    config.check()?;
    let _lock = config.lock_file.as_deref().map(lock).transpose()?;
    let catalogue = Catalogue::load(config.images_manifest.as_deref())?;
    let sealer = Arc::new(Sealer::open(&config.state.join("seal.key"))?);
    let audit = Audit::open(&config.state)?;
    let core = Arc::new(Core::open(config.clone(), catalogue).await?);
    let bootstrap = accounts::bootstrap(&core, &sealer).await?;
    if let Some(path) = &config.bootstrap_file {
        write_private(path, &serde_json::to_vec_pretty(&bootstrap)?)?;
    }
    let front = Arc::new(Front {
        core: Arc::clone(&core),
        sealer: Arc::clone(&sealer),
        audit,
        throttle: Throttle::new(config.request_rate),
        tunnels: Tunnels::default(),
    });
    let operator = config
        .admin_socket
        .as_deref()
        .map(admin::bind)
        .transpose()?;
    let bind = |address| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))
    };
    let http = bind(config.listen).await?;
    let grpc = bind(config.grpc_listen).await?;
    let nodes = bind(config.node_listen).await?;
    let ready = ready(&core, &http, &grpc, &nodes)?;

    let mut servers = tokio::task::JoinSet::new();
    let tls_of = |protocol| listen::tls(&config.tls_cert, &config.tls_key, protocol);
    let connections = listen::accept(http, tls_of("http/1.1")?);
    let served = Arc::clone(&front);
    servers.spawn(async move {
        query::serve(connections, served).await;
        Ok(())
    });
    let connections = listen::accept(grpc, tls_of("h2")?);
    let routes = grpc::routes(Arc::clone(&front))?;
    servers.spawn(async move {
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .timeout(CALL_TIMEOUT)
            .add_routes(routes);
        server
            .serve_with_incoming(connections)
            .await
            .context("gRPC front")
    });
    servers.spawn(async move {
        front.audit.keep_synced().await;
        Ok(())
    });
    if let Some(socket) = operator {
        let core = Arc::clone(&core);
        servers.spawn(async move {
            admin::serve(socket, core, sealer).await;
            Ok(())
        });
    }
    let gateway = NodeGatewayServer::new(Gateway {
        core: Arc::clone(&core),
    })
    .max_decoding_message_size(MAX_NODE_MESSAGE_BYTES);
    let mut server = Server::builder()
        .tls_config(tls(&config)?)?
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    servers.spawn(async move {
        let server = server.add_service(gateway);
        server
            .serve_with_incoming(TcpListenerStream::new(nodes))
            .await
            .context("node gateway")
    });
    let swept = Arc::clone(&core);
    servers.spawn(async move {
        janitor::run(&swept).await;
        Ok(())
    });
    let watched = Arc::clone(&core);
    servers.spawn(async move { watch_manifest(&watched).await });
    if let Some(path) = &config.ready_file {
        write_private(path, &serde_json::to_vec_pretty(&ready)?)?;
    }
    tracing::info!(%ready, "serving");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut durable = core.store().watch();
    let store_ends = async { while durable.changed().await.is_ok() {} };
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = store_ends => Err(anyhow::anyhow!("the store has failed; see the log")),
        Some(ended) = servers.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a server has ended")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        },
    }
}

/// Holds an exclusive lock on a file, our process id in it.
fn lock(path: &Path) -> Result<std::fs::File> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{} is locked: another ocs-control runs", path.display()))?;
    file.set_len(0)?;
    write!(file, "{}", std::process::id())?;
    Ok(file)
}

fn tls(config: &Config) -> Result<ServerTlsConfig> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let identity = Identity::from_pem(read(&config.tls_cert)?, read(&config.tls_key)?);
    let authority = Certificate::from_pem(read(&config.tls_ca)?);
    Ok(ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(authority))
}

/// What `ocs up` wants to know.
fn ready(
    core: &Core,
    http: &TcpListener,
    grpc: &TcpListener,
    nodes: &TcpListener,
) -> Result<serde_json::Value> {
    let config = &core.config;
    ensure!(!config.regions.is_empty(), "there is no region");
    let mut images = serde_json::Map::new();
    let mut zones = serde_json::Map::new();
    for region in &config.regions {
        let catalogue = core.images();
        let ids = catalogue
            .images
            .iter()
            .map(|i| (i.name.clone(), i.id(region).to_string().into()));
        images.insert(region.clone(), serde_json::Value::Object(ids.collect()));
        zones.insert(region.clone(), config.zones_of(region).into());
    }
    Ok(json!({
        "pid": std::process::id(),
        "listen": http.local_addr()?.to_string(),
        "grpc_listen": grpc.local_addr()?.to_string(),
        "node_listen": nodes.local_addr()?.to_string(),
        "images": images,
        "zones": zones,
    }))
}

/// Reads the images manifest again when it changes, and at SIGHUP. A manifest
/// that is wrong leaves the images as they were.
async fn watch_manifest(core: &Core) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let manifest = core.config.images_manifest.clone();
    let stamp = || -> Option<SystemTime> {
        std::fs::metadata(manifest.as_deref()?)
            .and_then(|meta| meta.modified())
            .ok()
    };
    // As of before the first read: a change since then is seen once more.
    let mut seen = None;
    loop {
        let forced = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(MANIFEST_PERIOD) => false,
        };
        let now = stamp();
        if now == seen && !forced {
            continue;
        }
        seen = now;
        match Catalogue::load(manifest.as_deref()) {
            Ok(catalogue) => {
                *core
                    .catalogue
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = Arc::new(catalogue);
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "images manifest"),
        }
    }
}
