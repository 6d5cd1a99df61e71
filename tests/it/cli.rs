//! The command line as a script sees it: output, exit codes, settings.

use std::process::{Command, Output};

use embank::embed::{FakeEmbedder, Fault};
use serde_json::Value;

use crate::harness::{DIMENSION, Place};

struct Cli<'a>(&'a Place);

impl Cli<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
        command.current_dir(self.0.path());
        for variable in ["EMBANK_BANK", "EMBANK_MODEL_DIR", "EMBANK_PRECISION", "EMBANK_DEVICE"] {
            command.env_remove(variable);
        }
        command.args(["--bank", "bank"]);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command().args(with_embedder(args)).output().unwrap()
    }

    /// Standard output as JSON; the command must succeed.
    fn json(&self, args: &[&str]) -> Value {
        let output = self.command().arg("--json").args(with_embedder(args)).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    fn code(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The fake, unless the arguments name another one.
fn with_embedder<'a>(args: &[&'a str]) -> Vec<&'a str> {
    if args.contains(&"--embedder") { args.to_vec() } else { [&["--embedder", "fake:32"], args].concat() }
}

#[test]
fn the_main_job_end_to_end_in_json() {
    let place = Place::with_documents(30);
    let cli = Cli(&place);
    let first = cli.json(&["sync", "docs"]);
    assert_eq!((&first["ingest"]["added"], &first["backfill"]["ready"]), (&30.into(), &30.into()));
    assert_eq!(first["index"]["outcome"], "activated");
    let second = cli.json(&["sync", "docs"]);
    assert_eq!((&second["ingest"]["unchanged"], &second["backfill"]["embedded"]), (&30.into(), &0.into()));
    assert_eq!(second["index"]["outcome"], "kept");

    let found = cli.json(&["search", "frost barrel", "-k", "3", "--filter", "category=water"]);
    let hits = found["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 3);
    for (position, hit) in hits.iter().enumerate() {
        assert_eq!(hit["rank"], position + 1);
        assert_eq!(hit["category"], "water");
        for field in ["score", "id", "doc_id", "doc_path", "snippet"] {
            assert!(!hit[field].is_null(), "{field}");
        }
    }
    assert_eq!(found["generation"], first["index"]["generation"]);

    let status = cli.json(&["status"]);
    assert_eq!((&status["chunks"], &status["cached"]), (&30.into(), &30.into()));
    assert_eq!(status["active"]["id"], first["index"]["generation"]);
}

#[test]
fn records_keep_their_own_ids_and_fields() {
    let place = Place::empty();
    place
        .write("r.jsonl", "{\"key\": \"k-1\", \"body\": \"frost on the pump\", \"kind\": \"water\", \"year\": 2020}\n");
    let cli = Cli(&place);
    let fields = ["--id-field", "key", "--text-field", "body", "--category-field", "kind"];
    let args: Vec<_> = ["sync", "docs"].into_iter().chain(fields).collect();
    cli.json(&args);
    let hit = cli.json(&["search", "frost"])["hits"][0].clone();
    assert_eq!(
        (&hit["doc_id"], &hit["category"], &hit["attributes"]["year"]),
        (&"k-1".into(), &"water".into(), &2020.into())
    );
}

#[test]
fn exit_codes_say_what_kind_of_failure_it_was() {
    let place = Place::with_records(1200);
    let cli = Cli(&place);
    let (code, stderr) = cli.code(&["search", "frost"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("there is no bank"), "{stderr}");
    assert!(cli.run(&["sync", "docs"]).status.success());
    assert_eq!(cli.code(&["search", ""]).0, Some(64));
    assert_eq!(cli.code(&["search", "x", "--filter", "colour=red"]).0, Some(64));
    assert_eq!(cli.code(&["no-such-command"]).0, Some(64));

    // A gate that says no.
    let before = cli.json(&["search", "frost", "-k", "5"]);
    let ruined = [
        "index",
        "build",
        "--kind",
        "ivf-pq",
        "--sub-vectors",
        "2",
        "--bits",
        "4",
        "--partitions",
        "40",
        "--nprobes",
        "1",
        "--refine",
        "1",
    ];
    let (code, stderr) = cli.code(&ruined);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("recall@10 0."), "{stderr}");
    assert_eq!(cli.json(&["search", "frost", "-k", "5"]), before);
}

#[test]
fn an_index_is_tuned_verified_and_reported_from_the_command_line() {
    let place = Place::with_records(600);
    let cli = Cli(&place);
    cli.json(&["sync", "docs", "--kind", "flat"]);
    let build = ["index", "build", "--kind", "ivf-pq", "--seed", "7", "--report", "page.html"];
    let built = cli.json(&build);
    let page = std::fs::read_to_string(place.path().join("page.html")).unwrap();
    let id = built["generation"]["id"].as_str().unwrap();
    assert!(page.contains(id) && page.contains("<polyline points=") && page.contains("prefers-color-scheme"));
    for outside in ["http:", "https:", "//", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let shown = cli.run(&["index", "show"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("* serves   o tried   ... required") && shown.contains("proven      0.9"), "{shown}");

    let tuned = cli.json(&["index", "tune", "--target-recall", "0.9", "--seed", "5"]);
    assert!(tuned["generation"]["recall"]["bound"].as_f64().unwrap() >= 0.9, "{tuned}");
    assert_eq!(tuned["generation"]["id"], id);
    assert_eq!(cli.json(&["index", "verify"])["agrees"], true);
    let (code, stderr) = cli.code(&["index", "tune", "--target-recall", "0.9999"]);
    assert_eq!(code, Some(2), "{stderr}");

    assert_eq!(std::fs::read_dir(place.bank_dir()).unwrap().filter(is_log).count(), 0);
    cli.json(&["search", "frost", "--query-log"]);
    place.write("../embank.toml", "[search]\nquery-log = true\n");
    cli.json(&["search", "rain"]);
    let log = std::fs::read_dir(place.bank_dir()).unwrap().find(is_log).unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(log.path()).unwrap().lines().count(), 2);
}

fn is_log(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("queries__")
}

#[test]
fn strict_ingest_fails_on_what_it_had_to_skip() {
    let place = Place::with_documents(2);
    std::fs::write(place.docs().join("x.bin"), [0, 1]).unwrap();
    let cli = Cli(&place);
    assert_eq!(cli.code(&["ingest", "docs"]).0, Some(0));
    let (code, stderr) = cli.code(&["ingest", "docs", "--strict"]);
    assert_eq!(code, Some(1), "{stderr}");
}

#[test]
fn embed_prints_one_json_line_a_text() {
    let place = Place::empty();
    let output = Cli(&place).run(&["embed", "one", "two words"]);
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["text"], "two words");
    assert_eq!(lines[0]["vector"].as_array().unwrap().len(), 32);
    assert_eq!((&lines[1]["truncated"], lines[1]["tokens"].is_u64()), (&false.into(), true));
}

#[test]
fn flags_beat_environment_beats_file() {
    let place = Place::with_documents(2);
    std::fs::write(place.path().join("embank.toml"), "bank = \"from-file\"\nembedder = \"fake:8\"\n").unwrap();
    let run = |env: Option<&str>, flag: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
        command.current_dir(place.path()).env_remove("EMBANK_BANK");
        env.map(|dir| command.env("EMBANK_BANK", dir));
        flag.map(|dir| command.args(["--bank", dir]));
        assert!(command.args(["ingest", "docs"]).output().unwrap().status.success());
    };
    run(None, None);
    run(Some("from-env"), None);
    run(Some("from-env-2"), Some("from-flag"));
    let is_bank = |dir: &str| place.path().join(dir).join("embank.json").exists();
    assert_eq!(["from-file", "from-env", "from-env-2", "from-flag"].map(is_bank), [true, true, false, true]);
}

