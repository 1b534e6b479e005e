//! Every family of models that is read, from both kinds of files: the tiny models of `tests/models/tiny`, whose folders
//! transformers wrote and whose GGUF files llama.cpp's converter wrote.

mod refused;

use plinth_formats::{
    Activation, ExpertsConfig, ModelConfig, ModelFile, Reach, RopeKind, RopeLayout, RopeScaling,
    convert, open,
};
use plinth_kernels::Format;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 11] = [
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    "phi3",
    "phi3_longrope",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "gpt_oss_mxfp4",
];

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/models/tiny")
        .join(family)
}

fn both(family: &str) -> (ModelFile, ModelFile) {
    let folder = folder(family);
    let gguf = open(&folder.join("model.gguf"));
    (
        open(&folder).expect("the folder opens"),
        gguf.expect("the GGUF file opens"),
    )
}

/// Tensors by name, with rows, columns and values. Queries and keys come in the layout of a folder.
fn tensors(model: &ModelFile) -> BTreeMap<String, (usize, usize, Vec<f32>)> {
    let interleaved = model.config().rope.layout == RopeLayout::Interleaved;
    let kept = |name: &str| !name.starts_with("rope_f");
    let read = |name: &str| model.read_f32(name).expect("it can be read");
    model
        .tensors()
        .iter()
        .filter(|info| kept(&info.name))
        .map(|info| {
            let mut values = read(&info.name);
            if interleaved && (info.name.contains("attn_q.") || info.name.contains("attn_k.")) {
                values = half_split(&values, info.cols, model.config().head_dim);
            }
            (info.name.clone(), (info.rows, info.cols, values))
        })
        .collect()
}

/// Rows 2i and 2i + 1 of a head become i and i + half a head.
fn half_split(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let (head, at) = (row / head_dim, row % head_dim);
        let to = head * head_dim + at / 2 + (at % 2) * (head_dim / 2);
        out[to * cols..(to + 1) * cols].copy_from_slice(values);
    }
    out
}

fn assert_same_tensors(first: &ModelFile, second: &ModelFile) {
    let (first, second) = (tensors(first), tensors(second));
    let names = |tensors: &BTreeMap<String, _>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second));
    for (name, tensor) in &first {
        assert!(tensor == &second[name], "'{name}' differs");
    }
}

/// The configuration without what the file formats say differently.
fn comparable(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    config.name = None;
    config.rope.layout = RopeLayout::HalfSplit;
    config
}

#[test]
fn a_folder_and_a_gguf_file_are_the_same_model() {
    for family in FAMILIES {
        let (hf, gguf) = both(family);
        assert_eq!(
            comparable(hf.config()),
            comparable(gguf.config()),
            "{family}"
        );
        assert_eq!(hf.has_tied_head(), gguf.has_tied_head(), "{family}");
        assert_eq!(hf.config().rope.layout, RopeLayout::HalfSplit);
        let permuted = gguf.config().rope.layout == RopeLayout::Interleaved;
        assert_eq!(permuted, gguf.config().architecture == "llama", "{family}");
        assert_same_tensors(&hf, &gguf);
    }
}

