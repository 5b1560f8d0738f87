//! Connection tracking: which packets belong to what was allowed before.
//!
//! ```text
//! TCP   Opening ─answer▶ Answered ─opener▶ Continued ─FIN▶ Closing ─FIN▶ Closed
//! UDP   Opening ─answer▶ Answered ─opener▶ Continued ─answer▶ Stream
//! ```
//!
//! A tracked flow outlives a change of rules (EC2 User Guide, "Security group connection
//! tracking"). A TCP segment that asks for a connection is a new question, whatever is
//! tracked: only a repetition of the question that began the flow is not.
//!
//! As EC2 does, any segment but a reset may begin a TCP flow that the rules allow: a
//! connection that idled past its time-out goes on where they do.

use crate::flow::{Bucket, FlowKey, Found, Progress, State};
use crate::layout::Timeouts;
use crate::parse::{Ip, Role, TCP, TcpFlags, UDP};

/// Seconds that a TCP flow which is being opened or closed is remembered.
const TCP_TRANSIENT_S: u32 = 60;
/// Seconds that a closed TCP flow is remembered.
const TCP_CLOSED_S: u32 = 10;
/// Seconds that a flow of another protocol is remembered.
const OTHER_S: u32 = 600;
/// Seconds that later fragments may follow their first (RFC 791's reassembly bounds).
const FRAGMENTS_S: u32 = 30;

/// Which side of a port a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The port.
    Own,
    /// The other side.
    Peer,
}

/// [`FlowKey::kind`] of a train of fragments to a port; with [`KIND_ASKED_BY_OWN`], from
/// it.
const KIND_FRAGMENTS: u8 = 0x7f;
/// Set in [`FlowKey::kind`] of ICMP flows that the port's own query opened.
const KIND_ASKED_BY_OWN: u8 = 0x80;

/// [`FlowKey::kind`] of a packet.
#[inline(always)]
#[must_use]
pub fn kind(role: Role, from: From) -> u8 {
    let (query, asked_by_own) = match role {
        Role::Query(query) => (query, from == From::Own),
        Role::Answer(query) => (query, from == From::Peer),
        _ => return 0,
    };
    if asked_by_own {
        query | KIND_ASKED_BY_OWN
    } else {
        query
    }
}

/// The key under which the later fragments of a datagram find the first, at its sender.
#[inline(always)]
#[must_use]
pub fn fragments_key(ip: &Ip) -> FlowKey {
    FlowKey {
        own: ip.source,
        peer: ip.destination,
        // Of IPv4, 0.
        peer_port: (ip.id >> 16) as u16,
        own_port: ip.id as u16,
        protocol: ip.protocol,
        kind: KIND_FRAGMENTS | KIND_ASKED_BY_OWN,
    }
}

/// A flow's key as the other side sees it.
#[inline(always)]
#[must_use]
pub fn mirrored(key: &FlowKey) -> FlowKey {
    FlowKey {
        own: key.peer,
        peer: key.own,
        own_port: key.peer_port,
        peer_port: key.own_port,
        protocol: key.protocol,
        kind: match key.kind {
            0 => 0,
            kind => kind ^ KIND_ASKED_BY_OWN,
        },
    }
}

/// Lets the later fragments of a datagram follow its first.
#[inline(always)]
#[must_use]
pub fn remember_fragments(bucket: &Bucket, key: &FlowKey, now: u64, timeouts: &Timeouts) -> bool {
    let progress = Progress {
        state: State::Opening,
        opened_by_own: true,
        finished_by_own: false,
    };
    let until = now + u64::from(FRAGMENTS_S) * u64::from(timeouts.hz);
    bucket.insert(key, progress, now, until)
}

/// Whether a packet may begin a flow that is remembered.
#[inline(always)]
#[must_use]
pub fn is_remembered(role: Role) -> bool {
    match role {
        Role::Tcp(flags) => !flags.rst(),
        Role::Datagram | Role::Query(_) => true,
        Role::Answer(_) | Role::Error { .. } | Role::Notice => false,
    }
}

