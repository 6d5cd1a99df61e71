//! What the bank holds of the sources that are being ingested: enough to tell what is unchanged and what is gone, without
//! any text. About 150 bytes a chunk below the ingested roots.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::id::{ChunkId, DocId};
use crate::store::DocumentKey;

/// One document as stored.
#[derive(Clone, Debug)]
pub(super) struct KnownDocument {
    pub(super) hash: String,
    pub(super) doc_path: String,
    pub(super) category: String,
    pub(super) ids: HashSet<ChunkId>,
    total_chunks: usize,
    /// Rows of an interrupted edit stand beside each other with different hashes.
    mixed: bool,
}

impl KnownDocument {
    /// Whether it is stored whole, as `hash` says it should be.
    pub(super) fn is(&self, hash: &str) -> bool {
        !self.mixed && self.hash == hash && self.ids.len() == self.total_chunks
    }
}

/// Documents by source file. What was seen is taken out; what is left is gone from the disk.
#[derive(Debug, Default)]
pub(super) struct Known {
    sources: HashMap<String, HashMap<DocId, KnownDocument>>,
}

impl Known {
    pub(super) fn add(&mut self, key: DocumentKey) {
        let documents = self.sources.entry(key.source).or_default();
        let document = documents.entry(key.doc_id).or_insert_with(|| KnownDocument {
            hash: key.source_hash.clone(),
            doc_path: key.doc_path,
            category: key.category,
            ids: HashSet::new(),
            total_chunks: key.total_chunks,
            mixed: false,
        });
        document.mixed |= document.hash != key.source_hash;
        document.ids.insert(key.id);
    }

    /// A document, if it is known; it then counts as seen.
    pub(super) fn take(&mut self, source: &str, doc_id: &DocId) -> Option<KnownDocument> {
        self.sources.get_mut(source)?.remove(doc_id)
    }

    /// Lets everything of a file or folder count as seen: it could not be looked at, so nothing can be said about it.
    pub(super) fn spare(&mut self, source: &str) {
        self.sources.retain(|known, _| !is_within(known, source));
    }

    /// The documents that were not seen.
    pub(super) fn vanished(self) -> impl Iterator<Item = KnownDocument> {
        self.sources.into_values().flat_map(HashMap::into_values)
    }
}

/// The name under which a file is known: relative to the folder that holds the bank, so that bank and documents can move
/// together, or absolute if it lies elsewhere. With `/` on every platform.
pub(super) fn source_name(path: &Path, bank: &Path) -> String {
    let home = bank.parent().unwrap_or(bank);
    let name = path.strip_prefix(home).unwrap_or(path).to_string_lossy();
    if cfg!(windows) { name.replace('\\', "/") } else { name.into_owned() }
}

/// Whether a source is the root or lies below it.
pub(super) fn is_within(source: &str, root: &str) -> bool {
    if root.is_empty() {
        // The folder that holds the bank: everything with a relative name.
        return !Path::new(source).is_absolute();
    }
    source.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || root.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, source: &str, hash: &str, total_chunks: usize) -> DocumentKey {
        DocumentKey {
            id: ChunkId::from_stored(id),
            source: source.into(),
            source_hash: hash.into(),
            doc_id: DocId::from_stored(source),
            doc_path: source.into(),
            category: String::new(),
            total_chunks,
        }
    }

    #[test]
    fn a_document_is_unchanged_only_if_it_is_whole_and_of_one_version() {
        let mut known = Known::default();
        for row in [key("1", "whole", "h", 2), key("2", "whole", "h", 2), key("3", "half", "h", 2)] {
            known.add(row);
        }
        known.add(key("4", "mixed", "h", 2));
        known.add(key("5", "mixed", "old", 2));
        let mut is = |source: &str| known.take(source, &DocId::from_stored(source)).unwrap().is("h");
        assert_eq!([is("whole"), is("half"), is("mixed")], [true, false, false]);
    }

    #[test]
    fn sources_are_named_relative_to_the_banks_home() {
        let bank = Path::new("/home/ann/notes/.embank");
        assert_eq!(source_name(Path::new("/home/ann/notes/a/b.md"), bank), "a/b.md");
        assert_eq!(source_name(Path::new("/home/ann/notes"), bank), "");
        assert_eq!(source_name(Path::new("/srv/b.md"), bank), "/srv/b.md");
    }

    #[test]
    fn a_root_holds_what_is_below_it_and_no_namesakes() {
        assert!(is_within("docs/a.md", "docs") && is_within("docs", "docs") && is_within("docs/a.md", ""));
        assert!(!is_within("docs2/a.md", "docs") && !is_within("/srv/a.md", "") && is_within("/srv/a.md", "/"));
    }
}
