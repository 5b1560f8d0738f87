//! The embedded backend: one redb file, one writer thread, group commit.

use super::{Batch, Entry, MAX_BYTES, MAX_OPERATIONS, Revision, Store, StoreError, Write};
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::watch;

const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Version of the rows' form. Older files migrate forward, newer ones are refused.
pub const SCHEMA: u64 = 2;
/// Changed keys that the log keeps for watchers.
const LOG_KEYS: usize = 65_536;
/// Batches that may wait for the writer.
const QUEUE: usize = 4_096;
/// Pages of the file that are kept in memory: reads are answered from the view, so these
/// serve the writer's way down the tree alone.
const CACHE_BYTES: usize = 8 << 20;

/// A store in a file.
pub struct Embedded {
    database: Arc<Database>,
    head: Mutex<Head>,
    queue: mpsc::SyncSender<(Revision, Vec<Write>)>,
    durable: watch::Receiver<Revision>,
}

/// What is decided, though perhaps not yet durable.
struct Head {
    revision: Revision,
    revisions: HashMap<Box<str>, Revision>,
    log: VecDeque<(Revision, Box<str>)>,
    /// The log holds every change after this revision.
    log_after: Revision,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Embedded {
    /// Opens or makes the file and starts its writer.
    ///
    /// # Errors
    /// [`StoreError::Schema`] on a newer file, [`StoreError::Failed`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        let database = Arc::new(builder.create(path).map_err(failed)?);
        let transaction = database.begin_write().map_err(failed)?;
        let (revision, revisions) = {
            let mut meta = transaction.open_table(META).map_err(failed)?;
            let found = meta
                .get("schema")
                .map_err(failed)?
                .map(|value| value.value());
            match found {
                Some(found) if found > SCHEMA => {
                    return Err(StoreError::Schema {
                        found,
                        known: SCHEMA,
                    });
                }
                _ => meta.insert("schema", SCHEMA).map_err(failed)?,
            };
            let revision = meta
                .get("revision")
                .map_err(failed)?
                .map_or(0, |value| value.value());
            let rows = transaction.open_table(ROWS).map_err(failed)?;
            let mut revisions = HashMap::new();
            for row in rows.iter().map_err(failed)? {
                let (key, value) = row.map_err(failed)?;
                revisions.insert(Box::from(key.value()), value.value().0);
            }
            (revision, revisions)
        };
        transaction.commit().map_err(failed)?;
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        let (publish, durable) = watch::channel(revision);
        let writer = Arc::clone(&database);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(&writer, &jobs, &publish))
            .map_err(failed)?;
        let head = Head {
            revision,
            revisions,
            log: VecDeque::new(),
            log_after: revision,
        };
        Ok(Self {
            database,
            head: Mutex::new(head),
            queue,
            durable,
        })
    }

    /// The last revision that was decided.
    pub fn revision(&self) -> Revision {
        self.head().revision
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Embedded {
    fn submit(&self, batch: Batch) -> Result<Revision, StoreError> {
        let operations = batch.compares.len().max(batch.writes.len());
        let bytes = batch.bytes();
        if operations > MAX_OPERATIONS || bytes > MAX_BYTES {
            return Err(StoreError::TooLarge { operations, bytes });
        }
        let mut head = self.head();
        for compare in &batch.compares {
            let revision = head
                .revisions
                .get(compare.key.as_str())
                .copied()
                .unwrap_or(0);
            if revision != compare.revision {
                return Err(StoreError::Conflict(compare.key.clone()));
            }
        }
        let revision = head.revision + 1;
        let keys: Vec<(Box<str>, bool)> = batch
            .writes
            .iter()
            .map(|write| (Box::from(write.key.as_str()), write.value.is_some()))
            .collect();
        // The queue's order is the revisions' order, since the lock is held.
        self.queue
            .send((revision, batch.writes))
            .map_err(|_| StoreError::Failed("its writer has stopped".to_owned()))?;
        head.revision = revision;
        for (key, present) in keys {
            if present {
                head.revisions.insert(key.clone(), revision);
            } else {
                head.revisions.remove(&key);
            }
            head.log.push_back((revision, key));
        }
        while head.log.len() > LOG_KEYS {
            if let Some((dropped, _)) = head.log.pop_front() {
                head.log_after = dropped;
            }
        }
        Ok(revision)
    }

    async fn durable(&self, revision: Revision) -> Result<(), StoreError> {
        let mut durable = self.durable.clone();
        let reached = durable.wait_for(|durable| *durable >= revision).await;
        reached
            .map(|_| ())
            .map_err(|_| StoreError::Failed("its writer has stopped".to_owned()))
    }

    fn range(&self, from: &str, to: &str) -> Result<Vec<Entry>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = transaction.open_table(ROWS).map_err(failed)?;
        let mut entries = Vec::new();
        for row in rows.range(from..to).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (revision, bytes) = value.value();
            entries.push(Entry {
                key: key.value().to_owned(),
                revision,
                value: bytes.to_vec(),
            });
        }
        Ok(entries)
    }

    fn changes_since(&self, revision: Revision) -> Result<(Revision, Vec<String>), StoreError> {
        let head = self.head();
        if revision < head.log_after {
            return Err(StoreError::Compacted(revision));
        }
        let start = head.log.partition_point(|(at, _)| *at <= revision);
        let keys = head
            .log
            .range(start..)
            .map(|(_, key)| key.to_string())
            .collect();
        Ok((head.revision, keys))
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.durable.clone()
    }
}

