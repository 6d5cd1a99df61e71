//! Faults on purpose, for tests of what a crash leaves behind: counts every change that the store makes to the disk, and
//! fails, tears or ends the process at the one that was asked for.
//!
//! Stands between Lance and the file system as an object store, and between the engine's own commits as named points; both
//! share one count. Guarantees: changes are made one at a time, so what a fault leaves is a state that was on the disk;
//! after a fault that lasts nothing more reaches it. Without faults a bank is opened as if this file were not there. Must
//! not know: what the tables hold.

mod disk;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lance::dataset::{ReadParams, WriteParams};
use lance::io::{ObjectStoreParams, WrappingObjectStore};
use lance::session::Session;

use crate::error::{Error, Result};
use disk::Wrapper;

/// Where a bank fails on purpose; nowhere by default. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Plan>>);

/// What happens at the change that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// It alone fails.
    FailOnce,
    /// It and everything after it fails: nothing reaches the disk any more.
    Die,
    /// Half of its bytes are written to where they wait for the rename that makes a file of them; then as [`Die`](Self::Die).
    Tear,
    /// The process ends, without any clean-up.
    Abort,
    /// Half of its bytes are written as for [`Tear`](Self::Tear); then the process ends.
    TearAndAbort,
}

/// Is told about each change before it is made: its number, from 1, and what it is.
type Watch = Arc<dyn Fn(u64, &str) + Send + Sync>;

struct Plan {
    at: Option<(u64, FaultEffect)>,
    watch: Option<Watch>,
    seen: Mutex<Seen>,
    /// Held while a change is made.
    one_at_a_time: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Seen {
    changes: Vec<String>,
    is_dead: bool,
}

/// What the plan says about one change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Made,
    Refused,
    Torn,
}

impl Faults {
    /// Changes are counted, and none of them fails.
    pub fn counted() -> Self {
        Self::plan(None)
    }

    /// The change number `at`, from 1, meets its fate.
    pub fn at(at: u64, effect: FaultEffect) -> Self {
        Self::plan(Some((at, effect)))
    }

    /// Has `watch` told about each change before it is made, also about the one that fails. While it runs nothing changes.
    #[must_use]
    pub fn watched(self, watch: impl Fn(u64, &str) + Send + Sync + 'static) -> Self {
        Self::new(self.0.and_then(|plan| plan.at), Some(Arc::new(watch)))
    }

    /// The changes that were made or asked for so far: `put`, `delete`, `copy`, `rename` or `complete` with a path, or
    /// `point` with a name.
    pub fn changes(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |plan| plan.seen().changes.clone())
    }

    fn plan(at: Option<(u64, FaultEffect)>) -> Self {
        Self::new(at, None)
    }

    fn new(at: Option<(u64, FaultEffect)>, watch: Option<Watch>) -> Self {
        Self(Some(Arc::new(Plan { at, watch, seen: Mutex::default(), one_at_a_time: tokio::sync::Mutex::default() })))
    }

    /// A named place between two commits of the engine; a fault may strike here too.
    ///
    /// # Errors
    /// [`Error::Io`] where it does.
    pub(crate) async fn point(&self, name: &'static str) -> Result<()> {
        let Some(plan) = &self.0 else { return Ok(()) };
        let _one = plan.one_at_a_time.lock().await;
        plan.point(name)
    }

    /// As [`point`](Self::point), for code that cannot wait.
    pub(crate) fn point_now(&self, name: &'static str) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |plan| plan.point(name))
    }

    /// Connects to the directory; through the faults, if there are any.
    pub(super) async fn connect(&self, root: &str, session: Arc<Session>) -> lancedb::Result<Connection> {
        let Some(plan) = &self.0 else {
            let connection = lancedb::connect(root).session(session).execute().await?;
            return Ok(Connection { connection, params: None, faults: self.clone() });
        };
        // Under the scheme `file` Lance writes most files past the object store; under this one it writes all of them
        // through it, with the same renames.
        let uri = format!("file-object-store://{root}");
        let connection = lancedb::connect(&uri).session(session).execute().await?;
        let wrapper: Arc<dyn WrappingObjectStore> = Arc::new(Wrapper::new(plan.clone(), root));
        let params = ObjectStoreParams { object_store_wrapper: Some(wrapper), ..ObjectStoreParams::default() };
        Ok(Connection { connection, params: Some(params), faults: self.clone() })
    }
}

impl Plan {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_dead(&self) -> bool {
        self.seen().is_dead
    }

    /// Counts a change and says what becomes of it. `tear` writes half of it.
    fn judge(&self, change: String, tear: impl FnOnce()) -> Verdict {
        let mut seen = self.seen();
        if seen.is_dead {
            return Verdict::Refused;
        }
        seen.changes.push(change.clone());
        let number = seen.changes.len() as u64;
        if let Some(watch) = &self.watch {
            watch(number, &change);
        }
        let Some((_, effect)) = self.at.filter(|(at, _)| *at == number) else { return Verdict::Made };
        seen.is_dead = effect != FaultEffect::FailOnce;
        match effect {
            FaultEffect::FailOnce | FaultEffect::Die => Verdict::Refused,
            FaultEffect::Tear => {
                tear();
                Verdict::Torn
            }
            FaultEffect::Abort => std::process::abort(),
            FaultEffect::TearAndAbort => {
                tear();
                std::process::abort()
            }
        }
    }

    fn point(&self, name: &str) -> Result<()> {
        match self.judge(format!("point {name}"), || {}) {
            Verdict::Made => Ok(()),
            Verdict::Refused | Verdict::Torn => Err(Error::io("write", name)(on_purpose())),
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("at", &self.at).finish_non_exhaustive()
    }
}

/// A connection that opens and creates its tables through the faults, if there are any.
#[derive(Clone)]
pub(super) struct Connection {
    connection: lancedb::Connection,
    params: Option<ObjectStoreParams>,
    faults: Faults,
}

impl Connection {
    /// For what is changed past the object store.
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(super) async fn open_table(&self, name: &str) -> lancedb::Result<lancedb::Table> {
        let builder = self.connection.open_table(name);
        let Some(params) = self.params.clone() else { return builder.execute().await };
        let params = ReadParams { store_options: Some(params), ..ReadParams::default() };
        builder.lance_read_params(params).execute().await
    }

    /// Makes a table; `params` say how it is written.
    pub(super) async fn create_empty_table(
        &self,
        name: &str,
        schema: arrow_schema::SchemaRef,
        params: WriteParams,
    ) -> lancedb::Result<lancedb::Table> {
        let params = WriteParams { store_params: self.params.clone(), ..params };
        let options = lancedb::table::WriteOptions { lance_write_params: Some(params) };
        self.connection.create_empty_table(name, schema).write_options(options).execute().await
    }

    pub(super) async fn table_names(&self) -> lancedb::Result<Vec<String>> {
        self.connection.table_names().execute().await
    }
}

fn on_purpose() -> std::io::Error {
    std::io::Error::other("a fault on purpose")
}
