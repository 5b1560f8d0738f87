use super::*;
use crate::responder::testing::record;
use hickory_proto::rr::RecordType;
use proptest::prelude::*;

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

/// What a VPC answers by itself; nothing where others are asked.
fn says(record: &Record, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
    let asked = question(name, kind);
    match answer(&asked.to_vec().unwrap(), record, By::Udp) {
        Verdict::Answer(bytes) => {
            let heard = Message::from_vec(&bytes).unwrap();
            assert_eq!((heard.metadata.id, &heard.queries), (7, &asked.queries));
            let data = heard.answers.iter().map(|row| row.data.to_string());
            Some((heard.metadata.response_code, data.collect()))
        }
        Verdict::Ask(_) => None,
        Verdict::Silence => panic!("silence about {name}"),
    }
}

#[test]
fn a_vpc_knows_its_names_both_ways_and_no_others() {
    let mut record = record();
    record.interfaces[0].facts.publics = vec![([198, 51, 100, 7].into(), [172, 31, 16, 5].into())];
    let known = |text: &str| Some((ResponseCode::NoError, vec![text.to_owned()]));
    let none = Some((ResponseCode::NXDomain, vec![]));
    let empty = Some((ResponseCode::NoError, vec![]));
    for (name, kind, expected) in [
        (
            "ip-172-31-16-5.ec2.internal.",
            RecordType::A,
            known("172.31.16.5"),
        ),
        (
            "IP-172-31-16-9.EC2.internal.",
            RecordType::A,
            known("172.31.16.9"),
        ),
        (
            "ip-10-9-0-1.ec2.internal.",
            RecordType::A,
            known("10.9.0.1"),
        ),
        (
            "ip-172-31-16-5.ec2.internal.",
            RecordType::AAAA,
            empty.clone(),
        ),
        ("ip-10-8-0-1.ec2.internal.", RecordType::A, none.clone()),
        ("ip-172-31-16.ec2.internal.", RecordType::A, none.clone()),
        (
            "a.ip-172-31-16-5.ec2.internal.",
            RecordType::A,
            none.clone(),
        ),
        ("ec2.internal.", RecordType::A, empty),
        (
            "ip-172-31-16-5.eu-west-1.compute.internal.",
            RecordType::A,
            none.clone(),
        ),
        (
            "5.16.31.172.in-addr.arpa.",
            RecordType::PTR,
            known("ip-172-31-16-5.ec2.internal."),
        ),
        ("1.0.8.10.in-addr.arpa.", RecordType::PTR, none.clone()),
        ("10.in-addr.arpa.", RecordType::SOA, none),
        ("1.2.0.192.in-addr.arpa.", RecordType::PTR, None),
        (
            "ec2-198-51-100-7.compute-1.amazonaws.com.",
            RecordType::A,
            known("172.31.16.5"),
        ),
        (
            "ec2-198-51-100-8.compute-1.amazonaws.com.",
            RecordType::A,
            known("198.51.100.8"),
        ),
        ("example.com.", RecordType::A, None),
        (".", RecordType::NS, None),
    ] {
        assert_eq!(says(&record, name, kind), expected, "{name} {kind}");
    }
    record.instance.region = "eu-west-1".into();
    let name = "ip-172-31-16-5.eu-west-1.compute.internal.";
    assert_eq!(says(&record, name, RecordType::A), known("172.31.16.5"));
    record.interfaces[0].options.no_dns = true;
    assert_eq!(
        says(&record, name, RecordType::A),
        Some((ResponseCode::Refused, vec![]))
    );
}

#[test]
fn no_name_has_an_ipv6_address_and_no_other_is_asked_for_one() {
    let mut record = record();
    record.interfaces[0].ipv6.vpc_cidrs = vec!["2001:db8:7:100::/56".into()];
    record.interfaces[0].facts.publics = vec![([198, 51, 100, 7].into(), [172, 31, 16, 5].into())];
    let empty = Some((ResponseCode::NoError, vec![]));
    let none = Some((ResponseCode::NXDomain, vec![]));
    let reverse = |address: &str| {
        let address: std::net::Ipv6Addr = address.parse().unwrap();
        Name::from(address).to_ascii()
    };
    for name in [
        "ip-172-31-16-5.ec2.internal.",
        "ec2-198-51-100-7.compute-1.amazonaws.com.",
    ] {
        assert_eq!(says(&record, name, RecordType::AAAA), empty, "{name}");
    }
    for name in [
        "i-0123456789abcdef0.ec2.internal.",
        "i-0123456789abcdef0.eu-west-1.compute.internal.",
        "ip-10-8-0-1.ec2.internal.",
    ] {
        assert_eq!(says(&record, name, RecordType::AAAA), none, "{name}");
    }
    for address in ["2001:db8:7:1ab::5", "fd00:ec2::253", "fe80::1", "::1"] {
        let name = reverse(address);
        assert_eq!(says(&record, &name, RecordType::PTR), none, "{name}");
    }
    for (name, kind) in [
        (reverse("2001:db8:7:200::5"), RecordType::PTR),
        ("8.b.d.0.1.0.0.2.ip6.arpa.".to_owned(), RecordType::SOA),
        ("example.com.".to_owned(), RecordType::AAAA),
    ] {
        assert_eq!(says(&record, &name, kind), None, "{name}");
    }
}

#[test]
fn what_is_no_question_is_refused_or_not_answered() {
    let record = record();
    let code = |message: &Message| match answer(&message.to_vec().unwrap(), &record, By::Udp) {
        Verdict::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
        _ => None,
    };
    let mut two = question("a.", RecordType::A);
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(code(&two), Some(ResponseCode::FormErr));
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    let mut update = question("a.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), Some(ResponseCode::NotImp));
    let mut reply = question("a.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    assert_eq!(code(&reply), None);
}

#[test]
fn an_answer_of_others_is_taken_for_its_own_question_alone() {
    let record = record();
    let asked = question("example.com.", RecordType::A);
    let Verdict::Ask(ask) = answer(&asked.to_vec().unwrap(), &record, By::Udp) else {
        panic!("example.com is none of ours");
    };
    let out = Message::from_vec(&ask.message(99).unwrap()).unwrap();
    assert_eq!(out.max_payload(), MAX_ANSWER_BYTES);
    let mut heard = reply(&out, ResponseCode::NoError);
    for n in 0..100 {
        let data = RData::A(hickory_proto::rr::rdata::A([192, 0, 2, n].into()));
        heard.add_answer(Answer::from_rdata(out.queries[0].name().clone(), 5, data));
    }
    let bytes = heard.to_vec().unwrap();
    assert_eq!(ask.answered(&bytes, 98), None);
    let mut other = heard.clone();
    other.queries = question("example.org.", RecordType::A).queries;
    assert_eq!(ask.answered(&other.to_vec().unwrap(), 99), None);
    // It does not fit a datagram, and says so; on a connection it comes whole.
    let short = Message::from_vec(&ask.answered(&bytes, 99).unwrap()).unwrap();
    assert!(short.metadata.truncation && short.answers.is_empty() && short.metadata.id == 7);
    let whole = Question {
        by: By::Tcp,
        ..*ask
    }
    .answered(&bytes, 99)
    .unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 100);
}

proptest! {
    #[test]
    fn fuzz_any_bytes_are_answered_shortly_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let record = record();
        if let Verdict::Answer(bytes) = answer(&bytes, &record, By::Udp) {
            prop_assert!(bytes.len() <= usize::from(MAX_DATAGRAM_BYTES));
            prop_assert!(Message::from_vec(&bytes).is_ok());
        }
    }
}