#[test]
fn a_dry_run_says_what_a_backfill_would_take_and_embeds_nothing() {
    let place = Place::with_documents(30);
    let cli = Cli(&place);
    cli.json(&["ingest", "docs"]);
    let estimate = cli.json(&["backfill", "--dry-run"]);
    assert_eq!((&estimate["texts"], &estimate["cost"]), (&30.into(), &0.0.into()));
    // The fake counts words.
    let output = cli.run(&["documents"]);
    let text = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    let words: usize =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| text(line).split_whitespace().count()).sum();
    assert_eq!(estimate["tokens"], words);
    assert_eq!(cli.json(&["status"])["cached"], 0);
    assert_eq!(cli.json(&["backfill"])["embedded"], 30);
    assert_eq!(cli.json(&["backfill", "--dry-run"])["texts"], 0);
}

#[test]
fn a_remote_embedder_is_priced_from_the_settings_before_anything_is_sent() {
    let place = Place::with_documents(30);
    // Nobody listens on port 9, discard; a request would fail.
    let settings = "[remote]\ndimension = 8\n[[remote.providers]]\nbase-url = \"http://127.0.0.1:9/v1\"\n\
        price-per-million-tokens = 2.0\n";
    std::fs::write(place.path().join("embank.toml"), settings).unwrap();
    let cli = Cli(&place);
    let remote = |args: &[&str]| cli.json(&[&["--embedder", "openai:m"], args].concat());
    remote(&["ingest", "docs"]);
    let estimate = remote(&["backfill", "--dry-run"]);
    assert_eq!(estimate["texts"], 30);
    let tokens = estimate["tokens"].as_f64().unwrap();
    assert!(tokens > 0.0 && (estimate["cost"].as_f64().unwrap() - tokens * 2e-6).abs() < 1e-9, "{estimate}");
    // Without a section there is nobody to ask.
    std::fs::write(place.path().join("embank.toml"), "").unwrap();
    let (code, stderr) = cli.code(&["--embedder", "openai:m", "status"]);
    assert_eq!(code, Some(64));
    assert!(stderr.contains("needs `dimension` in the section [remote]"), "{stderr}");
}

