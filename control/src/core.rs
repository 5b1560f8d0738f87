//! The core that both fronts and the gateway share: the store, the view of it,
//! transactions, and what is configured.
//!
//! ```text
//!   write(f):  lock view ─ f(tx) ─ compare & order (store) ─ apply to view ─ show ─ unlock
//!                                       └─ wait for the fsync ─▶ answer
//!   read(f):   lock view ─ f(view) ─ unlock ─ wait until what was seen is durable
//! ```
//!
//! So reads are linearizable and nothing is ever answered that a power cut
//! could take back.

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::gateway::Fleet;
use crate::rows::{Scope, key};
use crate::store::{
    Batch, Compare, Embedded, MAX_BYTES, MAX_OPERATIONS, Revision, Store, StoreError, Write,
};
use crate::view::{Kept, View};
use crate::wire::ApiError;
use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

/// Where the rest of a large transaction waits until all of it is written.
const JOBS: &str = "-/-/job/";
/// Tries of a transaction that others keep overtaking.
const TRIES: usize = 100;

/// The shared core.
pub struct Core {
    store: Embedded,
    view: RwLock<View>,
    /// What was given at start.
    pub config: Config,
    /// Images of the system account.
    pub catalogue: RwLock<Arc<Catalogue>>,
    /// The nodes that are connected.
    pub fleet: Fleet,
}

fn failure(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } => ApiError::new(
            "InstanceLimitExceeded",
            format!("The request is too large for one call: {error}."),
        ),
        error => ApiError::internal(error),
    }
}

impl Core {
    /// Opens the state and finishes what a crash interrupted.
    ///
    /// # Errors
    /// Where the store cannot be read, or holds what this program does not know.
    pub async fn open(config: Config, catalogue: Catalogue) -> anyhow::Result<Self> {
        let store = Embedded::open(&config.state.join("store.redb"))?;
        for job in store.range(JOBS, "-/-/job0")? {
            tracing::info!(job = job.key, "finishing an interrupted transaction");
            let rest: Vec<(String, Option<String>)> = serde_json::from_slice(&job.value)?;
            let write = |(key, value): (String, Option<String>)| Write {
                key,
                value: value.map(String::into_bytes),
            };
            let writes = rest.into_iter().map(write).collect();
            fan_out(&store, job.key, writes)?;
        }
        store.durable(store.revision()).await?;
        let mut view = View::default();
        for entry in store.range("", "\u{10ffff}")? {
            view.load(&entry).map_err(anyhow::Error::msg)?;
        }
        Ok(Self {
            store,
            view: RwLock::new(view),
            config,
            catalogue: RwLock::new(Arc::new(catalogue)),
            fleet: Fleet::default(),
        })
    }

    /// The store, for watchers.
    pub fn store(&self) -> &Embedded {
        &self.store
    }

