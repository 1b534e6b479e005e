//! Platforms that are built outside the workspace of the runtime: Gaudi's, and one of compiled shapes.

use crate::support::{facts, gaudi, model, model_facts, plinth, plinth_with, shapes};
use serde_json::Value;

fn plan_on_gaudi(more: &[&str]) -> crate::support::Ran {
    let (plugin, model, machine) = (gaudi(), model_facts("llama-3.3-70b"), facts("gaudi3-8"));
    let mut args = vec![
        "plan",
        "--model-facts",
        &model,
        "--facts",
        &machine,
        "--catalogue",
        "vllm-0.22.1",
        "--tensor-parallel",
        "4",
        "--plugin",
        &plugin,
    ];
    args.extend(more);
    plinth(&args)
}

#[test]
fn gaudi_serves_what_nobody_built_in_does() {
    let plan: Value = serde_json::from_str(&plan_on_gaudi(&["--json"]).succeeds()).expect("JSON");
    assert_eq!(plan["platform"]["id"], "gaudi");
    assert_eq!(plan["kernels"]["attention_decode"], "HPU_ATTN");
    assert_eq!(plan["block"]["block_size"], 128);
    assert_eq!(plan["parallel"]["collective"], "hccl");
    let (model, machine) = (model_facts("llama-3.3-70b"), facts("gaudi3-8"));
    let alone = [
        "plan",
        "--model-facts",
        &model,
        "--facts",
        &machine,
        "--catalogue",
        "vllm-0.22.1",
    ];
    plinth(&alone).fails(3, &["no kernel of the catalogue can do attention here"]);
}

#[test]
fn a_dtype_is_not_rewritten_behind_the_user_s_back() {
    plan_on_gaudi(&["--dtype", "f16"]).fails(3, &["dtype", "bf16", "--allow-overrides"]);
    let granted = plan_on_gaudi(&["--dtype", "f16", "--allow-overrides"]).succeeds();
    assert!(granted.contains("'bf16' instead of 'f16'"), "{granted}");
}

#[test]
fn a_prompt_is_answered_within_its_shape() {
    let (plugin, model) = (shapes(), model());
    let ask = |prompt: &str| {
        let args = [
            "run",
            &model,
            "--raw",
            "--max-tokens",
            "40",
            "--plugin",
            &plugin,
            "--temperature",
            "0",
            prompt,
        ];
        plinth_with(&args, "", &[("SHAPES_COMPILED", "8:24,16:4")])
    };
    let tokens = |ran: &crate::support::Ran| {
        let line = ran.err.lines().last().unwrap_or_default().to_owned();
        let answer = line
            .split("answer ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        answer
            .and_then(|n| n.parse::<u32>().ok())
            .unwrap_or_else(|| panic!("{line}"))
    };
    let short = ask("Once upon a time");
    assert_eq!(tokens(&short), 24, "{}", short.err);
    let longer = ask("Once upon a time there was a queen who lived in a tower");
    assert_eq!(tokens(&longer), 4, "{}", longer.err);
    ask("Once upon a time there was a queen who lived in a tower by the sea and had a cat and a dog")
        .fails(2, &["the longest prompt that was compiled for has 16 tokens"]);
}

#[test]
fn models_batches_and_defaults_are_gated_without_a_patch() {
    let (plugin, model) = (shapes(), model());
    let plan = plinth(&["plan", &model, "--plugin", &plugin]).succeeds();
    for expected in [
        "blocks of 64 tokens",
        "max-num-seqs       4",
        "for prompts of 65 to 512 tokens",
    ] {
        assert!(plan.contains(expected), "{expected}: {plan}");
    }
    plinth(&["plan", &model, "--plugin", &plugin, "--max-num-seqs", "9"])
        .fails(3, &["9 sequences asked for", "--max-num-seqs 4"]);
    let unknown = model_facts("llama-3.3-70b");
    plinth(&["plan", "--model-facts", &unknown, "--plugin", &plugin])
        .fails(3, &["was not compiled for this device", "--platform cpu"]);
}

#[test]
fn every_platform_passes_the_conformance_kit() {
    for plugin in ["cpu", "cuda", "rocm", "tpu", "xpu", &gaudi(), &shapes()] {
        let said = plinth(&["plugin", "test", plugin]).succeeds();
        assert!(said.ends_with("0 faults\n"), "{plugin}: {said}");
    }
}
