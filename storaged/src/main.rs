//! `ocs-storaged`: the block daemon; `ocs-storaged serve`: one volume by hand.

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use ocs_storaged::memory::Trust;
use ocs_storaged::scrub::Pace;
use ocs_storaged::{daemon, serve};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(version, about = "Serves volumes to VMMs over vhost-user-blk")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    daemon: Option<DaemonArgs>,
}

#[derive(Args)]
struct DaemonArgs {
    /// Folder of the volume table and the volumes
    #[arg(long)]
    state: PathBuf,
    /// Folder of first contents, read only
    #[arg(long)]
    images: PathBuf,
    /// Where to bind the control socket
    #[arg(long, visible_alias = "socket")]
    control: PathBuf,
    /// A uid that may use the control socket, besides root and our own
    #[arg(long)]
    allow_uid: Option<u32>,
    /// Take over from the storaged that runs on this folder, if one does; its guests
    /// see a pause of milliseconds
    #[arg(long)]
    take_over: bool,
    /// Threads that do I/O; as many as CPUs, at most 4, unless given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// Bytes a second that scrubbing reads of frozen layers; 0: none
    #[arg(long, default_value_t = 8 << 20)]
    scrub_bytes_s: u64,
    /// Seconds from the end of one scrub to the start of the next
    #[arg(long, default_value_t = 3600)]
    scrub_pause_s: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Serves one file on a listening socket, without table or control socket
    Serve(ServeArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Where to listen
    #[arg(long)]
    listen: PathBuf,
    /// The file to serve; without it reads give zeros and writes go nowhere
    #[arg(long)]
    file: Option<PathBuf>,
    /// Size in bytes where there is no file
    #[arg(long, default_value_t = 1 << 30)]
    size_bytes: u64,
    /// Offer the disk read-only
    #[arg(long)]
    read_only: bool,
    /// Encrypt what is written under a new key that dies with this process
    #[arg(long)]
    encrypt: bool,
    /// Queues to offer
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Accept shared memory that the frontend can truncate, which lets it crash this process
    #[arg(long)]
    allow_unsealed_memory: bool,
}

fn default_shards() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(4))
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        // A full disk under the log must not end the daemon.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    match (cli.command, cli.daemon) {
        (Some(Command::Serve(args)), _) => serve::run(&serve::Options {
            listen: args.listen,
            file: args.file,
            size_bytes: args.size_bytes,
            read_only: args.read_only,
            encrypt: args.encrypt,
            queues: args.queues,
            trust: if args.allow_unsealed_memory {
                Trust::Frontend
            } else {
                Trust::SealedOnly
            },
        }),
        (None, Some(args)) => daemon::run(&daemon::Options {
            state: args.state,
            images: args.images,
            control: args.control,
            allow_uid: args.allow_uid,
            take_over: args.take_over,
            shards: args.shards.map_or_else(default_shards, usize::from),
            scrub: (args.scrub_bytes_s > 0).then_some(Pace {
                bytes_s: args.scrub_bytes_s,
                pause: Duration::from_secs(args.scrub_pause_s),
            }),
        }),
        (None, None) => bail!("--state, --images and --control are needed; see --help"),
    }
}
