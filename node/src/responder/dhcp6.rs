//! DHCPv6 (RFC 8415): every ENI has its addresses, for ever.
//!
//! ```text
//!  SOLICIT → ADVERTISE      REQUEST, RENEW, REBIND, CONFIRM,
//!                           RELEASE, DECLINE, INFORMATION-REQUEST → REPLY
//! ```
//! Nothing is remembered. Of the identity associations that a client names, that with the least
//! number has all of the ENI's addresses; others get none, and prefixes nobody.

use super::record::{Interface, Record};
use dhcproto::v6::{
    CLIENT_PORT, DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, OptionCode,
    Status, StatusCode,
};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use ocs_dataplane::shared::ipv6::layout::RESOLVER;
use ocs_dataplane::shared::layout::ROUTER_MAC;
use std::net::Ipv6Addr;

/// Where answers go.
pub const PORT: u16 = CLIENT_PORT;
/// How long an address may be used, and may begin to be used (EC2's).
const VALID_S: u32 = 450;
const PREFERRED_S: u32 = 140;
/// When its use is to be confirmed, by the server that gave it and by any (RFC 8415 §14.2).
const T1_S: u32 = PREFERRED_S / 2;
const T2_S: u32 = PREFERRED_S / 5 * 4;

/// Whom clients know as their server: by the router's Ethernet address (RFC 8415 §11.4), one for
/// all, so that any host answers for any other.
fn server_id() -> Vec<u8> {
    [&[0, 3, 0, 1][..], &ROUTER_MAC].concat()
}

/// The answer to a datagram of the ENI that `record` describes; `None` where silence is the
/// answer.
#[must_use]
pub fn answer(datagram: &[u8], record: &Record) -> Option<Vec<u8>> {
    let interface = record.own_interface()?;
    if interface.ipv6.addresses.is_empty() {
        return None;
    }
    let asked = Message::decode(&mut Decoder::new(&what_counts(datagram)?)).ok()?;
    let reply = reply_to(&asked, interface)?;
    let mut bytes = Vec::new();
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

/// A message without the options that no answer depends on, which its decoder is then not
/// trusted with: of some it takes a length that is too small for a huge one.
fn what_counts(message: &[u8]) -> Option<Vec<u8>> {
    let (head, options) = message.split_at_checked(4)?;
    let address = |code, data: &[u8]| match code {
        OptionCode::IAAddr => data.get(..24).map(<[u8]>::to_vec),
        _ => None,
    };
    let options = kept(options, |code, data| match code {
        OptionCode::ClientId | OptionCode::ServerId | OptionCode::ORO => Some(data.to_vec()),
        OptionCode::IAPD => data.get(..12).map(<[u8]>::to_vec),
        OptionCode::IANA => {
            let (association, options) = data.split_at_checked(12)?;
            Some([association, &kept(options, address)].concat())
        }
        _ => None,
    });
    Some([head, &options].concat())
}

/// Options (RFC 8415 §21.1) with what `keep` leaves of each, up to one that is cut short.
fn kept(mut options: &[u8], keep: impl Fn(OptionCode, &[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(([a, b, c, d], rest)) = options.split_first_chunk() {
        let length = u16::from_be_bytes([*c, *d]);
        let Some((data, next)) = rest.split_at_checked(length.into()) else {
            break;
        };
        options = next;
        let code = u16::from_be_bytes([*a, *b]);
        if let Some(data) = keep(code.into(), data)
            && let Ok(length) = u16::try_from(data.len())
        {
            kept.extend(code.to_be_bytes());
            kept.extend(length.to_be_bytes());
            kept.extend(data);
        }
    }
    kept
}

fn reply_to(asked: &Message, interface: &Interface) -> Option<Message> {
    let kind = asked.msg_type();
    let client = match asked.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(id)) => Some(id.clone()),
        _ => None,
    };
    let server = match asked.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id.as_slice()),
        _ => None,
    };
    // Who must name whom (RFC 8415 §16).
    let ours = server.is_some_and(|server| server == server_id());
    let valid = match kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
            client.is_some() && server.is_none()
        }
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            client.is_some() && ours
        }
        MessageType::InformationRequest => server.is_none() || ours,
        _ => false,
    };
    if !valid {
        return None;
    }
    let mut reply = Message::new_with_id(MessageType::Reply, asked.xid());
    let options = reply.opts_mut();
    if let Some(client) = client {
        options.insert(DhcpOption::ClientId(client));
    }
    options.insert(DhcpOption::ServerId(server_id()));
    match kind {
        MessageType::Solicit => {
            associate(asked, interface, options);
            reply.set_msg_type(MessageType::Advertise);
        }
        MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            associate(asked, interface, options);
        }
        MessageType::Confirm => options.insert(confirm(asked, interface)?),
        MessageType::Release | MessageType::Decline => {
            options.insert(status(Status::Success, "Thank you."));
        }
        _ => {}
    }
    configure(asked, interface, reply.opts_mut());
    Some(reply)
}

