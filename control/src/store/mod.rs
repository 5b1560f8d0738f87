//! The store: ordered keys, compare-and-batch transactions, a watch.
//!
//! ```text
//!   submit(batch) ─▶ compare ─▶ revision N ─▶ writer thread ─▶ one sync for all
//!        │                          │            that wait ─▶ durable = N
//!        ▼ Conflict                 └─▶ change log (bounded) ─▶ changes_since(M)
//! ```
//!
//! [`Store`] declares the limits of the narrowest backend (etcd's), so that what
//! runs on the embedded file runs on a cluster. An answer may leave the process
//! only after [`Store::durable`] for the revision that it rests on.

pub mod embedded;
mod journal;
mod writer;

pub use embedded::Embedded;

use serde::{Deserialize, Serialize};

/// Counts transactions; each commit has its own.
pub type Revision = u64;

/// Most operations of one transaction (etcd's `--max-txn-ops`).
pub const MAX_OPERATIONS: usize = 128;
/// Most bytes of one transaction (etcd's `--max-request-bytes`).
pub const MAX_BYTES: usize = 1_500_000;

/// What has to hold for a batch to commit: the key was last written at this
/// revision, or (0) is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its revision, 0 for "absent".
    pub revision: Revision,
}

/// A write: a value, or none to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The key.
    pub key: String,
    /// New value; none: deleted.
    #[serde(with = "serde_bytes")]
    pub value: Option<Vec<u8>>,
}

impl Write {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// A transaction: all of its writes if all of its comparisons hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is written then.
    pub writes: Vec<Write>,
}

impl Batch {
    /// Bytes as the limit counts them.
    pub fn bytes(&self) -> usize {
        self.writes.iter().map(Write::bytes).sum::<usize>()
            + self
                .compares
                .iter()
                .map(|compare| compare.key.len() + 8)
                .sum::<usize>()
    }
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Revision of its last write.
    pub revision: Revision,
    /// Its value.
    pub value: Vec<u8>,
}

/// Failures of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A comparison did not hold: read again and retry.
    #[error("key {0} has changed since it was read")]
    Conflict(String),
    /// The batch exceeds the declared limits.
    #[error("a transaction of {operations} operations and {bytes} bytes exceeds the limits")]
    TooLarge {
        /// Operations asked for.
        operations: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// The change log no longer reaches back that far: list again.
    #[error("changes since revision {0} are no longer kept")]
    Compacted(Revision),
    /// The file was written by a later version of this program.
    #[error("the store has schema {found}, this program knows up to {known}: run the newer one")]
    Schema {
        /// Version in the file.
        found: u64,
        /// Version of this program.
        known: u64,
    },
    /// The file cannot be read or written; nothing more is accepted.
    #[error("the store has failed: {0}")]
    Failed(String),
}

/// A store of control's rows.
pub trait Store: Send + Sync {
    /// Orders a batch. It is decided when this returns, durable when
    /// [`Store::durable`] says so.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::TooLarge`], [`StoreError::Failed`].
    fn submit(&self, batch: Batch) -> Result<Revision, StoreError>;

    /// Returns once all up to `revision` would survive a power cut.
    fn durable(
        &self,
        revision: Revision,
    ) -> impl std::future::Future<Output = Result<(), StoreError>> + Send;

    /// Entries with `from <= key < to`, in order.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range(&self, from: &str, to: &str) -> Result<Vec<Entry>, StoreError>;

    /// Keys written after `revision`, oldest first, and the revision reached.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where the log does not reach back that far.
    fn changes_since(&self, revision: Revision) -> Result<(Revision, Vec<String>), StoreError>;

    /// Wakes whenever the durable revision grows.
    fn watch(&self) -> tokio::sync::watch::Receiver<Revision>;
}
