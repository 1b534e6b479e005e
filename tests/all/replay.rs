//! Recorded decisions of vLLM, asked of the sandboxed platforms again.

use crate::support::{plinth, root, temporary};
use std::path::PathBuf;

#[test]
fn the_built_in_platforms_decide_what_vllm_decided() {
    let vectors = root().join("tests/reference/vllm-0.22.1-decisions.jsonl.gz");
    let said = replay(&vectors, &[]).succeeds();
    assert_eq!(said.lines().last(), Some("replayed 8815: 8815 equal"));
    for kind in ["cuda.attn", "cpu.attn_isa", "cpu.autobind", "graph.mode"] {
        assert!(said.contains(kind), "{kind} was not replayed:\n{said}");
    }
}

fn replay(vectors: &std::path::Path, more: &[&str]) -> crate::support::Ran {
    let path = vectors.display().to_string();
    let mut args = vec!["plugin", "replay", "--vectors", &path];
    args.extend(more);
    plinth(&args)
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = temporary(name);
    std::fs::write(&path, text).expect("a temporary file can be written");
    path
}

const WRONG: &str = r#"{"kind": "rocm.gcn_capability", "in": {"arch": "gfx942"}, "out": {"cap": [9, 0], "error": null}}"#;

#[test]
fn an_answer_that_differs_is_shown_and_fails() {
    let path = file("wrong.jsonl", WRONG);
    let run = replay(&path, &[]);
    assert!(run.out.contains("recorded  [9,0]"), "{}", run.out);
    assert!(run.out.contains("answered  [9,4]"), "{}", run.out);
    assert!(run.out.ends_with("replayed 1: 0 equal\n"), "{}", run.out);
    run.fails(1, &["1 answer differs"]);
    // Whoever else is asked must answer for itself.
    let run = replay(&path, &["--plugin", "cpu", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&run.out).expect("it prints JSON");
    assert_eq!(report["mismatches"][0]["platform"], "cpu");
    assert_eq!(report["equal"], 0);
}

#[test]
fn a_record_that_makes_no_sense_is_named_by_its_line() {
    for (n, (line, expected)) in [
        ("{", "bad-0.jsonl:2"),
        (
            r#"{"kind": "colour", "in": {}, "out": {}}"#,
            "the kind 'colour' is not known",
        ),
        (
            r#"{"kind": "graph.mode", "in": {"requested": "FULL"}, "out": {}}"#,
            "missing field `min_support`",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let path = file(&format!("bad-{n}.jsonl"), &format!("\n{line}\n"));
        replay(&path, &[]).fails(2, &[expected, "2"]);
    }
}
