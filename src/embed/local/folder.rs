//! A model that no catalog knows, read from its own folder as sentence-transformers saves it.
//!
//! `modules.json` says what the model does, `1_Pooling/config.json` how tokens become a vector, `sentence_bert_config.json`
//! how long a text may be, `config_sentence_transformers.json` what is put before it. Guarantees: nothing is guessed; what
//! this release does not do is refused by its name. Must not know: weights, tensors, how texts are tokenized.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::catalog::{CONFIG, KnownModel, TOKENIZER, WEIGHTS};
use super::config::BertConfig;
use super::files::MAX_SMALL_BYTES;
use crate::embed::Pooling;
use crate::error::{Error, Result};
use crate::regular_file;

/// What a folder says about its model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelFolder {
    /// Where config, tokenizer and weights are; a folder within the folder in some old models.
    pub(super) dir: PathBuf,
    pub(super) config: BertConfig,
    pub(super) pooling: Pooling,
    /// Whether vectors are scaled to unit norm.
    pub(super) normalised: bool,
    /// Special tokens included.
    pub(super) max_tokens: usize,
    pub(super) query_prefix: String,
    pub(super) passage_prefix: String,
    /// Whether texts are put in lower case before the tokenizer sees them; it has to do so itself.
    pub(super) lower_case: bool,
}

/// One entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: PathBuf,
    /// The Python class, `sentence_transformers.models.Pooling`; the last part is what counts.
    r#type: String,
}

