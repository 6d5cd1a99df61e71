//! From published safetensors to an [`Encoder`].
//!
//! Every tensor is looked up by its published name and compared with the shape that the configuration promises; what is
//! missing or misshapen is named. Query, key and value are fused, token type 0 is folded into the positions. Tensors are
//! read, packed and dropped one layer at a time, so that loading needs little more memory than the loaded model. Must not
//! know: catalog, tokenizers.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::BertConfig;
use super::encoder::{Body, Encoder, Layer, Limits, Output, Processor, Scale};
use super::fused::{Buffers, Fused};
use super::safetensors::{Safetensors, TensorDefect};
use super::stock::Stock;
use super::{ops, stock};
use crate::embed::{EmbedderIdentity, Precision};
use crate::error::{BoxError, Error, Result};
use crate::kernels::{self, Number, Table, Weights};

/// Reads the weights of an encoder for `processor`, in the precision and with the pooling that `identity` states.
///
/// # Errors
/// [`Error::ModelFormat`] where the file is no safetensors file or does not hold the tensors that `config` promises;
/// [`Error::InvalidSetting`] for a precision that the processor does not have.
pub(super) fn load(
    path: &Path,
    config: &BertConfig,
    identity: &EmbedderIdentity,
    processor: &Processor,
) -> Result<Encoder> {
    let refuse = |reason: String, source| Error::ModelFormat { path: path.to_owned(), reason, source };
    let file =
        Safetensors::open(path).map_err(|e| refuse("not a safetensors file, or a damaged one".into(), Some(e)))?;
    let mut reader = Reader::new(file, config);
    reader.check(config);
    if !reader.defects.is_empty() {
        return Err(refuse(in_words(&reader.defects), None));
    }
    let body = match processor {
        Processor::Cpu(cpu) => {
            let number = match identity.precision {
                Precision::F32 => Number::F32,
                Precision::Bf16 => Number::Bf16,
                Precision::F16 => {
                    let reason = "f16 runs on graphics processors only; on this one use bf16".to_owned();
                    return Err(Error::InvalidSetting { setting: "precision", reason });
                }
            };
            Body::Fused(Box::new(read_fused(&mut reader, config, number, *cpu)))
        }
        Processor::Device(device) => {
            let dtype = match identity.precision {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
                Precision::F16 => DType::F16,
            };
            Body::Stock(Box::new(read_stock(&mut reader, config, dtype, device)))
        }
    };
    if !reader.defects.is_empty() {
        return Err(refuse(in_words(&reader.defects), reader.cause));
    }
    let scale = if identity.normalised { Scale::Unit } else { Scale::Raw };
    Ok(Encoder {
        limits: Limits { vocabulary: config.vocab_size, tokens: config.max_tokens() },
        output: Output { pooling: identity.pooling, scale },
        body,
    })
}

fn read_fused(reader: &mut Reader, config: &BertConfig, number: Number, cpu: kernels::Cpu) -> Fused {
    let width = config.hidden_size;
    let pack = |raw: RawDense| {
        let parts: Vec<&[f32]> = raw.parts.iter().map(Vec::as_slice).collect();
        ops::Dense { weights: Weights::pack(&parts, raw.inputs, number), bias: raw.bias }
    };
    let norm = |raw: RawNorm| kernels::Norm { gamma: raw.gamma, beta: raw.beta, eps: config.layer_norm_eps as f32 };
    Fused {
        cpu,
        tables: ops::Tables {
            words: Table::new(reader.words(config), width, number),
            // Few rows: their last digits are worth more than their bytes.
            positions: Table::new(reader.positions(config), width, Number::F32),
            first_position: config.first_position(),
            norm: norm(reader.norm("embeddings.LayerNorm", width)),
        },
        layers: (0..config.num_hidden_layers).map(|i| read_layer(reader, config, i, &pack, &norm)).collect(),
        heads: config.num_attention_heads,
        buffers: Buffers::default(),
    }
}

fn read_stock(reader: &mut Reader, config: &BertConfig, dtype: DType, device: &Device) -> Stock {
    let matrix =
        |numbers: Vec<f32>, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(numbers, shape), (device, dtype));
    let vector = |numbers: Vec<f32>| {
        let length = numbers.len();
        Tensor::<1>::from_data(TensorData::new(numbers, [length]), (device, dtype))
    };
    let dense = |raw: RawDense| {
        let (inputs, outputs) = (raw.inputs, raw.bias.len());
        let weight = matrix(transposed(&raw.parts.concat(), inputs), [inputs, outputs]);
        stock::Dense { weight, bias: vector(raw.bias) }
    };
    let norm =
        |raw: RawNorm| stock::Norm { gamma: vector(raw.gamma), beta: vector(raw.beta), eps: config.layer_norm_eps };
    Stock {
        device: device.clone(),
        words: matrix(reader.words(config), [config.vocab_size, config.hidden_size]),
        positions: matrix(reader.positions(config), [config.max_position_embeddings, config.hidden_size]),
        first_position: config.first_position(),
        norm: norm(reader.norm("embeddings.LayerNorm", config.hidden_size)),
        layers: (0..config.num_hidden_layers).map(|i| read_layer(reader, config, i, &dense, &norm)).collect(),
        heads: config.num_attention_heads,
    }
}