#[test]
fn what_is_special_about_a_family_is_in_its_configuration() {
    let config = |family: &str| both(family).0.config().clone();

    let qwen2 = config("qwen2");
    assert_eq!((qwen2.rope.base, qwen2.qk_norm), (1e6, false));
    assert_eq!(qwen2.attention_scale, 1.0 / 8f32.sqrt());
    assert_eq!((qwen2.embedding_scale, qwen2.rope_magnitude), (1.0, 1.0));
    assert_eq!(qwen2.reach, [Reach::All; 2]);

    let qwen3 = config("qwen3");
    assert_eq!((qwen3.qk_norm, qwen3.head_dim), (true, 16));

    let mistral = config("mistral");
    assert_eq!(mistral.architecture, "llama");
    assert_eq!(mistral.sliding_window, Some(12));
    assert_eq!(mistral.layer(1).window, Some(12));
    assert_eq!(mistral.layer(1).rope, RopeKind::Main);

    let gemma2 = config("gemma2");
    assert_eq!(gemma2.reach, [Reach::Window, Reach::All]);
    assert_eq!(gemma2.attention_softcap, Some(2.0));
    assert_eq!(gemma2.final_softcap, Some(4.0));
    assert_eq!(gemma2.attention_scale, 0.25);
    assert_eq!((gemma2.qk_norm, gemma2.post_norms), (false, true));
    assert_eq!(gemma2.layer(0).rope, RopeKind::Main);

    let gemma3 = config("gemma3");
    assert_eq!((gemma3.qk_norm, gemma3.post_norms), (true, true));
    assert_eq!(gemma3.activation, Activation::GeluTanh);
    assert_eq!(gemma3.embedding_scale, 32f32.sqrt());
    assert_eq!(
        (gemma3.attention_softcap, gemma3.final_softcap),
        (None, Some(6.0))
    );
    let global: Vec<_> = (0..7)
        .filter(|&layer| gemma3.layer(layer).window.is_none())
        .collect();
    assert_eq!(global, [5]);
    assert_eq!(gemma3.layer(6).window, Some(8));
    let rope = |layer: usize| gemma3.rope_of(gemma3.layer(layer).rope);
    assert_eq!(
        (rope(5).base, &rope(5).scaling),
        (1e6, &RopeScaling::Linear { factor: 8.0 })
    );
    assert_eq!((rope(6).base, &rope(6).scaling), (1e4, &RopeScaling::None));

    let long = config("phi3_longrope");
    assert_eq!(long.rope.dims, 12);
    let factors = long.long_rope.expect("it has other factors");
    assert_eq!(factors.original_context, 16);
    assert_eq!(factors.factors, [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]);
    let RopeScaling::Factors(short) = long.rope.scaling else {
        panic!("the short ones are its scaling");
    };
    assert_eq!(short, [1.0, 1.05, 1.1, 1.2, 1.3, 1.4]);
    // sqrt(1 + ln(64 / 16) / ln(16))
    assert!((long.rope_magnitude - 1.5f32.sqrt()).abs() < 1e-6);

    let experts = |count, used, intermediate_size| {
        Some(ExpertsConfig {
            count,
            used,
            intermediate_size,
            normalize: true,
            biases: false,
        })
    };
    assert_eq!(config("mixtral").experts, experts(4, 2, 24));
    assert_eq!(config("mixtral").architecture, "llama");
    let qwen3_moe = config("qwen3_moe");
    assert_eq!(qwen3_moe.experts, experts(8, 3, 16));
    assert!(qwen3_moe.qk_norm);
}

#[test]
fn gpt_oss_has_sinks_gates_of_its_own_and_biases() {
    let (hf, gguf) = both("gpt_oss");
    let config = hf.config();
    assert!(config.attention_sinks);
    assert_eq!(config.activation, Activation::ClampedSwiglu);
    assert_eq!(config.reach, [Reach::Window, Reach::All, Reach::Window]);
    assert_eq!(config.layer(2).window, Some(12));
    let experts = config.experts.expect("it is a mixture");
    assert_eq!((experts.count, experts.used), (8, 3));
    assert!(experts.biases && experts.normalize);
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 4.0,
        beta_slow: 1.0,
        original_context: 64.0,
        truncate: false,
    };
    assert_eq!((config.rope.base, &config.rope.scaling), (150_000.0, &yarn));
    // 0.1 ln(4) + 1
    assert!((config.rope_magnitude - 1.138_629_4).abs() < 1e-6);
    for model in [&hf, &gguf] {
        assert_eq!(model.facts().traits, ["sliding-window", "sinks"]);
        for (name, cols) in [
            ("attn_sinks.weight", 4),
            ("ffn_norm.weight", 32),
            ("ffn_gate_inp.bias", 8),
            ("ffn_up.7.bias", 24),
            ("ffn_down.0.bias", 32),
        ] {
            let info = model.tensor(&format!("blk.2.{name}")).expect(name);
            assert_eq!((info.rows, info.cols), (1, cols), "{name}");
        }
    }
}

/// What a folder keeps as blocks and scales is the same bytes as in a GGUF file.
#[test]
fn experts_in_mxfp4_are_read_as_they_are() {
    let (hf, gguf) = both("gpt_oss_mxfp4");
    // Two layers of four experts, each with three matrices of 192 blocks.
    let packed = ("mxfp4".to_owned(), 2 * 4 * 3 * 192 * 17);
    assert!(hf.facts().formats.contains(&packed));
    assert!(gguf.facts().formats.contains(&packed));
    for name in [
        "blk.0.ffn_gate.0.weight",
        "blk.1.ffn_up.3.weight",
        "blk.1.ffn_down.2.weight",
    ] {
        let read = |model: &ModelFile| {
            let mut bytes = Vec::new();
            let info = model.read(name, &mut bytes).expect("it can be read");
            (info.format, info.rows, info.cols, bytes)
        };
        assert_eq!(read(&hf).0, Format::Mxfp4);
        assert!(read(&hf) == read(&gguf), "{name} differs");
    }
}

