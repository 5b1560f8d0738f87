//! What one ENI may ask of the responder, and all of them together.
//!
//! EC2 allows an ENI 1,024 packets a second to link-local services (EC2 User
//! Guide, "Instance metadata … query throttling"). Packets cost as a guest must
//! send them: [`DATAGRAM`], [`CONNECTION`], [`REQUEST`].

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Packets of a datagram.
pub const DATAGRAM: u32 = 1;
/// Packets of a connection: SYN, ACK, FIN.
pub const CONNECTION: u32 = 3;
/// Packets of a request: itself and the ACK of its answer.
pub const REQUEST: u32 = 2;
const PACKETS_PER_S: u64 = 1024;
/// Allowances are kept in billionths of a packet, so that a nanosecond gives back
/// a whole number of them.
const PACKET: u64 = 1_000_000_000;
const CONNECTIONS_PER_ENI: u32 = 32;
/// Open connections of all ENIs.
pub const CONNECTIONS: u32 = 8192;

/// The account of every ENI that has asked; at most one an address of 169.254.0.0/16.
#[derive(Default)]
pub struct Limits(Mutex<Accounts>);

#[derive(Default)]
struct Accounts {
    enis: HashMap<Ipv4Addr, Account>,
    connections: u32,
}

struct Account {
    billionths: u64,
    at: Instant,
    connections: u32,
}

/// Leave for one open connection; given back when dropped.
pub struct Permit {
    limits: Arc<Limits>,
    peer: Ipv4Addr,
}

impl Limits {
    /// Takes `packets` from the peer's allowance, or tells how long until they are there.
    pub fn take(&self, peer: Ipv4Addr, packets: u32, now: Instant) -> Result<(), Duration> {
        self.lock().account(peer, now).take(packets)
    }

    /// Leave for one more connection, if the peer and all together have any.
    #[must_use]
    pub fn connect(self: &Arc<Self>, peer: Ipv4Addr, now: Instant) -> Option<Permit> {
        let mut accounts = self.lock();
        if accounts.connections >= CONNECTIONS {
            return None;
        }
        let account = accounts.account(peer, now);
        if account.connections >= CONNECTIONS_PER_ENI || account.take(CONNECTION).is_err() {
            return None;
        }
        account.connections += 1;
        accounts.connections += 1;
        Some(Permit {
            limits: Arc::clone(self),
            peer,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn account(&mut self, peer: Ipv4Addr, now: Instant) -> &mut Account {
        let account = self.enis.entry(peer).or_insert(Account {
            billionths: PACKETS_PER_S * PACKET,
            at: now,
            connections: 0,
        });
        let elapsed = now.saturating_duration_since(account.at).as_nanos();
        let regained = u64::try_from(elapsed)
            .unwrap_or(u64::MAX)
            .saturating_mul(PACKETS_PER_S);
        account.billionths = account
            .billionths
            .saturating_add(regained)
            .min(PACKETS_PER_S * PACKET);
        account.at = now;
        account
    }
}

impl Account {
    fn take(&mut self, packets: u32) -> Result<(), Duration> {
        let price = u64::from(packets) * PACKET;
        match self.billionths.checked_sub(price) {
            Some(left) => {
                self.billionths = left;
                Ok(())
            }
            None => {
                let missing = price - self.billionths;
                Err(Duration::from_nanos(missing.div_ceil(PACKETS_PER_S)))
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut accounts = self.limits.lock();
        accounts.connections -= 1;
        if let Some(account) = accounts.enis.get_mut(&self.peer) {
            account.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    const B: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

    #[test]
    fn an_eni_spends_its_own_allowance_and_regains_it() {
        let limits = Limits::default();
        let start = Instant::now();
        for n in 0..1024 {
            assert_eq!(limits.take(A, DATAGRAM, start), Ok(()), "{n}");
        }
        let wait = limits.take(A, DATAGRAM, start).unwrap_err();
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
        assert_eq!(limits.take(B, DATAGRAM, start), Ok(()));
        assert_eq!(limits.take(A, DATAGRAM, start + wait), Ok(()));
        let later = start + Duration::from_secs(3600);
        assert_eq!(limits.take(A, 1024, later), Ok(()));
        assert!(limits.take(A, 1, later).is_err());
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let limits = Arc::new(Limits::default());
        let now = Instant::now();
        let mut permits: Vec<Permit> = (0..CONNECTIONS_PER_ENI)
            .map(|_| limits.connect(A, now).unwrap())
            .collect();
        assert!(limits.connect(A, now).is_none());
        assert!(limits.connect(B, now).is_some());
        permits.pop();
        assert!(limits.connect(A, now).is_some());
        drop(permits);
        assert_eq!(limits.lock().connections, 0);
        assert_eq!(limits.lock().enis[&A].connections, 0);
    }
}
