//! `ocs up`: the whole system on this host, until Ctrl-C.
//!
//! ```text
//!  lock the state ─▶ stop parts that a killed `ocs up` left ─▶ folders, certificates, images
//!        ─▶ control ─▶ storaged, responder, node, each supervised ─▶ both ready ─▶ env file
//!        └ joined to another host: the same without control
//!  SIGINT, SIGTERM ─▶ node ─▶ `ocs-node cleanup` ─▶ responder, storaged, control ─▶ no run/
//! ```
//! A SIGKILL of this process leaves parts and instances running; the next `ocs up`
//! replaces the parts, and the instances never notice.

mod log;
mod memory;
mod parts;
pub mod pki;
mod ready;
mod succession;
mod supervise;

use crate::host::{self, Bundle};
use crate::images;
use crate::part::{Part, Running};
use crate::state::{State, Uids};
use crate::status;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use supervise::Supervisor;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// Where the state lies if nobody says.
pub const DEFAULT_STATE: &str = "/var/lib/ocs";
pub use parts::LOCAL_NAME;

/// Where nodes of other hosts find control, at this host's underlay address.
const NODE_PORT: u16 = 8774;
/// How much of a log is shown where a part fails.
const LOG_LINES: usize = 20;
/// How long a part may take to end before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Arguments of `ocs up`.
#[derive(Args)]
pub struct Arguments {
    /// Where everything is kept; a second `ocs up` finds it again.
    #[arg(long, default_value = DEFAULT_STATE)]
    pub state: PathBuf,
    /// Address of the EC2 API; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8773")]
    pub listen: SocketAddr,
    /// Address of the gRPC API.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub grpc_listen: SocketAddr,
    /// Region names; the first is the default.
    #[arg(long, value_delimiter = ',', default_value = "us-east-1")]
    pub regions: Vec<String>,
    /// Zones of each region.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub zones: u8,
    /// Where to write endpoint and credentials as shell lines once the system serves.
    #[arg(long)]
    pub write_env: Option<PathBuf>,
    /// First of the 100,000 user ids that parts and instances run as (default: by the
    /// state's path, kept with the state).
    #[arg(long)]
    pub uid_base: Option<u32>,
    /// Virtual CPUs to offer for each real one: most instances idle.
    #[arg(long, default_value_t = 256.0)]
    pub overcommit_cpu: f64,
    /// Memory to offer for each byte of real memory: it is backed as guests touch it.
    #[arg(long, default_value_t = 32.0)]
    pub overcommit_memory: f64,
    /// Seconds that a guest may take to shut down at Ctrl-C.
    #[arg(long, default_value_t = 10)]
    pub stop_grace_s: u32,
    /// Address where control waits for nodes (default: port 8774 of --underlay-ip; without
    /// one, this host alone).
    #[arg(long)]
    pub node_listen: Option<SocketAddr>,
    /// What `ocs host add` made for this host on the first one; kept, so it is told once.
    #[arg(long, requires = "uplink", conflicts_with_all = [
        "listen", "grpc_listen", "node_listen", "regions", "zones", "write_env",
    ])]
    pub join: Option<PathBuf>,
    /// Interface that leads to other hosts.
    #[arg(long, requires = "underlay_ip")]
    pub uplink: Option<String>,
    /// This host's address on it.
    #[arg(long, requires = "uplink")]
    pub underlay_ip: Option<Ipv4Addr>,
    /// The uplink leads to the outside, too: public addresses are answered for there.
    #[arg(long, requires = "uplink", conflicts_with = "outside")]
    pub uplink_outside: bool,
    /// Name of an interface to make into this host's network, which then is what instances
    /// with public addresses find outside.
    #[arg(long)]
    pub outside: Option<String>,
    /// Blocks that Elastic IPs are taken from; with `--outside` this host's network finds
    /// them at that interface.
    #[arg(long, value_delimiter = ',')]
    pub public_cidrs: Vec<String>,
    /// Block of which each VPC that asks for IPv6 gets a /56 (`ocs-control` has a unique local
    /// one); with `--outside` this host's network finds it at that interface.
    #[arg(long)]
    pub ipv6_pool: Option<String>,
    /// Leave this host's setting of huge pages for shared memory as it is, instead of making
    /// `never` into `advise`.
    #[arg(long)]
    pub keep_huge_pages: bool,
    /// Log every network interface's flows, in AWS's format, to `DIR/log/flow/`.
    #[arg(long)]
    pub flow_logs: bool,
}