/// Whether `bucket` tracks the packet's flow, which is recorded.
#[inline(always)]
#[must_use]
pub fn track(
    bucket: &Bucket,
    key: &FlowKey,
    role: Role,
    from: From,
    now: u64,
    timeouts: &Timeouts,
) -> bool {
    let Some(found) = bucket.find(key, now) else {
        return false;
    };
    let by_opener = (from == From::Own) == found.progress.opened_by_own;
    if let Role::Tcp(flags) = role
        && flags.opens()
        && !(by_opener && found.progress.state == State::Opening)
    {
        return false;
    }
    advance(&found, key.protocol, role, from, now, timeouts);
    true
}

/// Records a packet of a flow.
#[inline(always)]
pub fn advance(
    found: &Found<'_>,
    protocol: u8,
    role: Role,
    from: From,
    now: u64,
    timeouts: &Timeouts,
) {
    let by_opener = (from == From::Own) == found.progress.opened_by_own;
    let mut progress = found.progress;
    progress.state = match (progress.state, by_opener) {
        (State::Opening, false) => State::Answered,
        (State::Answered, true) => State::Continued,
        (State::Continued, false) => State::Stream,
        (state, _) => state,
    };
    if let Role::Tcp(flags) = role {
        close(&mut progress, flags, from);
    }
    found.advance(progress, deadline(protocol, progress.state, now, timeouts));
}

/// What FIN and RST do.
#[inline(always)]
fn close(progress: &mut Progress, flags: TcpFlags, from: From) {
    let by_own = from == From::Own;
    if flags.rst() {
        progress.state = State::Closed;
    } else if flags.fin() {
        if progress.state == State::Closing && progress.finished_by_own != by_own {
            progress.state = State::Closed;
        } else if progress.state != State::Closed {
            progress.state = State::Closing;
            progress.finished_by_own = by_own;
        }
    }
}

/// Until when a flow is remembered if nothing more is heard of it.
#[inline(always)]
#[must_use]
pub fn deadline(protocol: u8, state: State, now: u64, timeouts: &Timeouts) -> u64 {
    let hz = u64::from(timeouts.hz);
    let idle = match (protocol, state) {
        (TCP, State::Opening | State::Answered | State::Closing) => u64::from(TCP_TRANSIENT_S) * hz,
        (TCP, State::Closed) => u64::from(TCP_CLOSED_S) * hz,
        (TCP, State::Continued | State::Stream) => u64::from(timeouts.tcp_established),
        (UDP, State::Stream) => u64::from(timeouts.udp_stream),
        (UDP, _) => u64::from(timeouts.udp),
        _ => u64::from(OTHER_S) * hz,
    };
    now + idle
}

/// A flow that begins with a packet.
#[inline(always)]
#[must_use]
pub fn opening(role: Role, from: From) -> Progress {
    let mut progress = Progress {
        state: State::Opening,
        opened_by_own: from == From::Own,
        finished_by_own: false,
    };
    if let Role::Tcp(flags) = role {
        close(&mut progress, flags, from);
    }
    progress
}

/// Remembers a flow that the rules allow.
#[inline(always)]
#[must_use]
pub fn remember(
    bucket: &Bucket,
    key: &FlowKey,
    role: Role,
    from: From,
    now: u64,
    timeouts: &Timeouts,
) -> bool {
    let progress = opening(role, from);
    let until = deadline(key.protocol, progress.state, now, timeouts);
    bucket.insert(key, progress, now, until)
}

/// Whether a flow that an ICMP error quotes is tracked. Nothing is recorded: an error is
/// no sign of life.
#[inline(always)]
#[must_use]
pub fn is_tracked(bucket: &Bucket, key: &FlowKey, now: u64) -> bool {
    bucket.find(key, now).is_some()
}
