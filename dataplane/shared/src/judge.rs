//! One side of a packet's way: its tracker, then its rules.
//!
//! ```text
//!  tracked ────────────────────────────────────────────▶ Tracked
//!  rules: by the peer's atom, by the peer's set ─ none ─▶ Denied
//!         ├ open both ways ─────────────────────────────▶ Open      decided anew each time
//!         ├ answers what is open the other way ─────────▶ Open
//!         └─────────────────────────────────────────────▶ Allowed   remembered
//! ```

use crate::flow::FlowKey;
use crate::ipv6;
use crate::layout::{
    Address, Direction, Identity, PREFIX_BITS, PrefixKey, RULE_OPEN, RuleKey, Timeouts,
};
use crate::maps::Maps;
use crate::packet::Packet;
use crate::parse::{Family, Ip, Part, Role, TCP, Transport, UDP, quoted, transport};
use crate::tracker::{self, From};
use crate::verifier::blur;

/// One side of a packet's way.
pub(crate) struct Side<'a> {
    /// The port's slot.
    pub slot: u32,
    /// Whether it sends or receives.
    pub direction: Direction,
    /// Whose rules.
    pub policy: u32,
    /// The other side.
    pub peer: Peer,
    /// Its flows' timeouts.
    pub timeouts: &'a Timeouts,
    /// Nothing is open: everything is tracked.
    pub tracks_all: bool,
}

/// The other side, as rules see it.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// Its address. Of IPv6, what network ACLs know it by.
    pub address: Address,
    /// Its groups, and its atom if that is known.
    pub identity: Identity,
    /// The network in whose places its atom is to be found; 0: it is known.
    pub scope: u32,
}

/// What a side says. (No enum, whose value the verifier would know.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict(u8);

impl Verdict {
    pub(crate) const DENIED: Self = Self(0);
    pub(crate) const TRACKED: Self = Self(1);
    pub(crate) const OPEN: Self = Self(2);
    pub(crate) const ALLOWED: Self = Self(3);
}

/// What a packet is to both sides.
pub(crate) struct Asked {
    /// What is above its addresses; of a later fragment nothing.
    pub ports: Transport,
    /// Its flow as its sender sees it; of a fragment's train the sender's key.
    sent: FlowKey,
    /// Source port of the packet that an ICMP error quotes.
    quoted_source: u16,
    /// Its destination port.
    quoted_destination: u16,
    /// Its protocol; 0: nothing is quoted.
    quoted_protocol: u8,
}

impl Asked {
    /// Reads a packet. An ICMP error speaks of the flow that it quotes; where `strict`,
    /// only if it comes from where that flow's packet went. `None`: malformed.
    #[inline(always)]
    pub(crate) fn read(packet: &(impl Packet + ?Sized), ip: &Ip, strict: bool) -> Option<Self> {
        Self::read_about(packet, ip, strict, None)
    }

    /// [`Self::read`] of a packet that, if it is an ICMPv6 error from outside, quotes one to the
    /// address of number `about`.
    #[inline(always)]
    pub(crate) fn read_about(
        packet: &(impl Packet + ?Sized),
        ip: &Ip,
        strict: bool,
        about: Option<Address>,
    ) -> Option<Self> {
        let mut asked = Self {
            ports: Transport {
                source: 0,
                destination: 0,
                rule_port: 0,
                role: Role::Notice,
            },
            sent: tracker::fragments_key(ip),
            quoted_source: 0,
            quoted_destination: 0,
            quoted_protocol: 0,
        };
        if ip.part == Part::Later {
            return Some(asked);
        }
        let ports = transport(packet, ip)?;
        asked.ports = ports;
        if let Role::Error { quote } = ports.role
            && let Some((inner, inner_ports)) = match ip.family {
                Family::V4 => quoted(packet, quote),
                Family::V6 => ipv6::parse::quoted(packet, quote, ip, about),
            }
            && inner.source == ip.destination
            && (!strict || inner.destination == ip.source)
        {
            asked.sent = tracker::mirrored(&key(&inner, &inner_ports));
            asked.quoted_protocol = inner.protocol;
            asked.quoted_source = inner_ports.source;
            asked.quoted_destination = inner_ports.destination;
        } else {
            asked.sent = key(ip, &ports);
        }
        Some(asked)
    }

    /// Its flow as its sender sees it.
    #[inline(always)]
    pub(crate) fn sent(&self) -> &FlowKey {
        &self.sent
    }

    #[inline(always)]
    fn key(&self, direction: Direction) -> FlowKey {
        match direction {
            Direction::Egress => self.sent,
            Direction::Ingress => tracker::mirrored(&self.sent),
        }
    }
}

/// A packet's flow as its sender sees it.
#[inline(always)]
fn key(ip: &Ip, ports: &Transport) -> FlowKey {
    FlowKey {
        own: ip.source,
        peer: ip.destination,
        own_port: ports.source,
        peer_port: ports.destination,
        protocol: ip.protocol,
        kind: tracker::kind(ports.role, From::Own),
    }
}

#[inline(always)]
fn from(direction: Direction) -> From {
    match direction {
        Direction::Egress => From::Own,
        Direction::Ingress => From::Peer,
    }
}

/// Asks a side's tracker, then its rules. A later fragment follows its first, or nothing.
#[inline(always)]
pub(crate) fn ask(maps: &impl Maps, side: &Side<'_>, ip: &Ip, asked: &Asked, now: u64) -> Verdict {
    Verdict(blur(answer(maps, side, ip, asked, now).0, now))
}

