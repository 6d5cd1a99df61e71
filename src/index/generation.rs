//! A generation: one build of one index, its states, and the record that is kept of it.

use serde::{Deserialize, Serialize};

use super::live::LiveRecall;
use super::optimise::Optimisation;
use super::pointer::Pointer;
use super::report::RecallReport;
use super::rules::IndexKind;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::{EmbedderId, GenerationId};
use crate::store::{GenerationRow, IndexSpec, QuerySettings};

/// Where a generation stands.
///
/// `Active` and `Retired` are not stored: a `Ready` generation is active if the pointer names it, retired if it did once,
/// whether it was replaced or rolled back.
/// So there is one truth about what is served, the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GenerationState {
    /// What the index is made with is being learnt from a sample.
    Training,
    /// The index is being built.
    Building,
    /// Its recall is being measured.
    Validating,
    /// It passed and can be activated.
    Ready,
    /// Search follows it.
    Active,
    /// Search followed it once; a rollback can return to it.
    Retired,
    /// It was refused, cancelled or interrupted; the record says why.
    Failed,
}

impl GenerationState {
    /// The state as a word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Building => "building",
            Self::Validating => "validating",
            Self::Ready => "ready",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Failed => "failed",
        }
    }

    /// Whether somebody must be at work on it, or has been interrupted.
    pub(crate) fn is_unfinished(self) -> bool {
        matches!(self, Self::Training | Self::Building | Self::Validating)
    }

    /// Whether a stored state may follow another one.
    pub(super) fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Training, Self::Building | Self::Failed)
                | (Self::Building, Self::Validating | Self::Failed)
                | (Self::Validating, Self::Ready | Self::Failed)
        )
    }
}

/// One generation, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// Its id; never used twice.
    pub id: GenerationId,
    /// Where it stands.
    pub state: GenerationState,
    /// Its kind: `flat`, `ivf-flat`, `ivf-pq`, `ivf-rq`, `hnsw`, `hnsw-pq`, `hnsw-flat`.
    pub kind: String,
    /// The index parameters; `None` for flat.
    pub spec: Option<IndexSpec>,
    /// What it is searched with.
    pub settings: QuerySettings,
    /// Rows that it was trained and built over.
    pub rows: u64,
    /// Version of the embeddings table that it was built on.
    pub dataset_version: u64,
    /// Seed of training and of the validation queries.
    pub seed: u64,
    /// Seconds the build took, training included.
    pub build_seconds: f64,
    /// Seconds of it that training took.
    pub training_seconds: f64,
    /// Vectors that the training of lists looked at; `None` for flat, and where it is not on record.
    pub sample_rows: Option<u64>,
    /// Bytes of the index's files when it was built; `None` for flat, and where it is not on record.
    pub index_bytes: Option<u64>,
    /// Largest resident size of the process while it was built, in bytes, the program itself included; `None` where the
    /// system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// The release and the storage engine that built it.
    pub built_with: String,
    /// What validation measured.
    pub recall: Option<RecallReport>,
    /// Rows that were folded into its index since.
    pub rows_folded: u64,
    /// The last times that rows were folded in, oldest first.
    pub optimisations: Vec<Optimisation>,
    /// The last measurements of its recall over the rows of the moment, oldest first.
    pub live: Vec<LiveRecall>,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was begun, RFC 3339.
    pub created_at: String,
    /// Whether it was left ready on purpose ([`Bank::set_aside`](crate::Bank::set_aside)): it stays until somebody activates
    /// it. Of others that are ready a crash prevented the activation.
    pub set_aside: bool,
}

/// What is stored of a generation beside its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) state: GenerationState,
    pub(super) spec: Option<IndexSpec>,
    pub(super) settings: QuerySettings,
    pub(super) rows: u64,
    pub(super) dataset_version: u64,
    pub(super) seed: u64,
    pub(super) build_seconds: f64,
    // These four are absent from records that earlier builds of this release have written.
    #[serde(default)]
    pub(super) training_seconds: f64,
    #[serde(default)]
    pub(super) sample_rows: Option<u64>,
    #[serde(default)]
    pub(super) index_bytes: Option<u64>,
    #[serde(default)]
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) recall: Option<RecallReport>,
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) set_aside: bool,
    pub(super) created_at: i64,
    /// The release and the storage engine that built it.
    pub(super) built_with: String,
    #[serde(default)]
    pub(super) rows_folded: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) optimisations: Vec<Optimisation>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) live: Vec<LiveRecall>,
}

/// Adds to a history that remembers so many.
pub(super) fn keep_last<T>(history: &mut Vec<T>, newest: T, remembered: usize) {
    history.push(newest);
    history.drain(..history.len().saturating_sub(remembered));
}

