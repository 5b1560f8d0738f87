//! Where decided transactions become durable, and how they reach the tree.
//!
//! ```text
//!   queue ─▶ writer ─ append, one sync ─▶ journal ─▶ durable = N
//!               └─ the same rows ─▶ Recent ─ journal full ─▶ checkpoint ─▶ redb
//! ```
//! A tree writes a page of 4 KiB for each row of a transaction, and as many again on the way
//! to its root. So each transaction is made durable by the journal, and the tree gets
//! thousands at once, the last state of each row alone, while the other journal is written.

use super::journal::{Group, Journal};
use super::{MAX_BYTES, Revision, StoreError, Write};
use redb::{Database, Durability, TableDefinition};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::watch;

/// Rows by their key.
pub const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");
/// The revision that the tree has reached, and the version of the rows' form.
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// About what one sync is for at most.
const GROUP_BYTES: usize = 2 * MAX_BYTES;

/// The last write of each key.
#[derive(Debug, Default)]
pub struct Rows {
    /// Revision and value, or none where it was deleted.
    pub writes: BTreeMap<String, (Revision, Option<Vec<u8>>)>,
    /// Every write up to this revision is in it.
    pub last: Revision,
}

impl Rows {
    /// Adds what comes after.
    pub fn extend(&mut self, group: Group) {
        for (revision, writes) in group {
            self.last = revision;
            let of = |write: Write| (write.key, (revision, write.value));
            self.writes.extend(writes.into_iter().map(of));
        }
    }
}

/// What the tree does not have yet.
#[derive(Debug, Default)]
pub struct Recent {
    /// Rows of the journal that is being written.
    pub written: Rows,
    /// Rows of the other, on their way into the tree.
    pub full: Option<Arc<Rows>>,
    /// The writer has ended.
    end: bool,
    /// The tree cannot be written.
    failed: bool,
}

/// [`Recent`], shared.
#[derive(Debug, Default)]
pub struct Shared {
    recent: Mutex<Recent>,
    changed: Condvar,
}

impl Shared {
    /// What the tree does not have yet.
    pub fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, recent: MutexGuard<'a, Recent>) -> MutexGuard<'a, Recent> {
        let woken = self.changed.wait(recent);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(&mut Recent)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The writer: takes all that waits, makes it durable with one sync, publishes. An error ends
/// it, and with it the store: what was decided but not written is in memory alone, so nothing
/// more may be answered from there.
pub fn write(
    mut journals: [Journal; 2],
    jobs: &mpsc::Receiver<(Revision, Vec<Write>)>,
    publish: &watch::Sender<Revision>,
    shared: &Shared,
) {
    while let Ok(first) = jobs.recv() {
        let group = gather(first, jobs);
        if let Err(error) = take(&mut journals, group, publish, shared) {
            tracing::error!(%error, "the store cannot be written");
            break;
        }
    }
    shared.change(|recent| recent.end = true);
}

fn gather(first: (Revision, Vec<Write>), jobs: &mpsc::Receiver<(Revision, Vec<Write>)>) -> Group {
    let size = |writes: &[Write]| -> usize { writes.iter().map(Write::bytes).sum() };
    let mut bytes = size(&first.1);
    let mut group = vec![first];
    while bytes < GROUP_BYTES
        && let Ok(next) = jobs.try_recv()
    {
        bytes += size(&next.1);
        group.push(next);
    }
    group
}

fn take(
    journals: &mut [Journal; 2],
    group: Group,
    publish: &watch::Sender<Revision>,
    shared: &Shared,
) -> Result<(), StoreError> {
    journals[0].append(&group)?;
    shared.lock().written.extend(group);
    if journals[0].is_full() {
        let mut recent = shared.lock();
        while recent.full.is_some() && !recent.failed {
            recent = shared.wait(recent);
        }
        if recent.failed {
            return Err(StoreError::Failed("its tree cannot be written".to_owned()));
        }
        let rows = std::mem::take(&mut recent.written);
        recent.written.last = rows.last;
        recent.full = Some(Arc::new(rows));
        drop(recent);
        shared.changed.notify_all();
        journals.swap(0, 1);
        journals[0].restart()?;
    }
    publish.send_replace(shared.lock().written.last);
    Ok(())
}

/// Brings the rows of a journal that is full into the tree, each time that there is one.
pub fn checkpoint(database: &Database, shared: &Shared) {
    loop {
        let mut recent = shared.lock();
        let rows = loop {
            match &recent.full {
                Some(rows) => break Arc::clone(rows),
                None if recent.end => return,
                None => recent = shared.wait(recent),
            }
        };
        drop(recent);
        match commit(database, &rows) {
            Ok(()) => shared.change(|recent| recent.full = None),
            Err(error) => {
                tracing::error!(%error, "the store's tree cannot be written");
                return shared.change(|recent| recent.failed = true);
            }
        }
    }
}

/// Writes rows into the tree; they survive a power cut once this returns.
///
/// # Errors
/// [`StoreError::Failed`].
pub fn commit(database: &Database, rows: &Rows) -> Result<(), StoreError> {
    let failed = |error: redb::Error| StoreError::Failed(error.to_string());
    let written = || -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(ROWS)?;
            for (key, (revision, value)) in &rows.writes {
                match value {
                    Some(value) => table.insert(key.as_str(), (*revision, value.as_slice()))?,
                    None => table.remove(key.as_str())?,
                };
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("revision", rows.last)?;
        }
        transaction.commit()?;
        Ok(())
    };
    written().map_err(failed)
}
