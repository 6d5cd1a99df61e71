//! The one error type of the library.
//!
//! A variant says what failed and on what, keeps its cause as `source`, and where the caller can mend it says how.
//! Causes from other crates are boxed, so that no storage or inference type leaks into the public surface.

use std::path::PathBuf;

/// A cause from another crate, kept whole.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in a bank.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory exists and holds something else.
    #[error("{} is not a bank: {reason}; choose an empty or new directory", path.display())]
    NotABank {
        /// The directory that was opened.
        path: PathBuf,
        /// What was found there instead.
        reason: String,
    },
    /// There is nothing to open.
    #[error("there is no bank at {}; `embank sync PATH` makes one", path.display())]
    NoBank {
        /// The directory that was opened.
        path: PathBuf,
    },
    /// The bank was written by a newer release.
    #[error("the bank at {} has format {found}, this release reads up to {supported}; use a newer embank", path.display())]
    NewerFormat {
        /// The bank's directory.
        path: PathBuf,
        /// The format version that it states.
        found: u64,
        /// The newest format version that this release reads.
        supported: u64,
    },
    /// A setting has a value that cannot be used.
    #[error("{setting}: {reason}")]
    InvalidSetting {
        /// The setting or argument.
        setting: &'static str,
        /// Why its value is refused, and what would do.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`, `sync`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The storage layer refused or failed.
    #[error("cannot {action} table {table}")]
    Store {
        /// What was tried, as a verb: `append to`, `scan`.
        action: &'static str,
        /// The table.
        table: String,
        /// What the storage layer said.
        #[source]
        source: BoxError,
    },
    /// A stored row does not have the promised form.
    #[error("table {table}, column {column}: {reason}; the bank may be damaged")]
    MalformedRow {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A filter does not parse, or names a column that cannot be filtered on.
    #[error("filter `{filter}`: {reason}")]
    InvalidFilter {
        /// The filter as it was given.
        filter: String,
        /// What is wrong, with the known columns where that helps.
        reason: String,
    },
    /// Another process holds the maintenance lease.
    #[error("this bank is in maintenance ({purpose}) until {until}; try again later")]
    Busy {
        /// What the holder of the lease is doing.
        purpose: String,
        /// Until when, RFC 3339.
        until: String,
    },
    /// The maintenance lease ran out, and another process has taken it; what was done under it is not used.
    #[error("another process took over the maintenance of this bank while {purpose} stood still; run it again")]
    LeaseLost {
        /// What the lease was held for.
        purpose: String,
    },
    /// The work was cancelled by its [`Cancel`](crate::progress::Cancel) token.
    #[error("cancelled")]
    Cancelled,

    /// A model is not on this machine.
    #[error("model {model} is not in {}: {missing} is missing; `embank model pull {model}` fetches it", dir.display())]
    ModelMissing {
        /// The model's name.
        model: String,
        /// The folder that was searched.
        dir: PathBuf,
        /// The first file that is missing.
        missing: String,
    },
    /// No such model is known.
    #[error("unknown embedder {name}; known: {known}")]
    UnknownEmbedder {
        /// The name that was asked for.
        name: String,
        /// What can be asked for.
        known: String,
    },
    /// A model file is not the published one.
    #[error("{} has sha256 {found}, expected {expected}; delete it and run `embank model pull`", path.display())]
    ChecksumMismatch {
        /// The file.
        path: PathBuf,
        /// The pinned checksum, hex.
        expected: String,
        /// The checksum of what is there, hex.
        found: String,
    },
    /// A model file cannot be understood.
    #[error("{}: {reason}", path.display())]
    ModelFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The parser's answer, where there is one.
        #[source]
        source: Option<BoxError>,
    },
    /// A model answers otherwise than it is known to answer: something is wrong with the machine or with this build.
    #[error(
        "model {model} has drifted: its vector of `{text}` has cosine {cosine:.6} to the one on record, below {required}; `embank model verify {model}` checks it again"
    )]
    ModelDrift {
        /// The model's name.
        model: String,
        /// The text whose vector differs most.
        text: String,
        /// Its cosine to the vector on record.
        cosine: f64,
        /// The cosine that was required.
        required: f64,
    },
    /// A model could not be fetched from any source.
    #[error("cannot fetch {model}: {reason}; on a machine without network use `embank model pull {model} --from DIR`")]
    ModelFetch {
        /// The model's name.
        model: String,
        /// What each source answered.
        reason: String,
    },
    /// A text was to be embedded by a model that knows images alone.
    #[error("model {model} embeds images alone; texts need a model with a text tower, such as CLIP")]
    NoTextTower {
        /// The model's name.
        model: String,
    },
    /// The embedder failed as a whole (a single bad text is a row in the report, never this).
    #[error("embedder {embedder} failed: {reason}")]
    EmbedderFailed {
        /// The embedder's name.
        embedder: String,
        /// What it said.
        reason: String,
        /// The cause, where there is one.
        #[source]
        source: Option<BoxError>,
    },

    /// The embedder refuses a text; of a call with several, one of them or some.
    #[error("embedder {embedder} refuses a text: {reason}")]
    TextRefused {
        /// The embedder's name.
        embedder: String,
        /// What it said.
        reason: String,
        /// The cause, where there is one.
        #[source]
        source: Option<BoxError>,
    },
    /// The embedder fails for every text, even for a plain sentence that it was given to see whether it works.
    #[error(
        "embedder {embedder} fails for any text, no chunk was marked as failed; once it works, running this again continues"
    )]
    EmbedderDown {
        /// The embedder's name.
        embedder: String,
        /// What the plain sentence led to.
        #[source]
        source: BoxError,
    },

    /// A remote provider refuses this caller, this model or this address, whatever the texts.
    #[error("{provider} refuses with status {status}: {reason}; check key, model name and base URL")]
    ProviderRefused {
        /// The provider's host.
        provider: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// A remote provider stayed away for as long as was to be waited, or in as many attempts as were allowed.
    #[error("{provider} is unavailable, {waited_seconds} s were waited; running it again continues")]
    ProviderUnavailable {
        /// The provider's host.
        provider: String,
        /// Seconds that the request waited, all pauses together.
        waited_seconds: u64,
        /// The last failure.
        #[source]
        source: Option<BoxError>,
    },
    /// The next request might pass a spend cap; it was not sent.
    #[error(
        "the cap of this {scope} ({cap}) leaves no room: {spent_tokens} tokens are spent or set aside, the next request may \
         take {wanted_tokens}; raise the cap or wait"
    )]
    SpendCapReached {
        /// `run` or `day`.
        scope: &'static str,
        /// The cap, in words.
        cap: String,
        /// Tokens that are spent, or set aside for requests under way.
        spent_tokens: u64,
        /// Upper bound of the next request.
        wanted_tokens: u64,
    },

    /// A query cannot be searched for.
    #[error("invalid query: {reason}")]
    InvalidQuery {
        /// Why.
        reason: String,
    },
    /// The bank has no active generation for this embedder.
    #[error("no active index for embedder {embedder}; `embank index build` makes one")]
    NoActiveGeneration {
        /// The embedder.
        embedder: String,
    },
    /// There is no such generation.
    #[error("there is no generation {id}; `embank index list` shows them")]
    UnknownGeneration {
        /// The id that was asked for.
        id: String,
    },
    /// The gate said no: the generation's recall is below the threshold, or was not shown to reach it.
    #[error(
        "generation {id} has recall@{k} {recall:.4} over {of}, which proves {bound:.4}, below the required {required:.4}; \
         search goes on as before"
    )]
    RecallTooLow {
        /// The generation.
        id: String,
        /// Neighbours asked for.
        k: usize,
        /// Which of the verdict queries: all of them, or those within a category.
        of: String,
        /// Their measured mean recall@k.
        recall: f64,
        /// What the true recall is not below, with 95 % confidence.
        bound: f64,
        /// The threshold.
        required: f64,
    },
    /// An index cannot be built from what there is.
    #[error("cannot build a {kind} index: {reason}")]
    CannotBuild {
        /// The index kind.
        kind: String,
        /// Why, and what would do.
        reason: String,
    },
    /// A search of this generation would not look into its index, but into every vector or another index.
    #[error(
        "a search would not use the index of generation {generation}: {reason}; `embank index build` makes a new one"
    )]
    IndexNotUsed {
        /// The generation.
        generation: String,
        /// What is wrong with its index.
        reason: &'static str,
    },
    /// The pointer moved while this activation was under way.
    #[error("the active generation changed from {expected} to {found} meanwhile; nothing was overwritten")]
    PointerMoved {
        /// The generation the flip started from.
        expected: String,
        /// The generation that is active now.
        found: String,
    },
    /// Another embedder answers this bank's searches, or a switch to another one is under way.
    #[error(
        "embedder {embedder} does not serve this bank, {serving} does; `embank model switch` shows what is under way"
    )]
    NotServing {
        /// The embedder that was expected to serve, or to be about to.
        embedder: String,
        /// The one that does, or is.
        serving: String,
    },
    /// The embedder that answers this bank's searches is not among those that are open.
    #[error("this bank is served by {embedder}, which is not at hand; open it as {name}")]
    NotAtHand {
        /// The embedder.
        embedder: String,
        /// What it is opened by.
        name: String,
    },
    /// The generation is not in a state in which this can be done.
    #[error("generation {id} is {state}: {reason}")]
    WrongState {
        /// The generation.
        id: String,
        /// Its state.
        state: String,
        /// What would be needed.
        reason: String,
    },
}

impl Error {
    /// The error with its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }

    /// An [`Error::Io`] on `path`; for use with `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
