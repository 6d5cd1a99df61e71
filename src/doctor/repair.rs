//! The repair: takes the steps that the findings call for, in an order in which a crash between any two leaves what the next
//! look finds again.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Cure;
use super::look::Look;
use crate::error::{Error, Result};
use crate::id::{ChunkId, EmbedderId};
use crate::index::audit::{give_up, point, restate};
use crate::store::Store;

/// Rows in one commit.
const ROWS_PER_COMMIT: usize = 8192;

/// What there is to do, gathered.
#[derive(Default)]
struct Plan<'a> {
    rows: BTreeMap<&'a str, BTreeSet<u64>>,
    fragments: BTreeMap<&'a str, BTreeSet<u64>>,
    read_again: BTreeSet<&'a ChunkId>,
    requeue: BTreeMap<&'a EmbedderId, BTreeSet<&'a ChunkId>>,
    releases: bool,
    /// Each touches one row or folder.
    single: Vec<&'a Cure>,
}

/// Mends what the look found; the caller holds the maintenance lease. Returns what was done, in sentences.
pub(super) async fn repair(store: &Store, look: &Look) -> Result<Vec<String>> {
    let plan = Plan::of(look);
    let mut done = Vec::new();
    for (table, ids) in plan.fragments {
        let ids: Vec<_> = ids.into_iter().collect();
        if look.inspection.drop_fragments(table, &ids).await? {
            done.push(format!("gave up {} fragments of {table} whose files are gone", ids.len()));
        }
    }
    for (table, addresses) in plan.rows {
        let addresses: Vec<_> = addresses.into_iter().collect();
        // Where somebody wrote to these rows meanwhile, the next round looks again.
        if look.inspection.drop_rows(table, &addresses).await? {
            done.push(format!("removed {} rows of {table}", addresses.len()));
        }
    }
    let read_again: Vec<_> = plan.read_again.into_iter().cloned().collect();
    for some in read_again.chunks(ROWS_PER_COMMIT) {
        store.forget_sources(some).await?;
        done.push(format!("marked {} chunks to be read again by the next ingest", some.len()));
    }
    store.refresh().await?;
    for (embedder, ids) in plan.requeue {
        let ids: Vec<_> = ids.into_iter().cloned().collect();
        for some in ids.chunks(ROWS_PER_COMMIT) {
            store.status.reset(embedder, some, store.clock().now()).await?;
        }
        done.push(format!("queued {} chunks of {embedder} again", ids.len()));
    }
    if plan.releases {
        let released = store.status.release_stale(store.clock().now()).await?;
        done.push(format!("gave back {released} claims of workers that are gone"));
    }
    for cure in plan.single {
        done.extend(take(store, cure).await?);
    }
    store.acknowledge().await?;
    Ok(done)
}

impl<'a> Plan<'a> {
    fn of(look: &'a Look) -> Self {
        let mut plan = Self::default();
        for cure in look.cures() {
            match cure {
                // By opening the bank, which was done before the look.
                Cure::MakeTables | Cure::Open => {}
                Cure::DropRow { table, address } => _ = plan.rows.entry(table).or_default().insert(*address),
                Cure::DropFragment { table, id } => _ = plan.fragments.entry(table).or_default().insert(*id),
                Cure::ReadAgain(id) => _ = plan.read_again.insert(id),
                Cure::Requeue(embedder, id) => _ = plan.requeue.entry(embedder).or_default().insert(id),
                Cure::ReleaseStale => plan.releases = true,
                other => plan.single.push(other),
            }
        }
        // The pointer leaves a generation before that is given up, and it is given up before its index goes.
        plan.single.sort_by_key(|cure| turn(cure));
        plan
    }
}

fn turn(cure: &Cure) -> u8 {
    match cure {
        Cure::Point { .. } => 0,
        Cure::GiveUp { .. } | Cure::Restate(_) | Cure::RemoveGeneration(_) => 1,
        Cure::DropIndex { .. } => 2,
        _ => 3,
    }
}

async fn take(store: &Store, cure: &Cure) -> Result<Option<String>> {
    Ok(match cure {
        Cure::Point { embedder, from, to } => point(store, embedder, from, to).await?.then(|| match &to.active {
            Some(id) => format!("moved the pointer of {embedder} to {id}"),
            None => format!("cleared the pointer of {embedder}"),
        }),
        Cure::GiveUp { id, reason } => {
            give_up(store, id, reason).await?;
            Some(format!("gave generation {id} up: {reason}"))
        }
        Cure::Restate(id) => {
            restate(store, id).await?;
            Some(format!("wrote the row of generation {id} anew"))
        }
        Cure::RemoveGeneration(id) => {
            store.generations.remove(id).await?;
            Some(format!("removed the row of generation {id}"))
        }
        Cure::DropIndex { embedder, index } => {
            store.drop_index(embedder, index).await?;
            Some(format!("removed index {index} of {embedder}"))
        }
        Cure::Forget { key, value } => {
            store.forget_fact(key, value).await?;
            Some(format!("removed {key} from meta"))
        }
        Cure::SetLedger { key, from, to } => {
            store.replace_spend(key, from, to).await?.then(|| "raised the total of the spend ledger".to_owned())
        }
        Cure::RemoveFolder(folder) => {
            store.fault_point("repair: before a folder goes").await?;
            std::fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
            Some(format!("removed {}", folder.display()))
        }
        Cure::RemoveFiles { table, files, bytes } => {
            store.remove_leftovers(files).await?;
            Some(format!("removed {} files of {table} that no version refers to, {bytes} bytes", files.len()))
        }
        Cure::MakeTables
        | Cure::Open
        | Cure::DropRow { .. }
        | Cure::DropFragment { .. }
        | Cure::ReadAgain(_)
        | Cure::Requeue(..)
        | Cure::ReleaseStale => None,
    })
}
