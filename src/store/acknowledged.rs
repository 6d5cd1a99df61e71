//! Which version of each table was the newest when something was last acknowledged: the file `embank.acknowledged.json`.
//!
//! It says how far an unfinished version may be gone back, and which tables there were. It is written after the sync that
//! it speaks of and not synced itself: after a hard stop it may be older than the truth, never newer. Without it nothing is
//! lost but knowledge.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lance_table::io::commit::VERSIONS_DIR;
use serde::{Deserialize, Serialize};

use super::durability::Durability;
use crate::error::{Error, Result};

/// Drafts of it have the same name and more.
pub(super) const FILE: &str = "embank.acknowledged.json";

/// What stood in the tables at some acknowledged moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Acknowledged {
    durability: Durability,
    tables: BTreeMap<String, u64>,
}

impl Acknowledged {
    /// What was written last; nothing where there is none, or none that can be understood.
    pub(super) fn read(root: &Path) -> Self {
        let text = std::fs::read(root.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The tables as they are now, to be synced.
    pub(super) fn observe(root: &Path, durability: Durability) -> Result<Self> {
        let mut tables = BTreeMap::new();
        for entry in std::fs::read_dir(root).map_err(Error::io("read", root))? {
            let path = entry.map_err(Error::io("read", root))?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "lance") {
                // Lance writes this after each commit. One that is behind makes us cautious, no more.
                let hint = std::fs::read(path.join(VERSIONS_DIR).join("latest_version_hint.json")).unwrap_or_default();
                let hint: Option<Hint> = serde_json::from_slice(&hint).ok();
                tables.insert(name, hint.map_or(0, |hint| hint.version));
            }
        }
        Ok(Self { durability, tables })
    }

    /// Replaces what was written last.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        // A name of our own, as several processes may acknowledge at once; and the threads of one in turn.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let draft = root.join(format!("{FILE}.{}.tmp", std::process::id()));
        std::fs::write(&draft, serde_json::json!(self).to_string()).map_err(Error::io("write", &draft))?;
        std::fs::rename(&draft, root.join(FILE)).map_err(Error::io("write", root.join(FILE)))
    }

    /// The version of a table that a power cut cannot have touched; `None` if that is not known.
    pub(super) fn version_of(&self, table: &str) -> Option<u64> {
        let version = self.tables.get(table).copied().filter(|version| *version > 0);
        version.filter(|_| self.durability == Durability::PowerLoss)
    }

    /// Whether there was such a table.
    pub(super) fn knows(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }
}

#[derive(Deserialize)]
struct Hint {
    version: u64,
}