#[test]
fn fused_and_stacked_tensors_are_handed_out_in_parts() {
    for family in ["mixtral", "qwen3_moe", "gpt_oss", "phi3"] {
        for model in <[ModelFile; 2]>::from(both(family)) {
            let shape = |name: &str| {
                let info = model.tensor(name).expect(name);
                (info.rows, info.cols)
            };
            match model.config().experts {
                Some(experts) => {
                    let last = experts.count - 1;
                    let inner = experts.intermediate_size;
                    assert_eq!(shape(&format!("blk.1.ffn_gate.{last}.weight")), (inner, 32));
                    assert_eq!(shape(&format!("blk.1.ffn_down.{last}.weight")), (32, inner));
                    assert_eq!(shape("blk.1.ffn_gate_inp.weight"), (experts.count, 32));
                    assert!(model.facts().moe);
                }
                None => {
                    assert_eq!(shape("blk.0.attn_q.weight"), (32, 32));
                    assert_eq!(shape("blk.0.attn_v.weight"), (16, 32));
                    assert_eq!(shape("blk.0.ffn_gate.weight"), (48, 32));
                    assert_eq!(shape("blk.0.ffn_up.weight"), (48, 32));
                }
            }
        }
    }
}

#[test]
fn a_converted_folder_is_what_the_converter_of_llama_cpp_makes_of_it() {
    let work = tempfile::tempdir().expect("a temporary folder");
    for family in FAMILIES {
        let (_, theirs) = both(family);
        let hf = open(&with_tokenizer(family, work.path())).expect("it opens");
        let path = work.path().join(format!("{family}.gguf"));
        let converted = convert::convert(&hf, &path, Format::BF16, &|_, _| {});
        converted.expect("it converts");
        let ours = open(&path).expect("it opens");
        let config = ModelConfig {
            name: theirs.config().name.clone(),
            ..ours.config().clone()
        };
        assert_eq!(&config, theirs.config(), "{family}");
        assert_same_tensors(&ours, &theirs);
        assert_eq!(
            names_in(&path),
            names_in(&folder(family).join("model.gguf")),
            "{family}"
        );
    }
}

/// A copy of a folder with a tokenizer, which the tiny models lack and a GGUF file is not written without.
fn with_tokenizer(family: &str, work: &Path) -> PathBuf {
    let copy = work.join(family);
    std::fs::create_dir(&copy).expect("it can be made");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(folder(family).join(name), copy.join(name)).expect("it can be copied");
    }
    let tokenizer = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                        "pre_tokenizer": {"type": "ByteLevel"}}"#;
    std::fs::write(copy.join("tokenizer.json"), tokenizer).expect("it can be written");
    copy
}

/// Names of tensors as they stand in a GGUF file, fused ones as one.
fn names_in(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).expect("it can be read");
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._".contains(byte);
    let mut names: Vec<String> = bytes
        .split(|byte| !is_name(byte))
        .filter(|word| word.ends_with(b".weight") || word.ends_with(b".bias"))
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_requantised_gguf_file_keeps_its_family() {
    let work = tempfile::tempdir().expect("a temporary folder");
    for family in FAMILIES {
        let (_, gguf) = both(family);
        let path = work.path().join(format!("{family}.gguf"));
        convert::convert(&gguf, &path, Format::F32, &|_, _| {}).expect("it converts");
        let again = open(&path).expect("it opens");
        assert_eq!(again.config(), gguf.config(), "{family}");
        assert_same_tensors(&again, &gguf);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_by_architecture() {
    let work = tempfile::tempdir().expect("a temporary folder");
    for (family, found) in [
        ("gemma3", "found gemma3"),
        ("phi3", "found phi3"),
        ("mixtral", "a mixture of experts"),
        ("gpt_oss", "a mixture of experts"),
    ] {
        for model in <[ModelFile; 2]>::from(both(family)) {
            let written =
                convert::convert(&model, &work.path().join("out"), Format::BF16, &|_, _| {});
            let error = written.expect_err("no such folder is written").to_string();
            assert!(error.contains(found), "{error}");
        }
    }
    let left = std::fs::read_dir(work.path()).expect("it can be listed");
    assert_eq!(left.count(), 0);
}

/// The configuration of a copy of a folder whose `config.json` was changed.
fn changed(family: &str, change: impl FnOnce(&mut Value)) -> ModelConfig {
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = changed_in(work.path(), family, change);
    open(&copy).expect("it opens").config().clone()
}

/// A copy of a folder in `work` whose `config.json` was changed.
fn changed_in(work: &Path, family: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let copy = with_tokenizer(family, work);
    let path = copy.join("config.json");
    let bytes = std::fs::read(&path).expect("read");
    let mut json: Value = serde_json::from_slice(&bytes).expect("it is JSON");
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("write");
    copy
}

/// Any model of a family may have YaRN, with the ends of the blend where GGUF files imply them.
#[test]
fn yarn_is_said_in_both_formats() {
    let yarn = |json: &mut Value, more: Value| {
        json["rope_parameters"] = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0});
        let fields = json["rope_parameters"].as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
    };
    for (more, magnitude) in [
        (json!({"original_max_position_embeddings": 32}), 1.069_314_7),
        (json!({"attention_factor": 1.25, "beta_slow": 2.0}), 1.25),
    ] {
        let work = tempfile::tempdir().expect("a temporary folder");
        let copy = changed_in(work.path(), "qwen2", |json| yarn(json, more));
        let hf = open(&copy).expect("it opens");
        assert!((hf.config().rope_magnitude - magnitude).abs() < 1e-6);
        let path = work.path().join("model.gguf");
        convert::convert(&hf, &path, Format::F32, &|_, _| {}).expect("it converts");
        let gguf = open(&path).expect("it opens");
        assert_eq!(comparable(gguf.config()), comparable(hf.config()));
    }
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = changed_in(work.path(), "qwen2", |json| {
        yarn(json, json!({"truncate": false}));
    });
    let hf = open(&copy).expect("it opens");
    let path = work.path().join("model.gguf");
    let written = convert::convert(&hf, &path, Format::F32, &|_, _| {});
    let error = written.expect_err("no key says it").to_string();
    assert!(error.contains("truncate: found false"), "{error}");
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = changed_in(work.path(), "qwen2", |json| {
        yarn(json, json!({"mscale": 0.7, "mscale_all_dim": 1.0}));
    });
    let error = open(&copy).expect_err("it is another kind").to_string();
    assert!(error.contains("mscale: found 0.7"), "{error}");
}

