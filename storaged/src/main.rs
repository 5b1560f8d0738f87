//! `ocs-storaged`: the block daemon; `ocs-storaged serve`: one volume by hand.

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ocs_storaged::memory::Trust;
use ocs_storaged::serve;
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "Serves volumes to VMMs over vhost-user-blk")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
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
    /// Queues to offer
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Accept shared memory that the frontend can truncate, which lets it crash this process
    #[arg(long)]
    allow_unsealed_memory: bool,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Some(Command::Serve(args)) => serve::run(&serve::Options {
            listen: args.listen,
            file: args.file,
            size_bytes: args.size_bytes,
            read_only: args.read_only,
            queues: args.queues,
            trust: if args.allow_unsealed_memory {
                Trust::Frontend
            } else {
                Trust::SealedOnly
            },
        }),
        None => Err(anyhow::anyhow!("nothing to do")).context("see --help"),
    }
}
