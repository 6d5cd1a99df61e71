//! Settings: flags beat the environment, which beats embank.toml, which beats the defaults.
//!
//! Guarantees: an unknown or malformed key of embank.toml is refused by its name, never ignored; relative paths in the file
//! are relative to the file. Must not know: what the settings do.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use embank::embed::LocalDevice;
use embank::{
    ChunkOptions, Error, HousekeepingOptions, IndexKind, IngestOptions, OnDrift, Prune, QueryLogging, RebuildPolicy,
    RecordFields, ValidateOptions,
};
use serde::Deserialize;

use crate::args::{DeviceArg, DriftArg, DurabilityArg, Global, IngestFlags, KindArg, PrecisionArg, SizeArg, SpanArg};
use crate::remote::RemoteTable;

/// The settings file's name.
const FILE: &str = "embank.toml";

/// The longest settings file that is read: a thousand times an ordinary one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What an embedder's name begins with if it is a model's folder.
const FOLDER_SCHEME: &str = "path:";

const DEFAULT_BANK: &str = ".embank";
const DEFAULT_EMBEDDER: &str = "all-minilm-l6-v2";
const DEFAULT_LOG: &str = "warn";

/// What is settled before a command runs.
#[derive(Debug)]
pub struct Settings {
    pub bank: PathBuf,
    pub embedder: String,
    /// Whether somebody named the embedder; if not, the one that serves the bank comes first.
    pub embedder_is_named: bool,
    pub model_dir: PathBuf,
    pub precision: PrecisionArg,
    /// Whether somebody named it.
    pub precision_is_named: bool,
    pub device: LocalDevice,
    pub durability: DurabilityArg,
    /// In bytes.
    pub memory_limit: Option<u64>,
    pub quiet: bool,
    pub json: bool,
    pub log: String,
    pub remote: RemoteTable,
    ingest: IngestTable,
    index: IndexTable,
    search: SearchTable,
    rebuild: RebuildTable,
    housekeeping: HousekeepingTable,
}

/// What the environment says; empty variables count as unset.
#[derive(Debug, Default)]
pub struct Environment {
    pub bank: Option<PathBuf>,
    pub embedder: Option<String>,
    pub model_dir: Option<PathBuf>,
    pub precision: Option<String>,
    pub device: Option<String>,
    pub durability: Option<String>,
    pub memory_limit: Option<String>,
    pub log: Option<String>,
    /// The user's cache directory.
    pub cache_dir: Option<PathBuf>,
}

