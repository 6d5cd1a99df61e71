//! Building generation N+1 under a new id, with the maintenance lease held from here to the end of validation.

use super::Indexing;
use super::estimate::{Fitting, fit};
use super::generation::{GenerationState, Record};
use super::rules::{IndexKind, SpecOverrides, spec_for};
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::memory::in_mib;
use crate::resident::PeakWatch;
use crate::store::{IndexJob, IndexSpec, MaintenanceLease, QuerySettings, Snapshot};

/// What to build.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildOptions {
    /// Which index. Default [`IndexKind::Auto`].
    pub kind: IndexKind,
    /// Parameters set by hand.
    pub overrides: SpecOverrides,
    /// Seed of training and validation; drawn and recorded where absent.
    pub seed: Option<u64>,
}

/// A generation that is built and not yet measured. Holds the maintenance lease; dropping it gives the lease back and leaves
/// the generation to be cleaned up by the next build.
#[derive(Debug)]
#[must_use = "a built generation serves nothing until it is validated and activated"]
pub struct Built {
    pub(super) id: GenerationId,
    pub(super) record: Record,
    pub(super) snapshot: Snapshot,
    pub(super) lease: MaintenanceLease,
    pub(super) expected_peak_bytes: u64,
}

impl Built {
    /// The new generation's id.
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.record.kind()
    }

    /// Bytes of memory that the process was expected to take at most, from the start of the build to the end of validation.
    pub fn expected_peak_bytes(&self) -> u64 {
        self.expected_peak_bytes
    }

    /// Rows it covers.
    pub fn rows(&self) -> u64 {
        self.record.rows
    }
}

impl Indexing {
    /// Builds the next generation on all vectors there are.
    ///
    /// # Errors
    /// [`Error::Busy`] while somebody else maintains the bank, [`Error::LeaseLost`] if somebody took over because this process
    /// stood still; [`Error::CannotBuild`] without vectors, above the memory limit or with impossible parameters: no generation
    /// is begun then. [`Error::Cancelled`], or what failed: the generation then stands as failed with the reason, and its
    /// files are removed.
    pub(crate) async fn build(&self, options: BuildOptions) -> Result<Built> {
        let lease = self.store.maintenance_lease("building an index").await?;
        self.fail_interrupted(&lease).await?;
        self.embeddings.refresh().await?;
        let snapshot = self.embeddings.snapshot().await?;
        let rows = self.embeddings.count_at(&snapshot).await?;
        if rows == 0 {
            let reason = "there are no vectors yet; run `embank backfill` first".to_owned();
            return Err(Error::CannotBuild { kind: "any".into(), reason });
        }
        let dimension = self.embeddings.dimension();
        // Before anything says that a generation exists.
        let (spec, fitting) = match self.fitting_spec(&options, rows, dimension) {
            Ok(fitting) => fitting,
            Err(refused) => {
                // Given back at once: whoever corrects the kind need not wait.
                lease.release().await?;
                return Err(refused);
            }
        };
        tracing::info!(rows, peak = in_mib(fitting.peak), "building; the memory to expect");
        let now = self.store.clock().now();
        let last = self.store.generations.list(None).await?.iter().map(|row| row.sequence).max().unwrap_or(0);
        let id = GenerationId::new(last + 1, rand_suffix());
        let seed = options.seed.unwrap_or_else(drawn_seed);
        let mut record = Record::begin(last + 1, spec, seed, now);
        self.begin(&id, &record).await?;
        self.store.fault_point("build: generation recorded").await?;

        let watch = PeakWatch::start();
        let built = self.train_and_build(&id, &mut record, snapshot, fitting.sample_rate, &lease).await;
        record.peak_memory_bytes = watch.and_then(PeakWatch::finish);
        record.build_seconds = self.store.clock().now().since(now).as_secs_f64();
        let snapshot = match built {
            Ok(snapshot) => snapshot,
            // Somebody has taken over, and decided about it.
            Err(lost @ Error::LeaseLost { .. }) => return Err(lost),
            Err(error) => {
                self.fail(&id, &mut record, error.to_string()).await?;
                return Err(error);
            }
        };
        tracing::debug!(%id, "built");
        self.store.fault_point("build: index built").await?;
        record.rows = self.embeddings.count_at(&snapshot).await?;
        record.dataset_version = snapshot.version();
        record.index_bytes = self.embeddings.index_bytes(&snapshot, &id).await?;
        record.settings = default_settings(spec.as_ref());
        self.advance_or_drop(&id, &mut record, GenerationState::Validating, &lease).await?;
        self.store.fault_point("build: built").await?;
        Ok(Built { id, record, snapshot, lease, expected_peak_bytes: fitting.peak })
    }

