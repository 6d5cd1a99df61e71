//! Choosing nprobes, ef and refine factor by measuring: the cheapest setting, by 95th percentile, that is sure enough to
//! reach the target.
//!
//! Recall rises along a ladder (`ladder`), so its first sufficient rung is found by bisection with a few scouts; the next
//! ladder, whose candidates cost more, need only be looked at below that rung. What is left, one rung a ladder at most, is
//! measured with all tuning queries, those within frequent categories included. That takes a dozen settings where all of
//! them would be fifty.

use std::collections::HashMap;

use super::Indexing;
use super::confidence::{CONFIDENCE, pass_mark, prove};
use super::ladder::{FixedSettings, ladders};
use super::queries::{ValidationQueries, ValidationQuery};
use super::recall::{Measured, recall_of};
use super::report::TriedSettings;
use crate::error::Result;
use crate::id::GenerationId;
use crate::progress::{Progress, Stage};
use crate::store::{Filter, IndexSpec, QuerySettings, Snapshot};

/// Tuning queries that bisection measures with.
const SCOUTS: usize = 32;

/// How sure tuning wants to be that the verdict, on other queries, will pass: what is refused by chance is built for nothing.
const TUNING_CONFIDENCE: f64 = 0.95;

/// Recall that scouts lack at most for all tuning queries to be worth asking: two standard errors of 32 queries at 0.95.
const HOPELESS: f64 = 0.025;

/// Settings that are measured with all tuning queries at most.
const FINALISTS: usize = 6;

/// What tuning chose.
#[derive(Clone, Debug, Default)]
pub(super) struct Tuned {
    pub(super) settings: QuerySettings,
    pub(super) tried: Vec<TriedSettings>,
}

/// A search for the cheapest setting of one generation.
struct Tuning<'a> {
    indexing: &'a Indexing,
    generation: &'a GenerationId,
    snapshot: &'a Snapshot,
    queries: &'a ValidationQueries,
    /// The measured recall from which on a verdict proves the target.
    mark: f64,
    target: f64,
    scouted: HashMap<QuerySettings, Measured>,
    /// The least median of what the scouts found sufficient.
    cheapest_ms: f64,
    tried: Vec<TriedSettings>,
}

/// A rung that may be the one.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    ladder: usize,
    rung: usize,
    /// Its median milliseconds, or a guess.
    p50_ms: f64,
}

impl Indexing {
    /// Looks for the cheapest setting with which the verdict should prove `target`. Without one it is the one with the
    /// highest recall.
    pub(super) async fn tune(
        &self,
        generation: &GenerationId,
        snapshot: &Snapshot,
        spec: &IndexSpec,
        queries: &ValidationQueries,
        target: f64,
        fixed: &FixedSettings,
    ) -> Result<Tuned> {
        let asked = queries.tuning.first().map_or(1, ValidationQuery::asked);
        let mut tuning = Tuning {
            indexing: self,
            generation,
            snapshot,
            queries,
            mark: mark(target, &queries.verdict, queries.is_sample),
            target,
            scouted: HashMap::new(),
            cheapest_ms: f64::INFINITY,
            tried: Vec::new(),
        };
        self.listener.report(Progress::Started { stage: Stage::Tune, total: None });
        let settings = tuning.choose(&ladders(spec, fixed, asked)).await?;
        self.listener.report(Progress::Finished { stage: Stage::Tune });
        Ok(Tuned { settings, tried: tuning.tried })
    }

    /// Runs each query once, after one that is not counted.
    pub(super) async fn measure(
        &self,
        generation: &GenerationId,
        snapshot: &Snapshot,
        queries: &[ValidationQuery],
        settings: &QuerySettings,
        filter: Option<&Filter>,
    ) -> Result<Measured> {
        let mut measured = Measured::default();
        if let Some(first) = queries.first() {
            self.embeddings.search_index(snapshot, &first.asked_of(generation, settings, filter)).await?;
        }
        for query in queries {
            self.cancel.check()?;
            let began = std::time::Instant::now();
            let asked = query.asked_of(generation, settings, filter);
            let found = self.embeddings.search_index(snapshot, &asked).await?;
            measured.milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            measured.recalls.push(recall_of(query, &found));
        }
        Ok(measured)
    }
}

