use super::*;
use crate::responder::testing::record;
use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x2a];
const OURS: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 5);

fn request(kind: MessageType, options: &[DhcpOption]) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(0xdead_beef, none, none, none, none, &MAC);
    message.set_flags(Flags::default().set_broadcast());
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn ask(message: &Message) -> Option<Message> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let reply = answer(&bytes, &record())?;
    assert!(reply.len() >= MIN_REPLY_BYTES, "{}", reply.len());
    Some(Message::decode(&mut Decoder::new(&reply)).unwrap())
}

fn option(message: &Message, code: OptionCode) -> Option<DhcpOption> {
    message.opts().get(code).cloned()
}

#[test]
fn a_discover_is_offered_the_eni_s_address_and_all_it_needs() {
    let offer = ask(&request(MessageType::Discover, &[])).unwrap();
    assert_eq!(offer.opcode(), Opcode::BootReply);
    assert_eq!(offer.xid(), 0xdead_beef);
    assert!(offer.flags().broadcast());
    assert_eq!(offer.yiaddr(), OURS);
    assert_eq!(offer.chaddr(), MAC);
    let mut expected = v4::DhcpOptions::new();
    for option in [
        DhcpOption::MessageType(MessageType::Offer),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::AddressLeaseTime(3600),
        DhcpOption::Renewal(1800),
        DhcpOption::Rebinding(3150),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 240, 0)),
        DhcpOption::BroadcastAddr(Ipv4Addr::new(172, 31, 31, 255)),
        DhcpOption::Router(vec![Ipv4Addr::new(172, 31, 16, 1)]),
        DhcpOption::DomainNameServer(vec![Ipv4Addr::new(172, 31, 0, 2)]),
        DhcpOption::InterfaceMtu(1500),
        DhcpOption::DomainName("ec2.internal".into()),
        DhcpOption::Hostname("ip-172-31-16-5".into()),
    ] {
        expected.insert(option);
    }
    assert_eq!(offer.opts(), &expected);
}

#[test]
fn every_state_of_a_client_gets_its_answer() {
    let other = Ipv4Addr::new(172, 31, 16, 6);
    let server = DhcpOption::ServerIdentifier(SERVER);
    let stranger = DhcpOption::ServerIdentifier(other);
    let wants = |ip| DhcpOption::RequestedIpAddress(ip);
    let none = Ipv4Addr::UNSPECIFIED;
    for (state, ciaddr, options, expected) in [
        (
            "selecting",
            none,
            vec![server.clone(), wants(OURS)],
            Some(MessageType::Ack),
        ),
        (
            "selecting another address",
            none,
            vec![server, wants(other)],
            Some(MessageType::Nak),
        ),
        (
            "selecting another server",
            none,
            vec![stranger, wants(OURS)],
            None,
        ),
        (
            "init-reboot",
            none,
            vec![wants(OURS)],
            Some(MessageType::Ack),
        ),
        (
            "init-reboot elsewhere",
            none,
            vec![wants(other)],
            Some(MessageType::Nak),
        ),
        ("renewing", OURS, vec![], Some(MessageType::Ack)),
        (
            "renewing another address",
            other,
            vec![],
            Some(MessageType::Nak),
        ),
        ("asking for nothing", none, vec![], None),
    ] {
        let mut message = request(MessageType::Request, &options);
        message.set_ciaddr(ciaddr);
        let reply = ask(&message);
        let kind = reply.as_ref().and_then(|r| r.opts().msg_type());
        assert_eq!(kind, expected, "{state}");
        if let (Some(reply), Some(MessageType::Ack)) = (&reply, kind) {
            assert_eq!((reply.yiaddr(), reply.ciaddr()), (OURS, ciaddr), "{state}");
        }
        if let (Some(reply), Some(MessageType::Nak)) = (&reply, kind) {
            assert_eq!((reply.yiaddr(), reply.ciaddr()), (none, none), "{state}");
            assert_eq!(reply.opts().len(), 2, "{state}");
        }
    }
}

#[test]
fn an_inform_is_configured_without_a_lease() {
    let mut message = request(MessageType::Inform, &[]);
    message.set_ciaddr(OURS);
    let ack = ask(&message).unwrap();
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(ack.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(option(&ack, OptionCode::AddressLeaseTime), None);
    assert!(option(&ack, OptionCode::Router).is_some());
}

#[test]
fn what_needs_no_answer_gets_none() {
    assert!(ask(&request(MessageType::Release, &[])).is_none());
    assert!(ask(&request(MessageType::Decline, &[])).is_none());
    let mut foreign = request(MessageType::Discover, &[]);
    foreign.set_chaddr(&[2, 0, 0, 0, 0, 0x2b]);
    assert!(ask(&foreign).is_none());
    let mut reply = request(MessageType::Discover, &[]);
    reply.set_opcode(Opcode::BootReply);
    assert!(ask(&reply).is_none());
}

proptest! {
    #[test]
    fn fuzz_hostile_datagrams_neither_panic_nor_earn_another_address(
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..12),
        length in 0usize..300,
    ) {
        let _ = answer(&noise, &record());
        let mut bytes = Vec::new();
        request(MessageType::Discover, &[DhcpOption::RequestedIpAddress(OURS)])
            .encode(&mut Encoder::new(&mut bytes))
            .unwrap();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(length);
        if let Some(reply) = answer(&bytes, &record()) {
            let reply = Message::decode(&mut Decoder::new(&reply)).unwrap();
            prop_assert!(reply.yiaddr().is_unspecified() || reply.yiaddr() == OURS);
        }
    }
}

#[test]
fn a_vpc_s_own_options_are_in_the_lease() {
    let mut record = record();
    let server = |n| Ipv4Addr::new(10, 9, 8, n);
    record.interfaces[0].options = crate::responder::record::Options {
        no_dns: false,
        domain_name_servers: vec![server(1), server(2)],
        no_resolver: false,
        ntp_servers: vec![server(3)],
        netbios_name_servers: vec![server(4)],
        netbios_node_type: 2,
    };
    let lease = |record: &Record| {
        let mut bytes = Vec::new();
        let discover = request(MessageType::Discover, &[]);
        discover.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let reply = answer(&bytes, record).unwrap();
        Message::decode(&mut Decoder::new(&reply)).unwrap()
    };
    let told = lease(&record);
    for (code, wanted) in [
        (
            OptionCode::DomainNameServer,
            DhcpOption::DomainNameServer(vec![server(1), server(2)]),
        ),
        (
            OptionCode::NtpServers,
            DhcpOption::NtpServers(vec![server(3)]),
        ),
        (
            OptionCode::NetBiosNameServers,
            DhcpOption::NetBiosNameServers(vec![server(4)]),
        ),
    ] {
        assert_eq!(option(&told, code), Some(wanted));
    }
    assert!(option(&told, OptionCode::NetBiosNodeType).is_some());
    record.interfaces[0].options = crate::responder::record::Options {
        no_resolver: true,
        ..Default::default()
    };
    assert_eq!(option(&lease(&record), OptionCode::DomainNameServer), None);
}
