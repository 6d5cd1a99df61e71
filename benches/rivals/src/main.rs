//! The Rust rivals of `benches/embed`: candle and fastembed, each as a worker that embeds files of texts on request.
//!
//! Called as `rivals candle MODEL_DIR` or `rivals fastembed MODEL_DIR FUSED.onnx`. The worker says `{"ready":…}` when its model is
//! loaded and warm, then answers each request line `{"texts":FILE,"batch":N,"dump":FILE|null}` with
//! `{"seconds":…,"texts":…}`, the time from texts to vectors, tokenising included. It must not know the other contenders.

mod candle_bert;
mod fastembed_onnx;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Texts to unit vectors, in the order of the texts.
pub(crate) trait Contender {
    fn embed(&mut self, texts: &[String], batch: usize) -> Result<Vec<Vec<f32>>>;
}

#[derive(Deserialize)]
struct Request {
    texts: PathBuf,
    batch: usize,
    dump: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let start = Instant::now();
    let mut contender: Box<dyn Contender> = match args.as_slice() {
        ["candle", model] => Box::new(candle_bert::Candle::load(Path::new(model))?),
        ["fastembed", model, onnx] => Box::new(fastembed_onnx::FastEmbed::load(Path::new(model), Path::new(onnx))?),
        _ => bail!("usage: rivals candle MODEL_DIR | rivals fastembed MODEL_DIR FUSED.onnx"),
    };
    let load_seconds = start.elapsed().as_secs_f64();
    // The first pass pays for page faults and thread pools; every contender is asked after its own first pass.
    contender.embed(&vec!["a text to warm up with".to_string(); 64], 32)?;
    answer(&serde_json::json!({"ready": true, "load_seconds": load_seconds}))?;

    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let texts = read(&request.texts)?;
        let start = Instant::now();
        let vectors = contender.embed(&texts, request.batch)?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(path) = request.dump {
            let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
            std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
        answer(&serde_json::json!({"seconds": seconds, "texts": vectors.len()}))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<String>> {
    let file = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    file.lines().map(|line| Ok(serde_json::from_str::<Line>(line)?.text)).collect()
}

fn answer(value: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
