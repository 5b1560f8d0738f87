//! What packet logic asks of the maps, and what it decides.

use crate::flow::Bucket;
use crate::layout::{Address, Direction, Endpoint, EndpointKey, Reason, RuleKey, Service, Tap};
use crate::limit::{Limit, Meter};
use crate::log::LogKey;

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more.
    Drop,
    /// Back out of the interface it came in on.
    Bounce,
    /// Out of another port's interface, which is counted there once it worked.
    Redirect {
        /// Whose.
        slot: u32,
        /// Whose frame it was; 0 is the responder.
        from: u32,
    },
}

/// The tables of [`crate::layout`].
pub trait Maps {
    /// Who sends on an interface.
    fn tap(&self, ifindex: u32) -> Option<&Tap>;
    /// Who receives at an address.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;
    /// Whose a service address is.
    fn service(&self, address: Address) -> Option<&Service>;
    /// Whether any prefix of `key` is a rule.
    fn allows(&self, key: &RuleKey) -> bool;
    /// A bucket of a port's flow table.
    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket>;
    /// How fast a port may go one way, and what it has spent of that.
    fn allowance(&self, slot: u32, direction: Direction) -> Option<(&Limit, &Meter)>;
    /// Whether a port's flows are logged.
    fn is_logged(&self, slot: u32) -> bool;
    /// Adds a packet to a port's log.
    fn log(&self, slot: u32, key: &LogKey, bytes: u64);
    /// Jiffies since boot; not 0.
    fn now(&self) -> u64;
    /// Counts a packet.
    fn count(&self, slot: u32, direction: Direction, reason: Reason);
}
