//! The generation id: 16 random bytes that a guest compares to learn that it is a clone.
//!
//! A new machine and every machine restored from files gets its own before it runs; a stock
//! kernel then reseeds its random number generator. Microsoft's "Virtual Machine Generation ID",
//! announced in ACPI ([`super::dsdt`]).

use super::write;
use crate::error::{Result, host};
use crate::layout;
use crate::memory::GuestRam;
use crate::snapshot;

/// Writes a new one; a guest that runs already must be told by
/// [`crate::legacy::power::EVENT_GENERATION`].
pub fn renew(ram: &GuestRam) -> Result<()> {
    let id = snapshot::new_id().map_err(host("make a generation id"))?;
    write(ram, &id, layout::GENERATION_ID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn no_two_are_the_same() {
        let ram = crate::memory::create(16).unwrap();
        let read = || -> u128 { ram.read_obj(GuestAddress(layout::GENERATION_ID)).unwrap() };
        let mut seen = vec![read()];
        for _ in 0..4 {
            renew(&ram).unwrap();
            assert!(!seen.contains(&read()));
            seen.push(read());
        }
    }
}
