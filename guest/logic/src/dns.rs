//! Questions to a DNS server and its answers (RFC 1035 §4): addresses and names alone.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

const A: u16 = 1;
const PTR: u16 = 12;
const IN: u16 = 1;
/// Recursion is desired.
const FLAGS: u16 = 0x0100;
const IS_ANSWER: u8 = 0x80;
/// More jumps than a name has labels.
const MOST_JUMPS: usize = 128;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As it was ordered.
    pub text: String,
    name: String,
    kind: u16,
}

impl Question {
    /// Of an address its name, of a name its addresses; `None` for what is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, kind) = match text.parse::<Ipv4Addr>() {
            Ok(address) => {
                let [a, b, c, d] = address.octets();
                (format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR)
            }
            Err(_) => (text.trim_end_matches('.').to_string(), A),
        };
        let label = |label: &str| (1..64).contains(&label.len()) && label.is_ascii();
        (name.len() < 254 && name.split('.').all(label)).then(|| Self {
            text: text.to_string(),
            name,
            kind,
        })
    }

    /// The message that asks it.
    #[must_use]
    pub fn message(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [id, FLAGS, 1, 0, 0, 0] {
            message.extend(word.to_be_bytes());
        }
        for label in self.name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        for word in [self.kind, IN] {
            message.extend(word.to_be_bytes());
        }
        message
    }
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// 0: fine, 2: it failed, 3: there is no such name, 5: refused.
    pub rcode: u8,
    /// Addresses and names, as text.
    pub found: Vec<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rcode={} found={}", self.rcode, self.found.join(","))
    }
}

/// Reads a message; `None` where it is no whole answer to the question asked with that id.
#[must_use]
pub fn answer(message: &[u8], id: u16) -> Option<Answer> {
    if word(message, 0)? != id || message.get(2)? & IS_ANSWER == 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..word(message, 4)? {
        at = name(message, at)?.1 + 4;
    }
    let mut answer = Answer {
        rcode: message.get(3)? & 0x0f,
        found: Vec::new(),
    };
    for _ in 0..word(message, 6)? {
        let head = name(message, at)?.1;
        let kind = word(message, head)?;
        let data = head + 10;
        let len = usize::from(word(message, head + 8)?);
        match (kind, message.get(data..data + len)?) {
            (A, [a, b, c, d]) => answer.found.push(Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            (PTR, _) => answer.found.push(name(message, data)?.0),
            _ => {}
        }
        at = data + len;
    }
    Some(answer)
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A name and where it ends.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut end = None;
    for _ in 0..MOST_JUMPS {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some((text, end.unwrap_or(at + 1))),
            0xc0.. => {
                end = end.or(Some(at + 2));
                at = usize::from(word(message, at)? & 0x3fff);
            }
            1..64 => {
                let label = message.get(at + 1..at + 1 + len)?;
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(label.iter().map(|b| match b.is_ascii_graphic() {
                    true => char::from(*b),
                    false => '?',
                }));
                at += 1 + len;
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// An answer to a question: its message, a record, a name that points at the question's.
    fn reply(question: &Question, kind: u16, data: &[u8]) -> Vec<u8> {
        let mut message = question.message(7);
        message[2] |= IS_ANSWER;
        message[7] = 1;
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
        message
    }

    #[test]
    fn addresses_and_names_are_asked_for_and_read() {
        let name = Question::parse("ip-10-0-0-5.ec2.internal").unwrap();
        let message = reply(&name, A, &[10, 0, 0, 5]);
        let found = |message: &[u8]| answer(message, 7).map(|answer| answer.found);
        assert_eq!(found(&message), Some(vec!["10.0.0.5".to_string()]));
        assert_eq!(answer(&message, 8), None, "another's");
        let address = Question::parse("10.0.0.5").unwrap();
        let message = reply(&address, PTR, b"\x03web\x08internal\x00");
        assert_eq!(found(&message), Some(vec!["web.internal".to_string()]));
        for end in 0..message.len() {
            assert_eq!(answer(&message[..end], 7), None, "{end}");
        }
        for wrong in ["", "a..b", &"x".repeat(64), &"x.".repeat(130)] {
            assert_eq!(Question::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_name_that_points_at_itself_ends() {
        let question = Question::parse("a.b").unwrap();
        let mut message = reply(&question, PTR, &[0xc0, 0]);
        let at = message.len() - 2;
        message[at + 1] = at as u8;
        assert_eq!(answer(&message, 7), None);
    }
}
