//! Measuring retrieval against judgements, as TREC does: nDCG@k and recall@k over questions with graded relevance.
//!
//! Documents are ranked by their best chunk. nDCG uses linear gain (the grade itself) and a discount of log2(rank + 1), as
//! trec_eval's `ndcg_cut`; recall counts documents of grade 1 and above.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::engine::{Bank, Pending};
use crate::error::{Error, Result};
use crate::search::{Grouping, SearchOptions};

/// Questions with judged documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgements {
    /// Question text by id.
    pub queries: BTreeMap<String, String>,
    /// Grade by question id and document path; 0 is not relevant.
    pub grades: HashMap<String, HashMap<String, u32>>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Documents looked at per question.
    pub k: usize,
    /// Mean nDCG@k.
    pub ndcg: f64,
    /// Mean recall@k.
    pub recall: f64,
    /// Questions with at least one relevant document.
    pub queries: usize,
    /// Questions without, which are left out.
    pub unjudged: usize,
    /// Each question.
    pub per_query: Vec<QueryEvaluation>,
}

/// One question's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryEvaluation {
    /// The question's id.
    pub qid: String,
    /// Its nDCG@k.
    pub ndcg: f64,
    /// Its recall@k.
    pub recall: f64,
}

impl Judgements {
    /// Reads `qid<TAB>question` lines and TREC qrels, `qid 0 document grade`.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] naming the line that cannot be read.
    pub fn parse(queries: &str, qrels: &str) -> Result<Self> {
        let mut judgements = Self::default();
        for (number, line) in lines(queries) {
            let (qid, text) =
                line.split_once('\t').ok_or_else(|| bad("queries", number, "expected `qid<TAB>question`"))?;
            judgements.queries.insert(qid.trim().to_owned(), text.trim().to_owned());
        }
        for (number, line) in lines(qrels) {
            let mut fields = line.split_whitespace();
            let row = (fields.next(), fields.next(), fields.next(), fields.next().and_then(|grade| grade.parse().ok()));
            let (Some(qid), Some(_), Some(document), Some(grade)) = row else {
                return Err(bad("qrels", number, "expected `qid 0 document grade`"));
            };
            judgements.grades.entry(qid.to_owned()).or_default().insert(document.to_owned(), grade);
        }
        Ok(judgements)
    }
}

impl Bank {
    /// Asks every judged question and compares the first `k` documents with the judgements.
    ///
    /// # Errors
    /// Those of [`Bank::search`].
    pub fn evaluate<'a>(&'a self, judgements: &'a Judgements, k: usize) -> Pending<'a, Evaluation> {
        Box::pin(self.evaluate_inner(judgements, k))
    }

    async fn evaluate_inner(&self, judgements: &Judgements, k: usize) -> Result<Evaluation> {
        let options = SearchOptions { k, grouping: Grouping::Documents, ..SearchOptions::default() };
        let mut per_query = Vec::new();
        let mut unjudged = 0;
        for (qid, text) in &judgements.queries {
            let grades = judgements.grades.get(qid).filter(|grades| grades.values().any(|grade| *grade > 0));
            let Some(grades) = grades else {
                unjudged += 1;
                continue;
            };
            let found = self.search(text, &options).await?;
            let ranked: Vec<_> = found.hits.into_iter().map(|hit| hit.doc_path).collect();
            per_query.push(QueryEvaluation {
                qid: qid.clone(),
                ndcg: ndcg(&ranked, grades, k),
                recall: recall(&ranked, grades, k),
            });
        }
        let mean = |figure: fn(&QueryEvaluation) -> f64| {
            per_query.iter().map(figure).sum::<f64>() / per_query.len().max(1) as f64
        };
        Ok(Evaluation {
            k,
            ndcg: mean(|q| q.ndcg),
            recall: mean(|q| q.recall),
            queries: per_query.len(),
            unjudged,
            per_query,
        })
    }
}

fn ndcg(ranked: &[String], grades: &HashMap<String, u32>, k: usize) -> f64 {
    let gain = |gains: &mut dyn Iterator<Item = u32>| {
        gains.take(k).enumerate().map(|(rank, grade)| f64::from(grade) / (rank as f64 + 2.0).log2()).sum::<f64>()
    };
    let mut ideal: Vec<u32> = grades.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best = gain(&mut ideal.into_iter());
    let got = gain(&mut ranked.iter().map(|document| grades.get(document).copied().unwrap_or(0)));
    if best == 0.0 { 0.0 } else { got / best }
}

fn recall(ranked: &[String], grades: &HashMap<String, u32>, k: usize) -> f64 {
    let relevant = |document: &str| grades.get(document).is_some_and(|grade| *grade > 0);
    let all = grades.values().filter(|grade| **grade > 0).count();
    let found = ranked.iter().take(k).filter(|document| relevant(document)).count();
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(at, line)| (at + 1, line))
}

fn bad(setting: &'static str, line: usize, expected: &str) -> Error {
    Error::InvalidSetting { setting, reason: format!("line {line}: {expected}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(documents: &[&str]) -> Vec<String> {
        documents.iter().map(|d| (*d).to_owned()).collect()
    }

    #[test]
    fn figures_of_an_example_worked_by_hand() {
        let grades =
            HashMap::from([("a".to_owned(), 3), ("b".to_owned(), 1), ("c".to_owned(), 2), ("d".to_owned(), 0)]);
        // Gains 0, 3, 1 at discounts 1, 1.585, 2; ideal 3, 2, 1.
        let got = ndcg(&ranked(&["x", "a", "b"]), &grades, 10);
        let want = (3.0 / 3f64.log2() + 1.0 / 2.0) / (3.0 + 2.0 / 3f64.log2() + 1.0 / 2.0);
        assert!((got - want).abs() < 1e-12);
        assert!((recall(&ranked(&["x", "a", "b"]), &grades, 10) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(ndcg(&ranked(&["a", "c", "b"]), &grades, 10), 1.0);
        assert_eq!(ndcg(&ranked(&["x", "a"]), &grades, 1), 0.0);
    }

    #[test]
    fn reads_queries_and_qrels_and_names_bad_lines() {
        let read = Judgements::parse("q1\twhere to?\n\n", "q1 0 a/b.md 2\n").unwrap();
        assert_eq!(read.queries["q1"], "where to?");
        assert_eq!(read.grades["q1"]["a/b.md"], 2);
        let error = Judgements::parse("q1 no tab", "").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(Judgements::parse("", "q1 0 a/b.md x").is_err());
    }
}
