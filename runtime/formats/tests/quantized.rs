//! GPTQ and AWQ checkpoints: weights as an independent packer meant them (`fixtures/generate.py`), and refusals.

use plinth_formats::synthetic::{self, Options, tiny_vocabulary};
use plinth_formats::{
    FormatError, ModelConfig, ModelFile, RopeConfig, RopeLayout, RopeScaling, Sizes, convert, open,
};
use plinth_kernels::Format;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const LAYER: &str = "model.layers.0.mlp.down_proj";
const TENSOR: &str = "blk.0.ffn_down.weight";

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The weights of a case, as bits.
fn expected(case: &str) -> Vec<u32> {
    let bytes = fixture(&format!("{case}.f32"));
    let words = bytes.as_chunks().0.iter();
    words.map(|word| u32::from_le_bytes(*word)).collect()
}

/// A float model whose layer down_proj has the shape of the fixtures.
fn write_model(folder: &Path) -> PathBuf {
    let sizes = Sizes {
        num_layers: 1,
        hidden_size: 16,
        intermediate_size: 96,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 16,
        vocab_size: tiny_vocabulary().tokens.len(),
        context_length: 64,
    };
    let rope = RopeConfig {
        base: 10_000.0,
        dims: 16,
        layout: RopeLayout::Interleaved,
        scaling: RopeScaling::None,
    };
    let config = ModelConfig::llama(sizes, 1e-5, rope);
    let options = Options {
        format: Format::F32,
        tied: true,
        biases: false,
        seed: 3,
    };
    let gguf = folder.join("float.gguf");
    synthetic::write(&gguf, &config, &options, &tiny_vocabulary()).expect("it can be written");
    let model = folder.join("model");
    let float = open(&gguf).expect("it opens");
    convert::convert(&float, &model, Format::F16, &|_, _| {}).expect("it converts");
    model
}

/// The header of a safetensors file, and where its data begins.
fn header(bytes: &[u8]) -> (Value, usize) {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json = serde_json::from_slice(&bytes[8..8 + len]).expect("a header is JSON");
    (json, 8 + len)
}

/// Writes the header anew, in the room it had.
fn set_header(bytes: &mut [u8], json: &Value) {
    let (_, end) = header(bytes);
    let mut text = json.to_string().into_bytes();
    assert!(text.len() <= end - 8, "the header has no room for that");
    text.resize(end - 8, b' ');
    bytes[8..end].copy_from_slice(&text);
}

/// A quantised model in the making: the float model's files, with the layer in a file of its own.
struct Quantized {
    folder: tempfile::TempDir,
    /// `quantization_config`.
    config: Value,
    /// The file with the layer.
    layer: Vec<u8>,
}

impl Quantized {
    fn new(case: &str, config: Value) -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            config,
            layer: fixture(&format!("{case}.safetensors")),
        }
    }

    fn gptq() -> Self {
        Self::new(
            "gptq",
            json!({"quant_method": "gptq", "bits": 4, "group_size": 32}),
        )
    }

    /// Replaces the entry of a part of the layer in the header.
    fn entry(mut self, part: &str, change: impl FnOnce(&mut Value)) -> Self {
        let (mut json, _) = header(&self.layer);
        change(&mut json[format!("{LAYER}.{part}")]);
        set_header(&mut self.layer, &json);
        self
    }

    fn without(mut self, part: &str) -> Self {
        let (mut json, _) = header(&self.layer);
        json.as_object_mut()
            .expect("an object")
            .remove(&format!("{LAYER}.{part}"));
        set_header(&mut self.layer, &json);
        self
    }

    /// The bytes of a part.
    fn data(&mut self, part: &str) -> &mut [u8] {
        let (json, begin) = header(&self.layer);
        let offsets = &json[format!("{LAYER}.{part}")]["data_offsets"];
        let at = |n: usize| begin + offsets[n].as_u64().expect("an offset") as usize;
        &mut self.layer[at(0)..at(1)]
    }

    fn write(&self) -> PathBuf {
        let model = write_model(self.folder.path());
        let weights = model.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).expect("read");
        let (mut json, _) = header(&bytes);
        let entries = json.as_object_mut().expect("an object");
        entries
            .remove(&format!("{LAYER}.weight"))
            .expect("the layer was a float one");
        let mut map: serde_json::Map<_, _> = entries
            .keys()
            .filter(|name| *name != "__metadata__")
            .map(|name| (name.clone(), json!("model.safetensors")))
            .collect();
        map.insert(format!("{LAYER}.qweight"), json!("layer.safetensors"));
        set_header(&mut bytes, &json);
        std::fs::write(&weights, bytes).expect("write");
        std::fs::write(model.join("layer.safetensors"), &self.layer).expect("write");
        let index = json!({"weight_map": map}).to_string();
        std::fs::write(model.join("model.safetensors.index.json"), index).expect("write");
        let path = model.join("config.json");
        let text = std::fs::read(&path).expect("read");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        config["quantization_config"] = self.config.clone();
        std::fs::write(&path, config.to_string()).expect("write");
        model
    }

    fn open(&self) -> ModelFile {
        open(&self.write()).expect("it opens")
    }

    fn refused(&self, messages: &[&str]) {
        let error = open(&self.write()).expect_err("it is refused").to_string();
        for message in messages {
            assert!(error.contains(message), "expected '{message}' in: {error}");
        }
    }
}

