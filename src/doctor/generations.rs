//! What is served: pointers, the generations that they name, and the indexes of these.

use std::collections::{BTreeMap, BTreeSet};

use super::checks;
use super::findings::Cure;
use super::look::{Look, in_words};
use crate::error::Result;
use crate::id::{EmbedderId, GenerationId};
use crate::index::GenerationState;
use crate::index::audit::{Pointer, StoredGeneration, pointer_owner, read_generation, read_pointer};
use crate::store::{GenerationRow, IndexLook, VectorTable};

impl Look {
    /// Checks the generations of all embedders.
    pub(super) async fn generations(&mut self, embedders: &BTreeSet<EmbedderId>) -> Result<()> {
        let others = [&checks::GENERATION_RECORDS, &checks::POINTER, &checks::GENERATION_INDEX];
        if !self.is_whole("generations", &others) {
            return Ok(());
        }
        let mut by_embedder: BTreeMap<EmbedderId, Vec<StoredGeneration>> = BTreeMap::new();
        let mut places: BTreeMap<String, u64> = BTreeMap::new();
        for (id, address) in self.inspection.places("generations", "id").await? {
            // The row that was written last stays.
            if let Some(address) = places.insert(id.clone(), address) {
                let cure = Cure::DropRow { table: "generations".into(), address };
                self.find(&checks::GENERATION_RECORDS, format!("{id} stands twice"), vec![cure]);
            }
        }
        let mut rows: BTreeMap<GenerationId, GenerationRow> = BTreeMap::new();
        for row in self.inspection.generations().await? {
            rows.insert(row.id.clone(), row);
        }
        let mut rows: Vec<_> = rows.into_values().collect();
        rows.sort_by_key(|row| (row.sequence, row.created_at));
        for row in rows {
            match read_generation(&row) {
                Ok(generation) => {
                    if !generation.agrees {
                        let what =
                            format!("{} is called {} {}, its record says otherwise", row.id, row.kind, row.state);
                        self.find(&checks::GENERATION_RECORDS, what, vec![Cure::Restate(row.id)]);
                    }
                    by_embedder.entry(row.embedder_id).or_default().push(generation);
                }
                Err(error) => {
                    let cure = Cure::RemoveGeneration(row.id.clone());
                    self.find(&checks::GENERATION_RECORDS, in_words(&error), vec![cure]);
                }
            }
        }
        let mut all: BTreeSet<EmbedderId> = embedders.iter().cloned().chain(by_embedder.keys().cloned()).collect();
        all.extend(self.facts.iter().filter_map(|fact| pointer_owner(&fact.key)));
        for embedder in all {
            let generations = by_embedder.remove(&embedder).unwrap_or_default();
            self.of_embedder(&embedder, &generations).await?;
        }
        Ok(())
    }

    async fn of_embedder(&mut self, embedder: &EmbedderId, generations: &[StoredGeneration]) -> Result<()> {
        let table = VectorTable::Embeddings.name(embedder);
        let others =
            [&checks::GENERATION_INDEX, &checks::INDEX_FILES, &checks::INDEX_COVERAGE, &checks::INDEX_LEFTOVERS];
        if !self.inspection.lacks(&table) && !self.is_whole(&table, &others) {
            return Ok(());
        }
        let is_maintained = self.is_maintained_by_others();
        let indexes = self.inspection.indexes(embedder).await?;
        let stored = self.facts.iter().find(|fact| pointer_owner(&fact.key).as_ref() == Some(embedder));
        // Those go, index first: whoever began with it, or the next one, ends it.
        let removing = stored.and_then(|fact| read_pointer(&fact.value)).map_or_else(Vec::new, |one| one.removing);
        // Those that can be served, oldest first.
        let mut sound: Vec<&GenerationId> = Vec::new();
        let mut given_up = Vec::new();
        for StoredGeneration { id, state, has_index, .. } in generations {
            let index = indexes.iter().find(|index| index.name == id.as_str());
            match state {
                GenerationState::Ready if removing.contains(id) => {}
                state if state.is_unfinished() && !is_maintained => {
                    let reason = format!("interrupted while {}", state.label());
                    let cures = give_up(embedder, id, &reason, index);
                    self.find(&checks::INTERRUPTED_BUILDS, id.to_string(), cures);
                }
                GenerationState::Ready if !has_index => sound.push(id),
                GenerationState::Ready => match what_is_wrong(index) {
                    None => sound.push(id),
                    Some((check, reason)) => {
                        let cures = give_up(embedder, id, &reason, index);
                        given_up.push((check, format!("{id}: {reason}"), id, cures));
                    }
                },
                _ => {}
            }
        }
        self.pointer(embedder, generations, &sound, given_up);
        if is_maintained {
            return Ok(());
        }
        for index in &indexes {
            let is_used = |one: &StoredGeneration| {
                let goes = one.state == GenerationState::Failed || removing.contains(&one.id);
                one.id.as_str() == index.name && !goes
            };
            if !generations.iter().any(is_used) {
                let cure = Cure::DropIndex { embedder: embedder.clone(), index: index.name.clone() };
                self.find(&checks::INDEX_LEFTOVERS, format!("{table}: index {}", index.name), vec![cure]);
            }
        }
        for folder in self.inspection.leftover_indexes(embedder).await? {
            let what = folder.strip_prefix(self.inspection.root()).unwrap_or(&folder).display().to_string();
            self.find(&checks::INDEX_LEFTOVERS, what, vec![Cure::RemoveFolder(folder)]);
        }
        Ok(())
    }