    /// The images as they are now.
    pub fn images(&self) -> Arc<Catalogue> {
        Arc::clone(
            &self
                .catalogue
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Looks without promise of durability: for what is not told to a caller.
    pub fn peek<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a read.
    ///
    /// # Errors
    /// Those of `look`, or `InternalError` when the store has failed.
    pub async fn read<R>(
        &self,
        look: impl FnOnce(&View) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        let (result, revision) = self.peek(|view| (look(view), view.revision));
        self.durable(revision).await?;
        result
    }

    /// Runs a transaction and answers when it is durable. `act` may run more
    /// than once and must have no effect but on its `Tx`.
    ///
    /// # Errors
    /// Those of `act`, in which case nothing is written.
    pub async fn write<R>(
        &self,
        scope: &Scope,
        act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        self.write_and_show(scope, act, |_, result| result).await
    }

    /// Likewise; the answer is what `show` makes of the view as the transaction left it,
    /// whatever others have done by the time that it is durable.
    ///
    /// # Errors
    /// As [`Core::write`].
    pub async fn write_and_show<R, S>(
        &self,
        scope: &Scope,
        act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
        show: impl FnOnce(&View, R) -> S,
    ) -> Result<S, ApiError> {
        let (result, revision) = self.decide(scope, act, show)?;
        self.durable(revision).await?;
        result
    }

    /// Runs transactions one after another, and answers when all are durable. The first that
    /// fails ends it; what came before stays.
    ///
    /// # Errors
    /// As [`Core::write`].
    pub async fn write_all<A>(
        &self,
        scope: &Scope,
        acts: impl IntoIterator<Item = A>,
    ) -> Result<(), ApiError>
    where
        A: FnMut(&mut Tx<'_>) -> Result<(), ApiError>,
    {
        let mut last = 0;
        for act in acts {
            let (result, revision) = self.decide(scope, act, |_, ()| ())?;
            result?;
            last = revision;
        }
        self.durable(last).await
    }

    async fn durable(&self, revision: Revision) -> Result<(), ApiError> {
        let durable = self.store.durable(revision).await;
        durable.map_err(|error| failure(&error))
    }

    /// Runs a transaction; what is shown of it, and the revision that has to be durable
    /// before anyone is told.
    fn decide<R, S>(
        &self,
        scope: &Scope,
        mut act: impl FnMut(&mut Tx<'_>) -> Result<R, ApiError>,
        show: impl FnOnce(&View, R) -> S,
    ) -> Result<(Result<S, ApiError>, Revision), ApiError> {
        for _ in 0..TRIES {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let mut tx = Tx {
                view: &view,
                scope: scope.clone(),
                pending: BTreeMap::new(),
            };
            let result = act(&mut tx);
            let pending = tx.pending;
            match result {
                Ok(result) => match self.commit(pending, &mut view) {
                    Ok(()) => return Ok((Ok(show(&view, result)), view.revision)),
                    Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(failure(&error)),
                },
                Err(error) => return Ok((Err(error), view.revision)),
            }
        }
        Err(ApiError::new(
            "Unavailable",
            "The service is busy; please try again.",
        ))
    }

    fn commit(
        &self,
        pending: BTreeMap<String, Pending>,
        view: &mut View,
    ) -> Result<(), StoreError> {
        if pending.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        let mut applies = Vec::with_capacity(pending.len());
        let large = pending.len() > MAX_OPERATIONS;
        let mut rest = Vec::new();
        for (key, change) in pending {
            let write = Write {
                key: key.clone(),
                value: change.value,
            };
            applies.push((key.clone(), change.apply));
            // What the store cannot compare any more, the view's lock vouches for:
            // all writes of this process pass through here.
            if large && (change.compare == 0 || batch.writes.len() + 1 >= MAX_OPERATIONS) {
                rest.push(write);
            } else {
                batch.compares.push(Compare {
                    key,
                    revision: change.compare,
                });
                batch.writes.push(write);
            }
        }
        let (revision, later) = if rest.is_empty() {
            (self.store.submit(batch)?, HashMap::new())
        } else {
            // What is larger than a transaction reserves first, with all that is
            // to follow in one value, then fans out; see `open` for the crash.
            let job = format!("{JOBS}{}", view.revision);
            let value: Vec<(&str, Option<Cow<'_, str>>)> = rest
                .iter()
                .map(|write| {
                    (
                        write.key.as_str(),
                        write.value.as_deref().map(String::from_utf8_lossy),
                    )
                })
                .collect();
            let value = serde_json::to_vec(&value)
                .map_err(|error| StoreError::Failed(error.to_string()))?;
            batch.writes.push(Write {
                key: job.clone(),
                value: Some(value),
            });
            (self.store.submit(batch)?, fan_out(&self.store, job, rest)?)
        };
        for (key, apply) in applies {
            apply(view, later.get(&key).copied().unwrap_or(revision));
        }
        let last = later
            .values()
            .copied()
            .max()
            .map_or(revision, |last| last + 1);
        view.revision = view.revision.max(last);
        Ok(())
    }
}

/// Writes what a job row holds, in batches within the limits, and then forgets
/// the job, in a revision of its own. Gives the revision of each key.
fn fan_out(
    store: &Embedded,
    job: String,
    writes: Vec<Write>,
) -> Result<HashMap<String, Revision>, StoreError> {
    let mut revisions = HashMap::with_capacity(writes.len());
    let mut batch = Batch::default();
    let mut submit = |batch: Batch| -> Result<(), StoreError> {
        let keys: Vec<String> = batch.writes.iter().map(|write| write.key.clone()).collect();
        let revision = store.submit(batch)?;
        revisions.extend(keys.into_iter().map(|key| (key, revision)));
        Ok(())
    };
    for write in writes {
        let bytes = batch.bytes() + write.value.as_ref().map_or(0, Vec::len);
        if batch.writes.len() == MAX_OPERATIONS || bytes > MAX_BYTES / 2 {
            submit(std::mem::take(&mut batch))?;
        }
        batch.writes.push(write);
    }
    submit(batch)?;
    let forget = Write {
        key: job,
        value: None,
    };
    store.submit(Batch {
        compares: Vec::new(),
        writes: vec![forget],
    })?;
    Ok(revisions)
}

type Apply = Box<dyn FnOnce(&mut View, Revision) + Send>;

/// A change that a transaction will make.
struct Pending {
    compare: Revision,
    row: Option<Arc<dyn Any + Send + Sync>>,
    value: Option<Vec<u8>>,
    apply: Apply,
}

/// A transaction: reads see its own writes; each row written is compared with
/// the revision at which it was read.
pub struct Tx<'a> {
    /// The state before this transaction.
    pub view: &'a View,
    /// The caller's account and region.
    pub scope: Scope,
    pending: BTreeMap<String, Pending>,
}

impl Tx<'_> {
    /// A row of the caller's scope.
    pub fn get<T: Kept>(&self, id: &T::Id) -> Option<Arc<T>> {
        self.get_in(&self.scope, id)
    }

    /// A row of any scope.
    pub fn get_in<T: Kept>(&self, scope: &Scope, id: &T::Id) -> Option<Arc<T>> {
        match self.pending.get(&key::<T>(scope, id)) {
            Some(pending) => pending.row.clone().and_then(|row| row.downcast().ok()),
            None => self.view.get(scope, id).cloned(),
        }
    }

    /// All rows of one kind in the caller's scope, by id, this transaction's own
    /// writes among them.
    pub fn rows<T: Kept>(&self) -> Vec<Arc<T>>
    where
        T::Id: 'static,
    {
        let prefix = format!("{}/{}/{}/", self.scope.region, self.scope.account, T::KIND);
        let kept = self.view.all::<T>(&self.scope);
        let mut rows: Vec<Arc<T>> = kept
            .filter(|row| !self.pending.contains_key(&key::<T>(&self.scope, &row.id())))
            .cloned()
            .collect();
        let ours = self.pending.range(prefix.clone()..);
        let ours = ours.take_while(|(key, _)| key.starts_with(&prefix));
        rows.extend(ours.filter_map(|(_, pending)| pending.row.clone()?.downcast().ok()));
        rows.sort_by_key(|row| row.id());
        rows
    }

    /// Writes a row of the caller's scope.
    ///
    /// # Errors
    /// `InternalError` where it cannot be written as JSON.
    pub fn put<T: Kept>(&mut self, row: T) -> Result<(), ApiError> {
        self.put_in(&self.scope.clone(), row)
    }

    /// Writes a row of any scope.
    ///
    /// # Errors
    /// `InternalError` where it cannot be written as JSON.
    pub fn put_in<T: Kept>(&mut self, scope: &Scope, row: T) -> Result<(), ApiError> {
        let value = serde_json::to_vec(&row).map_err(|error| ApiError::internal(&error))?;
        let row = Arc::new(row);
        let kept = Arc::clone(&row);
        let place = scope.clone();
        self.change::<T>(
            scope,
            &row.id(),
            Some(row),
            Some(value),
            Box::new(move |view, revision| {
                view.put(&place, kept, revision);
            }),
        );
        Ok(())
    }

    /// Deletes a row of the caller's scope.
    pub fn delete<T: Kept>(&mut self, id: &T::Id)
    where
        T::Id: 'static,
    {
        self.delete_in::<T>(&self.scope.clone(), id);
    }

    /// Deletes a row of any scope.
    pub fn delete_in<T: Kept>(&mut self, scope: &Scope, id: &T::Id)
    where
        T::Id: 'static,
    {
        let (place, gone) = (scope.clone(), id.clone());
        self.change::<T>(
            scope,
            id,
            None,
            None,
            Box::new(move |view, revision| {
                view.remove::<T>(&place, &gone, revision);
            }),
        );
    }

    fn change<T: Kept>(
        &mut self,
        scope: &Scope,
        id: &T::Id,
        row: Option<Arc<T>>,
        value: Option<Vec<u8>>,
        apply: Apply,
    ) {
        let compare = self.view.revision_of::<T>(scope, id);
        let row = row.map(|row| row as Arc<dyn Any + Send + Sync>);
        self.pending.insert(
            key::<T>(scope, id),
            Pending {
                compare,
                row,
                value,
                apply,
            },
        );
    }
}

/// Seconds since 1970, now.
pub fn now_s() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| {
        i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
pub(crate) mod tests;
