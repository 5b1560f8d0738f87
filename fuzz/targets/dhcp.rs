//! A guest's DHCP message, of either IP.
//!
//! Whatever it says, it is told its own addresses and no others, by an answer that repeats
//! what it is known by.
#![no_main]

use dhcproto::{Decodable as _, Decoder, v4, v6};
use libfuzzer_sys::fuzz_target;
use ocs_node::responder::record::Record;
use ocs_node::responder::{dhcp, dhcp6};
use std::net::Ipv6Addr;
use std::sync::LazyLock;

const RECORD: &str = include_str!("../data/record.json");

static OWN: LazyLock<Record> = LazyLock::new(|| {
    let mut record: Record = serde_json::from_str(RECORD).expect("a record");
    let own = ["fd01::5", "fd01::6"].map(|address| address.parse().expect("an address"));
    record.interfaces[0].ipv6.addresses = own.to_vec();
    record
});

fuzz_target!(|data: &[u8]| {
    // Of which IP, then the message.
    match data.split_first() {
        Some((b'4', asked)) => by_ipv4(asked),
        Some((b'6', asked)) => by_ipv6(asked),
        _ => {}
    }
});

fn by_ipv4(asked: &[u8]) {
    let Some(bytes) = dhcp::answer(asked, &OWN) else {
        return;
    };
    let reply = v4::Message::decode(&mut Decoder::new(&bytes)).expect("an answer");
    // Its number and the client's Ethernet address lie where they were (RFC 2131 §2).
    assert_eq!(bytes[4..8], asked[4..8]);
    assert_eq!(bytes[28..34], asked[28..34]);
    assert_eq!(reply.opcode(), v4::Opcode::BootReply);
    let own = OWN.interfaces[0].private_ip;
    assert!(reply.yiaddr().is_unspecified() || reply.yiaddr() == own);
}

fn by_ipv6(asked: &[u8]) {
    let Some(bytes) = dhcp6::answer(asked, &OWN) else {
        return;
    };
    let reply = v6::Message::decode(&mut Decoder::new(&bytes)).expect("an answer");
    assert_eq!(bytes[1..4], asked[1..4]);
    assert_eq!(
        reply.msg_type() == v6::MessageType::Advertise,
        asked[0] == u8::from(v6::MessageType::Solicit)
    );
    if let Some(v6::DhcpOption::ClientId(id)) = reply.opts().get(v6::OptionCode::ClientId) {
        assert!(id.is_empty() || asked.windows(id.len()).any(|part| part == id));
    }
    for option in reply.opts().iter() {
        match option {
            v6::DhcpOption::IANA(association) => {
                let given = association.opts.iter().filter_map(valid);
                let given: Vec<Ipv6Addr> = given.collect();
                let own = &OWN.interfaces[0].ipv6.addresses;
                assert!(given.is_empty() || given == *own, "{given:?}");
            }
            v6::DhcpOption::IAPD(association) => {
                let mut options = association.opts.iter();
                assert!(!options.any(|option| matches!(option, v6::DhcpOption::IAPrefix(_))));
            }
            _ => {}
        }
    }
}

/// An address that the client may go on to use.
fn valid(option: &v6::DhcpOption) -> Option<Ipv6Addr> {
    match option {
        v6::DhcpOption::IAAddr(address) if address.valid_life > 0 => Some(address.addr),
        _ => None,
    }
}
