//! The embedded backend: a journal for durability, a redb file for order (`writer.rs`).

use super::journal::{self, Journal};
use super::writer::{self, META, ROWS, Rows, Shared, reached};
use super::{Batch, Entry, MAX_BYTES, MAX_OPERATIONS, Revision, Store, StoreError, Write};
use redb::{Builder, Database, ReadableDatabase, ReadableTable};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::ops::Bound::{Excluded, Included};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::watch;

/// Version of the rows' form. Older files migrate forward, newer ones are refused.
pub const SCHEMA: u64 = 3;
/// Changed keys that the log keeps for watchers.
const LOG_KEYS: usize = 65_536;
/// Batches that may wait for the writer.
const QUEUE: usize = 4_096;
/// Pages of the file that are kept in memory: reads are answered from the view, so these
/// serve the writer's way down the tree alone.
const CACHE_BYTES: usize = 2 << 20;

/// A store in three files: `NAME.redb`, and beside it `NAME.0.journal` and `NAME.1.journal`.
pub struct Embedded {
    database: Arc<Database>,
    journals: [PathBuf; 2],
    shared: Arc<Shared>,
    head: Mutex<Head>,
    queue: mpsc::SyncSender<(Revision, Vec<Write>)>,
    durable: watch::Receiver<Revision>,
}

/// What is decided, though perhaps not yet durable.
struct Head {
    revision: Revision,
    revisions: HashMap<Arc<str>, Revision>,
    /// Shares the keys of `revisions`.
    log: VecDeque<(Revision, Arc<str>)>,
    /// The log holds every change after this revision.
    log_after: Revision,
}