/// Reads one layer; `dense` and `norm` make of the numbers what is kept.
fn read_layer<D, N>(
    reader: &mut Reader,
    config: &BertConfig,
    layer: usize,
    dense: &impl Fn(RawDense) -> D,
    norm: &impl Fn(RawNorm) -> N,
) -> Layer<D, N> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let name = |part: &str| format!("encoder.layer.{layer}.{part}");
    let of_attention = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
    Layer {
        qkv: dense(reader.dense(&of_attention, width, width)),
        attention_output: dense(reader.dense(&[name("attention.output.dense")], width, width)),
        attention_norm: norm(reader.norm(&name("attention.output.LayerNorm"), width)),
        up: dense(reader.dense(&[name("intermediate.dense")], width, inner)),
        down: dense(reader.dense(&[name("output.dense")], inner, width)),
        output_norm: norm(reader.norm(&name("output.LayerNorm"), width)),
    }
}

/// Linear layers with the same input, as published: `[out, in]` each, to stand side by side.
struct RawDense {
    parts: Vec<Vec<f32>>,
    bias: Vec<f32>,
    inputs: usize,
}

/// A layer norm's numbers, `[H]` each.
struct RawNorm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

/// Reads tensors by name, in two passes over the same names: the first compares all of them with the file's header, so that
/// one error names all defects and nothing is allocated for tensors that are not there; the second reads.
struct Reader {
    file: Safetensors,
    /// What stands before every name: nothing, or the encoder's name in a larger model.
    prefix: &'static str,
    pass: Pass,
    defects: Vec<String>,
    /// The first unreadable tensor's cause.
    cause: Option<BoxError>,
}

#[derive(PartialEq)]
enum Pass {
    Check,
    Read,
}

impl Reader {
    fn new(file: Safetensors, config: &BertConfig) -> Self {
        let prefixed = format!("{}embeddings.word_embeddings.weight", config.architecture.prefix());
        let prefix = if file.contains(&prefixed) { config.architecture.prefix() } else { "" };
        Self { file, prefix, pass: Pass::Check, defects: Vec::new(), cause: None }
    }

    /// The first pass. Tensors are empty in it.
    fn check(&mut self, config: &BertConfig) {
        self.words(config);
        self.positions(config);
        self.norm("embeddings.LayerNorm", config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            read_layer(self, config, layer, &drop, &drop);
        }
        self.pass = Pass::Read;
    }

    /// `[V, H]`
    fn words(&mut self, config: &BertConfig) -> Vec<f32> {
        self.numbers("embeddings.word_embeddings.weight", &[config.vocab_size, config.hidden_size])
    }