/// Most published folders were written by transformers 4, which had other fields for rotary embeddings and windows.
#[test]
fn older_fields_say_the_same() {
    let take = |json: &mut Value, field: &str| {
        let fields = json.as_object_mut().expect("an object");
        fields.remove(field).expect("it has the field")
    };
    let gemma3 = changed("gemma3", |json| {
        take(json, "rope_parameters");
        take(json, "layer_types");
        // The defaults of this type are left out.
        take(json, "tie_word_embeddings");
        json["sliding_window_pattern"] = json!(6);
        json["rope_theta"] = json!(1_000_000.0);
        json["rope_local_base_freq"] = json!(10_000.0);
        json["rope_scaling"] = json!({"factor": 8.0, "rope_type": "linear"});
    });
    assert_eq!(&gemma3, both("gemma3").0.config());
    let longrope = changed("phi3_longrope", |json| {
        let rope = take(json, "rope_parameters");
        json["rope_theta"] = rope["rope_theta"].clone();
        json["rope_scaling"] = json!({
            "type": "longrope",
            "short_factor": rope["short_factor"],
            "long_factor": rope["long_factor"],
        });
    });
    assert_eq!(&longrope, both("phi3_longrope").0.config());
    let qwen3_moe = changed("qwen3_moe", |json| {
        json["num_experts"] = take(json, "num_local_experts");
        json["sliding_window"] = json!(4096);
    });
    assert_eq!(&qwen3_moe, both("qwen3_moe").0.config());
    let qwen2 = changed("qwen2", |json| {
        take(json, "layer_types");
        json["use_sliding_window"] = json!(true);
        json["sliding_window"] = json!(8);
        json["max_window_layers"] = json!(1);
    });
    assert_eq!(qwen2.reach, [Reach::All, Reach::Window]);
    assert_eq!(qwen2.layer(1).window, Some(8));
    let gpt_oss = changed("gpt_oss", |json| {
        let mut rope = take(json, "rope_parameters");
        json["rope_theta"] = take(&mut rope, "rope_theta");
        json["rope_scaling"] = rope;
        for field in ["layer_types", "swiglu_alpha", "swiglu_limit"] {
            take(json, field);
        }
    });
    assert_eq!(&gpt_oss, both("gpt_oss").0.config());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to a header, the answer is a model or an error: no panic, and no long work.
    #[test]
    fn mutated_headers_are_answered(
        family in 0..FAMILIES.len(),
        flips in proptest::collection::vec((0..2000usize, any::<u8>()), 1..6),
    ) {
        let work = tempfile::tempdir().expect("a temporary folder");
        let path = work.path().join("model.gguf");
        let mut bytes = std::fs::read(folder(FAMILIES[family]).join("model.gguf")).expect("read");
        for (at, value) in flips {
            bytes[at] ^= value;
        }
        std::fs::write(&path, bytes).expect("write");
        if let Ok(model) = open(&path) {
            for info in model.tensors() {
                let read = model.read_f32(&info.name).map(|values| values.len());
                prop_assert_eq!(read.ok(), Some(info.elements()));
            }
        }
    }
}
