//! `plinth calibrate` on the machine that runs the tests: figures that make sense, and a second look that costs nothing.

use crate::support::plinth;
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&plinth(args).succeeds()).expect("JSON")
}

#[test]
fn figures_agree_with_the_facts() {
    let found = json(&["calibrate", "--quick", "--json"]);
    let facts = json(&["facts", "--json"]);
    let list = |value: &Value| value.as_array().expect("a list").clone();
    assert_eq!(found["threads"], facts["host"]["budget"]["threads"]);

    // Every instruction set whose needs the facts meet, and no other.
    let isa = list(&facts["host"]["isa"]);
    for (tier, feature) in [
        ("avx2", "avx2"),
        ("avx512", "avx512bw"),
        ("avx512-vnni", "avx512_vnni"),
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