fn cases() -> [(&'static str, Value); 5] {
    [
        (
            "gptq",
            json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false}),
        ),
        (
            "gptq_v2",
            json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4, "group_size": 64}),
        ),
        (
            "gptq_whole",
            json!({"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": -1}),
        ),
        (
            "awq",
            json!({"quant_method": "awq", "version": "GEMM", "bits": 4, "group_size": 32, "zero_point": true}),
        ),
        (
            "awq",
            json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}),
        ),
    ]
}

#[test]
fn weights_are_read_element_for_element() {
    for (case, config) in cases() {
        let quantized = Quantized::new(case, config);
        let model = quantized.open();
        let info = model.tensor(TENSOR).expect("the layer is there");
        assert_eq!(
            (info.format, info.rows, info.cols),
            (Format::Int4, 16, 96),
            "{case}"
        );
        assert_eq!(
            bits(&model.read_f32(TENSOR).expect("read")),
            expected(case),
            "{case}"
        );
        let mut blocks = Vec::new();
        model.read(TENSOR, &mut blocks).expect("read");
        assert_eq!(
            Some(blocks.len()),
            Format::Int4.row_bytes(96).map(|row| 16 * row)
        );
        let int4 = ("int4".to_owned(), info.bytes());
        assert!(model.facts().formats.contains(&int4), "{case}");
        assert!(
            info.bytes() < 16 * 96 && info.bytes() > 16 * 96 / 2,
            "{case}"
        );
    }
}

#[test]
fn a_layer_without_g_idx_has_its_inputs_in_order() {
    let model = Quantized::gptq().without("g_idx").open();
    assert_eq!(
        bits(&model.read_f32(TENSOR).expect("read")),
        expected("gptq")
    );
}

#[test]
fn a_quantised_model_converts_to_floats() {
    let quantized = Quantized::gptq();
    let model = quantized.open();
    for target in ["out.gguf", "out"] {
        let target = quantized.folder.path().join(target);
        convert::convert(&model, &target, Format::F32, &|_, _| {}).expect("it converts");
        let converted = open(&target).expect("it opens");
        assert_eq!(
            bits(&converted.read_f32(TENSOR).expect("read")),
            expected("gptq")
        );
    }
}

#[test]
fn another_order_of_inputs_is_refused_by_tensor() {
    let mut quantized = Quantized::gptq();
    quantized.data("g_idx")[4 * 33..][..4].copy_from_slice(&0i32.to_le_bytes());
    quantized.refused(&[
        "tensor 'model.layers.0.mlp.down_proj.g_idx': found input 33 in group 0",
        "expected it in group 1, each group being 32 inputs in a row",
        "desc_act off",
    ]);
    quantized.data("g_idx")[4 * 33..][..4].copy_from_slice(&(-1i32).to_le_bytes());
    quantized.refused(&["input 33 in group -1"]);
}

#[test]
fn what_cannot_be_read_is_refused_by_field() {
    let with = |change: fn(&mut Value)| {
        let mut quantized = Quantized::gptq();
        change(&mut quantized.config);
        quantized
    };
    with(|c| c["quant_method"] = json!("fp8")).refused(&[
        "config.json",
        "quantization_config: quant_method: found 'fp8', expected 'gptq' or 'awq'",
        "a GGUF file",
    ]);
    with(|c| c["quant_method"] = json!("mxfp4"))
        .refused(&["quant_method: found 'mxfp4'", "gpt-oss in MXFP4"]);
    with(|c| c["bits"] = json!(8)).refused(&["quantization_config: bits: found 8, expected 4"]);
    with(|c| c["bits"] = Value::Null).refused(&["bits: found null"]);
    with(|c| c["group_size"] = json!(48))
        .refused(&["group_size: found 48, expected a multiple of 32"]);
    with(|c| c["group_size"] = json!(0)).refused(&["group_size: found 0"]);
    with(|c| c["checkpoint_format"] = json!("marlin"))
        .refused(&["checkpoint_format: found 'marlin'"]);
    with(|c| *c = json!({"quant_method": "awq", "version": "gemv"}))
        .refused(&["version: found 'gemv', expected 'gemm'"]);
    with(|c| *c = Value::Null).refused(&[
        "tensor 'model.layers.0.mlp.down_proj': found a part of a quantised layer",
        "expected quantization_config in config.json",
    ]);
    // The weights of one method, packed as the other says.
    with(|c| *c = json!({"quant_method": "awq", "bits": 4, "group_size": 32}))
        .refused(&["down_proj.qweight': found shape [12, 16]"]);
    with(|c| c["group_size"] = json!(64)).refused(&[
        "down_proj.qzeros': found shape [3, 2], expected shape [2, 2]",
        "group_size",
    ]);
}

