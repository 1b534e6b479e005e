//! Tiny models of every family against the logits that transformers computes for them, from both kinds of files.

use crate::support::answers;
use plinth_engine::{Engine, EngineOptions, Event, Loading, Model, Request, SamplingParams};
use plinth_formats::Packed;
use plinth_kernels::{KernelSet, KvDtype, Selection, Workers};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub const FAMILIES: [&str; 11] = [
    "gemma2",
    "gemma3",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "mistral",
    "mixtral",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen3",
    "qwen3_moe",
];

pub fn folder(family: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny");
    root.join(family)
}

fn engine(path: &Path, chunk: usize) -> Engine {
    let file = plinth_formats::open(path).expect("it opens");
    // Exact products: what is tested is the model, not the rounding of its kernels.
    let mut selection = Selection::best();
    selection.matmul_many.clear();
    for (_, kernel) in &mut selection.matmul {
        if kernel.ends_with(".int8") {
            "cpu.portable.matmul.dequant".clone_into(kernel);
        }
    }
    let kernels = KernelSet::bind(&selection).expect("it binds");
    let workers = Workers::new(2, &[]).expect("two threads");
    let options = EngineOptions {
        block_size: 16,
        num_blocks: 64,
        kv_dtype: KvDtype::F32,
        max_model_len: 64,
        max_num_seqs: 4,
        max_batched_tokens: chunk,
        chunked_prefill: true,
        prefix_caching: false,
        max_draft: 0,
    };
    let loading = Loading {
        max_model_len: 64,
        max_batched_tokens: chunk,
        packed: Packed::Pack,
        progress: &|_, _| {},
    };
    let model = Model::load(&file, kernels, workers, loading).expect("it loads");
    Engine::new(model, options).expect("the options make sense")
}

/// Log probabilities of every token after `prompt`.
fn logprobs(engine: &mut Engine, prompt: Vec<u32>) -> Vec<f32> {
    let vocab = engine.model().config().vocab_size;
    let sampling = SamplingParams {
        max_tokens: 1,
        logprobs: Some(vocab as u32),
        ..SamplingParams::default()
    };
    let request = Request {
        prompt,
        sampling,
        prompt_logprobs: false,
        stop: None,
    };
    engine.submit(request).expect("it is accepted");
    let mut found = vec![f32::NAN; vocab];
    while engine.has_work() {
        for output in engine.step() {
            if let Event::Token { logprob, .. } = output.event {
                for (id, logprob) in logprob.expect("it was asked for").top {
                    found[id as usize] = logprob;
                }
            }
        }
    }
    found
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
    logits.iter().map(|x| x - largest - total.ln()).collect()
}

#[test]
fn every_family_computes_what_transformers_does() {
    for family in FAMILIES {
        let folder = folder(family);
        let text = std::fs::read_to_string(folder.join("expected.json")).expect("it is there");
        let expected: Value = serde_json::from_str(&text).expect("it is JSON");
        let numbers = |value: &Value| -> Vec<f64> {
            let list = value.as_array().expect("a list");
            list.iter().map(|x| x.as_f64().expect("a number")).collect()
        };
        let prompt: Vec<u32> = numbers(&expected["prompt"])
            .iter()
            .map(|&id| id as u32)
            .collect();
        for path in [folder.clone(), folder.join("model.gguf")] {
            // The whole prompt in one step, and in steps that cut it anywhere.
            for chunk in [64, 7] {
                let mut engine = engine(&path, chunk);
                for at in expected["logits"].as_array().expect("a list") {
                    let position = at["position"].as_u64().expect("a number") as usize;
                    let found = logprobs(&mut engine, prompt[..=position].to_vec());
                    let wanted = log_softmax(&numbers(&at["values"]));
                    assert_eq!(found.len(), wanted.len());
                    for (id, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                        let error = (f64::from(*found) - wanted).abs();
                        assert!(
                            error < 2e-4,
                            "{} in steps of {chunk}, token {id} after position {position}: {found}, expected {wanted}",
                            path.display()
                        );
                    }
                }
            }
        }
    }
}

/// A row goes through the same experts with the same bits whatever else is in the step.
#[test]
fn company_changes_no_bit_of_a_mixture() {
    for family in ["mixtral", "qwen3_moe", "gpt_oss"] {
        let request = |seed: usize, len: usize| Request {
            prompt: (0..len)
                .map(|n| ((seed * 31 + n * 17) % 150) as u32)
                .collect(),
            sampling: SamplingParams {
                max_tokens: 6,
                logprobs: Some(2),
                ..SamplingParams::default()
            },
            prompt_logprobs: false,
            stop: None,
        };
        let requests = || (0..4).map(|n| request(n, 3 + 9 * n)).collect::<Vec<_>>();
        let folder = folder(family);
        let together = answers(&mut engine(&folder, 64), requests());
        for (n, request) in requests().into_iter().enumerate() {
            let alone = answers(&mut engine(&folder, 5), vec![request]);
            assert_eq!(alone[0].essence(), together[n].essence(), "{family} {n}");
        }
    }
}