#[tokio::test]
async fn errors_are_shown_by_cause_and_retry_queues_them_again() {
    let place = Place::with_documents(12);
    let cli = Cli(&place);
    // The same embedder as the command line's, but for its faults.
    let faulty = FakeEmbedder::with_faults(DIMENSION, |text| {
        let fault = if text.starts_with("note 3:") { Fault::Fail } else { Fault::ZeroNorm };
        ["note 3:", "note 4:", "note 5:"].iter().any(|beginning| text.starts_with(beginning)).then_some(fault)
    });
    let bank = place.bank_with(faulty).await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(Default::default()).await.unwrap();
    // The second bad answer parks the two.
    place.clock.advance(std::time::Duration::from_secs(16));
    bank.backfill(Default::default()).await.unwrap();

    let shown = cli.json(&["errors"]);
    assert_eq!(shown["failed"], 3);
    let causes = shown["causes"].as_array().unwrap();
    let told: Vec<_> = causes.iter().map(|c| (c["kind"].as_str().unwrap(), c["count"].as_u64().unwrap())).collect();
    assert_eq!(told, [("permanent", 2), ("transient", 1)]);
    assert_eq!((&causes[0]["parked"], &causes[0]["next_attempt_at"]), (&2.into(), &Value::Null));
    assert_eq!(causes[0]["error"], "the vector has norm 0");
    assert_eq!(causes[1]["examples"][0]["doc_path"], "water/00003.txt");
    assert!(causes[1]["next_attempt_at"].as_str().unwrap().ends_with('Z'));
    let text = String::from_utf8(cli.run(&["errors"]).stdout).unwrap();
    assert!(text.contains("2 x permanent (not tried again by itself): the vector has norm 0"), "{text}");
    assert!(text.contains("water/00003.txt") && text.contains("embank retry"), "{text}");

    let rows = cli.json(&["errors", "--all"])["errors"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 3);
    assert_eq!(cli.json(&["errors", "--limit", "1"])["errors"].as_array().unwrap().len(), 1);
    let id = rows.iter().find(|row| row["kind"] == "permanent").unwrap()["id"].as_str().unwrap();
    assert_eq!(cli.json(&["retry", "--id", id, "nobody"]), serde_json::json!({"queued": 1, "not_failed": ["nobody"]}));
    assert_eq!(cli.json(&["retry", "--kind", "permanent"])["queued"], 1);
    let said = String::from_utf8(cli.run(&["retry"]).stdout).unwrap();
    assert!(said.starts_with("1 chunks queued again"), "{said}");
    assert_eq!(cli.json(&["backfill"])["ready"], 3);
    let said = String::from_utf8(cli.run(&["errors"]).stdout).unwrap();
    assert_eq!(said, "no errors\n");
}

#[test]
fn documents_prints_exactly_what_the_embedder_is_given() {
    let place = Place::empty();
    place.write("water/rain.md", "# Rain\n\nEmpty the barrel.");
    let cli = Cli(&place);
    cli.json(&["sync", "docs"]);
    let output = cli.run(&["documents"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = line["text"].as_str().unwrap();
    assert_eq!(text, "Rain\n\nEmpty the barrel.");
    assert_eq!(line["content_hash"], blake3::hash(text.as_bytes()).to_hex().as_str());
}
