//! What numbers of IPv6 addresses outside are made with: random, made once, and kept as long as
//! anything is tracked by them.

use std::fs::File;
use std::io::Read;

use aya::maps::MapData;
use ocs_dataplane_shared::ipv6::layout::Secret;

use super::bpf;
use super::bpffs::Pins;
use super::error::{FabricError, file, map};
use super::maps::{KernelMaps, SECRETS};

/// Makes sure that there is one: a predecessor's, else a new one.
pub(super) fn ensure(maps: &mut KernelMaps, pins: &Pins) -> Result<(), FabricError> {
    if maps.secret()? != Secret::default() {
        return Ok(());
    }
    for before in pins.before()? {
        let pin = before.map(SECRETS);
        if !pin.exists() {
            continue;
        }
        let theirs = MapData::from_pin(pin).map_err(map(SECRETS))?;
        let found = bpf::look_up(&theirs, &[0; 4], SECRETS)?;
        if let Some(bytes) = found
            && let (words, []) = bytes.as_chunks::<8>()
            && let Ok(words) = <[[u8; 8]; 5]>::try_from(words)
        {
            return maps.set_secret(words.map(u64::from_ne_bytes));
        }
    }
    let mut bytes = [[0; 8]; 5];
    let path = "/dev/urandom".as_ref();
    File::open(path)
        .and_then(|mut random| random.read_exact(bytes.as_flattened_mut()))
        .map_err(file("read", path))?;
    maps.set_secret(bytes.map(u64::from_ne_bytes))
}
