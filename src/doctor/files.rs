//! The directory: the marker, the tables, the files that they consist of, and what else lies there.

use super::checks;
use super::findings::Cure;
use super::look::{Look, in_words};
use crate::error::Result;
use crate::store::{BrokenFragment, CORE};

/// Characters of a cause that are worth repeating.
const WORDS: usize = 300;

impl Look {
    /// Checks what lies there, and notes which tables can be read.
    pub(super) async fn files(&mut self) -> Result<()> {
        if let Some(error) = self.inspection.marker() {
            self.find(&checks::MARKER, in_words(&error), Vec::new());
        }
        for name in std::mem::take(&mut self.inspection.strangers) {
            self.find(&checks::UNKNOWN_FILES, name, Vec::new());
        }
        let unreadable: Vec<_> =
            self.inspection.unreadable.iter().map(|(name, error)| (name.clone(), in_words(error))).collect();
        for name in CORE {
            if self.inspection.lacks(name) {
                self.find(&checks::TABLES, format!("{name} is missing"), vec![Cure::MakeTables]);
            }
        }
        for (name, why) in unreadable {
            self.find(&checks::TABLES, format!("{name} cannot be opened: {}", cut(&why)), Vec::new());
        }
        for (_, what) in self.inspection.damaged.clone() {
            self.find(&checks::MANIFESTS, what, vec![Cure::Open]);
        }
        let names: Vec<_> = self.inspection.names().map(str::to_owned).collect();
        for name in names {
            let wrong = self.inspection.wrong_columns(&name).await?;
            if !wrong.is_empty() {
                let what = format!("{name} lacks {} or has it in another form", wrong.join(", "));
                self.find(&checks::TABLES, what, Vec::new());
                continue;
            }
            let broken = self.inspection.broken_fragments(&name).await?;
            if broken.is_empty() {
                self.whole.insert(name);
                continue;
            }
            // Vectors can be made again; of nothing else is there another copy.
            let can_go = name.starts_with("embeddings__") || name.starts_with("emb_cache__");
            for BrokenFragment { id, why, is_mended_by_opening } in broken {
                let what = format!("{name}, fragment {id}: {}", cut(&why.to_string()));
                let cures = match is_mended_by_opening {
                    true => vec![Cure::Open],
                    false if can_go => vec![Cure::DropFragment { table: name.clone(), id }],
                    false => Vec::new(),
                };
                self.find(&checks::TABLE_FILES, what, cures);
            }
        }
        Ok(())
    }
}

fn cut(words: &str) -> String {
    words.chars().take(WORDS).collect()
}