impl Head {
    /// A key, the one that is kept where it is.
    fn key(&self, text: &str) -> Arc<str> {
        let kept = self.revisions.get_key_value(text);
        kept.map_or_else(|| Arc::from(text), |(key, _)| Arc::clone(key))
    }
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
        migrate(&database)?;
        let paths = ["0.journal", "1.journal"].map(|end| path.with_extension(end));
        let held = read_all(&paths)?;
        writer::commit(&database, &Rows::after(reached(&database)?, &held)?)?;
        let [first, second] = paths.clone().map(Journal::open);
        let journals = [first?, second?];
        // Their names survive a power cut, too.
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)?;
        let (revision, revisions) = index(&database)?;
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        let (publish, durable) = watch::channel(revision);
        let shared = Arc::new(Shared::default());
        let (tree, of_tree) = (Arc::clone(&database), Arc::clone(&shared));
        let of_writer = Arc::clone(&shared);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(run).map_err(failed)
        };
        spawn(
            "checkpoint",
            Box::new(move || writer::checkpoint(&tree, &of_tree)),
        )?;
        spawn(
            "store",
            Box::new(move || writer::write(journals, &jobs, &publish, &of_writer)),
        )?;
        let head = Head {
            revision,
            revisions,
            log: VecDeque::new(),
            log_after: revision,
        };
        Ok(Self {
            database,
            journals: paths,
            shared,
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
        let keys: Vec<(Arc<str>, bool)> = batch
            .writes
            .iter()
            .map(|write| (head.key(&write.key), write.value.is_some()))
            .collect();
        // The queue's order is the revisions' order, since the lock is held.
        self.queue
            .send((revision, batch.writes))
            .map_err(|_| StoreError::Failed("its writer has stopped".to_owned()))?;
        head.revision = revision;
        for (key, present) in keys {
            if present {
                head.revisions.insert(Arc::clone(&key), revision);
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
        let _as_they_are = self.shared.lock();
        let held = read_all(&self.journals)?;
        let newer = Rows::after(reached(&self.database)?, &held)?;
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        let mut rows = BTreeMap::new();
        for row in table.range(from..to).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (revision, bytes) = value.value();
            rows.insert(key.value().to_owned(), (revision, Some(bytes.to_vec())));
        }
        let newer = newer.writes.range::<str, _>((Included(from), Excluded(to)));
        rows.extend(newer.map(|(key, (revision, value))| {
            let value = value.map(<[u8]>::to_vec);
            ((*key).to_owned(), (*revision, value))
        }));
        let entry = |(key, (revision, value))| {
            let value = value?;
            Some(Entry {
                key,
                revision,
                value,
            })
        };
        Ok(rows.into_iter().filter_map(entry).collect())
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

/// Brings a file to the present form.
fn migrate(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let found = meta.insert("schema", SCHEMA).map_err(failed)?;
        if let Some(found) = found.map(|value| value.value())
            && found > SCHEMA
        {
            return Err(StoreError::Schema {
                found,
                known: SCHEMA,
            });
        }
        transaction.open_table(ROWS).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// The bytes of both journals.
fn read_all(paths: &[PathBuf; 2]) -> Result<Vec<Vec<u8>>, StoreError> {
    paths.iter().map(|path| journal::read(path)).collect()
}

/// The revision that the tree has reached, and that of each key.
fn index(database: &Database) -> Result<(Revision, HashMap<Arc<str>, Revision>), StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let rows = transaction.open_table(ROWS).map_err(failed)?;
    let mut revisions = HashMap::new();
    for row in rows.iter().map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        revisions.insert(Arc::from(key.value()), value.value().0);
    }
    Ok((reached(database)?, revisions))
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

    fn all(store: &Embedded) -> Vec<(String, Vec<u8>)> {
        let entries = store.range("", "\u{10ffff}").unwrap();
        let entries = entries.into_iter();
        entries.map(|entry| (entry.key, entry.value)).collect()
    }

    /// Large enough values that journals fill up, several times over.
    #[tokio::test]
    async fn rows_are_the_same_before_in_and_after_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut store = Embedded::open(&path).unwrap();
        let mut model = BTreeMap::new();
        for n in 0..60_u32 {
            let key = format!("k{}", n * 7 % 20);
            let value = (n % 5 != 4).then(|| vec![n as u8; 1_000_000]);
            let write = Write {
                key: key.clone(),
                value: value.clone(),
            };
            let batch = Batch {
                compares: Vec::new(),
                writes: vec![write],
            };
            let revision = store.submit(batch).unwrap();
            match value {
                Some(value) => model.insert(key, value),
                None => model.remove(&key),
            };
            if n % 3 == 0 {
                store.durable(revision).await.unwrap();
                assert!(all(&store) == model.clone().into_iter().collect::<Vec<_>>());
            }
            if n % 23 == 0 {
                store.durable(revision).await.unwrap();
                drop(store);
                store = reopen(&path);
                assert_eq!(store.revision(), revision);
                assert!(all(&store) == model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    /// What a file with these revisions holds.
    fn journal_of(revisions: std::ops::RangeInclusive<Revision>) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path().join("journal")).unwrap();
        for revision in revisions {
            let write = Write {
                key: format!("k{revision}"),
                value: Some(vec![]),
            };
            journal.append(&vec![(revision, vec![write])]).unwrap();
        }
        journal::read(&journal.path).unwrap()
    }

    #[test]
    fn journals_continue_the_tree_without_a_gap() {
        let after = |reached, journals: &[Vec<u8>]| {
            let rows = Rows::after(reached, journals)?;
            let keys: Vec<String> = rows.writes.keys().map(|key| (*key).to_owned()).collect();
            Ok::<_, StoreError>((rows.last, keys.join(" ")))
        };
        let (older, newer) = (journal_of(1..=2), journal_of(3..=4));
        let both = [newer, older];
        assert_eq!(after(0, &both).unwrap(), (4, "k1 k2 k3 k4".to_owned()));
        assert_eq!(after(2, &both).unwrap(), (4, "k3 k4".to_owned()));
        assert_eq!(after(4, &both).unwrap(), (4, String::new()));
        let torn = after(0, &both[..1]).unwrap_err();
        assert!(
            torn.to_string().ends_with("lack the revisions from 1 to 2"),
            "{torn}"
        );
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
            Err(StoreError::Schema { found: 4, known: 3 })
        ));
    }
}