#[derive(Deserialize)]
struct PoolingConfig {
    /// Since sentence-transformers 5; a name, or several of them.
    pooling_mode: Option<Value>,
    #[serde(alias = "embedding_dimension")]
    word_embedding_dimension: Option<usize>,
    include_prompt: Option<bool>,
    /// Before: one flag per mode, `pooling_mode_mean_tokens`.
    #[serde(flatten)]
    flags: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
    transformer_task: Option<String>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// 10^30 where the tokenizer has no limit.
    model_max_length: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl ModelFolder {
    /// Reads the small files of the model in `folder`. `pooling` and `known` say what a folder without `modules.json` does.
    ///
    /// # Errors
    /// [`Error::ModelFormat`] naming the file and what in it is missing, damaged or not supported.
    pub(super) fn open(folder: &Path, pooling: Option<Pooling>, known: Option<&KnownModel>) -> Result<Self> {
        if !folder.is_dir() {
            return Err(refuse(folder, "there is no such folder, and no model of this name in the catalog".into()));
        }
        let modules_path = folder.join("modules.json");
        let modules: Option<Vec<Module>> = read_json(&modules_path)?;
        let steps = match &modules {
            Some(modules) => Steps::of(&modules_path, modules)?,
            None => Steps { transformer: PathBuf::new(), pooling: None, normalised: true },
        };
        let dir = folder.join(&steps.transformer);
        require_files(&dir)?;
        let config = BertConfig::parse(&dir.join(CONFIG), &read(&dir.join(CONFIG))?)?;
        let own_pooling = match &steps.pooling {
            Some(module) => Some(read_pooling(&folder.join(module).join(CONFIG), config.hidden_size)?),
            None => None,
        };
        let sentence = read_sentence_config(&dir)?;
        let prompts: Prompts = read_json(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let mut found = Self {
            pooling: match own_pooling.or(pooling).or(known.map(|model| model.pooling)) {
                Some(pooling) => pooling,
                None => {
                    let reason = "it does not say how tokens become a vector; name the pooling, mean or cls".to_owned();
                    return Err(refuse(&modules_path, reason));
                }
            },
            normalised: steps.normalised,
            max_tokens: window(&dir, &sentence, &config)?,
            query_prefix: prompts.of(&["query"]),
            // In the order in which sentence-transformers looks for them.
            passage_prefix: prompts.of(&["document", "passage", "corpus"]),
            lower_case: sentence.do_lower_case,
            dir,
            config,
        };
        // A plain folder of a catalogued model has files but no word about their use.
        if let (None, Some(model)) = (modules, known) {
            found.max_tokens = model.max_tokens.min(found.config.max_tokens());
            found.query_prefix = model.query_prefix.to_owned();
            found.passage_prefix = model.passage_prefix.to_owned();
        }
        Ok(found)
    }
}

/// What the modules do, in their order.
struct Steps {
    transformer: PathBuf,
    pooling: Option<PathBuf>,
    normalised: bool,
}

impl Steps {
    fn of(path: &Path, modules: &[Module]) -> Result<Self> {
        let kinds: Vec<&str> = modules.iter().map(Module::kind).collect();
        let known = ["Transformer", "Pooling", "Normalize"];
        if let Some(strange) = kinds.iter().find(|kind| !known.contains(kind)) {
            return Err(refuse(path, format!("module {strange} is not supported, only {}", known.join(", "))));
        }
        if let Some(module) = modules.iter().find(|module| !stays_below(&module.path)) {
            return Err(refuse(path, format!("module path {} leaves the folder", module.path.display())));
        }
        let (transformer, pooling, normalised) = match modules {
            [transformer, pooling] if kinds == ["Transformer", "Pooling"] => (transformer, pooling, false),
            [transformer, pooling, _] if kinds == known => (transformer, pooling, true),
            _ => {
                let reason = format!("modules {} are not in the order {}", kinds.join(", "), known.join(", "));
                return Err(refuse(path, reason));
            }
        };
        Ok(Self { transformer: transformer.path.clone(), pooling: Some(pooling.path.clone()), normalised })
    }
}

impl Module {
    fn kind(&self) -> &str {
        self.r#type.rsplit('.').next().unwrap_or(&self.r#type)
    }
}

impl Prompts {
    /// The first of these prompts that there is, else the model's default one, else none.
    fn of(&self, names: &[&str]) -> String {
        let named = names.iter().find_map(|&name| self.prompts.get(name));
        let default = || self.default_prompt_name.as_ref().and_then(|name| self.prompts.get(name));
        named.or_else(default).cloned().unwrap_or_default()
    }
}

/// How tokens become a vector, if it is a way that runs here.
fn read_pooling(path: &Path, width: usize) -> Result<Pooling> {
    let config: PoolingConfig = read_json(path)?.ok_or_else(|| refuse(path, "it is missing".into()))?;
    let mode = match &config.pooling_mode {
        Some(Value::String(mode)) => mode.clone(),
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" and "),
        Some(_) | None => {
            let set = config.flags.iter().filter(|(_, value)| **value == Value::Bool(true));
            let modes: Vec<&str> = set.filter_map(|(flag, _)| flag.strip_prefix("pooling_mode_")).collect();
            modes.join(" and ")
        }
    };
    let pooling = match mode.as_str() {
        "mean" | "mean_tokens" => Pooling::Mean,
        "cls" | "cls_token" => Pooling::Cls,
        "" => return Err(refuse(path, "it names no pooling".into())),
        other => return Err(refuse(path, format!("pooling {other} is not supported, only mean and cls"))),
    };
    if config.include_prompt == Some(false) {
        return Err(refuse(path, "include_prompt is false: pooling without the prompt is not supported".into()));
    }
    match config.word_embedding_dimension {
        Some(other) if other != width => {
            Err(refuse(path, format!("it pools {other} dimensions, the transformer has {width}")))
        }
        _ => Ok(pooling),
    }
}

/// The settings of the transformer module. The file's name goes back to the model that it was first made for.
fn read_sentence_config(dir: &Path) -> Result<SentenceConfig> {
    for model in ["bert", "roberta", "xlm-roberta"] {
        let path = dir.join(format!("sentence_{model}_config.json"));
        let Some(config) = read_json::<SentenceConfig>(&path)? else { continue };
        return match config.transformer_task.as_deref() {
            None | Some("feature-extraction") => Ok(config),
            Some(task) => {
                Err(refuse(&path, format!("transformer_task {task} is not supported, only feature-extraction")))
            }
        };
    }
    Ok(SentenceConfig::default())
}

/// Most tokens of a text: as the model was trained, else as its tokenizer has it; never beyond its positions.
fn window(dir: &Path, sentence: &SentenceConfig, config: &BertConfig) -> Result<usize> {
    let stated = match sentence.max_seq_length {
        Some(tokens) => Some(tokens),
        None => {
            let tokenizer: Option<TokenizerConfig> = read_json(&dir.join("tokenizer_config.json"))?;
            // Saturates, and positions are fewer than 2^20.
            tokenizer.and_then(|tokenizer| tokenizer.model_max_length).map(|tokens| tokens as usize)
        }
    };
    Ok(stated.unwrap_or(usize::MAX).min(config.max_tokens()))
}

/// Fails unless the three files that make a model are there, saying what helps where they have another form.
fn require_files(dir: &Path) -> Result<()> {
    if !dir.join(WEIGHTS).is_file() {
        let sharded = dir.join("model.safetensors.index.json");
        if sharded.is_file() {
            return Err(refuse(&sharded, "weights in several files are not supported; save them as one".into()));
        }
        let pickled = dir.join("pytorch_model.bin");
        if pickled.is_file() {
            let reason = "weights in this form can hold programs and are not read; save the model again as safetensors, \
                          with `SentenceTransformer(folder).save(new_folder)`";
            return Err(refuse(&pickled, reason.into()));
        }
    }
    match [CONFIG, TOKENIZER, WEIGHTS].iter().find(|file| !dir.join(file).is_file()) {
        None => Ok(()),
        Some(missing) => Err(refuse(&dir.join(missing), "it is missing".into())),
    }
}

fn stays_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::ModelFormat { path: path.to_owned(), reason, source: None }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    regular_file::read(path, MAX_SMALL_BYTES).map_err(Error::io("read", path))
}

/// The content of a JSON file; `None` where there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_slice(&read(path)?).map(Some).map_err(|e| Error::ModelFormat {
        path: path.to_owned(),
        reason: "not what sentence-transformers writes there".into(),
        source: Some(e.into()),
    })
}

#[cfg(test)]
mod tests;
