//! Wrong systems, made of the right one and something bad between it and its clients.

use super::clients::Site;
use super::model::{Ask, Told};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Nothing is.
    Nothing,
    /// A rule that was confirmed is gone a moment later.
    LostUpdate,
    /// An interface is given the address of another.
    DoubleAddress,
}

/// The operation of its kind that goes wrong.
const TURN: usize = 5;

/// What goes wrong at one VPC.
#[derive(Debug, Default)]
pub struct Trouble {
    turns: AtomicUsize,
    forged: Mutex<Option<(String, u8)>>,
}

impl Trouble {
    /// What a client is told instead.
    pub fn instead(&self, plant: Plant, site: &Site, ask: &Ask, told: Told) -> Told {
        match (plant, ask, told) {
            (Plant::LostUpdate, Ask::Allow(port), Told::Done) => {
                if self.turns.fetch_add(1, Ordering::Relaxed) == TURN {
                    site.told(&Ask::Forbid(*port), "planted");
                }
                Told::Done
            }
            (Plant::DoubleAddress, Ask::AddInterface(None), Told::Interface(id, address)) => {
                let taken = site.an_address_in_use(&id);
                if let Some(taken) = taken
                    && self.turns.fetch_add(1, Ordering::Relaxed) == TURN
                {
                    *self.forged.lock().unwrap() = Some((id.clone(), taken));
                    return Told::Interface(id, taken);
                }
                Told::Interface(id, address)
            }
            (Plant::DoubleAddress, Ask::Interfaces, Told::Interfaces(mut seen)) => {
                if let Some((id, address)) = &*self.forged.lock().unwrap()
                    && let Some(shown) = seen.get_mut(id)
                {
                    *shown = *address;
                }
                Told::Interfaces(seen)
            }
            (_, _, told) => told,
        }
    }
}
