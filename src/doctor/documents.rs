//! The documents: each chunk once, and named by the hashes of what it holds.

use super::checks;
use super::findings::Cure;
use super::look::Look;
use crate::error::Result;
use crate::id::{ChunkId, ContentHash, DocId};
use crate::store::RawDocument;

/// The chunks there are, by id.
pub(super) struct Chunks(Vec<Chunk>);

/// One row of `documents`; 48 bytes.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    id: u128,
    hash: u128,
    address: u64,
    sound: bool,
}

impl Chunks {
    /// Whether there is such a chunk.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.binary_search_by_key(&key(id), |chunk| chunk.id).is_ok()
    }

    /// Whether the chunk holds this content; `None` where it cannot be said, because there is no such chunk or it is
    /// damaged itself.
    pub(super) fn holds(&self, id: &str, content_hash: &str) -> Option<bool> {
        let at = self.0.binary_search_by_key(&key(id), |chunk| chunk.id).ok()?;
        self.0.get(at).filter(|chunk| chunk.sound).map(|chunk| chunk.hash == key(content_hash))
    }
}

/// 128 bits of an id or hash: all of an id that was made here, and half of a content hash.
pub(super) fn key(text: &str) -> u128 {
    let digits = text.get(..32).filter(|_| text.len() == 32 || text.len() == 64);
    digits.and_then(|digits| u128::from_str_radix(digits, 16).ok()).unwrap_or_else(|| {
        blake3::hash(text.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes))
    })
}

impl Look {
    /// Checks the documents; returns what the other tables are held against, if the documents can be read.
    pub(super) async fn documents(&mut self) -> Result<Option<Chunks>> {
        let others = [
            &checks::DOCUMENT_KEYS,
            &checks::DOCUMENT_HASHES,
            &checks::STATUS_ORPHANS,
            &checks::VECTOR_ORPHANS,
            &checks::VECTOR_CONTENT,
        ];
        if !self.is_whole("documents", &others) {
            return Ok(None);
        }
        let rows = usize::try_from(self.inspection.count("documents").await?).unwrap_or(usize::MAX);
        if rows == 0 && self.inspection.count("status").await? > 0 {
            // States go before their documents: the documents were lost, and what was made of them is still of use.
            self.find(&checks::TABLES, "documents is empty, and status speaks of chunks", Vec::new());
            others.into_iter().for_each(|check| self.could_not_examine(check, "documents is empty"));
            return Ok(None);
        }
        let (mut chunks, mut wrong) = (Vec::with_capacity(rows), Vec::new());
        self.inspection
            .documents(|row| {
                let reason = what_is_wrong(&row, rows);
                let sound = reason.is_none();
                wrong.extend(reason.map(|reason| (row.id.to_owned(), reason)));
                chunks.push(Chunk { id: key(row.id), hash: key(row.content_hash), address: row.address, sound });
            })
            .await?;
        for (id, reason) in wrong {
            let cure = Cure::ReadAgain(ChunkId::from_stored(id.as_str()));
            self.find(&checks::DOCUMENT_HASHES, format!("{id}: {reason}"), vec![cure]);
        }
        // Of equal ids a sound row first, and of those the one that was written first.
        chunks.sort_unstable_by_key(|chunk| (chunk.id, !chunk.sound, chunk.address));
        for pair in chunks.windows(2) {
            let [kept, other] = pair else { continue };
            if kept.id == other.id {
                // Two sound rows of one hash hold the same text; another one may hold the only copy of something.
                let is_copy = kept.sound && other.sound && kept.hash == other.hash;
                let cure = Cure::DropRow { table: "documents".into(), address: other.address };
                self.find(
                    &checks::DOCUMENT_KEYS,
                    format!("{:032x} stands twice", other.id),
                    if is_copy { vec![cure] } else { Vec::new() },
                );
            }
        }
        chunks.dedup_by_key(|chunk| chunk.id);
        Ok(Some(Chunks(chunks)))
    }
}

/// What of a chunk is not the hash of what it holds. Its id counts its equals within the document, of which there are no
/// more than rows.
fn what_is_wrong(row: &RawDocument<'_>, rows: usize) -> Option<&'static str> {
    let content_hash = ContentHash::of(row.content);
    if ContentHash::from_hex(row.content_hash) != Some(content_hash) {
        return Some("content_hash is not the hash of the content");
    }
    let doc_id = DocId::from_stored(row.doc_id);
    let is_id = |n: usize| {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        ChunkId::derive(row.source, &doc_id, &content_hash, n).as_str() == row.id
    };
    if !(0..row.total_chunks.clamp(1, rows.max(1))).any(is_id) {
        return Some("the id is not the hash of source, document and content");
    }
    let attributes = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(row.attributes);
    attributes.is_err().then_some("the attributes are not a JSON object")
}
