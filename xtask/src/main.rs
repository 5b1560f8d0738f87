//! `cargo xtask`: everything a developer or CI runs, each in one command.
//!
//! ```text
//!  build ── guest (probe.elf) ─┐
//!        └─ BPF (.bpf.o) ──────┴─▶ target/artifacts ─▶ host binaries embed them
//!  test ─── gates · unit · kernel · system · lab · fuzz      one table of counts
//!  demo ─── `ocs up` + aws CLI ─▶ table of checks with evidence
//!  lab ──── QEMU host with AMD-V, restored from a snapshot ─▶ stock Linux guests
//! ```
//! What a command needs and the machine lacks, [`setup`] installs, saying so.

mod bench;
mod build;
mod demo;
mod fuzz;
mod gates;
mod lab;
mod licences;
mod places;
mod setup;
mod sh;
mod test;
mod toolchain;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of Open Cloud System"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the probe guest, the BPF programs and the host binaries
    Build {
        /// Optimised, as it is measured and deployed
        #[arg(long)]
        release: bool,
    },
    /// Build the BPF programs alone
    BuildEbpf,
    /// Build the probe guest alone
    BuildGuest,
    /// Run every kind of test, as CI does
    Test(test::Options),
    /// Show the whole system through the real aws CLI, with evidence for each claim
    Demo(demo::Options),
    /// Fuzz the parsers of hostile bytes
    Fuzz(fuzz::Options),
    /// Open the emulated host, or run a command in it
    Lab {
        #[command(subcommand)]
        action: Option<lab::Action>,
    },
    /// Compare with a named peer in one run
    Bench {
        /// boot, net, block, qos or api
        area: String,
        /// End within a minute
        #[arg(long)]
        quick: bool,
        /// Only the cases whose names contain this; repeatable.
        #[arg(long)]
        only: Vec<String>,
    },
    /// Formatting, lints, documentation, licences
    Ci,
    /// Install what the commands need, or print how
    Setup,
    /// Generate the EC2 tables from AWS's published service model
    GenEc2,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("\x1b[1;31merror:\x1b[0m {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out one command. Yields the exit code.
fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Build { release } => build::all(build::Profile::of(release)).map(drop),
        Command::BuildEbpf => build::ebpf(),
        Command::BuildGuest => build::guest(),
        Command::Test(options) => test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Lab { action } => return lab::run(action),
        Command::Bench { area, quick, only } => bench::run(&area, quick, &only),
        Command::Ci => gates::all(),
        Command::Setup => setup::everything(),
        Command::GenEc2 => build::generate_ec2(),
    }?;
    Ok(0)
}
