//! Where decided transactions become durable, and how they reach the tree.
//!
//! ```text
//!   queue ─▶ writer ─ append, one sync ─▶ journal ─▶ durable = N
//!                                                  └─ full ─▶ checkpoint ─▶ redb
//! ```
//! A tree writes a page of 4 KiB for each row of a transaction, and as many again on the way
//! to its root. So each transaction is made durable by the journal, and the tree gets
//! hundreds at once, the last state of each row alone, while the other journal is written.

use super::journal::{self, Group, Held, Journal, groups};
use super::{MAX_BYTES, Revision, StoreError, Write};
use redb::{Database, Durability, ReadableDatabase as _, TableDefinition};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use tokio::sync::watch;

/// Rows by their key.
pub const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");
/// The revision that the tree has reached, and the version of the rows' form.
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// About what one sync is for at most.
const GROUP_BYTES: usize = 2 * MAX_BYTES;

/// The last write of each key, in the bytes of journals.
#[derive(Debug, Default)]
pub struct Rows<'a> {
    /// Revision and value, or none where it was deleted.
    pub writes: BTreeMap<&'a str, (Revision, Option<&'a [u8]>)>,
    /// Every write up to this revision is in it.
    pub last: Revision,
}

impl<'a> Rows<'a> {
    /// What journals hold beyond a revision.
    ///
    /// # Errors
    /// [`StoreError::Failed`] where they do not continue it without a gap.
    pub fn after(reached: Revision, journals: &'a [Vec<u8>]) -> Result<Self, StoreError> {
        let first = |group: &Held<'_>| group.first().map(|(revision, _)| *revision);
        let mut passes: Vec<_> = journals.iter().map(|bytes| groups(bytes)).collect();
        passes.sort_by_key(|pass| pass.first().and_then(first));
        let mut rows = Self {
            last: reached,
            ..Self::default()
        };
        for group in passes.into_iter().flatten() {
            let Some(first) = first(&group).filter(|first| *first > rows.last) else {
                continue;
            };
            if first != rows.last + 1 {
                return Err(StoreError::Failed(format!(
                    "its journals lack the revisions from {} to {}",
                    rows.last + 1,
                    first - 1
                )));
            }
            for (revision, writes) in group {
                rows.last = revision;
                let of = writes
                    .into_iter()
                    .map(|write| (write.key, (revision, write.value)));
                rows.writes.extend(of);
            }
        }
        Ok(rows)
    }
}

/// What writer and checkpoint tell each other.
#[derive(Debug, Default)]
pub struct State {
    /// The journal that is to go into the tree.
    full: Option<PathBuf>,
    /// The writer has ended.
    end: bool,
    /// The tree cannot be written.
    failed: bool,
}

/// [`State`], shared; neither file changes places while it is locked.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Holds journals and tree as they are to each other.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
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
        if let Err(error) = take(&mut journals, &group, publish, shared) {
            tracing::error!(%error, "the store cannot be written");
            break;
        }
    }
    shared.change(|state| state.end = true);
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
    group: &Group,
    publish: &watch::Sender<Revision>,
    shared: &Shared,
) -> Result<(), StoreError> {
    journals[0].append(group)?;
    if let Some((last, _)) = group.last() {
        publish.send_replace(*last);
    }
    if !journals[0].is_full() {
        return Ok(());
    }
    let mut state = shared.lock();
    while state.full.is_some() && !state.failed {
        state = shared.wait(state);
    }
    if state.failed {
        return Err(StoreError::Failed("its tree cannot be written".to_owned()));
    }
    journals.swap(0, 1);
    journals[0].restart()?;
    state.full = Some(journals[1].path.clone());
    drop(state);
    shared.changed.notify_all();
    Ok(())
}

/// Brings a journal that is full into the tree, each time that there is one.
pub fn checkpoint(database: &Database, shared: &Shared) {
    loop {
        let mut state = shared.lock();
        let path = loop {
            match &state.full {
                Some(path) => break path.clone(),
                None if state.end => return,
                None => state = shared.wait(state),
            }
        };
        drop(state);
        let written = journal::read(&path).and_then(|bytes| {
            let rows = [bytes];
            commit(database, &Rows::after(reached(database)?, &rows)?)
        });
        match written {
            Ok(()) => shared.change(|state| state.full = None),
            Err(error) => {
                tracing::error!(%error, "the store's tree cannot be written");
                return shared.change(|state| state.failed = true);
            }
        }
    }
}

/// The revision that the tree has reached.
///
/// # Errors
/// [`StoreError::Failed`].
pub fn reached(database: &Database) -> Result<Revision, StoreError> {
    let read = || -> Result<Revision, redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(meta.get("revision")?.map_or(0, |value| value.value()))
    };
    read().map_err(failed)
}

fn failed(error: redb::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// Writes rows into the tree; they survive a power cut once this returns.
///
/// # Errors
/// [`StoreError::Failed`].
pub fn commit(database: &Database, rows: &Rows<'_>) -> Result<(), StoreError> {
    let written = || -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(ROWS)?;
            for (key, (revision, value)) in &rows.writes {
                match value {
                    Some(value) => table.insert(*key, (*revision, *value))?,
                    None => table.remove(*key)?,
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
