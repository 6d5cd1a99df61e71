//! Newtypes for the identities that the bank hands out. They carry no behaviour beyond making and printing.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps an id that was made before, as it is stored.
            pub fn from_stored(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id as it is stored and printed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id! {
    /// A chunk: 32 hex digits, derived from its source, its document and its content (see [`ChunkId::derive`]).
    ChunkId
}
string_id! {
    /// A document: a file's path, or a record's own id.
    DocId
}
string_id! {
    /// An embedder, by everything that changes its vectors: `name-fingerprint`.
    EmbedderId
}
string_id! {
    /// One build of an index: `g0001-3f9c2a7b`, a sequence number and a random part. Never used twice.
    GenerationId
}

impl ChunkId {
    /// The id of the `occurrence`-th chunk with this content in this document (0-based, in reading order).
    ///
    /// An edit elsewhere in the document does not change it, which is what keeps unchanged chunks in place.
    pub fn derive(source: &str, doc_id: &DocId, content_hash: &ContentHash, occurrence: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Lengths first, so that no two different triples can feed the hasher the same bytes.
        for part in [source.as_bytes(), doc_id.as_str().as_bytes(), content_hash.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&occurrence.to_le_bytes());
        Self(hex(hasher.finalize().as_bytes().get(..16).unwrap_or_default()))
    }
}

impl GenerationId {
    /// A new id: `sequence` orders the list for people, `random` makes it unique across racing builders.
    pub fn new(sequence: u64, random: u32) -> Self {
        Self(format!("g{sequence:04}-{random:08x}"))
    }
}

/// blake3 of exactly the text that the embedder is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Hashes a text.
    pub fn of(text: &str) -> Self {
        Self(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the 64 hex digits that [`Display`](fmt::Display) writes; `None` for anything else.
    pub fn from_hex(digits: &str) -> Option<Self> {
        blake3::Hash::from_hex(digits).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// Lower-case hex digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_id_depends_on_every_part_and_on_where_parts_end() {
        let hash = ContentHash::of("text");
        let id = |source: &str, doc: &str, n| ChunkId::derive(source, &DocId::from_stored(doc), &hash, n);
        let base = id("a", "bc", 0);
        assert_eq!(base, id("a", "bc", 0));
        assert_eq!(base.as_str().len(), 32);
        for other in [id("ab", "c", 0), id("a", "bc", 1), id("", "abc", 0)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn content_hash_is_the_published_blake3() {
        // Test vector of the blake3 specification for the empty input.
        assert_eq!(ContentHash::of("").to_string(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }
}