    /// Learns from a sample, and builds with what was learnt; nothing of either for a flat generation.
    async fn train_and_build(
        &self,
        id: &GenerationId,
        record: &mut Record,
        snapshot: Snapshot,
        sample_rate: usize,
        lease: &MaintenanceLease,
    ) -> Result<Snapshot> {
        let Some(spec) = record.spec else { return Ok(snapshot) };
        let (listener, cancel) = (&self.listener, &self.cancel);
        let job = IndexJob { generation: id, spec: &spec, sample_rate, seed: record.seed, listener, cancel };
        let began = self.store.clock().now();
        let trained = self.embeddings.train_index(&snapshot, &job).await?;
        record.training_seconds = self.store.clock().now().since(began).as_secs_f64();
        record.sample_rows = Some(trained.sample_rows);
        self.advance_or_drop(id, record, GenerationState::Building, lease).await?;
        self.store.fault_point("build: trained").await?;
        self.embeddings.build_index(&job, trained).await
    }

    /// The rules' choice; where `auto` is asked for and it does not fit the memory, inverted lists.
    fn fitting_spec(
        &self,
        options: &BuildOptions,
        rows: u64,
        dimension: usize,
    ) -> Result<(Option<IndexSpec>, Fitting)> {
        let fitting = |kind| {
            let spec = spec_for(kind, rows, dimension, &options.overrides);
            // Impossible parameters leave no record either.
            spec.map_or(Ok(()), |spec| spec.check(rows, dimension))?;
            Ok((spec, fit(self.memory, spec.as_ref(), rows, dimension)?))
        };
        match fitting(options.kind) {
            Err(_) if options.kind == IndexKind::Auto => fitting(IndexKind::IvfPq),
            chosen => chosen,
        }
    }

    /// Moves a generation on that this process is building; if somebody has taken over and given it up, what was built of it
    /// since is removed.
    ///
    /// # Errors
    /// [`Error::LeaseLost`].
    pub(super) async fn advance_or_drop(
        &self,
        id: &GenerationId,
        record: &mut Record,
        next: GenerationState,
        lease: &MaintenanceLease,
    ) -> Result<()> {
        if self.advance(id, record, next).await? {
            return Ok(());
        }
        self.embeddings.drop_index(id).await?;
        Err(lease.lost())
    }

    /// Marks a generation failed, unless somebody else was faster with it, and removes its files.
    pub(super) async fn fail(&self, id: &GenerationId, record: &mut Record, reason: String) -> Result<()> {
        record.error = Some(reason);
        self.advance(id, record, GenerationState::Failed).await?;
        self.store.fault_point("build: marked failed").await?;
        self.embeddings.drop_index(id).await
    }

    /// Marks generations that nobody is building any more as failed: under the maintenance lease, all that are unfinished.
    pub(super) async fn fail_interrupted(&self, lease: &MaintenanceLease) -> Result<()> {
        let rows = self.store.generations.list(Some(&self.embedder_id)).await?;
        // After the list: whoever takes over from here on builds under an id that is not in it.
        lease.check().await?;
        for row in rows {
            let mut record = Record::from_row(&row)?;
            if record.state.is_unfinished() {
                let reason = format!("interrupted while {}", record.state.label());
                self.fail(&row.id, &mut record, reason).await?;
            }
        }
        Ok(())
    }
}

/// What is searched with until tuning has chosen: every list.
fn default_settings(spec: Option<&IndexSpec>) -> QuerySettings {
    match spec {
        None => QuerySettings::default(),
        Some(spec) => QuerySettings { nprobes: Some(spec.partitions()), ef: None, refine_factor: Some(1) },
    }
}

/// A seed where none was given.
pub(super) fn drawn_seed() -> u64 {
    u64::from(rand_suffix())
}

/// 32 random bits from the operating system, by way of a UUID.
fn rand_suffix() -> u32 {
    let (high, ..) = uuid::Uuid::new_v4().as_fields();
    high
}