    /// `[P, H]`, with the row of token type 0 added.
    fn positions(&mut self, config: &BertConfig) -> Vec<f32> {
        let width = config.hidden_size;
        let name = "embeddings.position_embeddings.weight";
        let mut positions = self.numbers(name, &[config.max_position_embeddings, width]);
        let types = self.numbers("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width]);
        for position in positions.chunks_mut(width) {
            position.iter_mut().zip(&types).for_each(|(sum, of_type_0)| *sum += of_type_0);
        }
        positions
    }

    fn dense(&mut self, names: &[String], inputs: usize, outputs: usize) -> RawDense {
        let parts = names.iter().map(|name| self.numbers(&format!("{name}.weight"), &[outputs, inputs])).collect();
        let bias = names.iter().flat_map(|name| self.numbers(&format!("{name}.bias"), &[outputs])).collect();
        RawDense { parts, bias, inputs }
    }

    fn norm(&mut self, name: &str, width: usize) -> RawNorm {
        RawNorm {
            gamma: self.numbers(&format!("{name}.weight"), &[width]),
            beta: self.numbers(&format!("{name}.bias"), &[width]),
        }
    }

    /// The numbers of one tensor, row by row; in the first pass none.
    fn numbers(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let published = format!("{}{name}", self.prefix);
        let read = match self.pass {
            Pass::Check => self.file.check(&published, shape).map(|()| Vec::new()),
            Pass::Read => self.file.read(&published, shape),
        };
        read.unwrap_or_else(|defect| {
            self.defects.push(format!("tensor {name} {defect}"));
            if let TensorDefect::Unreadable(cause) = defect {
                self.cause.get_or_insert(cause.into());
            }
            // Of the size that the header states, so no larger than the file.
            if self.pass == Pass::Read { vec![0.0; shape.iter().product()] } else { Vec::new() }
        })
    }
}

/// The first few defects; the rest would be a screen of the same.
fn in_words(defects: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = defects.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match defects.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// `[n, columns]` → `[columns, n]`; `columns` is positive, as all sizes in a [`BertConfig`] are.
///
/// Copied rather than viewed: a product over a transposed view is slower where texts are short.
fn transposed(rows: &[f32], columns: usize) -> Vec<f32> {
    // 16 numbers of 4 bytes fill a cache line of the result before it is left.
    const BLOCK: usize = 16;
    let height = rows.len() / columns;
    let mut result = vec![0.0; rows.len()];
    for (i, block) in rows.chunks(BLOCK * columns).enumerate() {
        for (from, column) in result.chunks_exact_mut(height).enumerate() {
            let numbers = block.iter().skip(from).step_by(columns);
            column.iter_mut().skip(i * BLOCK).zip(numbers).for_each(|(to, x)| *to = *x);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::tiny::{self, Tensors};
    use super::*;

    fn load_bytes(content: &[u8]) -> Result<Encoder> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, content).unwrap();
        let config = BertConfig::parse(Path::new("config.json"), tiny::CONFIG.as_bytes()).unwrap();
        load(&path, &config, &tiny::identity(), &Processor::Cpu(kernels::Cpu::best()))
    }

    fn refusal(content: &[u8]) -> String {
        match load_bytes(content) {
            Err(Error::ModelFormat { path, reason, .. }) => {
                assert!(path.ends_with("model.safetensors"));
                reason
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it was accepted"),
        }
    }

    fn refusal_after(change: impl FnOnce(&mut Tensors)) -> String {
        let mut tensors = tiny::tensors();
        change(&mut tensors);
        refusal(&tiny::safetensors(&tensors))
    }

    #[test]
    fn rejects_corrupt_safetensors() {
        let whole = tiny::safetensors(&tiny::tensors());
        let mut broken_header = whole.clone();
        broken_header[9] = b'!';
        let mut endless_header = whole.clone();
        endless_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let contents: [&[u8]; 6] =
            [b"", b"abc", b"not safetensors at all", &whole[..whole.len() - 4], &broken_header, &endless_header];
        for content in contents {
            assert_eq!(refusal(content), "not a safetensors file, or a damaged one");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_refused() {
        let config = BertConfig::parse(Path::new("config.json"), tiny::CONFIG.as_bytes()).unwrap();
        let processor = Processor::Cpu(kernels::Cpu::best());
        assert!(load(Path::new("no/such/file"), &config, &tiny::identity(), &processor).is_err());
    }

    #[test]
    fn every_missing_tensor_is_named() {
        let reason = refusal_after(|tensors| {
            tensors.remove("encoder.layer.1.output.dense.bias");
            tensors.remove("embeddings.LayerNorm.weight");
        });
        assert_eq!(
            reason,
            "tensor embeddings.LayerNorm.weight is missing; tensor encoder.layer.1.output.dense.bias is missing"
        );
    }

    #[test]
    fn a_tensor_of_the_wrong_shape_is_named() {
        let reason = refusal_after(|tensors| {
            tensors.insert("encoder.layer.0.intermediate.dense.weight".into(), (vec![8, 12], vec![0.0; 96]));
        });
        assert_eq!(reason, "tensor encoder.layer.0.intermediate.dense.weight has shape 8 x 12, expected 12 x 8");
    }

    #[test]
    fn defects_beyond_a_handful_are_counted() {
        let reason = refusal_after(|tensors| tensors.retain(|name, _| !name.starts_with("encoder.layer.1")));
        assert!(reason.starts_with("tensor encoder.layer.1.attention.self.query.weight is missing; "), "{reason}");
        // 16 tensors a layer, 8 of them named.
        assert!(reason.ends_with("; and 8 more"), "{reason}");
    }

    #[test]
    fn names_may_stand_behind_the_name_of_the_encoder() {
        let prefixed: Tensors = tiny::tensors().into_iter().map(|(name, of)| (format!("bert.{name}"), of)).collect();
        assert!(load_bytes(&tiny::safetensors(&prefixed)).is_ok());
    }

    #[test]
    fn half_precision_is_refused_on_the_processor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, tiny::safetensors(&tiny::tensors())).unwrap();
        let config = BertConfig::parse(Path::new("config.json"), tiny::CONFIG.as_bytes()).unwrap();
        let identity = EmbedderIdentity { precision: Precision::F16, ..tiny::identity() };
        let refused = load(&path, &config, &identity, &Processor::Cpu(kernels::Cpu::best())).map(drop);
        assert!(matches!(refused, Err(Error::InvalidSetting { setting: "precision", .. })));
    }

    #[test]
    fn transposing_moves_rows_to_columns() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        // More rows than are moved at once.
        let (rows, columns) = (37, 5);
        let numbers: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let moved = transposed(&numbers, columns);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            assert_eq!(moved[column * rows + row], numbers[row * columns + column]);
        }
    }
}
