//! What nobody needs any more: files that belong to no version of their table, and what was set aside in mending.

use std::collections::BTreeSet;
use std::time::Duration;

use super::checks;
use super::findings::Cure;
use super::look::Look;
use crate::clock::Timestamp;
use crate::error::Result;

/// How old a file of no version must be to be called a leftover. Between the first file of a write and its commit lie
/// seconds, or minutes where twenty commits in a row meet another one; an hour is far beyond that. What takes longer, builds
/// and compactions, holds the maintenance lease, and a repair holds it. Lance itself waits for a week.
const ABANDONED: Duration = Duration::from_secs(3600);

impl Look {
    /// Names what lies about. Nothing of it is a fault.
    pub(super) async fn leftovers(&mut self) -> Result<()> {
        let set_aside = self.inspection.set_aside()?;
        // Some of these files may belong to a version that was set aside: they stay as long as it does.
        let mended: BTreeSet<_> = set_aside.iter().filter_map(|file| file.parent()?.file_name()).collect();
        let mended: BTreeSet<_> = mended.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
        for file in &set_aside {
            self.find(&checks::SET_ASIDE, file.display().to_string(), Vec::new());
        }
        if self.is_maintained_by_others() {
            self.could_not_examine(&checks::LEFTOVER_FILES, "another process is in maintenance");
            return Ok(());
        }
        let age = i64::try_from(ABANDONED.as_micros()).unwrap_or(i64::MAX);
        let before = Timestamp(self.now.0.saturating_sub(age));
        for table in self.whole.clone() {
            let left = match self.inspection.leftovers(&table, before).await {
                Ok(left) if left.files.is_empty() => continue,
                Ok(left) => left,
                Err(error) => {
                    self.could_not_examine(&checks::LEFTOVER_FILES, super::look::in_words(&error));
                    continue;
                }
            };
            let what = format!("{table}: {} files, {} bytes", left.files.len(), left.bytes);
            let can_go = !mended.contains(&table);
            let cure = Cure::RemoveFiles { table, files: left.files, bytes: left.bytes };
            self.find(&checks::LEFTOVER_FILES, what, if can_go { vec![cure] } else { Vec::new() });
        }
        Ok(())
    }
}
