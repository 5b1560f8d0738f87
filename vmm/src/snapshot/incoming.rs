//! The destination's side of a live migration: fills new, shared memory, and waits for the word.

use super::SnapshotError;
use super::migrate::{Hello, PROTOCOL, Region};
use super::restore::Loading;
use super::stream::{Channel, Kind};
use crate::machine::Machine;
use crate::memory::{self, GuestRam};
use ocs_vmm_spec::Spec;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// The source may be silent for this long: it sends in rounds, and its guest may have a lot of
/// memory to look through.
const PATIENCE: Duration = Duration::from_secs(120);

/// A machine that has arrived and does not run yet.
pub struct Incoming {
    channel: Channel,
    regions: Vec<(Region, OwnedFd)>,
}

/// Receives the machine that `spec` describes.
pub fn receive(
    stream: UnixStream,
    spec: &Spec,
) -> crate::error::Result<(GuestRam, Loading, Incoming)> {
    let mut channel = Channel::new(stream, PATIENCE).map_err(failed)?;
    let hello = channel.expect(Kind::Hello).map_err(failed)?;
    let hello: Hello = postcard::from_bytes(&hello.body).map_err(failed)?;
    let expected = Hello {
        protocol: PROTOCOL,
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_mib << 20,
    };
    if hello != expected {
        let words = format!("{hello:?} comes, and the spec expects {expected:?}");
        // The source hears of it, if it still listens.
        let _ = channel.send(Kind::Refused, &[words.as_bytes()]);
        return Err(SnapshotError::Migration(words).into());
    }
    let ram = memory::create(spec.memory_mib)?;
    channel.send(Kind::Accept, &[]).map_err(failed)?;
    let mut regions = Vec::new();
    loop {
        let frame = channel.receive().map_err(failed)?;
        match (frame.kind, frame.fd) {
            (Kind::Pages, None) => store(&ram, &frame.body)?,
            (Kind::Region, Some(fd)) if regions.len() < 32 => {
                let region = postcard::from_bytes(&frame.body).map_err(failed)?;
                regions.push((region, fd));
            }
            (Kind::State, None) => {
                let loading = Loading::parse(&frame.body)?;
                loading.check(spec)?;
                return Ok((ram, loading, Incoming { channel, regions }));
            }
            (kind, _) => return Err(failed(format!("{kind:?} came out of order")).into()),
        }
    }
}

impl Incoming {
    /// Hands parts what their predecessors held; before they are loaded.
    pub fn hand_on(&mut self, machine: &Machine) -> Result<(), SnapshotError> {
        for (region, fd) in std::mem::take(&mut self.regions) {
            machine.with_parts(|parts| {
                let part = parts.iter().find(|(name, _)| *name == region.part);
                let (_, part) = part.ok_or_else(|| {
                    SnapshotError::Migration(format!("there is no part {}", region.part))
                })?;
                part.take_over(&region.info, fd)
                    .map_err(|problem| SnapshotError::Part {
                        part: region.part.clone(),
                        problem,
                    })
            })?;
        }
        Ok(())
    }

    /// Tells the source how the load went, and waits until the machine is ours.
    pub fn settle(mut self, loaded: crate::error::Result<()>) -> crate::error::Result<()> {
        if let Err(error) = loaded {
            let words = error.to_string();
            // The source hears of it, if it still listens.
            let _ = self.channel.send(Kind::Refused, &[words.as_bytes()]);
            return Err(error);
        }
        self.channel.send(Kind::Loaded, &[]).map_err(failed)?;
        self.channel.expect(Kind::Go).map_err(failed)?;
        Ok(())
    }
}

/// Writes an offset's pages.
fn store(ram: &GuestRam, body: &[u8]) -> Result<(), SnapshotError> {
    let (at, pages) = body
        .split_first_chunk::<8>()
        .ok_or_else(|| failed("a frame of pages has no offset"))?;
    let mut offset = u64::from_le_bytes(*at);
    for region in ram.iter() {
        if offset < region.len() {
            return region
                .write_slice(pages, MemoryRegionAddress(offset))
                .map_err(failed);
        }
        offset -= region.len();
    }
    Err(failed("pages lie outside memory"))
}

fn failed(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Migration(error.to_string())
}