/// Answers each identity association.
fn associate(asked: &Message, interface: &Interface, options: &mut DhcpOptions) {
    let numbers = asked.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association.id),
        _ => None,
    });
    let least = numbers.min();
    for option in asked.opts().iter() {
        match option {
            DhcpOption::IANA(association) => {
                let has = Some(association.id) == least;
                options.insert(DhcpOption::IANA(addresses(association, interface, has)));
            }
            DhcpOption::IAPD(association) => {
                let mut refused = DhcpOptions::new();
                refused.insert(status(Status::NoPrefixAvail, "No prefix is delegated."));
                options.insert(DhcpOption::IAPD(IAPD {
                    id: association.id,
                    t1: 0,
                    t2: 0,
                    opts: refused,
                }));
            }
            _ => {}
        }
    }
}

/// An association with the ENI's addresses, and with those that the client has and the ENI has
/// not, which end now.
fn addresses(asked: &IANA, interface: &Interface, has: bool) -> IANA {
    let own = &interface.ipv6.addresses;
    let mut association = IANA {
        id: asked.id,
        t1: T1_S,
        t2: T2_S,
        opts: DhcpOptions::new(),
    };
    if !has {
        (association.t1, association.t2) = (0, 0);
        let refused = status(Status::NoAddrsAvail, "Another association has them.");
        association.opts.insert(refused);
        return association;
    }
    let lives = |addr: Ipv6Addr, preferred_life, valid_life| {
        DhcpOption::IAAddr(IAAddr {
            addr,
            preferred_life,
            valid_life,
            opts: DhcpOptions::new(),
        })
    };
    for had in asked.opts.iter() {
        if let DhcpOption::IAAddr(had) = had
            && !own.contains(&had.addr)
        {
            association.opts.insert(lives(had.addr, 0, 0));
        }
    }
    // Of one kind, each goes in front of those that are there.
    for address in own.iter().rev() {
        let opts = &mut association.opts;
        opts.insert(lives(*address, PREFERRED_S, VALID_S));
    }
    association
}

/// Whether addresses that a client has from before are still right; nothing if it names none.
fn confirm(asked: &Message, interface: &Interface) -> Option<DhcpOption> {
    let mut named = asked.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(&association.opts),
        _ => None,
    });
    let mut any = false;
    let right = named.all(|options| {
        options.iter().all(|option| match option {
            DhcpOption::IAAddr(address) => {
                any = true;
                interface.ipv6.addresses.contains(&address.addr)
            }
            _ => true,
        })
    });
    match (right, any) {
        (false, _) => Some(status(
            Status::NotOnLink,
            "Not an address of this interface.",
        )),
        (true, true) => Some(status(Status::Success, "All addresses are right.")),
        (true, false) => None,
    }
}

/// What a client asks for by name and its VPC has: a resolver, if it is the VPC's own.
fn configure(asked: &Message, interface: &Interface, options: &mut DhcpOptions) {
    let wants = match asked.opts().get(OptionCode::ORO) {
        Some(DhcpOption::ORO(codes)) => codes.opts.contains(&OptionCode::DomainNameServers),
        _ => false,
    };
    let chosen = &interface.options;
    if wants && chosen.domain_name_servers.is_empty() && !chosen.no_resolver {
        let resolver = Ipv6Addr::from(RESOLVER);
        options.insert(DhcpOption::DomainNameServers(vec![resolver]));
    }
}

