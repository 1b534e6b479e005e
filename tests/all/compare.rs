//! `plinth bench --compare`: another engine's benchmark in turns with ours. The other engine is a small script.

use crate::support::{model, plinth, temporary};
use serde_json::{Value, json};

/// A command that prints this, and what it has run so far, a line each.
struct Fake {
    command: String,
    log: std::path::PathBuf,
}

impl Fake {
    fn new(name: &str, prints: &str) -> Self {
        let (script, log) = (
            temporary(&format!("{name}.sh")),
            temporary(&format!("{name}.log")),
        );
        let _ = std::fs::remove_file(&log);
        let text = format!(
            "echo run >> '{}'\necho loading >&2\ncat <<'END'\n{prints}\nEND\n",
            log.display()
        );
        std::fs::write(&script, text).expect("a script can be written");
        let command = format!("sh '{}'", script.display());
        Self { command, log }
    }

    fn runs(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).expect("it has run");
        log.lines().count()
    }
}

/// As `llama-bench -o json` does, with the fields that matter and one that does not.
fn llama_bench(n_prompt: u32, n_gen: u32) -> Value {
    json!([
        {"n_prompt": n_prompt, "n_gen": 0, "n_depth": 0, "avg_ts": 1000.0, "model_type": "llama"},
        {"n_prompt": 0, "n_gen": n_gen, "n_depth": 0, "avg_ts": 100.0, "model_type": "llama"},
    ])
}

fn bench(fake: &Fake, flags: &[&str]) -> crate::support::Ran {
    let common = ["bench", &model(), "-p", "16", "-n", "4", "-r", "3"];
    plinth(&[&common[..], &["--compare", &fake.command], flags].concat())
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list").iter();
    list.map(|number| number.as_f64().expect("a number"))
        .collect()
}

#[test]
fn rounds_are_taken_in_turns_and_give_ratios() {
    let fake = Fake::new("llama-bench", &llama_bench(16, 4).to_string());
    let report: Value = serde_json::from_str(&bench(&fake, &["--json"]).succeeds()).expect("JSON");
    assert_eq!(fake.runs(), 4, "three, and one that is not counted");
    for (kind, theirs) in [("prefill", 1000.0), ("decode", 100.0)] {
        let compared = &report["compared"][kind];
        assert_eq!(compared["peer"]["median"], theirs);
        let ours = numbers(&report[kind]["runs"]);
        let ratios = numbers(&compared["ratio"]["runs"]);
        assert_eq!((ours.len(), ratios.len()), (3, 3));
        for (ours, ratio) in ours.iter().zip(ratios) {
            // A number that goes through JSON may come back with another last bit.
            assert!((ratio / (ours / theirs) - 1.0).abs() < 1e-12, "{ratio}");
        }
    }
    assert_eq!(report["compared"]["command"], fake.command.as_str());
}

#[test]
fn any_command_with_the_two_fields_will_do() {
    let object =
        json!({"decode_tokens_per_second": 50.0, "prefill_tokens_per_second": null, "more": 1});
    let text = bench(&Fake::new("object", &object.to_string()), &[]).succeeds();
    let (_, compared) = text
        .split_once("against ")
        .expect("a part about the other engine");
    assert!(
        compared.contains("decode     4 tokens") && compared.contains("times as fast"),
        "{text}"
    );
    assert!(!compared.contains("prefill"), "it measured none: {text}");
}

#[test]
fn batches_are_compared_too() {
    let line = |pl: u32| json!({"pp": 8, "tg": 4, "pl": pl, "speed_pp": 9.0, "speed_tg": 10.0 * f64::from(pl)});
    let lines = format!("\nsome other line\n{}\n{}", line(1), line(2));
    let fake = Fake::new("llama-batched-bench", &lines);
    let report = bench(&fake, &["--batch", "2,3", "--json"]).succeeds();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let compared = &report["compared"];
    assert_eq!(compared["decode"]["peer"]["median"], 10.0);
    let batches = compared["batches"].as_array().expect("a list");
    assert_eq!(batches.len(), 1, "it has no batch of three: {compared}");
    assert_eq!(
        (
            &batches[0]["sequences"],
            &batches[0]["decode"]["peer"]["median"]
        ),
        (&json!(2), &json!(20.0))
    );
}

#[test]
fn what_cannot_be_compared_is_said() {
    let refused = |name: &str, prints: &str, expected: &[&str]| {
        bench(&Fake::new(name, prints), &[]).fails(2, expected);
    };
    refused(
        "rubbish",
        "| model | t/s |",
        &["--compare", "| model | t/s |", "-o json"],
    );
    refused(
        "no-figures",
        "{\"speed\": 3}",
        &["without figures", "decode_tokens_per_second"],
    );
    refused(
        "text",
        "{\"decode_tokens_per_second\": \"fast\"}",
        &["fast", "-o json"],
    );
    let other = llama_bench(512, 4).to_string();
    refused(
        "other-prompt",
        &other,
        &["512 tokens", "16 tokens", "the same -p"],
    );
    let other = llama_bench(16, 128).to_string();
    refused("other-answer", &other, &["128 tokens", "4 tokens"]);
    let only_prompt = json!({"prefill_tokens_per_second": 3.0}).to_string();
    let fake = Fake::new("only-prompt", &only_prompt);
    let decode_only = [
        "bench",
        &model(),
        "-p",
        "0",
        "-r",
        "1",
        "--compare",
        &fake.command,
    ];
    plinth(&decode_only).fails(2, &["nothing that this run measures"]);

    let failing = [
        "bench",
        &model(),
        "--compare",
        "echo 'no such model' >&2; exit 3",
    ];
    plinth(&failing).fails(1, &["exit status: 3", "no such model"]);
}

#[test]
fn depth_is_context_before_the_first_token() {
    let args = [
        "bench",
        &model(),
        "-p",
        "0",
        "-n",
        "3",
        "-r",
        "1",
        "-d",
        "300",
    ];
    let text = plinth(&args).succeeds();
    assert!(text.contains("3 tokens after 300"), "{text}");
    plinth(&[&args[..], &["--max-model-len", "128"]].concat()).fails(2, &["300"]);
}
