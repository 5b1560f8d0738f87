//! `ocs-responder`: DHCP, instance metadata and DNS for the guests of one host.

use clap::Parser;
use ocs_node::responder::{Config, run};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Answers DHCP, instance metadata and DNS requests of this host's guests.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The state folder of `ocs up`.
    #[arg(long)]
    state: PathBuf,
    /// The network namespace to serve in (default: STATE/run/netns/svc).
    #[arg(long)]
    netns: Option<PathBuf>,
    /// The interface that guests are behind.
    #[arg(long, default_value = "svc1")]
    interface: String,
    /// Whom to become once the sockets are bound; not root.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uid: u32,
    /// The group to become.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    gid: u32,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A full disk under the log must not become a panic on stderr.
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    let arguments = Arguments::parse();
    let run_folder = arguments.state.join("run");
    let netns = arguments
        .netns
        .unwrap_or_else(|| run_folder.join("netns/svc"));
    let served = run(&Config {
        records: run_folder.join("responder"),
        token_key: run_folder.join("token.key"),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
        identities: arguments.state.join("pki/identity"),
        netns: Some(netns),
        interface: arguments.interface,
        identity: Some((arguments.uid, arguments.gid)),
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "ended");
            ExitCode::FAILURE
        }
    }
}
