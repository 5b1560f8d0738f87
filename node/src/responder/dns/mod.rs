//! The VPC's resolver: at the base of the VPC's first block plus two, and at 169.254.169.253
//! (Amazon VPC User Guide, "Understanding Amazon DNS").
//!
//! ```text
//!  question ─▶ names ── the VPC's own ──▶ answer
//!                └───── all else ───────▶ upstream: the host's resolvers ──▶ answer
//! ```
//! RFC 1035, and RFC 6891 for sizes. Each question that goes on takes one of the ENI's places
//! among those that wait, so a guest can make others wait no more than by metadata requests.

pub mod names;
pub mod serve;
pub mod upstream;

use super::record::Record;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use hickory_proto::rr::{DNSClass, RData, Record as Answer, rdata::SOA};
use names::Finding;
use std::str::FromStr;
use upstream::MAX_ANSWER_BYTES;

/// Seconds that an answer about a VPC's own names may be kept, as EC2's.
const TTL_S: u32 = 60;
/// The longest answer by UDP: what passes every network in one piece.
const MAX_DATAGRAM_BYTES: u16 = 1232;
/// The shortest that all can take (RFC 1035 §4.2.1).
const MIN_DATAGRAM_BYTES: u16 = 512;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// What becomes of a question.
#[derive(Debug)]
pub enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// Others are to be asked.
    Ask(Box<Question>),
    /// Nothing: it is none.
    Silence,
}

/// A question for others.
#[derive(Debug)]
pub struct Question {
    asked: Message,
    by: By,
}

/// Reads a question of the ENI that `record` describes.
#[must_use]
pub fn answer(message: &[u8], record: &Record, by: By) -> Verdict {
    let Ok(asked) = Message::from_vec(message) else {
        return malformed(message);
    };
    if asked.metadata.message_type != MessageType::Query {
        return Verdict::Silence;
    }
    let code = |code| Verdict::Answer(encode(&reply(&asked, code), by, &asked));
    let enabled = record
        .own_interface()
        .is_some_and(|own| !own.options.no_dns);
    if !enabled {
        return code(ResponseCode::Refused);
    }
    if asked.metadata.op_code != OpCode::Query {
        return code(ResponseCode::NotImp);
    }
    let [query] = asked.queries.as_slice() else {
        return code(ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return code(ResponseCode::Refused);
    }
    let finding = names::look_up(record, query.name(), query.query_type());
    let mut answer = reply(&asked, ResponseCode::NoError);
    answer.metadata.authoritative = true;
    match finding {
        Finding::Elsewhere => return Verdict::Ask(Box::new(Question { asked, by })),
        Finding::Known(data) => {
            answer.add_answer(Answer::from_rdata(query.name().clone(), TTL_S, data));
        }
        Finding::NoData => deny(&mut answer, query),
        Finding::NoName => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            deny(&mut answer, query);
        }
    }
    Verdict::Answer(encode(&answer, by, &asked))
}

/// What can be said of a message that cannot be read: that, if its head can.
fn malformed(message: &[u8]) -> Verdict {
    let [high, low, flags, ..] = *message else {
        return Verdict::Silence;
    };
    // QR: an answer, to which nothing is answered.
    if message.len() < 12 || flags & 0x80 != 0 {
        return Verdict::Silence;
    }
    let id = u16::from_be_bytes([high, low]);
    let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    answer.to_vec().map_or(Verdict::Silence, Verdict::Answer)
}

fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(asked.queries.iter().cloned());
    answer
}

/// Says how long it may be remembered that there is nothing (RFC 2308 §3).
fn deny(answer: &mut Message, query: &Query) {
    let zone = query.name().base_name();
    let Ok(server) = Name::from_str("ns0.ocs.internal.") else {
        return;
    };
    let soa = SOA::new(server.clone(), server, 1, 3600, 900, 7200, TTL_S);
    answer.add_authority(Answer::from_rdata(zone, TTL_S, RData::SOA(soa)));
}

/// The bytes of an answer, cut where it is longer than who asked takes.
fn encode(answer: &Message, by: By, asked: &Message) -> Vec<u8> {
    let mut answer = answer.clone();
    answer.edns = asked.edns.as_ref().map(|edns| {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_DATAGRAM_BYTES);
        ours.set_dnssec_ok(edns.flags().dnssec_ok);
        ours
    });
    let most = match by {
        By::Udp => asked
            .max_payload()
            .clamp(MIN_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES),
        By::Tcp => u16::MAX,
    };
    match answer.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(most) => bytes,
        Ok(_) => answer.truncate().to_vec().unwrap_or_default(),
        Err(_) => reply(asked, ResponseCode::ServFail)
            .to_vec()
            .unwrap_or_default(),
    }
}

impl Question {
    /// The message that asks others.
    #[must_use]
    pub fn message(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.asked.metadata.checking_disabled;
        message.add_queries(self.asked.queries.iter().cloned());
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_ANSWER_BYTES);
        let wants = self.asked.edns.as_ref();
        edns.set_dnssec_ok(wants.is_some_and(|edns| edns.flags().dnssec_ok));
        message.set_edns(edns);
        message.to_vec().ok()
    }

    /// The answer for who asked, from what another said; nothing where that is no answer to
    /// this question.
    #[must_use]
    pub fn answered(&self, bytes: &[u8], id: u16) -> Option<Vec<u8>> {
        let mut heard = Message::from_vec(bytes).ok()?;
        let fits = heard.metadata.id == id
            && heard.metadata.message_type == MessageType::Response
            && heard.queries == self.asked.queries;
        if !fits {
            return None;
        }
        heard.metadata.id = self.asked.metadata.id;
        heard.metadata.authoritative = false;
        heard.metadata.recursion_available = true;
        heard.metadata.recursion_desired = self.asked.metadata.recursion_desired;
        Some(encode(&heard, self.by, &self.asked))
    }

    /// The answer where nobody answered.
    #[must_use]
    pub fn failed(&self) -> Vec<u8> {
        let failure = reply(&self.asked, ResponseCode::ServFail);
        encode(&failure, self.by, &self.asked)
    }
}

#[cfg(test)]
mod tests;