#[inline(always)]
fn answer(maps: &impl Maps, side: &Side<'_>, ip: &Ip, asked: &Asked, now: u64) -> Verdict {
    let key = asked.key(side.direction);
    let Some(bucket) = maps.bucket(side.slot, key.bucket()) else {
        return Verdict::DENIED;
    };
    if ip.part == Part::Later {
        return if tracker::is_tracked(bucket, &key, now) {
            Verdict::TRACKED
        } else {
            Verdict::DENIED
        };
    }
    let tracked = match asked.ports.role {
        Role::Error { .. } => tracker::is_tracked(bucket, &key, now),
        role => tracker::track(bucket, &key, role, from(side.direction), now, side.timeouts),
    };
    if tracked {
        return Verdict::TRACKED;
    }
    by_rules(maps, side, ip.protocol, asked)
}

/// Asks a side's rules.
#[inline(always)]
fn by_rules(maps: &impl Maps, side: &Side<'_>, protocol: u8, asked: &Asked) -> Verdict {
    if side.policy == 0 {
        return Verdict::DENIED;
    }
    let rules = Rules::of(maps, side);
    let ports = &asked.ports;
    let value = rules.look_up(side.direction, protocol, ports.rule_port);
    if value == RULE_OPEN && !side.tracks_all {
        return Verdict::OPEN;
    }
    if answers_open(&rules, side, protocol, asked) {
        return Verdict::OPEN;
    }
    if value == 0 {
        return Verdict::DENIED;
    }
    Verdict::ALLOWED
}

/// Whether a packet belongs to a flow that is open both ways and began the other way. Such
/// a flow has left no trace, so its ports speak for it.
#[inline(always)]
fn answers_open(
    rules: &Rules<'_, impl Maps>,
    side: &Side<'_>,
    protocol: u8,
    asked: &Asked,
) -> bool {
    if side.tracks_all {
        return false;
    }
    let back = match side.direction {
        Direction::Egress => Direction::Ingress,
        Direction::Ingress => Direction::Egress,
    };
    match asked.ports.role {
        Role::Tcp(flags) if flags.opens() => false,
        Role::Tcp(_) => rules.look_up(back, TCP, asked.ports.source) == RULE_OPEN,
        Role::Datagram if protocol == UDP => {
            rules.look_up(back, UDP, asked.ports.source) == RULE_OPEN
        }
        Role::Error { .. } if matches!(asked.quoted_protocol, TCP | UDP) => {
            let quoted = asked.quoted_protocol;
            rules.look_up(back, quoted, asked.quoted_destination) == RULE_OPEN
                || rules.look_up(side.direction, quoted, asked.quoted_source) == RULE_OPEN
        }
        _ => false,
    }
}

/// The rules of one policy about one peer.
struct Rules<'a, M> {
    maps: &'a M,
    policy: u32,
    atom: u32,
    set: u32,
}

impl<'a, M: Maps> Rules<'a, M> {
    #[inline(always)]
    fn of(maps: &'a M, side: &Side<'_>) -> Self {
        let Peer {
            address,
            identity,
            scope,
        } = side.peer;
        let atom = if scope == 0 {
            identity.atom
        } else {
            atom_of(maps, scope, address)
        };
        Self {
            maps,
            policy: side.policy,
            atom,
            set: identity.set,
        }
    }

    /// What they say: by the peer's address, else by its groups.
    #[inline(always)]
    fn look_up(&self, direction: Direction, protocol: u8, port: u16) -> u32 {
        let what = u32::from(port) << 16 | u32::from(protocol) << 8 | direction as u32;
        look_up(self.maps, self.policy, self.atom, self.set, what)
    }
}

/// The atom that a network sees an address in.
///
/// Not inlined, as other look-ups: a function of its own has a stack of its own, of which a
/// program has little.
#[inline(never)]
fn atom_of(maps: &impl Maps, scope: u32, address: Address) -> u32 {
    let place = maps.place(&PrefixKey { scope, address });
    place.map_or(0, |place| place.atom)
}

#[inline(never)]
fn look_up(maps: &impl Maps, policy: u32, atom: u32, set: u32, what: u32) -> u32 {
    let mut key = RuleKey {
        policy,
        peer: atom,
        direction: what as u8,
        protocol: (what >> 8) as u8,
        port: (what >> 16) as u16,
    };
    if atom != 0 {
        let value = maps.rule(&key);
        if value != 0 {
            return value;
        }
    }
    key.peer = set;
    if set == 0 {
        return 0;
    }
    maps.rule(&key)
}

/// A side that has allowed a packet.
pub(crate) struct Passed<'a> {
    pub side: Side<'a>,
    pub verdict: Verdict,
}

/// Remembers a flow that a side's rules have just allowed, and of a first fragment that
/// the later ones may follow. `false`: another CPU was faster.
#[inline(always)]
pub(crate) fn remember(
    maps: &impl Maps,
    passed: &Passed<'_>,
    ip: &Ip,
    asked: &Asked,
    now: u64,
) -> bool {
    let Passed { side, verdict } = passed;
    let role = asked.ports.role;
    if *verdict == Verdict::ALLOWED && tracker::is_remembered(role) {
        let key = asked.key(side.direction);
        let Some(bucket) = maps.bucket(side.slot, key.bucket()) else {
            return false;
        };
        if !tracker::remember(bucket, &key, role, from(side.direction), now, side.timeouts) {
            return false;
        }
    }
    if ip.part != Part::First {
        return true;
    }
    let mut key = tracker::fragments_key(ip);
    if side.direction == Direction::Ingress {
        key = tracker::mirrored(&key);
    }
    match maps.bucket(side.slot, key.bucket()) {
        Some(bucket) => tracker::remember_fragments(bucket, &key, now, side.timeouts),
        None => false,
    }
}

const _: () = assert!(PREFIX_BITS as usize == size_of::<PrefixKey>() * 8);
