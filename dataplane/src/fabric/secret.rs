//! What numbers of IPv6 addresses outside are made with: random, made once, and kept as long as
//! anything is tracked by them.

use aya::maps::MapData;
use ocs_dataplane_shared::ipv6::layout::Secret;

use super::bpf;
use super::bpffs::Pins;
use super::error::{FabricError, map, system};
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
    getrandom::fill(bytes.as_flattened_mut())
        .map_err(std::io::Error::other)
        .map_err(system("get random numbers"))?;
    maps.set_secret(bytes.map(u64::from_ne_bytes))
}
