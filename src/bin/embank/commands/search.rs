//! `embank search`: one question, its answers.

use embank::{Grouping, Hit, SearchFilter, SearchOptions};

use crate::Exit;
use crate::args::SearchArgs;
use crate::session::Session;

pub async fn run(session: &Session, args: SearchArgs) -> anyhow::Result<Exit> {
    let options = SearchOptions {
        k: args.k,
        filter: SearchFilter::parse(&args.filter)?,
        grouping: if args.chunks { Grouping::Chunks } else { Grouping::Documents },
        query_log: session.settings().query_log(args.query_log),
    };
    let bank = session.open().await?;
    let result = bank.search(&args.query, &options).await?;
    if session.settings().embedder_is_named
        && let Some(serving) = bank.serving().await?.map(|state| state.active)
        && serving.id != bank.embedder().identity().id()
    {
        session.display().say(&format!("note: answered by {}; this bank is served by {}", result.embedder, serving.id));
    }
    if session.output().is_json() {
        session.output().json(&result)?;
        return Ok(Exit::Done);
    }
    if result.hits.is_empty() {
        session.output().line("nothing found")?;
    }
    let lines: String = result.hits.iter().map(hit_lines).collect();
    session.output().text(&lines)?;
    Ok(Exit::Done)
}

fn hit_lines(hit: &Hit) -> String {
    let heading = if hit.heading.is_empty() { String::new() } else { format!("  {}", hit.heading) };
    format!("{:>2}  {:.4}  {}{heading}\n            {}\n", hit.rank, hit.score, hit.doc_path, one_line(&hit.snippet))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
