//! What plugging disks and interfaces into a running VMM has in common: asking it, and
//! waiting until a device has come or gone.

use super::error::{Doing, EffectError};
use super::machine::{CALL_TIMEOUT, Machine};
use super::owner::RunDir;
use ocs_vmm_spec::control::{DeviceStatus, Reply, Request};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How long a device may take to come or go before it is asked for again.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked after meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// The VMM protocol that has hot-plug.
pub(super) const HOT_PLUG: u32 = 2;

/// A VMM's devices by id.
pub(super) type Devices = BTreeMap<String, DeviceStatus>;

/// The error for a VMM before [`HOT_PLUG`] that would have to plug.
pub(super) fn too_old() -> EffectError {
    let why = "the VMM is too old for hot-plug: stop and start the instance";
    EffectError::Transient(why.to_owned())
}

impl Machine {
    /// The protocol that the VMM speaks, and its devices.
    pub(super) fn devices(&self, dir: &RunDir) -> Result<(u32, Devices), EffectError> {
        match self.ask_vmm(dir, &Request::Status, &[])? {
            Reply::Status {
                protocol, devices, ..
            } => Ok((protocol, devices)),
            other => Err(EffectError::Transient(format!(
                "the VMM answered {other:?}"
            ))),
        }
    }

    /// Asks the VMM; what it refuses may succeed later.
    pub(super) fn ask_vmm(
        &self,
        dir: &RunDir,
        request: &Request,
        passed: &[BorrowedFd<'_>],
    ) -> Result<Reply, EffectError> {
        let reply = self.vmms.call(dir, request, passed, CALL_TIMEOUT);
        match reply.doing("the VMM's control socket")? {
            Reply::Error { message } => Err(EffectError::Transient(message)),
            reply => Ok(reply),
        }
    }

    /// Waits until the device with that id `is` so.
    pub(super) fn await_device(
        &self,
        dir: &RunDir,
        id: &str,
        is: impl Fn(Option<&DeviceStatus>) -> bool,
    ) -> Result<(), EffectError> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let (_, devices) = self.devices(dir)?;
            let device = devices.get(id);
            if is(device) {
                return Ok(());
            }
            if Instant::now() > patience {
                return Err(EffectError::Transient(format!(
                    "device {id} is {device:?} after {PATIENCE:?}"
                )));
            }
            std::thread::sleep(LOOK);
        }
    }
}
