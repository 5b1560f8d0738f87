//! A guest's DNS message, and another's answer to what it asks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_node::responder::dns::{By, Verdict, answer};
use ocs_node::responder::record::Record;
use std::sync::LazyLock;

const RECORD: &str = include_str!("../data/record.json");

fuzz_target!(|data: &[u8]| {
    static OWN: LazyLock<Record> =
        LazyLock::new(|| serde_json::from_str(RECORD).expect("a record"));
    // The question's length, the question, the answer of others.
    let Some((length, rest)) = data.split_first() else {
        return;
    };
    let (question, heard) = rest.split_at(rest.len().min(usize::from(*length)));
    for by in [By::Udp, By::Tcp] {
        match answer(question, &OWN, by) {
            Verdict::Answer(bytes) => assert!(bytes.len() <= 1232),
            Verdict::Ask(asked) => {
                let sent = asked.message(7).expect("what was read can be asked");
                assert!(sent.len() <= 512 + 16);
                if let Some(bytes) = asked.answered(heard, 7) {
                    assert!(by == By::Tcp || bytes.len() <= 1232);
                }
                assert!(!asked.failed().is_empty());
            }
            Verdict::Silence => {}
        }
    }
});
