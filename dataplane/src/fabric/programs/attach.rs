//! Programs on interfaces: attached, pinned, swapped, taken off.

use std::fs;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};

use super::{ONWARD, OUTER, OUTSIDE, PASS, PORT, PORT_BUFFER, Programs, SVC, UPLINK, failed};
use crate::fabric::bpffs::{BUFFER_LINK, Before, Pins};
use crate::fabric::error::{FabricError, file};
use crate::fabric::{bpf, links};

fn link_failed(pin: &Path) -> impl FnOnce(LinkError) -> FabricError {
    let name = pin.display().to_string();
    move |error| FabricError::Link {
        name,
        reason: error.to_string(),
    }
}

/// Attaches a program and pins the link; where a link is in force, swaps its program. One that
/// a predecessor of another layout holds stays until it is succeeded.
pub(super) fn attach(
    program: &mut Xdp,
    name: &'static str,
    pins: &Pins,
    link: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<(), FabricError> {
    let pin = &pins.link(link);
    if pins.is_held(link)? {
        return Ok(());
    }
    if pin.exists() {
        if update(program, name, pin)? {
            return Ok(());
        }
        fs::remove_file(pin).map_err(file("remove", pin))?;
    }
    let id = program
        .attach_to_if_index(ifindex, mode)
        .map_err(failed(name))?;
    let link = program.take_link(id).map_err(failed(name))?;
    pin_link(FdLink::try_from(link), pin)
}

fn pin_link(link: Result<FdLink, LinkError>, pin: &Path) -> Result<(), FabricError> {
    let pinned = link.map_err(link_failed(pin))?.pin(pin);
    pinned.map_err(|error| FabricError::Link {
        name: pin.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(())
}

/// [`attach`] of a program of socket buffers, by an interface's name.
pub(super) fn attach_buffer(
    program: &mut SchedClassifier,
    name: &'static str,
    pins: &Pins,
    link: &str,
    interface: &str,
) -> Result<(), FabricError> {
    let pin = &pins.link(link);
    if pins.is_held(link)? {
        return Ok(());
    }
    if pin.exists() {
        if update_buffer(program, name, pin)? {
            return Ok(());
        }
        fs::remove_file(pin).map_err(file("remove", pin))?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(interface, TcAttachType::Ingress, options)
        .map_err(failed(name))?;
    let link = program.take_link(id).map_err(failed(name))?;
    pin_link(FdLink::try_from(link), pin)
}

/// [`update`] of a program of socket buffers.
pub(super) fn update_buffer(
    program: &mut SchedClassifier,
    name: &'static str,
    pin: &Path,
) -> Result<bool, FabricError> {
    let link = PinnedLink::from_pin(pin).map_err(link_failed(pin))?;
    let link = SchedClassifierLink::try_from(FdLink::from(link)).map_err(link_failed(pin))?;
    let updated = program.attach_to_link(link);
    swapped(updated.and_then(|id| program.take_link(id).map(drop)), name)
}

/// Whether a link was swapped; its interface may be gone.
fn swapped(updated: Result<(), ProgramError>, name: &'static str) -> Result<bool, FabricError> {
    match updated {
        Ok(()) => Ok(true),
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            Ok(false)
        }
        Err(error) => Err(failed(name)(error)),
    }
}

/// Swaps the program of a pinned link. `false`: its interface is gone.
pub(super) fn update(
    program: &mut Xdp,
    name: &'static str,
    pin: &Path,
) -> Result<bool, FabricError> {
    let link = PinnedLink::from_pin(pin).map_err(link_failed(pin))?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(link_failed(pin))?;
    let updated = program.attach_to_link(link);
    swapped(updated.and_then(|id| program.take_link(id).map(drop)), name)
}

impl Programs {
    /// Swaps the programs of links that a predecessor of another layout holds in force, and
    /// makes them ours. What must be loaded for that is loaded first; a link that fails keeps
    /// no other from it.
    pub(in crate::fabric) fn succeed(
        &mut self,
        pins: &Pins,
        before: &Before,
    ) -> Result<(), FabricError> {
        let held = before.links()?;
        for (link, _) in &held {
            if link.starts_with(BUFFER_LINK) || link == ONWARD {
                self.load_classifier(program_of(link))?;
            } else {
                self.load(program_of(link))?;
            }
        }
        let mut failure = Ok(());
        for (link, theirs) in &held {
            if let Err(error) = self.succeed_link(pins, link, theirs) {
                tracing::error!(link, %error, "a predecessor's program stays in force");
                failure = failure.and(Err(error));
            }
        }
        failure
    }

    /// The pin moves last: until then the link is one of those to be swapped.
    fn succeed_link(&mut self, pins: &Pins, link: &str, pin: &Path) -> Result<(), FabricError> {
        let name = program_of(link);
        let lives = if link.starts_with(BUFFER_LINK) || link == ONWARD {
            update_buffer(self.load_classifier(name)?, name, pin)?
        } else {
            update(self.load(name)?, name, pin)?
        };
        if lives {
            fs::rename(pin, pins.link(link)).map_err(file("move", pin))
        } else {
            fs::remove_file(pin).map_err(file("remove", pin))
        }
    }
}

/// The program of a link, by the link's name.
fn program_of(link: &str) -> &'static str {
    match link {
        links::SVC0 => SVC,
        links::SVC1 | OUTER => PASS,
        UPLINK => UPLINK,
        OUTSIDE => OUTSIDE,
        ONWARD => ONWARD,
        buffer if buffer.starts_with(BUFFER_LINK) => PORT_BUFFER,
        _ => PORT,
    }
}

/// The number of the program of a link: another with each load.
pub(in crate::fabric) fn generation(pin: &Path) -> Result<u32, FabricError> {
    let link = PinnedLink::from_pin(pin).map_err(link_failed(pin))?;
    let info = FdLink::from(link).info().map_err(link_failed(pin))?;
    Ok(info.program_id())
}

/// Takes the program off a tap.
pub(in crate::fabric) fn detach(pin: &Path) -> Result<(), FabricError> {
    bpf::detach_link(pin)?;
    fs::remove_file(pin).map_err(file("remove", pin))
}
