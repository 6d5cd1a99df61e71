//! The checks: each a value with its name, what it holds the bank to, how bad it is if it does not hold, and how it is mended.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Harmless: the next step takes care of it, or it only takes space. A bank with notes alone is healthy.
    Note,
    /// Something is out of step; nothing is lost, but work is repeated or room for rollbacks is.
    Warning,
    /// An invariant is broken: answers may be wrong or incomplete.
    Error,
}

/// One check.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) severity: Severity,
    /// What holds in a healthy bank.
    pub(super) holds: &'static str,
    /// How it is mended, `--repair` or otherwise.
    pub(super) mend: &'static str,
}

macro_rules! checks {
    ($($constant:ident = $name:literal, $severity:ident, $holds:literal, $mend:literal;)*) => {
        $(pub(super) static $constant: Check =
            Check { name: $name, severity: Severity::$severity, holds: $holds, mend: $mend };)*

        /// All of them, in the order of the report: what others build on first.
        pub(super) static ALL: &[&Check] = &[$(&$constant),*];
    };
}

checks! {
    MARKER = "format-marker", Error,
        "embank.json names a format that this release reads",
        "put embank.json back from a copy of the bank";
    TABLES = "tables", Error,
        "the tables that every bank has are there, can be opened and have their columns",
        "--repair makes missing ones, `embank sync PATH` fills them; an unreadable one: restore its folder from a copy, or remove it and run `embank sync PATH`";
    MANIFESTS = "manifests", Error,
        "the newest version of every table can be read",
        "--repair sets it aside and goes on from the one before, as opening the bank does; `embank sync PATH` makes up for it";
    TABLE_FILES = "table-files", Error,
        "the files that the newest version of a table consists of are there, whole",
        "--repair opens an earlier version that has them, or takes what they held off the books, as opening the bank does; `embank sync PATH` fills it again. Damage within a file: vectors are given up, documents: remove documents.lance and run `embank sync PATH`";
    LEFTOVER_FILES = "leftover-files", Note,
        "every file of a table that is older than an hour belongs to a version of it",
        "--repair removes them; so does `embank index gc` when they are a week old";
    SET_ASIDE = "set-aside", Note,
        "nothing was set aside in mending",
        "once nothing is missed, delete the folder set-aside in the bank's directory";
    UNKNOWN_FILES = "unknown-files", Note,
        "nothing else lies in the bank's directory",
        "look at them; embank leaves them alone";
    DOCUMENT_KEYS = "document-keys", Error,
        "a chunk stands once in documents",
        "--repair removes further equal rows";
    DOCUMENT_HASHES = "document-hashes", Error,
        "a chunk's content_hash and id are the hashes of what it holds, and its attributes are JSON",
        "--repair has the document read again by the next `embank sync PATH`";
    STATUS_KEYS = "status-keys", Error,
        "a chunk has one state under each embedder",
        "--repair removes further ones, a ready one stays";
    STATUS_ORPHANS = "status-orphans", Warning,
        "every state is that of a chunk",
        "--repair removes it";
    STATUS_FIELDS = "status-fields", Error,
        "a state is one of new, in_progress, ready and error, and has the fields that belong to it",
        "--repair queues the chunk again; a vector that is there is kept";
    STALE_LEASES = "stale-leases", Note,
        "claims are held by workers that run",
        "the next `embank backfill` takes them over; --repair gives them back";
    READY_WITHOUT_VECTOR = "ready-without-vector", Error,
        "a chunk that is called ready has a vector",
        "--repair queues it again, `embank backfill` embeds it";
    VECTOR_KEYS = "vector-keys", Error,
        "a chunk has one vector under each embedder",
        "--repair removes further ones";
    VECTOR_ORPHANS = "vector-orphans", Warning,
        "every vector is that of a chunk",
        "--repair removes it";
    VECTOR_CONTENT = "vector-content", Error,
        "a vector was made of what its chunk holds",
        "--repair removes it and queues the chunk again, `embank backfill` embeds it";
    VECTOR_VALUES = "vector-values", Error,
        "a vector is finite, and of unit norm (within 1e-3) where its embedder promises that",
        "--repair removes it and queues the chunk again, `embank backfill` embeds it";
    VECTOR_DIMENSION = "vector-dimension", Error,
        "the tables of an embedder have the dimension that it promises",
        "remove the folder of the table that differs, then run `embank backfill`";
    CACHE_VALUES = "cache-values", Error,
        "a cached vector is finite, of unit norm where promised, and known by a content hash",
        "--repair removes it";
    CACHE_AGREEMENT = "cache-agreement", Warning,
        "cached vectors of one text are equal to the bit",
        "--repair keeps the first";
    GENERATION_RECORDS = "generation-records", Error,
        "a generation stands once, with a record that can be read and that agrees with its row",
        "--repair writes the row anew from its record, and removes one whose record cannot be read";
    INTERRUPTED_BUILDS = "interrupted-builds", Note,
        "an unfinished generation is being built",
        "the next build cleans it up; so does --repair";
    POINTER = "pointer", Error,
        "the pointer names a generation of its embedder that passed validation",
        "--repair moves it to the newest that did, or clears it; `embank sync PATH` builds one";
    GENERATION_INDEX = "generation-index", Error,
        "the index of a generation that passed is in its table",
        "--repair gives the generation up and moves the pointer; `embank sync PATH` builds a new one";
    INDEX_FILES = "index-files", Error,
        "the files of an index are there, whole",
        "--repair gives the generation up and moves the pointer; `embank sync PATH` builds a new one";
    INDEX_COVERAGE = "index-coverage", Error,
        "an index holds every row that it is taken to cover; all others are searched flat",
        "--repair gives the generation up and moves the pointer; `embank sync PATH` builds a new one";
    INDEX_LEFTOVERS = "index-leftovers", Note,
        "every index belongs to a generation, and every index folder to a version of its table",
        "--repair removes them";
    META_VALUES = "meta-values", Warning,
        "each fact in meta stands once and can be read",
        "--repair removes what cannot be read; it is written again when needed";
    SPEND_LEDGER = "spend-ledger", Error,
        "the spend ledger can be read, and its total is no less than its parts",
        "--repair raises the total; one that cannot be read: remove spend.lance, which counts from zero again";
}
