//! `plinth calibrate` on the machine that runs the tests: figures that make sense, and a second look that costs nothing.

use crate::support::{facts, model, plinth, temporary};
use serde_json::{Value, json};

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&plinth(args).succeeds()).expect("JSON")
}

#[test]
fn figures_agree_with_the_facts() {
    let found = json_of(&["calibrate", "--quick", "--json"]);
    let facts = json_of(&["facts", "--json"]);
    let list = |value: &Value| value.as_array().expect("a list").clone();
    assert_eq!(found["threads"], facts["host"]["budget"]["threads"]);

    // Every instruction set whose needs the facts meet, and no other.
    let isa = list(&facts["host"]["isa"]);
    for (tier, feature) in [
        ("avx2", "avx2"),
        ("avx512", "avx512bw"),
        ("avx512-vnni", "avx512_vnni"),
        ("avx512-bf16", "avx512_bf16"),
        ("amx", "amx_bf16"),
    ] {
        let measured = list(&found["compute"])
            .iter()
            .any(|peak| peak["tier"] == tier);
        assert_eq!(measured, isa.contains(&feature.into()), "{tier}");
    }
    // A wider unit is faster than a narrower one, by far more than a busy machine can hide.
    let fma = |tier: &str| {
        let peaks = list(&found["compute"]);
        let of = peaks
            .iter()
            .find(|peak| peak["tier"] == tier && peak["operation"] == "f32-fma");
        of.and_then(|peak| peak["gops"].as_f64())
    };
    if let Some(avx2) = fma("avx2") {
        assert!(avx2 > fma("portable").expect("every CPU has it"), "{found}");
    }
    let clock = found["clock_ghz"].as_f64().expect("a number");
    assert!((0.2..10.0).contains(&clock), "{clock} GHz");
    // Every product has a kernel of the catalogue.
    let kernels: Vec<_> = list(&facts["kernels"])
        .iter()
        .map(|kernel| kernel["id"].clone())
        .collect();
    for cost in list(&found["matmul"]) {
        assert!(kernels.contains(&cost["kernel"]), "{cost}");
    }
}

/// What is measured becomes a fact, and a fact a decision: on a machine on file, with costs that are made up.
#[cfg(target_arch = "x86_64")]
#[test]
fn costs_in_the_facts_change_the_plan() {
    let machine: Value = {
        let text = std::fs::read(facts("xeon-spr-2s")).expect("it can be read");
        serde_json::from_slice(&text).expect("JSON")
    };
    let cost = |kernel: &str, tokens: u32, us: f64| {
        json!({
            "kernel": kernel, "format": "q4_1", "outputs": 576, "inputs": 1536, "weight_bytes": 552_960,
            "tokens": tokens, "us": us,
        })
    };
    let (few, many) = ("cpu.avx512-vnni.matmul.int8", "cpu.amx.matmul.bf16");
    let plan = |costs: &[Value]| -> Value {
        let mut machine = machine.clone();
        if !costs.is_empty() {
            machine["costs"] = costs.into();
        }
        let file = temporary(&format!("machine-with-{}-costs.json", costs.len()));
        std::fs::write(&file, machine.to_string()).expect("it can be written");
        let file = file.display().to_string();
        json_of(&["plan", &model(), "--facts", &file, "--json"])
    };
    let before = plan(&[]);
    assert_eq!(before["kernels"]["many_from"], Value::Null);
    let costs = [
        cost(few, 4, 20.0),
        cost(many, 4, 30.0),
        cost(few, 8, 40.0),
        cost(many, 8, 30.0),
    ];
    let after = plan(&costs);
    assert_eq!(after["kernels"]["many_from"], json!([["q4_1", 6]]));
    assert_eq!(
        after["kernels"]["matmul_many"],
        before["kernels"]["matmul_many"]
    );
    assert_ne!(after["digest"], before["digest"]);
    assert_eq!(after, plan(&costs), "same facts, same plan");
}

#[test]
fn it_is_told_in_lines_and_senseless_threads_are_refused() {
    let text = plinth(&["calibrate", "--quick", "-t", "1"]).succeeds();
    for expected in ["clock", "compute", "read", "dispatch", "products", "q4_1"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(
        !text.contains("kept in"),
        "what was measured hastily is not kept: {text}"
    );
    plinth(&["calibrate", "-t", "0"]).fails(2, &["--threads"]);
}