/// embank.toml; keys have the names of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    bank: Option<PathBuf>,
    embedder: Option<String>,
    model_dir: Option<PathBuf>,
    precision: Option<PrecisionArg>,
    device: Option<DeviceArg>,
    durability: Option<DurabilityArg>,
    memory_limit: Option<SizeArg>,
    #[serde(default)]
    remote: RemoteTable,
    #[serde(default)]
    ingest: IngestTable,
    #[serde(default)]
    index: IndexTable,
    #[serde(default)]
    search: SearchTable,
    #[serde(default)]
    rebuild: RebuildTable,
    #[serde(default)]
    housekeeping: HousekeepingTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct IngestTable {
    max_tokens: Option<usize>,
    overlap: Option<usize>,
    prune: Option<bool>,
    id_field: Option<String>,
    text_field: Option<String>,
    category_field: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct IndexTable {
    kind: Option<KindArg>,
    min_recall: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SearchTable {
    query_log: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RebuildTable {
    unindexed_share: Option<f64>,
    unindexed_rows: Option<u64>,
    max_deltas: Option<u64>,
    growth: Option<f64>,
    removed_share: Option<f64>,
    on_drift: Option<DriftArg>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HousekeepingTable {
    keep_versions: Option<SpanArg>,
}

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Self {
        let read = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| read(name).map(|value: OsString| value.to_string_lossy().into_owned());
        Self {
            bank: read("EMBANK_BANK").map(PathBuf::from),
            embedder: text("EMBANK_EMBEDDER"),
            model_dir: read("EMBANK_MODEL_DIR").map(PathBuf::from),
            precision: text("EMBANK_PRECISION"),
            device: text("EMBANK_DEVICE"),
            durability: text("EMBANK_DURABILITY"),
            memory_limit: text("EMBANK_MEMORY_LIMIT"),
            log: text("EMBANK_LOG"),
            cache_dir: dirs::cache_dir(),
        }
    }
}

impl Settings {
    /// Settles everything; reads embank.toml in the working directory, else in the bank.
    pub fn resolve(flags: &Global, environment: Environment) -> Result<Self, Error> {
        Self::resolve_in(Path::new(""), flags, environment)
    }

    fn resolve_in(working_dir: &Path, flags: &Global, environment: Environment) -> Result<Self, Error> {
        let bank = flags.bank.clone().or(environment.bank);
        let named = bank.clone().unwrap_or_else(|| working_dir.join(DEFAULT_BANK));
        let file = match File::read(working_dir)? {
            Some(file) => file,
            None => File::read_in_bank(&named)?.unwrap_or_default(),
        };
        let durability = pick(flags.durability, environment.durability, file.durability, |text| {
            DurabilityArg::from_str(text, false).map_err(|_| ("EMBANK_DURABILITY", "power-loss or process-crash"))
        })?;
        let precision = pick(flags.precision, environment.precision, file.precision, |text| {
            PrecisionArg::from_str(text, false).map_err(|_| ("EMBANK_PRECISION", "f32, bf16 or f16"))
        })?;
        let device = pick(flags.device, environment.device, file.device, |text| {
            text.parse().map_err(|_| ("EMBANK_DEVICE", "auto, cpu, gpu or gpu:N"))
        })?;
        let memory_limit = pick(flags.memory_limit, environment.memory_limit, file.memory_limit, |text| {
            text.parse().map_err(|_| ("EMBANK_MEMORY_LIMIT", "a size such as 512M or 2G"))
        })?;
        let model_dir = flags.model_dir.clone().or(environment.model_dir).or(file.model_dir);
        let default_model_dir = || environment.cache_dir.map(|dir| dir.join("embank").join("models"));
        let model_dir = model_dir.or_else(default_model_dir).ok_or_else(|| Error::InvalidSetting {
            setting: "model-dir",
            reason: "there is no cache directory for this user; set --model-dir or EMBANK_MODEL_DIR".to_owned(),
        })?;
        let embedder = flags.embedder.clone().or(environment.embedder).or(file.embedder);
        Ok(Self {
            bank: bank.or(file.bank).unwrap_or(named),
            embedder_is_named: embedder.is_some(),
            embedder: embedder.unwrap_or_else(|| DEFAULT_EMBEDDER.to_owned()),
            model_dir,
            precision_is_named: precision.is_some(),
            precision: precision.unwrap_or(PrecisionArg::F32),
            device: device.map_or_else(LocalDevice::default, |DeviceArg(device)| device),
            durability: durability.unwrap_or(DurabilityArg::PowerLoss),
            memory_limit: memory_limit.map(|SizeArg(bytes)| bytes),
            quiet: flags.quiet,
            json: flags.json,
            log: environment.log.unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            remote: file.remote,
            ingest: file.ingest,
            index: file.index,
            search: file.search,
            rebuild: file.rebuild,
            housekeeping: file.housekeeping,
        })
    }

    /// How to ingest.
    pub fn ingest(&self, flags: &IngestFlags) -> IngestOptions {
        let (file, chunks, fields) = (&self.ingest, ChunkOptions::default(), RecordFields::default());
        let field = |flag: &Option<String>, set: &Option<String>, default| {
            flag.clone().or_else(|| set.clone()).unwrap_or(default)
        };
        let prunes = if flags.no_prune { false } else { flags.prune || file.prune.unwrap_or(true) };
        IngestOptions {
            chunks: ChunkOptions {
                max_tokens: flags.max_tokens.or(file.max_tokens),
                overlap_tokens: flags.overlap.or(file.overlap).unwrap_or(chunks.overlap_tokens),
            },
            fields: RecordFields {
                id: field(&flags.id_field, &file.id_field, fields.id),
                text: field(&flags.text_field, &file.text_field, fields.text),
                category: field(&flags.category_field, &file.category_field, fields.category),
            },
            prune: if prunes { Prune::Vanished } else { Prune::Nothing },
        }
    }

    /// What index to build.
    pub fn kind(&self, flag: Option<KindArg>) -> IndexKind {
        flag.or(self.index.kind).map_or_else(IndexKind::default, IndexKind::from)
    }

    /// Whether questions are kept.
    pub fn query_log(&self, flag: bool) -> QueryLogging {
        if flag || self.search.query_log.unwrap_or(false) { QueryLogging::On } else { QueryLogging::Off }
    }

    /// When to fold rows into the index, and when to build one.
    pub fn policy(&self) -> RebuildPolicy {
        let (file, default) = (&self.rebuild, RebuildPolicy::default());
        RebuildPolicy {
            unindexed_share: file.unindexed_share.unwrap_or(default.unindexed_share),
            unindexed_rows: file.unindexed_rows.unwrap_or(default.unindexed_rows),
            max_deltas: file.max_deltas.unwrap_or(default.max_deltas),
            growth: file.growth.unwrap_or(default.growth),
            removed_share: file.removed_share.unwrap_or(default.removed_share),
            on_drift: file.on_drift.map_or(default.on_drift, OnDrift::from),
        }
    }

    /// How to keep house.
    pub fn housekeeping(&self) -> HousekeepingOptions {
        let default = HousekeepingOptions::default();
        HousekeepingOptions {
            keep_versions: self.housekeeping.keep_versions.map_or(default.keep_versions, |SpanArg(span)| span),
        }
    }

    /// How to validate it.
    pub fn validation(&self, min_recall: Option<f64>) -> ValidateOptions {
        let default = ValidateOptions::default();
        let min_recall = min_recall.or(self.index.min_recall).unwrap_or(default.min_recall);
        ValidateOptions { min_recall, ..default }
    }
}

/// The flag, else what the environment says, else what the file says. `parse` answers with the variable and what may be
/// written there.
fn pick<T>(
    flag: Option<T>,
    environment: Option<String>,
    file: Option<T>,
    parse: impl FnOnce(&str) -> Result<T, (&'static str, &'static str)>,
) -> Result<Option<T>, Error> {
    match (flag, environment) {
        (Some(value), _) => Ok(Some(value)),
        (None, Some(text)) => parse(&text).map(Some).map_err(|(setting, known)| Error::InvalidSetting {
            setting,
            reason: format!("`{text}` is not known; write {known}"),
        }),
        (None, None) => Ok(file),
    }
}

impl File {
    /// The file in `dir`, if there is one.
    fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let text = match read_short(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(Error::Io { action: "read", path, source }),
        };
        let mut file: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
            refuse(&path, format!("line {line}: {}", e.message()))
        })?;
        if file.index.min_recall.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(refuse(&path, "index.min-recall: write a number from 0 to 1".to_owned()));
        }
        file.rebuild.check().map_err(|reason| refuse(&path, reason.to_owned()))?;
        for path in [&mut file.bank, &mut file.model_dir].into_iter().flatten() {
            *path = dir.join(&*path);
        }
        if let Some(folder) = file.embedder.as_deref().and_then(|embedder| embedder.strip_prefix(FOLDER_SCHEME)) {
            file.embedder = Some(format!("{FOLDER_SCHEME}{}", dir.join(folder).display()));
        }
        file.remote.relative_to(dir);
        Ok(Some(file))
    }

    fn read_in_bank(bank: &Path) -> Result<Option<Self>, Error> {
        let file = Self::read(bank)?;
        if file.as_ref().is_some_and(|file| file.bank.is_some()) {
            return Err(refuse(&bank.join(FILE), "bank: a file inside a bank cannot name another one".to_owned()));
        }
        Ok(file)
    }
}

