//! What guests' drivers accept: an interface whose driver declined every offload goes by XDP.
//!
//! ```text
//!  VMM ─ a driver came or went ─▶ hear ─ withdraw_offloads ─▶ VMM ─ ok ─▶ Network::finish_tap
//! ```
//! A tap begins with the packet path's twin for unfinished frames, since a driver chooses after
//! its frames may flow. Once the VMM has withdrawn the offer no unfinished frame can come by that
//! tap any more, whatever drivers follow; the next run of the instance has other taps. A node that
//! restarts asks again, and all of it may be said twice.

use super::engine::backoff;
use super::error::{Doing, EffectError};
use super::hotplug::Devices;
use super::machine::Machine;
use super::owner::RunDir;
use super::vmm;
use ocs_vmm_spec::control::{DeviceState, DeviceStatus, MAX_LINE_BYTES, Reply, Request};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// The VMM protocol that tells of drivers.
const TELLS_OF_DRIVERS: u32 = 3;

/// Acts on what the drivers of instance `id` do, until its VMM is too old to tell of it or the
/// task is ended; not where the packet path does nothing about it, lest offers be withdrawn for
/// nothing.
pub(super) async fn hear(machine: Arc<Machine>, id: String) {
    if !machine.board.network().finishes_taps() {
        return;
    }
    let mut failures = 0;
    while let Err(error) = hear_connected(&machine, &id, &mut failures).await {
        failures += 1;
        tracing::debug!(instance = id, %error, "what its drivers accept is asked again");
        tokio::time::sleep(backoff(failures)).await;
    }
}

/// [`hear`] over one connection, on which the VMM answers when something has happened.
async fn hear_connected(
    machine: &Arc<Machine>,
    id: &str,
    failures: &mut u32,
) -> Result<(), EffectError> {
    let dir = RunDir::of(&machine.config.layout, id);
    let stream = vmm::connect(&dir).doing("the VMM's control socket")?;
    stream.set_nonblocking(true).doing("its connection")?;
    let stream = UnixStream::from_std(stream).doing("its connection")?;
    let mut stream = BufReader::new(stream);
    let mut request = Request::Status;
    loop {
        let (protocol, devices, changes) = ask(&mut stream, &request).await?;
        if protocol < TELLS_OF_DRIVERS {
            return Ok(());
        }
        let (machine, of) = (Arc::clone(machine), id.to_owned());
        let done = tokio::task::spawn_blocking(move || machine.finish_taps(&of, &devices)).await;
        done.unwrap_or_else(|error| Err(EffectError::Transient(error.to_string())))?;
        *failures = 0;
        request = Request::AwaitChange { seen: changes };
    }
}

/// The VMM's protocol, devices and count of changes.
async fn ask(
    stream: &mut BufReader<UnixStream>,
    request: &Request,
) -> Result<(u32, Devices, u64), EffectError> {
    let what = "the VMM's answer";
    let mut line = serde_json::to_vec(request)
        .map_err(std::io::Error::from)
        .doing(what)?;
    line.push(b'\n');
    stream.write_all(&line).await.doing(what)?;
    let mut reply = String::new();
    let mut limited = (&mut *stream).take(MAX_LINE_BYTES as u64);
    limited.read_line(&mut reply).await.doing(what)?;
    match serde_json::from_str(&reply)
        .map_err(std::io::Error::from)
        .doing(what)?
    {
        Reply::Status {
            protocol,
            devices,
            changes,
            ..
        } => Ok((protocol, devices, changes)),
        other => Err(EffectError::Transient(format!(
            "the VMM answered {other:?}"
        ))),
    }
}

impl Machine {
    /// Has the packet path forward by XDP for those of `devices` whose drivers declined offloads.
    pub(super) fn finish_taps(&self, id: &str, devices: &Devices) -> Result<(), EffectError> {
        let dir = RunDir::of(&self.config.layout, id);
        let declined =
            |nic: &DeviceStatus| nic.state == DeviceState::Plugged && nic.declined_offloads();
        for (eni, _) in devices.iter().filter(|(_, nic)| declined(nic)) {
            let owner = dir.owner();
            let tap = owner.and_then(|owner| owner.taps.get(eni).copied());
            // Of one that is being plugged in `owner.json` tells soon.
            let unknown = || EffectError::Transient(format!("{eni} has no tap yet"));
            let tap = tap.ok_or_else(unknown)?;
            self.ask_vmm(&dir, &Request::WithdrawOffloads { id: eni.clone() }, &[])?;
            self.board.network().finish_tap(tap)?;
        }
        Ok(())
    }
}