/// The writer: takes all that waits, commits it in one transaction, publishes.
/// An error ends it, and with it the store: what was decided but not written is
/// in memory alone, so nothing more may be answered from there.
fn write_all(
    database: &Database,
    jobs: &mpsc::Receiver<(Revision, Vec<Write>)>,
    publish: &watch::Sender<Revision>,
) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        group.extend(jobs.try_iter().take(QUEUE));
        match commit(database, &group) {
            Ok(revision) => {
                publish.send_replace(revision);
            }
            Err(error) => {
                tracing::error!(%error, "the store cannot be written");
                return;
            }
        }
    }
}

fn commit(database: &Database, group: &[(Revision, Vec<Write>)]) -> Result<Revision, StoreError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction
        .set_durability(Durability::Immediate)
        .map_err(failed)?;
    let mut last = 0;
    {
        let mut rows = transaction.open_table(ROWS).map_err(failed)?;
        let mut meta = transaction.open_table(META).map_err(failed)?;
        for (revision, writes) in group {
            for write in writes {
                match &write.value {
                    Some(value) => {
                        rows.insert(write.key.as_str(), (*revision, value.as_slice()))
                            .map_err(failed)?;
                    }
                    None => {
                        rows.remove(write.key.as_str()).map_err(failed)?;
                    }
                }
            }
            last = *revision;
        }
        meta.insert("revision", last).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::super::Compare;
    use super::*;

    fn put(key: &str, value: &str, at: Revision) -> Batch {
        Batch {
            compares: vec![Compare {
                key: key.to_owned(),
                revision: at,
            }],
            writes: vec![Write {
                key: key.to_owned(),
                value: Some(value.as_bytes().to_vec()),
            }],
        }
    }

    #[tokio::test]
    async fn compares_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = Embedded::open(&path).unwrap();
        let first = store.submit(put("a", "1", 0)).unwrap();
        assert!(matches!(
            store.submit(put("a", "2", 0)),
            Err(StoreError::Conflict(_))
        ));
        let second = store.submit(put("a", "2", first)).unwrap();
        store.durable(second).await.unwrap();
        drop(store);
        let store = reopen(&path);
        assert!(matches!(
            store.submit(put("a", "3", first)),
            Err(StoreError::Conflict(_))
        ));
        let entries = store.range("a", "b").unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(
            (entries[0].revision, entries[0].value.as_slice()),
            (second, &b"2"[..])
        );
        assert!(store.submit(put("a", "3", second)).unwrap() > second);
    }

    /// The writer thread of a dropped store lets go of the file a moment later.
    fn reopen(path: &Path) -> Embedded {
        for _ in 0..1_000 {
            match Embedded::open(path) {
                Ok(store) => return store,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
        panic!("the store's file stays locked");
    }

    #[tokio::test]
    async fn the_log_is_bounded_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        for n in 0..3 {
            store.submit(put(&format!("k{n}"), "v", 0)).unwrap();
        }
        let (revision, keys) = store.changes_since(1).unwrap();
        assert_eq!(
            (revision, keys),
            (3, vec!["k1".to_owned(), "k2".to_owned()])
        );
        store.head().log_after = 2;
        assert!(matches!(
            store.changes_since(1),
            Err(StoreError::Compacted(1))
        ));
    }

    #[test]
    fn limits_are_etcds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let write = |n: usize| Write {
            key: format!("k{n}"),
            value: Some(vec![]),
        };
        let batch = Batch {
            compares: vec![],
            writes: (0..=MAX_OPERATIONS).map(write).collect(),
        };
        assert!(matches!(
            store.submit(batch),
            Err(StoreError::TooLarge {
                operations: 129,
                ..
            })
        ));
        let big = Write {
            key: "k".to_owned(),
            value: Some(vec![0; MAX_BYTES]),
        };
        let batch = Batch {
            compares: vec![],
            writes: vec![big],
        };
        assert!(matches!(
            store.submit(batch),
            Err(StoreError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert("schema", SCHEMA + 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert!(matches!(
            Embedded::open(&path),
            Err(StoreError::Schema { found: 3, known: 2 })
        ));
    }
}
