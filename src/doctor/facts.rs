//! Small facts: the rows of `meta`, and the spend ledger.

use std::collections::BTreeMap;

use super::checks;
use super::findings::Cure;
use super::look::{Look, in_words};
use crate::embed::remote::audit::mended_ledger;
use crate::error::Result;
use crate::promise;
use crate::store::{Fact, LEASE_KEY, is_held};
use crate::switch;

/// What a backfill leaves of a bank in which nothing is due; an object.
const SETTLED: &str = "settled/";

impl Look {
    /// Checks that the facts in `meta` stand once and can be read; pointers are looked at with the generations.
    pub(super) fn meta(&mut self) {
        if !self.is_whole("meta", &[&checks::META_VALUES, &checks::POINTER]) {
            return;
        }
        let mut found = Vec::new();
        let mut by_key: BTreeMap<&str, &Fact> = BTreeMap::new();
        for fact in &self.facts {
            if let Some(first) = by_key.insert(&fact.key, fact) {
                // Equal ones say the same; of others nobody knows which is right.
                let cure = Cure::DropRow { table: "meta".into(), address: first.address };
                let cures = if first.value == fact.value { vec![cure] } else { Vec::new() };
                found.push((format!("{} stands twice", fact.key), cures));
            }
            if !is_readable(fact, self) {
                let cure = Cure::Forget { key: fact.key.clone(), value: fact.value.clone() };
                found.push((format!("{} cannot be read", fact.key), vec![cure]));
            }
        }
        for (what, cures) in found {
            self.find(&checks::META_VALUES, what, cures);
        }
    }

    /// Checks the spend ledger, if there is one.
    pub(super) async fn ledger(&mut self) -> Result<()> {
        if !self.inspection.has("spend") || !self.is_whole("spend", &[&checks::SPEND_LEDGER]) {
            return Ok(());
        }
        for Fact { key, value, .. } in self.inspection.facts("spend").await? {
            match mended_ledger(&value) {
                Ok(None) => {}
                Ok(Some(to)) => {
                    let cure = Cure::SetLedger { key: key.clone(), from: value, to };
                    self.find(&checks::SPEND_LEDGER, format!("{key}: the total is less than its parts"), vec![cure]);
                }
                Err(error) => self.find(&checks::SPEND_LEDGER, format!("{key}: {}", in_words(&error)), Vec::new()),
            }
        }
        Ok(())
    }
}

fn is_readable(fact: &Fact, look: &Look) -> bool {
    if fact.key == LEASE_KEY {
        return is_held(&fact.value, look.now).is_some();
    }
    if fact.key == switch::SERVING_KEY {
        return switch::is_readable(&fact.value);
    }
    if let Some(embedder) = promise::owner(&fact.key) {
        return promise::read(&embedder, &fact.value).is_some();
    }
    !fact.key.starts_with(SETTLED)
        || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&fact.value).is_ok()
}
