//! `ocs-node`: the host agent, or `ocs-node cleanup`: what stops it for good.

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ocs_dataplane::fabric::{Fabric, FabricConfig, UplinkConfig};
use ocs_node::agent::blocks::{Blocks, Perhaps, Storaged};
use ocs_node::agent::cgroup::Cgroups;
use ocs_node::agent::cleanup::cleanup;
use ocs_node::agent::config::Config;
use ocs_node::agent::connect::Endpoints;
use ocs_node::agent::engine::Engine;
use ocs_node::agent::evidence;
use ocs_node::agent::layout::Layout;
use ocs_node::agent::ledger::Ledger;
use ocs_node::agent::lock::PartLock;
use ocs_node::agent::machine::Machine;
use ocs_node::agent::network::{Frozen, Network};
use ocs_node::agent::outbox::Outbox;
use ocs_node::agent::policy::Switchboard;
use ocs_node::agent::session::{Reach, Session};
use ocs_node::agent::vmm::OcsVmm;
use ocs_node::agent::{capacity, netns, privilege, process};
use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Words of control that wait for the engine.
const WORDS: usize = 64;
/// The longest IP packet of a guest where nothing on its way carries less.
const GUEST_MTU: u32 = 1500;
/// Bytes that VXLAN adds to a guest's IP packet.
const TUNNEL_BYTES: u32 = 50;
/// How often we look whether hosts are still reached as they were.
const REFRESH: Duration = Duration::from_secs(1);

/// Makes what control desires of this host true.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(flatten)]
    host: Option<Host>,
    #[command(flatten)]
    serve: Option<Serve>,
    // Not within `serve`: clap takes a group that has one within it for absent.
    #[command(flatten)]
    reach: Reaching,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// With no node running: stop every instance and leave nothing but state.
    Cleanup(Host),
}

#[derive(Args)]
struct Host {
    /// The state folder.
    #[arg(long)]
    state: PathBuf,
    /// First of the user ids of this installation.
    #[arg(long)]
    uid_base: u32,
    /// Seconds that a guest has to obey its power button.
    #[arg(long, default_value_t = 30)]
    stop_grace_s: u64,
    /// The VMM; else the `ocs-vmm` beside this program.
    #[arg(long)]
    vmm: Option<PathBuf>,
}

