//! `embank embed`: vectors of texts, as JSON lines. Memory is bounded by one block of lines.

use std::io::{self, BufRead};

use anyhow::Context;
use embank::embed::{Embedder, TextKind};
use serde::Serialize;

use crate::Exit;
use crate::args::EmbedArgs;
use crate::output::to_json;
use crate::session::Session;

/// Lines that are embedded together; the embedder cuts them into batches of its own.
const LINES_PER_BLOCK: usize = 512;

/// One printed line.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    vector: &'a [f32],
    tokens: u32,
    truncated: bool,
}

pub async fn run(session: &Session, args: EmbedArgs) -> anyhow::Result<Exit> {
    let embedder = session.embedder()?;
    let kind = if args.query { TextKind::Query } else { TextKind::Passage };
    if args.texts != ["-"] {
        print(session, embedder.as_ref(), kind, &args.texts).await?;
        return Ok(Exit::Done);
    }
    let mut lines = io::stdin().lock().lines();
    loop {
        let block: Vec<String> =
            lines.by_ref().take(LINES_PER_BLOCK).collect::<io::Result<_>>().context("cannot read stdin")?;
        if block.is_empty() {
            return Ok(Exit::Done);
        }
        print(session, embedder.as_ref(), kind, &block).await?;
    }
}

async fn print(session: &Session, embedder: &dyn Embedder, kind: TextKind, texts: &[String]) -> anyhow::Result<()> {
    let answers = embedder.embed(kind, texts).await?;
    let mut lines = String::new();
    for (text, answer) in texts.iter().zip(&answers) {
        let line = Line { text, vector: &answer.vector, tokens: answer.tokens, truncated: answer.truncated };
        lines.push_str(&to_json(&line)?);
        lines.push('\n');
    }
    session.output().text(&lines)
}