impl Record {
    pub(super) fn begin(sequence: u64, spec: Option<IndexSpec>, seed: u64, now: Timestamp) -> Self {
        Self {
            sequence,
            // There is nothing to learn for a flat one.
            state: if spec.is_some() { GenerationState::Training } else { GenerationState::Building },
            spec,
            settings: QuerySettings::default(),
            rows: 0,
            dataset_version: 0,
            seed,
            build_seconds: 0.0,
            training_seconds: 0.0,
            sample_rows: None,
            index_bytes: None,
            peak_memory_bytes: None,
            recall: None,
            error: None,
            set_aside: false,
            created_at: now.0,
            built_with: concat!("embank ", env!("CARGO_PKG_VERSION"), ", lance 14.0.2").to_owned(),
            rows_folded: 0,
            optimisations: Vec::new(),
            live: Vec::new(),
        }
    }

    /// Moves on to `next`; a transition that is not allowed leaves the state and is an error.
    pub(super) fn advance(&mut self, id: &GenerationId, next: GenerationState) -> Result<()> {
        if !self.state.may_become(next) {
            let reason = format!("it cannot become {}", next.label());
            return Err(Error::WrongState { id: id.to_string(), state: self.state.label().to_owned(), reason });
        }
        self.state = next;
        Ok(())
    }

    pub(super) fn kind(&self) -> &'static str {
        self.spec.as_ref().map_or("flat", IndexSpec::label)
    }

    pub(super) fn to_row(&self, id: &GenerationId, embedder: &EmbedderId, now: Timestamp) -> GenerationRow {
        GenerationRow {
            id: id.clone(),
            sequence: self.sequence,
            embedder_id: embedder.clone(),
            kind: self.kind().to_owned(),
            state: self.state.label().to_owned(),
            record: serde_json::json!(self).to_string(),
            created_at: Timestamp(self.created_at),
            updated_at: now,
        }
    }

    pub(super) fn from_row(row: &GenerationRow) -> Result<Self> {
        serde_json::from_str(&row.record).map_err(|e| Error::MalformedRow {
            table: "generations".into(),
            column: "record".into(),
            reason: format!("generation {}: {e}", row.id),
        })
    }
}

impl Generation {
    /// Its kind, as it would be asked for.
    pub(crate) fn index_kind(&self) -> IndexKind {
        match self.spec {
            None => IndexKind::Flat,
            Some(IndexSpec::IvfFlat { .. }) => IndexKind::IvfFlat,
            Some(IndexSpec::IvfPq { .. }) => IndexKind::IvfPq,
            Some(IndexSpec::IvfRq { .. }) => IndexKind::IvfRq,
            Some(IndexSpec::Hnsw { .. }) => IndexKind::Hnsw,
            Some(IndexSpec::HnswPq { .. }) => IndexKind::HnswPq,
            Some(IndexSpec::HnswFlat { .. }) => IndexKind::HnswFlat,
        }
    }

    pub(super) fn from_row(row: &GenerationRow, pointer: &Pointer) -> Result<Self> {
        let record = Record::from_row(row)?;
        let state = match record.state {
            GenerationState::Ready if pointer.active.as_ref() == Some(&row.id) => GenerationState::Active,
            // Its index may be gone already.
            GenerationState::Ready if pointer.removing.contains(&row.id) => GenerationState::Failed,
            GenerationState::Ready if pointer.was_at(&row.id) => GenerationState::Retired,
            stored => stored,
        };
        Ok(Self {
            id: row.id.clone(),
            state,
            kind: record.kind().to_owned(),
            spec: record.spec,
            settings: record.settings,
            rows: record.rows,
            dataset_version: record.dataset_version,
            seed: record.seed,
            build_seconds: record.build_seconds,
            training_seconds: record.training_seconds,
            sample_rows: record.sample_rows,
            index_bytes: record.index_bytes,
            peak_memory_bytes: record.peak_memory_bytes,
            built_with: record.built_with,
            recall: record.recall,
            rows_folded: record.rows_folded,
            optimisations: record.optimisations,
            live: record.live,
            error: record.error,
            created_at: Timestamp(record.created_at).to_rfc3339(),
            set_aside: record.set_aside,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::GenerationState::*;

    #[test]
    fn the_whole_transition_table() {
        let allowed = [
            (Training, Building),
            (Training, Failed),
            (Building, Validating),
            (Building, Failed),
            (Validating, Ready),
            (Validating, Failed),
        ];
        let all = [Training, Building, Validating, Ready, Active, Retired, Failed];
        for from in all {
            for to in all {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)), "{from:?} → {to:?}");
            }
        }
    }
}