impl Arguments {
    /// Where control waits for nodes.
    fn node_listen(&self) -> SocketAddr {
        self.node_listen.unwrap_or_else(|| match self.underlay_ip {
            Some(address) => (address, NODE_PORT).into(),
            None => (Ipv4Addr::LOCALHOST, 0).into(),
        })
    }
}

/// Where control of a running installation waits for nodes of other hosts.
pub fn control_for_hosts(state: &State) -> Result<SocketAddr> {
    let address = ready::node_listen(state)?;
    ensure!(
        !address.ip().is_loopback(),
        "control hears nodes of this host alone ({address}): run `ocs up` with --uplink and \
         --underlay-ip"
    );
    Ok(address)
}

/// Runs `ocs up`.
pub fn run(arguments: &Arguments) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // `ocs up | tee log` outlives its reader at Ctrl-C, and still has all to clean up.
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    check_host()?;
    let programs = parts::Programs::beside_this_one()?;
    let state = State::at(&arguments.state)?;
    state.check_reachable()?;
    fs::create_dir_all(state.path("run"))
        .with_context(|| state.path("run").display().to_string())?;
    let lock = lock(&state)?;
    let uids = state.uids(arguments.uid_base)?;
    state.make_folders(uids)?;
    if let Some(env) = &arguments.write_env {
        remove(env)?;
    }
    let joined = host::membership(&state, arguments.join.as_deref())?;
    succession::stop_stale_parts(&state)?;
    match &joined {
        Some(bundle) => {
            ensure!(
                arguments.uplink.is_some(),
                "this host, {}, is another's: say by which --uplink and --underlay-ip it reaches \
                 the others",
                bundle.name
            );
            pki::join(&state, uids, bundle)?;
        }
        None => prepare_control(arguments, &state, uids)?,
    }
    for part in Part::ALL {
        // The file that names a storaged names it until its successor's pid is there.
        if part != Part::Storaged || Running::find(&state, part).is_none() {
            make_part_file(&state.lock(part), uids.of(part))?;
        }
    }
    images::remove_leftovers(&state.path("images"))?;
    images::install_probe(&state)?;
    if !arguments.keep_huge_pages {
        memory::allow_huge_pages();
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(serve(&parts::Plan {
            state: &state,
            uids,
            programs: &programs,
            arguments,
            joined: joined.as_ref(),
        }))?;
    drop(lock);
    Ok(())
}

/// Looks whether control can have its addresses, and makes its certificate.
fn prepare_control(arguments: &Arguments, state: &State, uids: Uids) -> Result<()> {
    let nodes = arguments.node_listen();
    ensure!(
        !nodes.ip().is_unspecified(),
        "--node-listen {nodes}: other hosts need an address of this one, not any"
    );
    for (flag, address) in [
        ("--listen", arguments.listen),
        ("--grpc-listen", arguments.grpc_listen),
        ("--node-listen", nodes),
    ] {
        // Taken and let go: control is to have it, but here the error is the operator's.
        TcpListener::bind(address).with_context(|| format!("{flag} {address}"))?;
    }
    pki::renew(state, uids, [arguments.listen.ip(), nodes.ip()])?;
    pki::identities(state, &arguments.regions)
}

async fn serve(plan: &parts::Plan<'_>) -> Result<()> {
    let state = plan.state;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut supervisor = Supervisor::new(state);
    let started = tokio::select! {
        started = start(plan, &mut supervisor) => started.map(|()| true),
        _ = interrupt.recv() => Ok(false),
        _ = terminate.recv() => Ok(false),
    };
    if let Err(error) = &started {
        error!("{error:#}");
        if status::instances(state)? > 0 {
            supervisor.stop_all().await?;
            bail!("the system could not be started; the instances of this state run on");
        }
    }
    if matches!(started, Ok(true)) {
        tokio::select! {
            _ = interrupt.recv() => {},
            _ = terminate.recv() => {},
        }
    }
    stop(plan, supervisor).await?;
    ensure!(started.is_ok(), "the system could not be started");
    Ok(())
}

