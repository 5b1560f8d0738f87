//! The end of `ocs up`: instances stopped as a host stops them, and nothing left
//! of the node but its state.

use super::engine::Engine;
use super::machine::Machine;
use super::netns;
use super::outbox::Outbox;
use ocs_dataplane::fabric::{Fabric, FabricConfig};
use std::sync::Arc;
use std::time::Duration;

/// Beside the guests' grace: stopping, killing, erasing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops every instance (`Server.ScheduledStop`, durably), then removes the packet
/// path, namespaces, control groups and run directories.
pub async fn cleanup(machine: Arc<Machine>) -> anyhow::Result<()> {
    let patience = machine.config.stop_grace + PATIENCE;
    let outbox = Arc::new(Outbox::new(machine.boot_id.clone()));
    let down = Engine::start(Arc::clone(&machine), outbox, true)
        .await?
        .run_down(patience)
        .await;
    anyhow::ensure!(
        down,
        "not every instance came down within {} s; `ocs-node cleanup` may be run again",
        patience.as_secs()
    );
    tokio::task::spawn_blocking(move || remove_all(&machine)).await?
}

fn remove_all(machine: &Machine) -> anyhow::Result<()> {
    let layout = &machine.config.layout;
    Fabric::destroy(&FabricConfig::under(&layout.run()))?;
    netns::remove(&layout.void_netns())?;
    machine.cgroups.remove_all()?;
    for folder in [
        layout.instances(),
        layout.responder(),
        layout.run().join("netns"),
    ] {
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}
