//! The nodes that are connected, and questions to them. In memory alone: after
//! a restart the nodes come back by themselves.

use ocs_node_api::{
    Answer, OpenTunnel, Query, ToNode, TunnelBytes, query::Question, to_node::Message,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

/// How long a node may be away before its instances count as impaired and
/// nothing more is placed on it.
const GRACE: Duration = Duration::from_secs(30);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a tunnel may take to come: longer than a node tries to connect.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(15);

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

/// A node's end of a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// What the other end is to hear; an empty one: nothing more comes.
    pub to_node: mpsc::Sender<Result<TunnelBytes, Status>>,
    /// What it says.
    pub from_node: Streaming<TunnelBytes>,
}

/// What a question is answered with.
enum Reply {
    Answer(Answer),
    Tunnel(Tunnel),
}

/// A question that waits: to which node, and for whom.
type Waiting = (String, oneshot::Sender<Reply>);

/// All nodes since this process started.
pub struct Fleet {
    started: Instant,
    counter: AtomicU64,
    links: Mutex<HashMap<String, Link>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
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
        let question = Question::ConsoleOutputOf(instance.to_owned());
        match self.ask(node, question, ANSWER_TIMEOUT).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Tunnel(_) => Err(AskError::Silent),
        }
    }

    /// Has a node open a connection from an instance-connect endpoint of its own.
    ///
    /// # Errors
    /// Where the node is away, silent, or cannot connect.
    pub async fn tunnel(&self, node: &str, open: OpenTunnel) -> Result<Tunnel, AskError> {
        let question = Question::OpenTunnel(open);
        match self.ask(node, question, TUNNEL_TIMEOUT).await? {
            Reply::Tunnel(tunnel) => Ok(tunnel),
            Reply::Answer(_) => Err(AskError::Silent),
        }
    }

    async fn ask(
        &self,
        node: &str,
        question: Question,
        patience: Duration,
    ) -> Result<Reply, AskError> {
        let downstream = lock(&self.links)
            .get(node)
            .and_then(|link| link.downstream.clone())
            .ok_or(AskError::Away)?;
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id, (node.to_owned(), sender));
        let _forgotten = Forget(self, id);
        let query = Query {
            id,
            question: Some(question),
        };
        let query = ToNode {
            message: Some(Message::Query(query)),
        };
        let ask = async {
            downstream
                .send(Ok(query))
                .await
                .map_err(|_| AskError::Away)?;
            receiver.await.map_err(|_| AskError::Away)
        };
        let reply = tokio::time::timeout(patience, ask).await;
        match reply.map_err(|_| AskError::Silent)?? {
            Reply::Answer(answer) if !answer.error.is_empty() => {
                Err(AskError::Refused(answer.error))
            }
            reply => Ok(reply),
        }
    }

    /// A node's answer has come; nobody may be waiting for it any more.
    pub fn answered(&self, node: &str, answer: Answer) {
        self.reply(node, answer.id, Reply::Answer(answer));
    }

    /// A tunnel has come that a question was for. Whether anybody waits for it.
    pub fn opened(&self, node: &str, query: u64, tunnel: Tunnel) -> bool {
        self.reply(node, query, Reply::Tunnel(tunnel))
    }

    fn reply(&self, node: &str, id: u64, reply: Reply) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&id).is_none_or(|(asked, _)| asked != node) {
            return false;
        }
        let sender = waiting.remove(&id);
        sender.is_some_and(|(_, sender)| sender.send(reply).is_ok())
    }
}

/// A question that nobody waits for any more, whoever gave up: its client may have left.
struct Forget<'a>(&'a Fleet, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).remove(&self.1);
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
