//! Tokens, log probabilities and perplexity, held against llama.cpp's for the same files (`tests/reference`).

use crate::support::{batch, model, model_f32, plinth, plinth_with, root};
use serde_json::{Value, json};

fn reference(name: &str) -> Value {
    let path = root().join("tests/reference").join(name);
    let text = std::fs::read_to_string(path).expect("the reference can be read");
    serde_json::from_str(&text).expect("the reference is JSON")
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).expect("a list of the reference")
}

/// A sequence of ours beside the reference's: how many tokens are the same, and the differences of their logprobs.
struct Compared {
    common: usize,
    /// Tokens before the first whose margin is so small that rounding decides.
    certain: usize,
    differences: Vec<f64>,
}

fn compare(model: &str, cases: &Value) -> Vec<Compared> {
    let cases = cases.as_array().expect("cases");
    let request = |case: &Value| {
        let len = list::<u32>(&case["ids"]).len();
        json!({"prompt_ids": case["prompt_ids"], "max_tokens": len, "logprobs": 0, "ignore_eos": true})
    };
    let requests: Vec<_> = cases.iter().map(request).collect();
    let results = batch(model, &requests, &[]);
    assert_eq!(results.len(), cases.len());
    let pairs = cases.iter().zip(&results);
    pairs
        .map(|(case, result)| {
            let (want, got) = (list::<u32>(&case["ids"]), list::<u32>(&result["ids"]));
            assert_eq!(want.len(), got.len());
            let common = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
            let margins = list::<f64>(&case["margins"]);
            let logprobs = list::<f64>(&case["logprobs"]);
            let ours = result["logprobs"].as_array().expect("logprobs");
            let ours = ours
                .iter()
                .map(|one| one["logprob"].as_f64().expect("a number"));
            Compared {
                common,
                certain: margins.iter().take_while(|margin| **margin >= 0.01).count(),
                differences: ours
                    .zip(logprobs)
                    .take(common)
                    .map(|(a, b)| (a - b).abs())
                    .collect(),
            }
        })
        .collect()
}

#[test]
fn greedy_sequences_of_the_f32_model_are_the_reference_s() {
    let cases = reference("greedy.json");
    for (n, compared) in compare(&model_f32(), &cases["f32"]).iter().enumerate() {
        assert!(
            compared.common >= compared.certain,
            "case {n}: {} < {}",
            compared.common,
            compared.certain
        );
        let worst = compared
            .differences
            .iter()
            .take(compared.certain)
            .fold(0.0f64, |a, b| a.max(*b));
        assert!(
            worst < 2e-3,
            "case {n}: a log probability is off by {worst}"
        );
    }
}

#[test]
fn greedy_sequences_of_the_quantised_model_stay_close() {
    let cases = reference("greedy.json");
    let compared = compare(&model(), &cases["q4_1"]);
    let mut differences: Vec<_> = compared
        .iter()
        .flat_map(|one| one.differences.clone())
        .collect();
    differences.sort_by(f64::total_cmp);
    let median = differences[differences.len() / 2];
    let prefix = compared.iter().map(|one| one.common).sum::<usize>() / compared.len();
    // Engines round activations to 8 bits differently. The bounds are three times what was measured.
    assert!(
        median < 0.05,
        "median difference of log probability: {median}"
    );
    assert!(prefix >= 12, "mean common prefix: {prefix} tokens");
}

#[test]
fn texts_become_the_reference_s_tokens_and_texts_again() {
    let cases = reference("tokens.json");
    let cases = cases.as_array().expect("cases");
    let model = model();
    let texts: Vec<_> = cases.iter().map(|case| &case["text"]).collect();
    let texts = serde_json::to_string(&texts).expect("texts are JSON");
    for (flags, key) in [(&[][..], "plain"), (&["--special"], "special")] {
        let args = [&["tokenize", model.as_str(), "--json"], flags].concat();
        let out = plinth_with(&args, &texts, &[]).succeeds();
        let got: Vec<Value> = serde_json::from_str(&out).expect("a list");
        for (case, got) in cases.iter().zip(&got) {
            assert_eq!(got["ids"], case[key], "{key}: {}", case["text"]);
        }
        assert_eq!(got.len(), cases.len());
    }
    let ids: Vec<_> = cases.iter().map(|case| &case["plain"]).collect();
    let ids = serde_json::to_string(&ids).expect("ids are JSON");
    let out = plinth_with(&["detokenize", &model, "--json"], &ids, &[]).succeeds();
    let decoded: Vec<String> = serde_json::from_str(&out).expect("a list");
    for (case, decoded) in cases.iter().zip(&decoded) {
        assert_eq!(case["decoded"], json!(decoded));
    }
}

#[test]
fn a_chat_is_rendered_as_the_reference_renders_it() {
    let cases = reference("greedy.json");
    let chats = cases["f32"].as_array().expect("cases").iter();
    let chats: Vec<_> = chats.filter(|case| case["messages"].is_array()).collect();
    assert!(chats.len() >= 10, "the reference has chats");
    let request = |case: &&Value| json!({"messages": case["messages"], "max_tokens": 1});
    let results = batch(
        &model(),
        &chats.iter().map(request).collect::<Vec<_>>(),
        &[],
    );
    for (case, result) in chats.iter().zip(&results) {
        let want = list::<u32>(&case["prompt_ids"]).len();
        assert_eq!(
            result["usage"]["prompt_tokens"],
            json!(want),
            "{}",
            case["messages"]
        );
    }
}

fn perplexity(model: &str, more: &[&str]) -> f64 {
    let text = "tests/reference/persuasion-20k.txt";
    let args = [&["perplexity", model, "--file", text, "--json"], more].concat();
    let measured: Value = serde_json::from_str(&plinth(&args).succeeds()).expect("JSON");
    assert_eq!(measured["tokens"], json!(9 * 255));
    measured["perplexity"].as_f64().expect("a number")
}

#[test]
fn perplexity_is_the_reference_s() {
    let perplexity = perplexity(&model(), &[]);
    // llama.cpp: 28.3965 for this file. At most 0.2 % above it; below, not so much that it could not be the same model.
    assert!((28.2..28.453).contains(&perplexity), "{perplexity}");
}

/// Keys and values in 8 bits: half the memory, and the loss that was measured with exact weights (28.285 to 28.272). With
/// quantised ones the rounding of activations goes another way for every difference, by up to 0.6 % either way and as the
/// kernels of a machine have it.
#[test]
fn a_cache_of_eight_bits_costs_little() {
    let model = model_f32();
    let of = |dtype| perplexity(&model, &["--kv-dtype", dtype]);
    let (whole, eight) = (of("f16"), of("q8"));
    assert!(
        eight != whole && (eight / whole - 1.0).abs() < 0.002,
        "{eight} for {whole}"
    );
}
