//! `ocs-control`: see the library.

use clap::Parser as _;
use ocs_control::{config::Config, serve};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        // A full disk under the log must not end the service.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
    serve::run(Config::parse()).await
}