fn status(status: Status, message: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::testing::record;
    use dhcproto::v6::ORO;

    const CLIENT: &[u8] = &[0, 1, 0, 1, 9, 9, 9, 9, 2, 0, 0, 0, 0, 42];

    fn own() -> [Ipv6Addr; 2] {
        ["fd01::5", "fd01::6"].map(|address| address.parse().expect("an address"))
    }

    fn eni() -> Record {
        let mut record = record();
        record.interfaces[0].ipv6.addresses = own().to_vec();
        record
    }

    fn ask(kind: MessageType, options: Vec<DhcpOption>) -> Option<Message> {
        let mut message = Message::new_with_id(kind, [1, 2, 3]);
        for option in options {
            message.opts_mut().insert(option);
        }
        let mut bytes = Vec::new();
        let encoded = message.encode(&mut Encoder::new(&mut bytes));
        encoded.expect("a message");
        let answer = answer(&bytes, &eni())?;
        let reply = Message::decode(&mut Decoder::new(&answer)).expect("an answer");
        assert_eq!(reply.xid(), [1, 2, 3]);
        let names = |code, id: &[u8]| match reply.opts().get(code) {
            Some(DhcpOption::ClientId(named) | DhcpOption::ServerId(named)) => named == id,
            _ => false,
        };
        assert!(names(OptionCode::ServerId, &server_id()));
        assert!(names(OptionCode::ClientId, CLIENT) || kind == MessageType::InformationRequest);
        Some(reply)
    }

    fn client() -> DhcpOption {
        DhcpOption::ClientId(CLIENT.to_vec())
    }

    fn server() -> DhcpOption {
        DhcpOption::ServerId(server_id())
    }

    fn association(id: u32, has: &[Ipv6Addr]) -> DhcpOption {
        let mut opts = DhcpOptions::new();
        for addr in has {
            opts.insert(DhcpOption::IAAddr(IAAddr {
                addr: *addr,
                preferred_life: 1,
                valid_life: 1,
                opts: DhcpOptions::new(),
            }));
        }
        let (t1, t2) = (0, 0);
        DhcpOption::IANA(IANA { id, t1, t2, opts })
    }

    /// Each association's number, and its addresses with how long they are valid.
    fn given(reply: &Message) -> Vec<(u32, Vec<(Ipv6Addr, u32)>)> {
        let associations = reply.opts().iter().filter_map(|option| match option {
            DhcpOption::IANA(it) => Some(it),
            _ => None,
        });
        let lives = |it: &IANA| {
            let addresses = it.opts.iter().filter_map(|option| match option {
                DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
                _ => None,
            });
            (it.id, addresses.collect())
        };
        let mut given: Vec<_> = associations.map(lives).collect();
        given.sort();
        given
    }

    fn said(reply: &Message) -> Option<Status> {
        match reply.opts().get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(said)) => Some(said.status),
            _ => None,
        }
    }

    #[test]
    fn an_eni_has_its_addresses_whatever_it_asks() {
        let [first, second] = own();
        let lease = vec![(first, VALID_S), (second, VALID_S)];
        let reply = ask(MessageType::Solicit, vec![client(), association(7, &[])]);
        let reply = reply.expect("an answer");
        assert_eq!(reply.msg_type(), MessageType::Advertise);
        assert_eq!(given(&reply), [(7, lease.clone())]);
        for (kind, named) in [
            (MessageType::Request, true),
            (MessageType::Renew, true),
            (MessageType::Rebind, false),
        ] {
            let stranger: Ipv6Addr = "fd01::66".parse().expect("an address");
            let mut options = vec![client(), association(7, &[second, stranger])];
            options.extend(named.then(server));
            let reply = ask(kind, options).expect("an answer");
            assert_eq!(reply.msg_type(), MessageType::Reply);
            let mut expected = lease.clone();
            expected.push((stranger, 0));
            assert_eq!(given(&reply), [(7, expected)], "{kind:?}");
        }
        let both = vec![client(), association(7, &[]), association(8, &[])];
        let reply = ask(MessageType::Solicit, both).expect("an answer");
        assert_eq!(given(&reply), [(7, lease), (8, Vec::new())]);
    }

    #[test]
    fn what_a_client_has_is_confirmed_or_not() {
        let stranger: Ipv6Addr = "fd02::5".parse().expect("an address");
        for (has, expected) in [(own()[0], Status::Success), (stranger, Status::NotOnLink)] {
            let options = vec![client(), association(7, &[has])];
            let reply = ask(MessageType::Confirm, options).expect("an answer");
            assert_eq!(said(&reply), Some(expected));
        }
        let nothing = vec![client(), association(7, &[])];
        assert_eq!(ask(MessageType::Confirm, nothing), None);
        for kind in [MessageType::Release, MessageType::Decline] {
            let options = vec![client(), server(), association(7, &own())];
            let reply = ask(kind, options).expect("an answer");
            assert_eq!(
                (said(&reply), given(&reply)),
                (Some(Status::Success), vec![])
            );
        }
    }

    #[test]
    fn the_resolver_is_told_to_who_asks() {
        let wants = |code| DhcpOption::ORO(ORO { opts: vec![code] });
        let resolver = |reply: Option<Message>| {
            let reply = reply.expect("an answer");
            reply.opts().get(OptionCode::DomainNameServers).cloned()
        };
        let asked = ask(
            MessageType::InformationRequest,
            vec![wants(OptionCode::DomainNameServers)],
        );
        let expected = DhcpOption::DomainNameServers(vec!["fd00:ec2::253".parse().expect("it")]);
        assert_eq!(resolver(asked), Some(expected));
        let other = ask(
            MessageType::InformationRequest,
            vec![wants(OptionCode::DomainSearchList)],
        );
        assert_eq!(resolver(other), None);
    }

    #[test]
    fn options_that_nothing_depends_on_harm_nobody() {
        let mut message = vec![1, 1, 2, 3, 0, 1, 0, 14];
        message.extend_from_slice(CLIENT);
        let expected = answer(&message, &eni());
        assert!(expected.is_some());
        for code in 3..64 {
            for length in 0..4 {
                let mut more = message.clone();
                more.extend([0, code, 0, length]);
                more.extend(std::iter::repeat_n(0, 4));
                if !matches!(code, 3 | 6 | 25) {
                    assert_eq!(answer(&more, &eni()), expected, "{code} of {length}");
                }
                // Within an association, too.
                let mut within = message.clone();
                within.extend([0, 3, 0, 20]);
                within.extend([0; 12]);
                within.extend([0, code, 0, length, 0, 0, 0, 0]);
                assert!(answer(&within, &eni()).is_some(), "{code} of {length}");
            }
        }
    }

    #[test]
    fn what_is_no_question_to_this_server_is_not_answered() {
        let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 2, 2, 2, 2, 2, 2]);
        for (kind, options) in [
            (MessageType::Solicit, vec![association(7, &[])]),
            (MessageType::Solicit, vec![client(), server()]),
            (MessageType::Request, vec![client(), association(7, &[])]),
            (MessageType::Renew, vec![client(), other.clone()]),
            (MessageType::Rebind, vec![client(), server()]),
            (MessageType::InformationRequest, vec![other]),
            (MessageType::Advertise, vec![client(), server()]),
            (MessageType::RelayForw, vec![client()]),
        ] {
            assert_eq!(ask(kind, options), None, "{kind:?}");
        }
        assert_eq!(answer(&[], &eni()), None);
        assert_eq!(answer(&[1, 0, 0, 0, 0, 1, 0, 9], &eni()), None);
        // Without addresses there is no IPv6.
        let mut message = vec![1, 1, 2, 3, 0, 1, 0, 14];
        message.extend_from_slice(CLIENT);
        assert!(answer(&message, &eni()).is_some());
        assert_eq!(answer(&message, &record()), None);
    }
}