impl Tuning<'_> {
    async fn choose(&mut self, ladders: &[Vec<QuerySettings>]) -> Result<QuerySettings> {
        let mut candidates = Vec::new();
        let mut below = usize::MAX;
        for (number, ladder) in ladders.iter().enumerate() {
            let Some(rung) = self.first_sufficient(ladder, below).await? else { continue };
            let p50_ms = ladder.get(rung).and_then(|s| self.scouted.get(s)).map_or(0.0, |m| m.percentile_ms(50));
            candidates.push(Candidate { ladder: number, rung, p50_ms });
            // More candidates are worth their cost only where they save lists.
            below = rung;
        }
        if let Some(last) = ladders.len().checked_sub(1).filter(|_| candidates.is_empty()) {
            let rung = ladders.last().map_or(0, |ladder| ladder.len().saturating_sub(1));
            candidates.push(Candidate { ladder: last, rung, p50_ms: 0.0 });
        }
        let mut proven = self.best_of(candidates, ladders).await?;
        if proven.is_none() {
            proven = self.first_proven_top(ladders).await?;
        }
        Ok(proven.or_else(|| highest_recall(&self.tried)).unwrap_or_default())
    }

    /// Where scouts were too hopeful everywhere: the first ladder whose top suffices. Better a dear setting than none.
    async fn first_proven_top(&mut self, ladders: &[Vec<QuerySettings>]) -> Result<Option<QuerySettings>> {
        for top in ladders.iter().filter_map(|ladder| ladder.last()) {
            let is_known = self.tried.iter().find(|tried| tried.settings == *top);
            // Measured in full already, or far off with a quarter of the queries.
            if is_known.is_some_and(|tried| tried.queries > SCOUTS || tried.recall < self.mark - HOPELESS) {
                continue;
            }
            if self.measure_in_full(top).await?.1 {
                return Ok(Some(*top));
            }
        }
        Ok(None)
    }

    /// The lowest rung below `below` whose scouts reach the mark.
    async fn first_sufficient(&mut self, ladder: &[QuerySettings], below: usize) -> Result<Option<usize>> {
        let (mut low, mut high) = (0, below.min(ladder.len()));
        let mut sufficient = None;
        let mut failed: Option<(usize, f64)> = None;
        while low < high {
            let rung = usize::midpoint(low, high);
            let Some(settings) = ladder.get(rung) else { break };
            let recall = self.scout(settings).await?;
            if recall >= self.mark {
                (high, sufficient) = (rung, Some(rung));
                let p50_ms = self.scouted.get(settings).map_or(f64::INFINITY, |m| m.percentile_ms(50));
                self.cheapest_ms = self.cheapest_ms.min(p50_ms);
                continue;
            }
            // What is too little and takes longer than what suffices: all further rungs take longer still.
            if self.scouted.get(settings).is_some_and(|m| m.percentile_ms(50) >= self.cheapest_ms) {
                break;
            }
            // Recall rises ever more slowly: where the last steps gained too little, those that are left will as well.
            if let Some((lower, before)) = failed.replace((rung, recall)) {
                let gain = (recall - before) / (rung - lower) as f64;
                if recall + gain * (high - 1).saturating_sub(rung) as f64 * 1.5 < self.mark {
                    break;
                }
            }
            low = rung + 1;
        }
        Ok(sufficient)
    }

    async fn scout(&mut self, settings: &QuerySettings) -> Result<f64> {
        if let Some(measured) = self.scouted.get(settings) {
            return Ok(measured.mean());
        }
        let scouts = self.queries.tuning.get(..SCOUTS).unwrap_or(&self.queries.tuning);
        let measured = self.indexing.measure(self.generation, self.snapshot, scouts, settings, None).await?;
        let recall = measured.mean();
        self.note(settings, &measured, false);
        self.scouted.insert(*settings, measured);
        Ok(recall)
    }

    /// Measures candidates in full, the cheapest first, until none that is left can be cheaper than what suffices.
    async fn best_of(
        &mut self,
        mut candidates: Vec<Candidate>,
        ladders: &[Vec<QuerySettings>],
    ) -> Result<Option<QuerySettings>> {
        let mut best: Option<(QuerySettings, f64, f64)> = None;
        for _ in 0..FINALISTS {
            candidates.sort_by(|a, b| b.p50_ms.total_cmp(&a.p50_ms));
            let Some(candidate) = candidates.pop() else { break };
            if best.is_some_and(|(_, _, p50_ms)| candidate.p50_ms >= p50_ms) {
                break;
            }
            let at = |rung: usize| ladders.get(candidate.ladder).and_then(|ladder| ladder.get(rung));
            let Some(settings) = at(candidate.rung) else { continue };
            let (measured, suffices) = self.measure_in_full(settings).await?;
            let (p50_ms, p95_ms) = (measured.percentile_ms(50), measured.percentile_ms(95));
            if suffices && best.is_none_or(|(_, least, _)| p95_ms < least) {
                best = Some((*settings, p95_ms, p50_ms));
            }
            // Not quite enough: the next rung, which takes a little longer.
            let next = (candidate.rung + 1..).map_while(|rung| Some((rung, at(rung)?))).find(|(_, s)| *s != settings);
            if let Some((rung, _)) = next.filter(|_| !suffices) {
                candidates.push(Candidate { rung, p50_ms: p50_ms * 1.1, ..candidate });
            }
        }
        Ok(best.map(|(settings, ..)| settings))
    }

    /// Measures a setting with all tuning queries; says whether the verdict should pass with it.
    async fn measure_in_full(&mut self, settings: &QuerySettings) -> Result<(Measured, bool)> {
        let (indexing, queries) = (self.indexing, self.queries);
        let scouted = self.scouted.remove(settings);
        let rest = queries.tuning.get(scouted.as_ref().map_or(0, |m| m.recalls.len())..).unwrap_or_default();
        let measured = indexing.measure(self.generation, self.snapshot, rest, settings, None).await?;
        let measured = scouted.unwrap_or_default().and(measured);
        let k = queries.tuning.first().map_or(1, |query| query.neighbours.len());
        let mut suffices = !queries.is_sample && measured.mean() >= self.target
            || prove(&measured.recalls, k, TUNING_CONFIDENCE).lower >= self.mark;
        for slice in queries.slices.iter().filter(|slice| slice.is_gated) {
            if !suffices {
                break;
            }
            let filter = Some(&slice.filter);
            let within = indexing.measure(self.generation, self.snapshot, &slice.tuning, settings, filter).await?;
            // So few questions prove little; they find a filter that ruins what is fine without it.
            suffices = within.mean() >= mark(self.target, &slice.verdict, true);
        }
        self.note(settings, &measured, suffices);
        Ok((measured, suffices))
    }

    /// Keeps what was measured of a setting, in the place of what fewer queries said.
    fn note(&mut self, settings: &QuerySettings, measured: &Measured, suffices: bool) {
        let tried = TriedSettings {
            settings: *settings,
            recall: measured.mean(),
            p95_ms: measured.percentile_ms(95),
            p50_ms: measured.percentile_ms(50),
            queries: measured.recalls.len(),
            suffices,
        };
        match self.tried.iter_mut().find(|earlier| earlier.settings == *settings) {
            Some(earlier) => *earlier = tried,
            None => self.tried.push(tried),
        }
        let done = self.tried.len() as u64;
        self.indexing.listener.report(Progress::Advanced { stage: Stage::Tune, done });
    }
}

/// The recall that the verdict on these queries must measure to prove the target; the target itself where nothing is
/// sampled. A target that so few queries cannot prove asks for all neighbours.
fn mark(target: f64, verdict: &[ValidationQuery], is_sample: bool) -> f64 {
    if !is_sample {
        return target;
    }
    let trials = verdict.iter().map(|query| query.neighbours.len()).sum::<usize>();
    pass_mark(target, trials as f64, CONFIDENCE).min(1.0)
}

/// What comes nearest where nothing suffices; the quicker of two that are equal.
fn highest_recall(tried: &[TriedSettings]) -> Option<QuerySettings> {
    let best = tried.iter().max_by(|a, b| a.recall.total_cmp(&b.recall).then(b.p95_ms.total_cmp(&a.p95_ms)));
    best.map(|best| best.settings)
}
