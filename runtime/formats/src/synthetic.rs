//! Models with seeded random weights, for tests and for measuring speed: right in every shape, senseless in what they
//! say.

use crate::config::ModelConfig;
use crate::convert::{factors, model_metadata};
use crate::error::{Checked, FormatError, Problem};
use crate::gguf::write::{Planned, Writer};
use crate::gguf::{Array, Metadata, Value};
use crate::tensors::needed_shapes;
use crate::vocabulary::GgufVocab;
use plinth_kernels::Format;
use std::path::Path;

/// Writes a GGUF file of this shape. Matrices are N(0, `1 / sqrt(cols)`), norms are 1 within a tenth. Those of experts
/// are tensors of their own.
///
/// `tied` leaves out the output head; `biases` adds the optional ones. The same arguments give the same bytes.
///
/// # Errors
/// A size is out of range or contradicts another, the format does not divide a row, or the file cannot be written.
///
/// **Panics** if the vocabulary has another size than the configuration.
pub fn write(
    path: &Path,
    config: &ModelConfig,
    options: &Options,
    vocab: &GgufVocab,
) -> Result<(), FormatError> {
    write_watched(path, config, options, vocab, &|_, _| {})
}

/// [`write()`], which tells `progress` the bytes written so far, and in all.
///
/// # Errors
/// As [`write()`].
///
/// **Panics** as [`write()`].
pub fn write_watched(
    path: &Path,
    config: &ModelConfig,
    options: &Options,
    vocab: &GgufVocab,
    progress: &dyn Fn(u64, u64),
) -> Result<(), FormatError> {
    assert_eq!(
        vocab.tokens.len(),
        config.vocab_size,
        "one token a row of the embedding"
    );
    let at = |problem: Problem| problem.at(path);
    config.check().map_err(at)?;
    let mut planned = planned(config, options).map_err(at)?;
    let mut metadata = model_metadata(config).map_err(at)?;
    metadata.extend(vocabulary(vocab));
    metadata.push((
        "tokenizer.chat_template".to_owned(),
        Value::String(CHATML.to_owned()),
    ));
    let factors = factors::tensors(config);
    let random = planned.len();
    planned.extend(factors.iter().map(|tensor| tensor.planned.clone()));
    let mut writer = Writer::create(path, &Metadata(metadata), &planned).map_err(at)?;
    let mut numbers = Random(options.seed);
    let total = planned.iter().map(Planned::bytes).sum();
    let mut written = 0;
    for tensor in &planned[..random] {
        progress(written, total);
        writer.tensor(&weights(tensor, &mut numbers)).map_err(at)?;
        written += tensor.bytes();
    }
    for tensor in &factors {
        writer.tensor(&tensor.bytes()).map_err(at)?;
    }
    writer.finish().map_err(at)
}

/// The tensors that the model has, in formats that they can have.
fn planned(config: &ModelConfig, options: &Options) -> Checked<Vec<Planned>> {
    let wanted = needed_shapes(config)
        .into_iter()
        .filter(|shape| match shape.name.as_str() {
            "output.weight" => !options.tied,
            name if name.starts_with("rope_f") => false,
            name if name.ends_with(".bias") => options.biases,
            _ => true,
        });
    let planned = wanted.map(|shape| {
        let format = match shape.rows {
            1 => Format::F32,
            _ => options.format,
        };
        let block = format.block_len();
        if !shape.cols.is_multiple_of(block) {
            let field = format!("columns of '{}'", shape.name);
            let expected = format!("a multiple of {block}, as {format} needs");
            return Err(Problem::field(field, shape.cols, expected));
        }
        Ok(Planned {
            format,
            name: shape.name,
            rows: shape.rows,
            cols: shape.cols,
            matrices: 1,
        })
    });
    planned.collect()
}

/// What of a synthetic model its configuration does not say.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of every matrix; one that can be written ([`Format::can_quantize`]).
    pub format: Format,
    /// The output head is the embedding.
    pub tied: bool,
    /// Attention and feed-forward parts have biases.
    pub biases: bool,
    /// Of the weights.
    pub seed: u64,
}

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

fn weights(tensor: &Planned, random: &mut Random) -> Vec<u8> {
    let norm = tensor.rows == 1 && !tensor.name.ends_with(".bias");
    let (mean, deviation) = if norm {
        (1.0, 0.1)
    } else {
        (0.0, 1.0 / (tensor.cols as f32).sqrt())
    };
    let row_bytes = tensor.format.row_bytes(tensor.cols);
    let row_bytes = row_bytes.expect("the caller chose a format that divides the rows");
    let mut out = vec![0; row_bytes * tensor.rows];
    let mut row = vec![0.0; tensor.cols];
    for bytes in out.chunks_exact_mut(row_bytes) {
        row.iter_mut()
            .for_each(|value| *value = mean + deviation * random.normal());
        tensor.format.quantize(&row, bytes);
    }
    out
}

fn vocabulary(vocab: &GgufVocab) -> Vec<(String, Value)> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let types = vocab.types.iter().map(|&kind| kind as i32).collect();
    let mut list = vec![
        (key("model"), Value::String(vocab.model.clone())),
        (
            key("tokens"),
            Value::Array(Array::String(vocab.tokens.clone())),
        ),
        (key("token_type"), Value::Array(Array::I32(types))),
    ];
    if !vocab.merges.is_empty() {
        list.push((
            key("merges"),
            Value::Array(Array::String(vocab.merges.clone())),
        ));
    }
    if !vocab.scores.is_empty() {
        list.push((
            key("scores"),
            Value::Array(Array::F32(vocab.scores.clone())),
        ));
    }
    list.extend(
        vocab
            .pre
            .as_ref()
            .map(|pre| (key("pre"), Value::String(pre.clone()))),
    );
    let ids = [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("unknown", vocab.unk),
        ("eot", vocab.eot),
    ];
    list.extend(
        ids.into_iter()
            .filter_map(|(name, id)| Some((key(&format!("{name}_token_id")), Value::U32(id?)))),
    );
    let truths = [
        ("bos_token", vocab.add_bos),
        ("eos_token", vocab.add_eos),
        ("space_prefix", vocab.add_space_prefix),
    ];
    list.extend(
        truths
            .into_iter()
            .filter_map(|(name, add)| Some((key(&format!("add_{name}")), Value::Bool(add?)))),
    );
    list
}

/// A byte-level vocabulary of 3 special tokens, the 256 bytes and a few merges: every text can be encoded.
pub fn tiny_vocabulary() -> GgufVocab {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .map(str::to_owned)
        .into();
    let mut types = vec![3; tokens.len()];
    tokens.extend((0..=255).map(|byte| byte_character(byte).to_string()));
    let pairs = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("a", "n"),
        ("an", "d"),
        ("Ġ", "and"),
        ("i", "n"),
    ];
    tokens.extend(pairs.iter().map(|(left, right)| format!("{left}{right}")));
    types.resize(tokens.len(), 1);
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        types,
        merges: pairs
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect(),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_bos: Some(false),
        ..GgufVocab::default()
    }
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2): itself where it can be seen, else one from
/// U+0100 on.
fn byte_character(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if visible(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&byte| !visible(byte)).count() as u32;
    char::from_u32(0x100 + earlier).expect("68 characters from U+0100 on exist")
}

/// SplitMix64 (Steele, Lea, Flood 2014), and normal numbers by Box and Muller.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f32 {
        ((self.next() >> 40) + 1) as f32 / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}
