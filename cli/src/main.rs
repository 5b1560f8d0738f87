//! `ocs`: the operator's command.
//!
//! ```text
//!  ocs up ────────▶ state folders, certificates, images   [state, images, up::pki]
//!     │             four parts, kept running              [up::parts, up::supervise]
//!     └───────────▶ the env file, once all of it serves   [up::ready]
//!  ocs host add ────▶ a file with which another host joins [host]
//!  ocs image import ▶ DIR/images and its manifest         [image, images]
//!  ocs volume ──────▶ disks from and to files, erasures   [volume]
//!  ocs account, key ▶ tenants and their access keys       [account]
//!  ocs audit verify ▶ the audit log's hash chain          [account]
//!  ocs status ──────▶ which parts run, how many instances [status]
//!  ocs connect ─────▶ a tunnel to an instance's port        [connect]
//!  ocs explain, top, metrics, capture ▶ the packet path  [evidence]
//! ```
//! Start reading at [`up::run`].

mod account;
mod connect;
mod console;
mod evidence;
mod host;
mod image;
mod images;
mod part;
mod state;
mod status;
mod up;
mod volume;

use clap::{Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// A private cloud with EC2's API.
#[derive(Parser)]
#[command(name = "ocs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole system on this host until Ctrl-C; or, joined to another, its part of it.
    Up(up::Arguments),
    /// Other hosts of an installation.
    #[command(subcommand)]
    Host(host::Hosts),
    /// Public images of an installation.
    #[command(subcommand)]
    Image(image::Command),
    /// Volumes of this host.
    #[command(subcommand)]
    Volume(volume::Command),
    /// Accounts of tenants.
    #[command(subcommand)]
    Account(account::Accounts),
    /// Access keys of accounts.
    #[command(subcommand)]
    Key(account::Keys),
    /// The audit log.
    #[command(subcommand)]
    Audit(account::Audit),
    /// Shows which parts run and how many instances.
    Status(status::Arguments),
    /// Says what would become of a packet, and by which mapping, rule or flow.
    Explain(evidence::Explain),
    /// Shows what became of each network interface's packets.
    Top(evidence::Place),
    /// The same, and network credits, in Prometheus' text format.
    Metrics(evidence::Place),
    /// Writes a network interface's frames to a pcapng file.
    Capture(evidence::Capture),
    /// Carries standard input and output to a port of an instance, and back.
    Connect(connect::Arguments),
    /// Shows what an instance of this host writes to its serial console.
    Console(console::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Host(command) => host::run(&command),
        Command::Image(image::Command::Import(arguments)) => image::import(&arguments),
        Command::Image(image::Command::Export(arguments)) => image::export(&arguments),
        Command::Volume(command) => volume::run(&command),
        Command::Account(command) => account::accounts(&command),
        Command::Key(command) => account::keys(&command),
        Command::Audit(command) => account::audit(&command),
        Command::Status(arguments) => status::run(&arguments),
        Command::Explain(arguments) => evidence::explain(&arguments),
        Command::Top(place) => evidence::top(&place),
        Command::Metrics(place) => evidence::metrics(&place),
        Command::Capture(arguments) => evidence::capture(&arguments),
        Command::Connect(arguments) => connect::run(&arguments),
        Command::Console(arguments) => console::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line for the operator; a backtrace would bury it.
            let _ = writeln!(std::io::stderr(), "ocs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
