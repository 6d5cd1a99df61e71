//! `embank eval`: nDCG and recall against relevance judgements.

use std::path::Path;

use embank::Error;
use embank::evaluate::Judgements;

use crate::Exit;
use crate::args::EvalArgs;
use crate::session::Session;

pub async fn run(session: &Session, args: EvalArgs) -> anyhow::Result<Exit> {
    let judgements = Judgements::parse(&read(&args.queries)?, &read(&args.qrels)?)?;
    let evaluation = session.open().await?.evaluate(&judgements, args.k).await?;
    if session.output().is_json() {
        session.output().json(&evaluation)?;
        return Ok(Exit::Done);
    }
    let k = evaluation.k;
    session.output().line(&format!("nDCG@{k} {:.4}", evaluation.ndcg))?;
    session.output().line(&format!("recall@{k} {:.4}", evaluation.recall))?;
    let (queries, unjudged) = (evaluation.queries, evaluation.unjudged);
    session.output().line(&format!("{queries} questions; {unjudged} without a relevant document were left out"))?;
    Ok(Exit::Done)
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}
