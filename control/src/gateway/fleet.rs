//! The nodes that are connected, and questions to them. In memory alone: after
//! a restart the nodes come back by themselves.

use ocs_node_api::{Answer, Query, ToNode, query::Question, to_node::Message};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// How long a node may be away before its instances count as impaired and
/// nothing more is placed on it.
const GRACE: Duration = Duration::from_secs(30);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What goes down a node's stream.
pub type Downstream = mpsc::Sender<Result<ToNode, Status>>;

/// Why a node gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It is not connected.
    #[error("its host is not connected")]
    Away,
    /// It does not answer in time.
    #[error("its host does not answer")]
    Silent,
    /// It answers with an error.
    #[error("its host says: {0}")]
    Refused(String),
}

#[derive(Debug)]
struct Link {
    session: u64,
    downstream: Option<Downstream>,
    last_seen: Instant,
}

/// All nodes since this process started.
#[derive(Debug)]
pub struct Fleet {
    started: Instant,
    counter: AtomicU64,
    links: Mutex<HashMap<String, Link>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            counter: AtomicU64::new(1),
            links: Mutex::default(),
            waiting: Mutex::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// A node has come: its new session replaces any older one.
    pub fn connect(&self, node: &str, downstream: Downstream) -> u64 {
        let session = self.counter.fetch_add(1, Ordering::Relaxed);
        let link = Link {
            session,
            downstream: Some(downstream),
            last_seen: Instant::now(),
        };
        lock(&self.links).insert(node.to_owned(), link);
        session
    }

    /// A session has ended.
    pub fn disconnect(&self, node: &str, session: u64) {
        if let Some(link) = lock(&self.links)
            .get_mut(node)
            .filter(|link| link.session == session)
        {
            link.downstream = None;
            link.last_seen = Instant::now();
        }
    }

    /// Whether a session is still its node's current one.
    pub fn is_current(&self, node: &str, session: u64) -> bool {
        lock(&self.links)
            .get(node)
            .is_some_and(|link| link.session == session)
    }

    /// Connected, or not away for long: its instances count as reachable, and
    /// new ones may be placed there.
    pub fn reachable(&self, node: &str) -> bool {
        self.reachable_at(node, Instant::now())
    }

    fn reachable_at(&self, node: &str, now: Instant) -> bool {
        let since = match lock(&self.links).get(node) {
            Some(link) if link.downstream.is_some() => return true,
            Some(link) => link.last_seen,
            // It has not come back since we started.
            None => self.started,
        };
        now.saturating_duration_since(since) < GRACE
    }

    /// Asks a node for an instance's console.
    ///
    /// # Errors
    /// Where the node is away, silent, or refuses.
    pub async fn console(&self, node: &str, instance: &str) -> Result<Answer, AskError> {
        let downstream = lock(&self.links)
            .get(node)
            .and_then(|link| link.downstream.clone())
            .ok_or(AskError::Away)?;
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        let question = Some(Question::ConsoleOutputOf(instance.to_owned()));
        let query = ToNode {
            message: Some(Message::Query(Query { id, question })),
        };
        let ask = async {
            downstream
                .send(Ok(query))
                .await
                .map_err(|_| AskError::Away)?;
            receiver.await.map_err(|_| AskError::Away)
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask).await;
        lock(&self.waiting).remove(&id);
        let answer = answer.map_err(|_| AskError::Silent)??;
        if answer.error.is_empty() {
            Ok(answer)
        } else {
            Err(AskError::Refused(answer.error))
        }
    }

    /// An answer has come; nobody may be waiting for it any more.
    pub fn answered(&self, answer: Answer) {
        if let Some(sender) = lock(&self.waiting).remove(&answer.id) {
            let _ = sender.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_away_for_a_while() {
        let fleet = Fleet::default();
        let (sender, _receiver) = mpsc::channel(1);
        let later = Instant::now() + GRACE;
        assert!(fleet.reachable("a"), "it may come back after our own start");
        assert!(!fleet.reachable_at("a", later));
        let first = fleet.connect("a", sender.clone());
        assert!(fleet.reachable_at("a", later));
        let second = fleet.connect("a", sender);
        fleet.disconnect("a", first);
        assert!(
            fleet.reachable_at("a", later),
            "the end of a replaced session is nothing"
        );
        assert!(!fleet.is_current("a", first));
        fleet.disconnect("a", second);
        assert!(fleet.reachable("a"));
        assert!(!fleet.reachable_at("a", Instant::now() + GRACE));
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_not_waited_for() {
        let fleet = Fleet::default();
        assert_eq!(fleet.console("a", "i-1").await, Err(AskError::Away));
        let (sender, receiver) = mpsc::channel(1);
        fleet.connect("a", sender);
        drop(receiver);
        assert_eq!(fleet.console("a", "i-1").await, Err(AskError::Away));
        assert!(lock(&fleet.waiting).is_empty());
    }
}