    /// Checks where the pointer leads, and moves it off what is given up.
    fn pointer(
        &mut self,
        embedder: &EmbedderId,
        generations: &[StoredGeneration],
        sound: &[&GenerationId],
        given_up: Vec<(&'static checks::Check, String, &GenerationId, Vec<Cure>)>,
    ) {
        let stored = self.facts.iter().find(|fact| pointer_owner(&fact.key).as_ref() == Some(embedder));
        let stored = stored.map(|fact| fact.value.clone());
        let pointer = stored.as_deref().map(read_pointer);
        let to_newest = |pointer: &Pointer| {
            let newest = sound.last().map(|id| (*id).clone());
            let is_other = |id: &&GenerationId| Some(*id) != newest.as_ref();
            let mut previous: Vec<_> = pointer.previous.iter().filter(is_other).cloned().collect();
            if previous.is_empty() {
                // Nobody knows any more which were active. What none leads back to would be taken for a crash's leftover.
                previous = sound.iter().rev().copied().filter(is_other).cloned().collect();
            }
            let from = stored.clone().unwrap_or_default();
            let to = Pointer { active: newest, previous, ..pointer.clone() };
            Cure::Point { embedder: embedder.clone(), from, to }
        };
        let active = pointer.as_ref().and_then(Option::as_ref).and_then(|pointer| pointer.active.clone());
        for (check, what, id, mut cures) in given_up {
            if let Some(Some(pointer)) = pointer.as_ref().filter(|_| active.as_ref() == Some(id)) {
                cures.insert(0, to_newest(pointer));
            }
            self.find(check, what, cures);
        }
        let what = match (&pointer, &active) {
            (Some(None), _) => format!("that of {embedder} cannot be read"),
            (Some(Some(_)), Some(id)) => match generations.iter().find(|one| one.id == *id) {
                None => format!("that of {embedder} names {id}, which is unknown"),
                Some(one) if one.state != GenerationState::Ready => {
                    format!("that of {embedder} names {id}, which is {}", one.state.label())
                }
                Some(_) => return,
            },
            _ => return,
        };
        let cure = to_newest(&pointer.flatten().unwrap_or_default());
        self.find(&checks::POINTER, what, vec![cure]);
    }
}

fn give_up(embedder: &EmbedderId, id: &GenerationId, reason: &str, index: Option<&IndexLook>) -> Vec<Cure> {
    let mut cures = vec![Cure::GiveUp { id: id.clone(), reason: reason.to_owned() }];
    cures.extend(index.map(|index| Cure::DropIndex { embedder: embedder.clone(), index: index.name.clone() }));
    cures
}

/// What is wrong with the index of a generation that passed.
fn what_is_wrong(index: Option<&IndexLook>) -> Option<(&'static checks::Check, String)> {
    let Some(index) = index else { return Some((&checks::GENERATION_INDEX, "its index is missing".to_owned())) };
    if let Some(file) = index.missing.first() {
        return Some((&checks::INDEX_FILES, format!("{file} is missing or not whole")));
    }
    match index.held {
        None => Some((&checks::INDEX_FILES, "it cannot be opened".to_owned())),
        Some(held) if held < index.covered => {
            let reason = format!("it covers {} rows and holds {held}", index.covered);
            Some((&checks::INDEX_COVERAGE, reason))
        }
        Some(_) => None,
    }
}