impl RebuildTable {
    fn check(&self) -> Result<(), &'static str> {
        let is_no_share = |share: Option<f64>| share.is_some_and(|share| !(0.0..=1.0).contains(&share));
        if is_no_share(self.unindexed_share) {
            return Err("rebuild.unindexed-share: write a number from 0 to 1");
        }
        if is_no_share(self.removed_share) {
            return Err("rebuild.removed-share: write a number from 0 to 1");
        }
        // NaN is none either.
        if self.growth.is_some_and(|growth| growth.is_nan() || growth <= 1.0) {
            return Err("rebuild.growth: write a number above 1");
        }
        Ok(())
    }
}

/// The text of a regular file of at most [`MAX_FILE_BYTES`]: a pipe in its place would have the command wait for ever.
fn read_short(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

fn refuse(path: &Path, reason: String) -> Error {
    // The setting's name is the file's: its place is only said where it is not the working directory.
    let reason = match path.parent() {
        Some(dir) if dir != Path::new("") => format!("{reason} (in {})", dir.display()),
        _ => reason,
    };
    Error::InvalidSetting { setting: FILE, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment { cache_dir: Some("/cache".into()), ..Environment::default() }
    }

    fn with_file(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        dir
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file_which_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let embedder =
            |flags: &Global, environment| Settings::resolve_in(dir.path(), flags, environment).unwrap().embedder;
        assert_eq!(embedder(&Global::default(), environment()), DEFAULT_EMBEDDER);
        std::fs::write(dir.path().join(FILE), "embedder = \"from-file\"").unwrap();
        assert_eq!(embedder(&Global::default(), environment()), "from-file");
        let set = || Environment { embedder: Some("from-environment".into()), ..environment() };
        assert_eq!(embedder(&Global::default(), set()), "from-environment");
        let flags = Global { embedder: Some("from-flag".into()), ..Global::default() };
        assert_eq!(embedder(&flags, set()), "from-flag");
    }

    #[test]
    fn precision_and_device_are_settings_like_any_other() {
        let dir = with_file("precision = \"bf16\"\ndevice = \"gpu:1\"");
        let resolve = |flags: &Global, environment| {
            let settings = Settings::resolve_in(dir.path(), flags, environment)?;
            Ok::<_, Error>((settings.precision, settings.device))
        };
        let file = (PrecisionArg::Bf16, LocalDevice::Gpu(1));
        assert_eq!(resolve(&Global::default(), environment()).unwrap(), file);
        let set = |precision: &str, device: &str| Environment {
            precision: Some(precision.into()),
            device: Some(device.into()),
            ..environment()
        };
        let from_environment = (PrecisionArg::F32, LocalDevice::Cpu);
        assert_eq!(resolve(&Global::default(), set("f32", "cpu")).unwrap(), from_environment);
        let flags = Global { device: Some(DeviceArg(LocalDevice::Auto)), ..Global::default() };
        assert_eq!(resolve(&flags, set("f32", "tpu")).unwrap(), (PrecisionArg::F32, LocalDevice::Auto));
        let refused = resolve(&Global::default(), set("f32", "tpu")).unwrap_err().to_string();
        assert_eq!(refused, "EMBANK_DEVICE: `tpu` is not known; write auto, cpu, gpu or gpu:N");
    }

    #[test]
    fn a_memory_limit_is_a_setting_like_any_other() {
        let dir = with_file("memory-limit = \"1G\"");
        let limit = |flags: &Global, environment| {
            Settings::resolve_in(dir.path(), flags, environment).map(|settings| settings.memory_limit)
        };
        assert_eq!(limit(&Global::default(), environment()).unwrap(), Some(1 << 30));
        let set = |size: &str| Environment { memory_limit: Some(size.into()), ..environment() };
        assert_eq!(limit(&Global::default(), set("512M")).unwrap(), Some(512 << 20));
        let flags = Global { memory_limit: Some(SizeArg(7)), ..Global::default() };
        assert_eq!(limit(&flags, set("512M")).unwrap(), Some(7));
        let refused = limit(&Global::default(), set("much")).unwrap_err().to_string();
        assert_eq!(refused, "EMBANK_MEMORY_LIMIT: `much` is not known; write a size such as 512M or 2G");
    }

    #[test]
    fn the_file_in_the_bank_counts_only_without_one_in_the_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let bank = dir.path().join(DEFAULT_BANK);
        std::fs::create_dir(&bank).unwrap();
        std::fs::write(bank.join(FILE), "durability = \"process-crash\"").unwrap();
        let durability = || Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap().durability;
        assert_eq!(durability(), DurabilityArg::ProcessCrash);
        std::fs::write(dir.path().join(FILE), "").unwrap();
        assert_eq!(durability(), DurabilityArg::PowerLoss);
    }

    #[test]
    fn paths_in_the_file_are_relative_to_it() {
        let dir = with_file("bank = \"data\"\nmodel-dir = \"/models\"\nembedder = \"path:mine\"");
        let settings = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap();
        assert_eq!(settings.embedder, format!("path:{}", dir.path().join("mine").display()));
        assert_eq!((settings.bank, settings.model_dir), (dir.path().join("data"), "/models".into()));
    }

    #[test]
    fn wrong_files_are_refused_with_the_key_and_the_line() {
        for (text, named) in [
            ("embeder = \"x\"", "embeder"),
            ("\n[ingest]\nmax-token = 5", "line 3"),
            ("[index]\nkind = \"magic\"", "magic"),
            ("[index]\nmin-recall = 2", "index.min-recall"),
            ("durability = ", "line 1"),
            ("[remote]\nkey = \"x\"", "line 2"),
            ("device = \"tpu\"", "auto, cpu, gpu or gpu:N"),
            ("precision = \"f64\"", "f64"),
            ("[rebuild]\nunindexed-share = 10", "rebuild.unindexed-share"),
            ("[rebuild]\ngrowth = 1", "rebuild.growth"),
            ("[rebuild]\non-drift = \"panic\"", "panic"),
        ] {
            let dir = with_file(text);
            let error = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap_err();
            assert!(matches!(error, Error::InvalidSetting { .. }));
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_or_endless_is_refused_at_once() {
        let refusal = |dir: &tempfile::TempDir| {
            let error = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert_eq!(refusal(&dir), "not a regular file");
        let endless = with_file("");
        std::fs::File::options().write(true).open(endless.path().join(FILE)).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(refusal(&endless), "longer than 1048576 bytes");
        #[cfg(unix)]
        {
            let dir = tempfile::tempdir().unwrap();
            let made = std::process::Command::new("mkfifo").arg(dir.path().join(FILE)).status().unwrap();
            assert!(made.success());
            assert_eq!(refusal(&dir), "not a regular file");
        }
    }

    #[test]
    fn ingest_flags_beat_the_file() {
        let dir = with_file("[ingest]\nmax-tokens = 100\noverlap = 0\nprune = false\ntext-field = \"body\"");
        let settings = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap();
        let options = settings.ingest(&IngestFlags::default());
        assert_eq!((options.chunks.max_tokens, options.chunks.overlap_tokens), (Some(100), 0));
        assert_eq!((options.prune, options.fields.text.as_str()), (Prune::Nothing, "body"));
        let flags = IngestFlags { max_tokens: Some(64), prune: true, ..IngestFlags::default() };
        let options = settings.ingest(&flags);
        assert_eq!((options.chunks.max_tokens, options.prune), (Some(64), Prune::Vanished));
    }

    #[test]
    fn the_policy_is_read_from_the_file_and_the_rest_of_it_is_the_default() {
        let dir = with_file("[rebuild]\ngrowth = 3.0\nmax-deltas = 0\non-drift = \"warn\"");
        let policy = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap().policy();
        let default = RebuildPolicy::default();
        assert_eq!(policy, RebuildPolicy { growth: 3.0, max_deltas: 0, on_drift: OnDrift::Warn, ..default });
    }

    #[test]
    fn the_example_in_the_documentation_is_valid_and_its_policy_is_the_default() {
        let dir = with_file(include_str!("../../../docs/embank.example.toml"));
        let settings = Settings::resolve_in(dir.path(), &Global::default(), environment()).unwrap();
        assert_eq!(settings.policy(), RebuildPolicy::default());
    }
}
