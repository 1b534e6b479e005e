//! `plinth bench --roofline` on tiny models whose weights can be counted by hand.

use crate::support::{plinth, root, temporary};
use serde_json::Value;

fn roofline(model: &str, flags: &[&str]) -> Value {
    let model = root().join("tests/models/tiny").join(model);
    let model = model.display().to_string();
    let args = [&["bench", &model, "--roofline", "--json"], flags].concat();
    serde_json::from_str(&plinth(&args).succeeds()).expect("JSON")
}

fn config(model: &str) -> Value {
    let path = root().join("tests/models/tiny").join(model);
    let text = std::fs::read(path.join("config.json")).expect("it can be read");
    serde_json::from_slice(&text).expect("JSON")
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

/// The phase of that name.
fn phase<'a>(found: &'a Value, name: &str) -> &'a Value {
    let phase = list(&found["phases"]).iter().find(|p| p["name"] == name);
    phase.unwrap_or_else(|| panic!("{name}: {found}"))
}

/// A number of a class; zero if there is no such class.
fn of(phase: &Value, class: &str, what: &str) -> u64 {
    let class = list(&phase["classes"]).iter().find(|c| c["class"] == class);
    class.map_or(0, |class| number(&class[what]))
}

const PROMPT: u64 = 20;
/// Long enough for a tiny model to repeat itself.
const ANSWER: u64 = 40;
/// Tokens before a decode run.
const DECODE_PROMPT: u64 = 8;

const FLAGS: [&str; 6] = ["-p", "20", "-n", "40", "-r", "1"];

/// Elements of the products of one layer of a dense model, by class.
fn dense(config: &Value) -> [(&'static str, u64); 4] {
    let of = |name: &str| number(&config[name]);
    let (d, inner) = (of("hidden_size"), of("intermediate_size"));
    let keys = d / of("num_attention_heads") * of("num_key_value_heads");
    [
        ("qkv", d * (d + 2 * keys)),
        ("o", d * d),
        ("gate-up", 2 * inner * d),
        ("down", d * inner),
    ]
}

#[test]
fn operations_are_two_for_each_weight_and_row_and_weights_are_read_once_a_step() {
    let (found, config) = (roofline("qwen2", &FLAGS), config("qwen2"));
    let layers = number(&config["num_hidden_layers"]);
    let head = number(&config["hidden_size"]) * number(&config["vocab_size"]);
    for (name, rows, steps) in [("prefill", PROMPT, 1), ("decode", 1, ANSWER - 1)] {
        let phase = phase(&found, name);
        assert_eq!(number(&phase["steps"]), steps);
        for (class, elements) in dense(&config) {
            let expected = 2 * elements * layers * rows * steps;
            assert_eq!(of(phase, class, "operations"), expected, "{name} {class}");
        }
        // One row of a step is wanted.
        assert_eq!(of(phase, "head", "operations"), 2 * head * steps, "{name}");
        // Of the embedding only the rows of tokens are read; the head is a matrix of its own.
        let products = ["qkv", "o", "gate-up", "down", "head"];
        let read: u64 = products
            .map(|class| of(phase, class, "weight_bytes"))
            .iter()
            .sum();
        let vocabulary = number(&config["vocab_size"]);
        let embedding = of(phase, "embed", "weight_bytes") / (rows * steps) * vocabulary;
        let packed = number(&found["packed_weight_bytes"]);
        assert_eq!(read, (packed - embedding) * steps, "{name}");
    }
}

#[test]
fn attention_sees_what_is_there() {
    let (found, config) = (roofline("qwen2", &FLAGS), config("qwen2"));
    let each = 4 * number(&config["hidden_size"]) * number(&config["num_hidden_layers"]);
    let sees = |name| of(phase(&found, name), "attention", "operations") / each;
    assert_eq!(sees("prefill"), (1..=PROMPT).sum::<u64>());
    // The first token of the answer is the prompt's; each step sees one more.
    let contexts = DECODE_PROMPT + 1..DECODE_PROMPT + ANSWER;
    assert_eq!(sees("decode"), contexts.sum::<u64>());
}

#[test]
fn every_class_has_its_share_of_the_time() {
    for (model, expected) in [
        (
            "gemma3",
            &[
                "embed",
                "qkv",
                "attention",
                "o",
                "post-norm",
                "gate-up",
                "down",
            ][..],
        ),
        (
            "mixtral",
            &["embed", "qkv", "attention", "o", "router", "mixture"][..],
        ),
    ] {
        let found = roofline(model, &FLAGS);
        for name in ["prefill", "decode"] {
            let phase = phase(&found, name);
            let classes = list(&phase["classes"]);
            let prefill: &[&str] = if name == "prefill" {
                &["prepare", "kv-write"]
            } else {
                &[]
            };
            for class in [expected, prefill, &["gather", "head", "sampling"]].concat() {
                assert!(
                    classes.iter().any(|c| c["class"] == class),
                    "{class}: {phase}"
                );
            }
            let shares = classes.iter().filter_map(|class| class["share"].as_f64());
            let sum: f64 = shares.sum();
            assert!((sum - 1.0).abs() < 1e-9, "{model} {name}: {sum}");
        }
        // Two experts a row, of three matrices.
        if model == "mixtral" {
            let config = config(model);
            let of_config = |name: &str| number(&config[name]);
            let expert = 3 * of_config("hidden_size") * of_config("intermediate_size");
            let (rows, d) = (
                of_config("num_hidden_layers") * 2 * PROMPT,
                of_config("hidden_size"),
            );
            let found = of(phase(&found, "prefill"), "mixture", "operations");
            // And each is multiplied with its weight, and added.
            assert_eq!(found, rows * (2 * expert + 2 * d));
        }
    }
}

#[test]
fn the_drawing_names_every_ceiling_and_every_class_once_a_phase() {
    let file = temporary("roofline.svg");
    let path = file.display().to_string();
    let found = roofline("gemma2", &[&FLAGS[..], &["--svg", &path]].concat());
    // This model repeats itself: with guesses there would be fewer steps.
    assert_eq!(number(&phase(&found, "decode")["steps"]), ANSWER - 1);
    let drawing = std::fs::read_to_string(&file).expect("it was drawn");
    assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
    let texts = |text: &str| drawing.matches(&format!(">{text}</text>")).count();
    assert_eq!(texts("operations per byte"), 1);
    for class in ["qkv", "attention", "o", "gate-up", "down", "head"] {
        assert_eq!(texts(class), 2, "{class}: in prefill and in decode");
    }
    for peak in list(&found["peaks"]["read"]) {
        let speed = peak["gb_per_second"].as_f64().expect("a number");
        let name = format!(" {speed:.0} GB/s</text>");
        assert!(drawing.contains(&name), "{name}");
    }
    plinth(&["bench", "model.gguf", "--svg", &path]).fails(2, &["--roofline"]);
}