#[test]
fn broken_parts_are_refused_by_name() {
    for part in ["qweight", "qzeros", "scales"] {
        let missing = format!("tensor 'model.layers.0.mlp.down_proj.{part}': found none");
        Quantized::gptq()
            .without(part)
            .refused(&[&missing, "fetch it again"]);
    }
    Quantized::gptq()
        .entry("qweight", |entry| entry["dtype"] = json!("F32"))
        .refused(&["down_proj.qweight': found f32 elements, expected dtype I32"]);
    Quantized::gptq()
        .entry("scales", |entry| entry["shape"] = json!([16, 3]))
        .refused(&["down_proj.scales': found shape [16, 3], expected shape [3, 16]"]);
    Quantized::gptq()
        .entry("qzeros", |entry| entry["dtype"] = json!("I64"))
        .refused(&["down_proj.qzeros': found dtype 'I64'"]);
    let mut quantized = Quantized::new("gptq_whole", cases()[2].1.clone());
    quantized.data("scales")[..4].copy_from_slice(&0.1f32.to_le_bytes());
    quantized.refused(&["down_proj.scales': found the f32 scale 0.1", "float16"]);
}

/// The tiny model of a family (see `tests/families`) with one linear layer of it quantised: every weight is 3.
fn with_layer_of_threes(family: &str, layer: &str) -> Result<ModelFile, FormatError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/models/tiny")
        .join(family);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = std::fs::read(source.join("config.json")).expect("read");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["quantization_config"] = json!({
        "quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4, "group_size": -1
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("write");

    let weights = std::fs::read(source.join("model.safetensors")).expect("read");
    let (mut entries, begin) = header(&weights);
    let entries = entries.as_object_mut().expect("an object");
    let float = entries
        .remove(&format!("{layer}.weight"))
        .expect("the layer was a float one");
    let size = |n: usize| float["shape"][n].as_u64().expect("a size");
    let (outputs, inputs) = (size(0), size(1));
    let mut data = weights[begin..].to_vec();
    let mut add = |part: &str, dtype: &str, shape: [u64; 2], element: &[u8]| {
        let offset = data.len();
        data.extend(element.repeat((shape[0] * shape[1]) as usize));
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, data.len()]});
        entries.insert(format!("{layer}.{part}"), entry);
    };
    add("qweight", "I32", [inputs / 8, outputs], &[0x77; 4]);
    add("qzeros", "I32", [1, outputs / 8], &[0x44; 4]);
    add("scales", "F32", [1, outputs], &1f32.to_le_bytes());
    let text = json!(entries).to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.into_bytes());
    file.extend(data);
    std::fs::write(folder.path().join("model.safetensors"), file).expect("write");
    // What has been opened is read on, though its name is gone.
    open(folder.path())
}

#[test]
fn a_layer_of_any_family_can_be_quantised() {
    for (family, layer, tensor) in [
        ("qwen3", "model.layers.0.self_attn.q_proj", "blk.0.attn_q"),
        (
            "gemma2",
            "model.layers.0.self_attn.o_proj",
            "blk.0.attn_output",
        ),
        (
            "mixtral",
            "model.layers.0.block_sparse_moe.experts.2.w3",
            "blk.0.ffn_up.2",
        ),
    ] {
        let quantized = with_layer_of_threes(family, layer).expect("it opens");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny");
        let float = open(&source.join(family)).expect("it opens");
        assert_eq!(quantized.config(), float.config(), "{family}");
        assert_eq!(quantized.tensors().len(), float.tensors().len(), "{family}");
        for info in float.tensors() {
            let values = quantized.read_f32(&info.name).expect("read");
            if info.name == format!("{tensor}.weight") {
                let format = quantized.tensor(&info.name).map(|info| info.format);
                assert_eq!(format, Some(Format::Int4), "{family}");
                assert_eq!(values, vec![3.0; info.elements()], "{family}");
            } else {
                let expected = float.read_f32(&info.name).expect("read");
                assert_eq!(values, expected, "{family}: {}", info.name);
            }
        }
    }
}

#[test]
fn quantised_layers_that_are_several_in_one_are_refused() {
    let layer = "model.layers.0.self_attn.qkv_proj";
    let error = with_layer_of_threes("phi3", layer).expect_err("it is refused");
    let error = error.to_string();
    for message in ["tensor 'blk.0.attn_qkv.weight'", "fused", "a GGUF file"] {
        assert!(error.contains(message), "expected '{message}' in: {error}");
    }
}
