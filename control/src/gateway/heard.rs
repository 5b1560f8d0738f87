//! What a node has heard already: hashes of the last message about each object.

use prost::Message;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};

/// Objects of a kind, by their ids. In memory for as long as a session lasts; the hash's key
/// is this process's secret, so nobody can make two states of an object look like one.
#[derive(Debug)]
pub struct Heard<Id> {
    hashes: HashMap<Id, u64>,
    key: RandomState,
}

impl<Id> Default for Heard<Id> {
    fn default() -> Self {
        Self {
            hashes: HashMap::new(),
            key: RandomState::new(),
        }
    }
}

impl<Id: Eq + Hash> Heard<Id> {
    /// The message about an object, unless the last one said the same; nothing, which is
    /// forgotten, where there is nothing to say of it any more. (One with two tags or more
    /// may be said twice: their order on the wire is not fixed.)
    pub fn news<M: Message>(&mut self, id: Id, message: Option<M>) -> Option<M> {
        let Some(message) = message else {
            self.hashes.remove(&id);
            return None;
        };
        let hash = self.key.hash_one(message.encode_to_vec());
        (self.hashes.insert(id, hash) != Some(hash)).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_twice() {
        let mut heard = Heard::default();
        let say = |text: &str| Some(text.to_owned());
        assert_eq!(heard.news(1, say("a")), say("a"));
        assert_eq!(heard.news(1, say("a")), None);
        assert_eq!(heard.news(2, say("a")), say("a"));
        assert_eq!(heard.news(1, say("b")), say("b"));
        assert_eq!(heard.news::<String>(1, None), None);
        assert_eq!(heard.hashes.len(), 1);
        assert_eq!(heard.news(1, say("b")), say("b"));
    }
}
