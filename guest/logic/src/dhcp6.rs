//! DHCPv6 messages of a client that wants its addresses (RFC 8415).

use alloc::vec::Vec;
use core::net::Ipv6Addr;

/// Ports of clients and servers (§7.2).
pub const CLIENT_PORT: u16 = 546;
/// See [`CLIENT_PORT`].
pub const SERVER_PORT: u16 = 547;
/// All servers of a link (§7.1).
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Message types (§7.3).
pub const SOLICIT: u8 = 1;
/// See [`SOLICIT`].
pub const ADVERTISE: u8 = 2;
/// See [`SOLICIT`].
pub const REQUEST: u8 = 3;
/// See [`SOLICIT`].
pub const RENEW: u8 = 5;
/// See [`SOLICIT`].
pub const REPLY: u8 = 7;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDR: u16 = 5;
const OPTION_REQUEST: u16 = 6;
const ELAPSED_TIME: u16 = 8;
const DNS_SERVERS: u16 = 23;
/// Number, T1 and T2 in front of an association's options; an address and its lifetimes.
const IA_HEAD_BYTES: usize = 12;
const ADDRESS_BYTES: usize = 24;

/// What a server gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Who.
    pub server: Vec<u8>,
    /// Addresses that may be used.
    pub addresses: Vec<Ipv6Addr>,
    /// The shortest time for which one may be.
    pub valid_s: u32,
    /// When to ask again.
    pub renew_s: u32,
    /// Its first resolver.
    pub resolver: Option<Ipv6Addr>,
}

fn option(message: &mut Vec<u8>, code: u16, data: &[u8]) {
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&(data.len() as u16).to_be_bytes());
    message.extend_from_slice(data);
}

/// A message of an interface; with a lease to the server that gave it.
#[must_use]
pub fn message(kind: u8, number: [u8; 3], mac: [u8; 6], lease: Option<&Lease>) -> Vec<u8> {
    let mut message = Vec::from([kind, number[0], number[1], number[2]]);
    let [a, b, c, d, e, f] = mac;
    // By its Ethernet address (§11.4).
    option(&mut message, CLIENT_ID, &[0, 3, 0, 1, a, b, c, d, e, f]);
    if let Some(lease) = lease {
        option(&mut message, SERVER_ID, &lease.server);
    }
    option(&mut message, ELAPSED_TIME, &[0, 0]);
    option(&mut message, OPTION_REQUEST, &DNS_SERVERS.to_be_bytes());
    let mut association = Vec::from([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    for address in lease.iter().flat_map(|lease| &lease.addresses) {
        let mut held = [0; ADDRESS_BYTES];
        held[..16].copy_from_slice(&address.octets());
        option(&mut association, IA_ADDR, &held);
    }
    option(&mut message, IA_NA, &association);
    message
}

/// Options of a message or of an association; what is cut short ends them.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let (data, rest) = rest.split_at_checked(u16::from_be_bytes([c, d]).into())?;
        bytes = rest;
        Some((u16::from_be_bytes([a, b]), data))
    })
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?))
}

/// What a server says in an answer of a kind to the message of a number; `None`: it is none.
#[must_use]
pub fn answer(bytes: &[u8], kind: u8, number: [u8; 3]) -> Option<Lease> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    if head[0] != kind || head[1..] != number {
        return None;
    }
    let mut lease = Lease {
        valid_s: u32::MAX,
        ..Lease::default()
    };
    for (code, data) in options(rest) {
        match code {
            SERVER_ID => lease.server = data.to_vec(),
            DNS_SERVERS => lease.resolver = address(data),
            IA_NA => {
                lease.renew_s = word(data.get(4..)?)?;
                for (code, data) in options(data.get(IA_HEAD_BYTES..)?) {
                    let valid_s = word(data.get(20..)?)?;
                    if code == IA_ADDR && valid_s > 0 {
                        lease.addresses.push(address(data)?);
                        lease.valid_s = lease.valid_s.min(valid_s);
                    }
                }
            }
            _ => {}
        }
    }
    (!lease.server.is_empty()).then_some(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: [u8; 3] = [7, 8, 9];

    fn offer() -> Vec<u8> {
        let mut message = Vec::from([ADVERTISE, 7, 8, 9]);
        option(&mut message, SERVER_ID, b"server");
        let mut association = Vec::from([0, 0, 0, 1, 0, 0, 0, 70, 0, 0, 0, 112]);
        for (last, valid) in [(5, 450_u32), (6, 0)] {
            let mut held = [0; ADDRESS_BYTES];
            held[..16].copy_from_slice(&Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last).octets());
            held[20..].copy_from_slice(&valid.to_be_bytes());
            option(&mut association, IA_ADDR, &held);
        }
        option(&mut message, IA_NA, &association);
        let resolver = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);
        option(&mut message, DNS_SERVERS, &resolver.octets());
        message
    }

    #[test]
    fn an_offer_is_read_and_taken() {
        let lease = answer(&offer(), ADVERTISE, NUMBER).expect("an offer");
        assert_eq!(lease.addresses, ["fd01::5".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!((lease.valid_s, lease.renew_s), (450, 70));
        assert_eq!(lease.resolver, "fd00:ec2::253".parse().ok());
        let request = message(REQUEST, NUMBER, [2, 0, 0, 0, 0, 9], Some(&lease));
        let named: Vec<u16> = options(&request[4..]).map(|(code, _)| code).collect();
        assert_eq!(
            named,
            [CLIENT_ID, SERVER_ID, ELAPSED_TIME, OPTION_REQUEST, IA_NA]
        );
        let solicit = message(SOLICIT, NUMBER, [2, 0, 0, 0, 0, 9], None);
        assert_eq!(solicit[..4], [SOLICIT, 7, 8, 9]);
        assert!(options(&solicit[4..]).all(|(code, _)| code != SERVER_ID));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let offer = offer();
        assert_eq!(answer(&offer, REPLY, NUMBER), None);
        assert_eq!(answer(&offer, ADVERTISE, [1, 1, 1]), None);
        for length in 0..offer.len() {
            // Cut short it may say less, and is read to its end.
            let _less = answer(&offer[..length], ADVERTISE, NUMBER);
        }
        assert_eq!(answer(&offer[..10], ADVERTISE, NUMBER), None);
    }
}