/// Starts every part and tells the operator once all of them serve.
async fn start(plan: &parts::Plan<'_>, supervisor: &mut Supervisor) -> Result<()> {
    remove(&plan.control_ready())?;
    remove(&plan.node_ready())?;
    let greeting = match plan.joined {
        Some(bundle) => join(plan, supervisor, bundle).await?,
        None => lead(plan, supervisor).await?,
    };
    // Where nobody reads it, the system serves all the same.
    let _ = writeln!(std::io::stdout(), "{greeting}");
    Ok(())
}

/// Serves as the host that control is on.
async fn lead(plan: &parts::Plan<'_>, supervisor: &mut Supervisor) -> Result<String> {
    supervisor.start(plan.control(None));
    let control = ready::control(plan, supervisor).await?;
    // From now on control keeps its addresses, whatever ports were chosen for it.
    supervisor.replace(plan.control(Some(&control)));
    serve_instances(plan, supervisor, LOCAL_NAME, control.node_listen).await?;
    let env = ready::environment(plan, &control)?;
    let write_env = plan.arguments.write_env.as_deref();
    if let Some(path) = write_env {
        crate::state::write_whole(path, env.as_bytes(), 0o600, 0)?;
    }
    Ok(ready::greeting(&env, write_env, &control))
}

/// Serves as another host's.
async fn join(
    plan: &parts::Plan<'_>,
    supervisor: &mut Supervisor,
    bundle: &Bundle,
) -> Result<String> {
    let Bundle { name, control, .. } = bundle;
    serve_instances(plan, supervisor, name, *control).await?;
    Ok(format!(
        "This host, {name}, serves the installation whose control is at {control}\n"
    ))
}

/// Starts what instances need, and waits until it serves.
async fn serve_instances(
    plan: &parts::Plan<'_>,
    supervisor: &mut Supervisor,
    name: &str,
    control: SocketAddr,
) -> Result<()> {
    let predecessor = Running::find(plan.state, Part::Storaged);
    supervisor.start(plan.storaged());
    if let Some(predecessor) = predecessor {
        succession::hand_over(predecessor, supervisor).await?;
    }
    supervisor.start(plan.responder());
    supervisor.start(plan.node(name, control));
    ready::others(plan, supervisor).await
}

/// Stops everything and leaves nothing but what is kept.
async fn stop(plan: &parts::Plan<'_>, mut supervisor: Supervisor) -> Result<()> {
    let parts::Plan {
        arguments,
        state,
        uids,
        programs,
        ..
    } = plan;
    info!("stopping");
    if let Some(env) = &arguments.write_env {
        remove(env)?;
    }
    supervisor.stop(Part::Node).await?;
    let node_log = state.log(Part::Node);
    let cleanup = tokio::process::Command::new(programs.of(Part::Node))
        .arg("cleanup")
        .arg("--state")
        .arg(state.root())
        .args(["--uid-base", &uids.base.to_string()])
        .args(["--stop-grace-s", &arguments.stop_grace_s.to_string()])
        .stdin(Stdio::null())
        .stdout(log::open(&node_log)?)
        .stderr(log::open(&node_log)?)
        .process_group(0)
        .status()
        .await;
    supervisor.stop_all().await?;
    succession::stop_storaged(state)?;
    let cleanup = cleanup.context("running `ocs-node cleanup`")?;
    ensure!(
        cleanup.success(),
        "`ocs-node cleanup` ended with {cleanup}, so {} is kept; the end of {}:\n{}",
        state.path("run").display(),
        node_log.display(),
        log::tail(&node_log, LOG_LINES)
    );
    state.remove_run()?;
    info!("stopped");
    Ok(())
}

fn check_host() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "`ocs up` makes network namespaces and user ids and so needs root: run `sudo ocs up`"
    );
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => bail!(
            "/dev/kvm cannot be opened ({error}): switch on virtualisation in the firmware and load \
             kvm_amd or kvm_intel, or see it run in an emulated host by `cargo xtask demo --lab`"
        ),
    }
}

/// The lock of the one `ocs up` of a state; the parts have locks of their own.
fn lock(state: &State) -> Result<File> {
    let path = state.path("run/up.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        file.read_to_string(&mut pid)?;
        bail!(
            "another `ocs up` (pid {}) serves {}: stop it, or choose another --state",
            pid.trim(),
            state.root().display()
        );
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Where a part's pid goes; its own, so that it may lock it.
fn make_part_file(path: &Path, owner: u32) -> Result<()> {
    let make = || {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(path)?;
        chown(path, Some(owner), Some(owner))
    };
    make().with_context(|| path.display().to_string())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