#[derive(Args)]
struct Serve {
    /// This node's name, the common name of its certificate.
    #[arg(long)]
    name: String,
    /// Control's node port, such as `https://127.0.0.1:7443`.
    #[arg(long)]
    control: String,
    /// The authority of control's certificate (PEM).
    #[arg(long)]
    tls_ca: PathBuf,
    /// Our certificate (PEM).
    #[arg(long)]
    tls_cert: PathBuf,
    /// Its key (PEM).
    #[arg(long)]
    tls_key: PathBuf,
    /// Schedulable vCPUs for each CPU of the host: most instances idle.
    #[arg(long, default_value_t = 256.0)]
    overcommit_cpu: f64,
    /// Schedulable memory for each MiB of the host: guests' memory is backed as they touch it.
    #[arg(long, default_value_t = 32.0)]
    overcommit_memory: f64,
    /// Log every network interface's flows.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    flow_logs: bool,
    /// Made, with our pid, once what runs has been adopted.
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

#[derive(Args)]
struct Reaching {
    /// The interface that leads to other hosts.
    #[arg(long, requires = "underlay_ip")]
    uplink: Option<String>,
    /// Our address on it.
    #[arg(long, requires = "uplink")]
    underlay_ip: Option<Ipv4Addr>,
    /// It leads to the outside, too: public addresses are answered for there.
    #[arg(long, requires = "uplink", conflicts_with = "outside")]
    uplink_outside: bool,
    /// An interface to make into the host's network, as whose outside that serves.
    #[arg(long)]
    outside: Option<String>,
    /// Public addresses that the host's network finds there.
    #[arg(long, requires = "outside", value_delimiter = ',')]
    public_cidrs: Vec<ipnet::IpNet>,
}

impl Reaching {
    /// Attaches the packet path to what leads out of the host.
    fn attach(&self, fabric: &Fabric) -> anyhow::Result<Reach> {
        let mut reach = Reach {
            underlay: None,
            guest_mtu: GUEST_MTU,
            outside: self.uplink_outside || self.outside.is_some(),
        };
        if let (Some(interface), Some(address)) = (&self.uplink, self.underlay_ip) {
            let config = UplinkConfig {
                interface: interface.clone(),
                address,
                outside: self.uplink_outside,
            };
            let mtu = fabric
                .set_uplink(config)
                .with_context(|| format!("--uplink {interface}"))?;
            reach.underlay = Some(address);
            reach.guest_mtu = mtu.saturating_sub(TUNNEL_BYTES).min(GUEST_MTU);
        }
        if let Some(name) = &self.outside {
            fabric
                .set_outside_pair(name, &self.public_cidrs)
                .with_context(|| format!("--outside {name}"))?;
        }
        Ok(reach)
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .init();
    let cli = Cli::parse();
    privilege::keep_needed().context("dropping capabilities")?;
    let host = match (&cli.command, &cli.host) {
        (Some(Command::Cleanup(host)), _) | (None, Some(host)) => host,
        (None, None) => anyhow::bail!("nothing to do; see --help"),
    };
    // Before the runtime: the packet path's loader has one of its own.
    let (machine, fabric, _lock) = machine(host, cli.command.is_none())?;
    let mut reach = Reach::default();
    if let Some(fabric) = fabric {
        reach = cli.reach.attach(&fabric)?;
        let logged = cli.serve.as_ref().is_some_and(|serve| serve.flow_logs);
        show(&machine, &fabric, logged)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = match cli.serve {
        Some(serve) if cli.command.is_none() => runtime.block_on(run(serve, machine, reach)),
        _ => runtime.block_on(cleanup(machine)),
    };
    // A job that waits for storaged must not hold up the end: it is crash-safe.
    runtime.shutdown_background();
    ended
}

/// Lets the operator see what the packet path does.
fn show(machine: &Arc<Machine>, fabric: &Arc<Fabric>, logged: bool) -> anyhow::Result<()> {
    let layout = &machine.config.layout;
    evidence::serve(fabric, &layout.evidence_socket()).context("evidence socket")?;
    if logged {
        let logs =
            evidence::FlowLogs::new(Arc::clone(fabric), layout.flow_logs()).context("flow logs")?;
        let machine = Arc::clone(machine);
        std::thread::Builder::new()
            .name("flow-logs".to_owned())
            .spawn(move || logs.run(|| machine.board.accounts()))?;
    }
    Ok(())
}

async fn run(serve: Serve, machine: Arc<Machine>, reach: Reach) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let outbox = Arc::new(Outbox::new(machine.boot_id.clone()));
    let session = Session {
        control: serve.control,
        ca: serve.tls_ca,
        certificate: serve.tls_cert,
        key: serve.tls_key,
        node: serve.name,
        boot_id: machine.boot_id.clone(),
        vcpus: capacity::vcpus(serve.overcommit_cpu)?,
        memory_mib: capacity::memory_mib(serve.overcommit_memory)?,
        reach,
        layout: machine.config.layout.clone(),
        endpoints: Arc::clone(&machine.endpoints),
    };
    if reach.underlay.is_some() {
        keep_reaching(Arc::clone(&machine))?;
    }
    let engine = Engine::start(machine, Arc::clone(&outbox), false).await?;
    let (words, heard) = mpsc::channel(WORDS);
    let mut session = tokio::spawn(session.keep(outbox, words));
    if let Some(path) = &serve.ready_file {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| path.display().to_string())?;
    }
    tokio::select! {
        () = engine.run(heard) => {}
        ended = &mut session => ended?,
        _ = terminated.recv() => tracing::info!("SIGTERM: what runs goes on"),
        _ = interrupted.recv() => tracing::info!("SIGINT: what runs goes on"),
    }
    Ok(())
}

/// Keeps the way to other hosts up to date.
fn keep_reaching(machine: Arc<Machine>) -> std::io::Result<()> {
    let refresh = move || {
        loop {
            std::thread::sleep(REFRESH);
            if let Err(error) = machine.board.network().refresh() {
                tracing::warn!(%error, "the way to other hosts");
            }
        }
    };
    std::thread::Builder::new()
        .name("underlay".to_owned())
        .spawn(refresh)?;
    Ok(())
}

/// Everything the node works on, with its folders made and its lock taken.
fn machine(
    host: &Host,
    serves: bool,
) -> anyhow::Result<(Arc<Machine>, Option<Arc<Fabric>>, PartLock)> {
    let state = std::path::absolute(&host.state)?;
    let layout = Layout::new(&state);
    let config = Config {
        uid_base: host.uid_base,
        vmm: match &host.vmm {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("ocs-vmm"),
        },
        stop_grace: Duration::from_secs(host.stop_grace_s),
        layout: layout.clone(),
    };
    folder(&layout.run(), 0o755, None)?;
    let lock = PartLock::take(&layout.node_lock())?;
    folder(&state.join("node"), 0o700, None)?;
    folder(&layout.instances(), 0o711, None)?;
    folder(&layout.consoles(), 0o700, None)?;
    folder(&layout.responder(), 0o750, Some(config.responder_gid()))?;
    let storaged = Storaged::new(layout.storaged_socket());
    let fabric = match serves {
        true => {
            let places = FabricConfig::under(&layout.run());
            Some(Arc::new(Fabric::open(places).context("packet path")?))
        }
        false => None,
    };
    let (network, blocks): (Box<dyn Network>, Box<dyn Blocks>) = match &fabric {
        Some(fabric) => (Box::new(Arc::clone(fabric)), Box::new(storaged)),
        None => (Box::new(Frozen), Box::new(Perhaps(storaged))),
    };
    let machine = Machine {
        ledger: Ledger::open(&layout.ledger())?,
        blocks,
        board: Switchboard::new(network),
        endpoints: Arc::new(Endpoints::default()),
        vmms: Box::new(OcsVmm),
        cgroups: Cgroups::detect(&state)?,
        netns: Some(netns::open(&layout.void_netns()).context("the VMMs' network namespace")?),
        boot_id: process::boot_id()?,
        config,
    };
    Ok((Arc::new(machine), fabric, lock))
}

fn folder(path: &Path, mode: u32, gid: Option<u32>) -> anyhow::Result<()> {
    let make = || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        chown(path, None, gid)
    };
    make().with_context(|| path.display().to_string())
}
