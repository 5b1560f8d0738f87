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

    /// Connected, or not away for long.
    pub fn reachable(&self, node: &str) -> bool {
        match lock(&self.links).get(node) {
            Some(link) => link.downstream.is_some() || link.last_seen.elapsed() < GRACE,
            // It has not come back since we started.
            None => self.started.elapsed() < GRACE,
        }
    }

    /// Whether new instances may be placed there.
    pub fn placeable(&self, node: &str) -> bool {
        self.reachable(node)
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
