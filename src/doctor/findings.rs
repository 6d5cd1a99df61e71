//! What a look finds, and what would mend it.

use std::path::PathBuf;

use super::checks::Check;
use crate::id::{ChunkId, EmbedderId, GenerationId};
use crate::index::audit::Pointer;

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) check: &'static Check,
    /// Where and what: two looks that see the same say the same.
    pub(super) what: String,
    /// What mends it; nothing where a person must.
    pub(super) cures: Vec<Cure>,
}

/// One step of a repair, in the order in which they are taken: data, then states, then what is served, then what is left over.
#[derive(Clone, Debug)]
pub(super) enum Cure {
    /// A missing table is made when the bank is opened.
    MakeTables,
    /// Damage that is mended when its table is opened.
    Open,
    /// Takes a row out of a table.
    DropRow { table: String, address: u64 },
    /// Gives a fragment up whose files are gone.
    DropFragment { table: String, id: u64 },
    /// Has the next ingest read the chunk's document again.
    ReadAgain(ChunkId),
    /// Puts the chunk back to `new`.
    Requeue(EmbedderId, ChunkId),
    /// Gives claims back that nobody holds.
    ReleaseStale,
    /// Removes a fact from `meta`.
    Forget { key: String, value: String },
    /// Moves a pointer.
    Point { embedder: EmbedderId, from: String, to: Pointer },
    /// Marks a generation failed.
    GiveUp { id: GenerationId, reason: String },
    /// Writes a generation's row anew.
    Restate(GenerationId),
    /// Removes a generation's row.
    RemoveGeneration(GenerationId),
    /// Removes an index from its table.
    DropIndex { embedder: EmbedderId, index: String },
    /// Replaces the spend ledger.
    SetLedger { key: String, from: String, to: String },
    /// Removes a folder of an index.
    RemoveFolder(PathBuf),
    /// Removes files of a table that belong to no version of it.
    RemoveFiles { table: String, files: Vec<PathBuf>, bytes: u64 },
}
