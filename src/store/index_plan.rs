//! The plan of a pinned search, looked at before it runs; and running that very plan.
//!
//! Guarantees: a search of a generation looks into the index of that generation and no other. Lance falls back to looking at
//! every vector, without saying so, where an index does not match what is asked for, covers nothing or was never trained;
//! here that is an error. Must not know: recall, pointers.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use futures::TryStreamExt;
use lance::Dataset;
use lance::deps::datafusion::execution::TaskContext;
use lance::deps::datafusion::physical_plan::{ExecutionPlan, execute_stream};
use lance::index::DatasetIndexInternalExt;
use lance::io::exec::ANNIvfSubIndexExec;
use lance_index::metrics::NoOpMetricsCollector;
use lance_table::format::IndexMetadata;
use uuid::Uuid;

use super::schema::VECTOR;
use super::table::StoredTable;
use crate::error::{Error, Result};
use crate::id::GenerationId;

/// What plans run in; without limits of its own, because a search keeps no more than its candidates.
static CONTEXT: LazyLock<Arc<TaskContext>> = LazyLock::new(Arc::default);

/// The segments of a generation's index that a search of this version must look into: those that cover any of its rows.
///
/// # Errors
/// [`Error::IndexNotUsed`] where they cover nothing although nothing was removed, or hold no vector.
pub(super) async fn segments_to_search(
    table: &StoredTable,
    dataset: &Dataset,
    generation: &GenerationId,
    segments: &[IndexMetadata],
) -> Result<BTreeSet<Uuid>> {
    let mut covering = BTreeSet::new();
    let mut never_covered = true;
    for segment in segments {
        let covered = segment.fragment_bitmap.as_ref();
        never_covered &= covered.is_none_or(|covered| covered.is_empty());
        if covered.is_some_and(|covered| dataset.fragments().iter().any(|one| covered.contains(number(one.id)))) {
            covering.insert(segment.uuid);
        }
    }
    if never_covered {
        return Err(not_used(generation, "it covers no rows"));
    }
    let mut held = 0;
    for uuid in &covering {
        let index = dataset.open_vector_index(VECTOR, uuid, &NoOpMetricsCollector).await;
        held += index.map_err(|e| table.error("open an index of", e))?.num_rows();
    }
    // Without segments that cover anything, all it covered was removed since: what is left is newer.
    if held == 0 && !covering.is_empty() {
        return Err(not_used(generation, "it holds no vectors"));
    }
    Ok(covering)
}

/// Refuses a plan that looks into other segments than these, or into none of them.
///
/// # Errors
/// [`Error::IndexNotUsed`].
pub(super) fn check_plan(plan: &dyn ExecutionPlan, generation: &GenerationId, wanted: &BTreeSet<Uuid>) -> Result<()> {
    let mut searched = BTreeSet::new();
    collect_segments(plan, &mut searched);
    if searched == *wanted {
        return Ok(());
    }
    let reason = if searched.is_empty() { "every vector would be looked at instead" } else { "another one would be" };
    Err(not_used(generation, reason))
}

/// Runs the plan to its end.
pub(super) async fn run(table: &StoredTable, plan: Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
    let batches = execute_stream(plan, CONTEXT.clone()).map_err(|e| table.error("search", e))?;
    batches.try_collect().await.map_err(|e| table.error("search", e))
}

fn collect_segments(plan: &dyn ExecutionPlan, found: &mut BTreeSet<Uuid>) {
    let node: &dyn Any = plan;
    if let Some(search) = node.downcast_ref::<ANNIvfSubIndexExec>() {
        found.extend(search.indices().iter().map(|segment| segment.uuid));
    }
    for child in plan.children() {
        collect_segments(child.as_ref(), found);
    }
}

fn number(fragment: u64) -> u32 {
    u32::try_from(fragment).unwrap_or(u32::MAX)
}

fn not_used(generation: &GenerationId, reason: &'static str) -> Error {
    Error::IndexNotUsed { generation: generation.to_string(), reason }
}
