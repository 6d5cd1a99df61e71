//! The texts to measure with: a file's, the bank's own, or a built-in mix.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, bail};
use embank::Bank;
use futures::TryStreamExt;
use serde::Deserialize;

/// Chunks of the bank that are measured with: some ten seconds of work for a small model.
const CHUNKS: usize = 1_024;

/// Texts of the built-in mix.
const MIXED: usize = 512;

/// Words of the built-in mix. What they say does not matter: a token costs the same whatever it is.
const WORDS: &str = "the water in the old barrel froze before anyone had thought of emptying it and when the thaw came in \
    March the staves had sprung so the cooper from the next village was asked to look at them he said that oak forgives \
    much but not that and that a new one would cost less than his time which nobody believed until they saw the bill";

/// A line of the file; other fields do not matter.
#[derive(Deserialize)]
struct Line {
    text: String,
}

/// Where the texts are from, and the texts.
pub async fn choose(file: Option<&Path>, bank: Option<&Bank>) -> anyhow::Result<(&'static str, Vec<String>)> {
    if let Some(path) = file {
        return Ok(("the file", read(path)?));
    }
    if let Some(bank) = bank {
        let texts = first_chunks(bank).await?;
        if !texts.is_empty() {
            return Ok(("the bank", texts));
        }
    }
    Ok(("a built-in mix", mixed()))
}

fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut texts = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let parsed: Line = serde_json::from_str(&line)
            .with_context(|| format!("{} line {number} is no object with a field `text`", path.display()))?;
        texts.push(parsed.text);
    }
    if texts.is_empty() {
        bail!("{} has no texts", path.display());
    }
    Ok(texts)
}

async fn first_chunks(bank: &Bank) -> anyhow::Result<Vec<String>> {
    let mut blocks = bank.documents().await?;
    let mut texts = Vec::new();
    while let Some(block) = blocks.try_next().await? {
        texts.extend(block.into_iter().map(|row| row.content));
        if texts.len() >= CHUNKS {
            texts.truncate(CHUNKS);
            break;
        }
    }
    Ok(texts)
}

/// Texts of 8 to 250 words, the short ones more often, as chunks of notes are.
fn mixed() -> Vec<String> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    (0..MIXED)
        .map(|i| {
            // Squares of 0 to 1, in an order that is not sorted: 197 and 512 have no common factor.
            let share = (i * 197 % MIXED) as f64 / MIXED as f64;
            let length = 8 + (242.0 * share * share) as usize;
            words.iter().cycle().skip(i).take(length).copied().collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_always_the_same_and_has_short_and_long_texts() {
        let texts = mixed();
        assert_eq!(texts, mixed());
        let mut words: Vec<usize> = texts.iter().map(|text| text.split_whitespace().count()).collect();
        words.sort_unstable();
        assert_eq!((words.len(), words[0]), (512, 8));
        assert!(words[511] > 240 && words[256] < 80, "{words:?}");
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.jsonl");
        std::fs::write(&path, "{\"text\": \"one\", \"id\": 7}\n{\"text\": \"two\"}\n").unwrap();
        assert_eq!(read(&path).unwrap(), ["one", "two"]);
        std::fs::write(&path, "{\"text\": \"one\"}\nplain\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no texts"));
    }
}
