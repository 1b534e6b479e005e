//! The library of machines: what vLLM would run on each, by its catalogue and the sandboxed platforms, held against files
//! that were read for sense. `PLINTH_BLESS=1` writes them anew.

use crate::support::{assert_golden, facts, gaudi, model_facts, plinth, root, temporary};
use serde_json::Value;
use std::fmt::Write;

const MODELS: [&str; 3] = ["smollm2-135m", "llama-3.3-70b", "deepseek-v3"];

/// All machines with all models, as `--fleet --json` gives them.
fn fleet(catalogue: &str) -> Vec<Value> {
    let folder = root().join("tests/facts").display().to_string();
    let plugin = gaudi();
    let models = MODELS.map(model_facts);
    let mut args = vec![
        "plan",
        "--fleet",
        &folder,
        "--json",
        "--catalogue",
        catalogue,
    ];
    if catalogue != "plinth" {
        args.extend(["--plugin", &plugin]);
    }
    for model in &models {
        args.extend(["--model", model]);
    }
    serde_json::from_str(&plinth(&args).succeeds()).expect("it prints JSON")
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

/// A few lines for each machine: what a reviewer of a change wants to see.
fn written(rows: &[Value]) -> String {
    let mut out = String::new();
    let mut last = "";
    for row in rows {
        let machine = text(row, "machine");
        if machine != last {
            let gap = if last.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}{machine}: {}", text(row, "hardware")).unwrap();
            last = machine;
        }
        let model = text(row, "model");
        if let Some(why) = row["refused"].as_str() {
            let mut lines = why.lines();
            let first = lines.next().unwrap_or_default();
            // A heading alone says nothing.
            let second = lines.next().filter(|_| first.ends_with(':'));
            let second = second
                .map(|line| format!(" {}", line.trim()))
                .unwrap_or_default();
            writeln!(out, "  {model:<14} refused: {first}{second}").unwrap();
            continue;
        }
        writeln!(
            out,
            "  {model:<14} {} · {} · {} · {} · graphs {} · {} devices · context {} · {} sequences",
            text(row, "platform"),
            text(row, "dtype"),
            text(row, "attention"),
            text(row, "matmul"),
            text(row, "graphs"),
            row["devices"],
            row["context"],
            row["sequences"],
        )
        .unwrap();
        for warning in row["warnings"].as_array().into_iter().flatten() {
            writeln!(
                out,
                "      warning: {}",
                warning.as_str().unwrap_or_default()
            )
            .unwrap();
        }
    }
    out
}

#[test]
fn vllm_on_every_machine_is_as_it_was_read() {
    assert_golden("machines-vllm-0.22.1.txt", &written(&fleet("vllm-0.22.1")));
}

#[test]
fn plinth_on_every_machine_is_as_it_was_read() {
    assert_golden("machines-plinth.txt", &written(&fleet("plinth")));
}

#[test]
fn every_vendor_s_machines_have_a_platform() {
    let rows = fleet("vllm-0.22.1");
    for platform in ["cpu", "cuda", "gaudi", "rocm", "tpu", "xpu"] {
        let served = rows
            .iter()
            .filter(|row| row["platform"] == platform)
            .count();
        assert!(served > 0, "{platform} serves no machine");
    }
}

#[test]
fn a_machine_that_grows_serves_no_less() {
    // Eight of a device serve what one serves, and the library holds such pairs.
    let rows = fleet("vllm-0.22.1");
    for (one, many) in [
        ("a100-40gb-1", "a100-80gb-8"),
        ("h100-1", "h100-box"),
        ("mi210-2", "mi300x-8"),
    ] {
        for model in MODELS {
            let of = |machine: &str| {
                let found = rows
                    .iter()
                    .find(|row| row["machine"] == machine && row["model"] == model);
                found.expect("it is in the library").clone()
            };
            let (small, large) = (of(one), of(many));
            if small["refused"].is_null() {
                assert!(large["refused"].is_null(), "{many} with {model}");
                assert!(
                    small["sequences"].as_u64() <= large["sequences"].as_u64(),
                    "{many} with {model}"
                );
            }
        }
    }
}

#[test]
fn the_library_is_described() {
    let readme =
        std::fs::read_to_string(root().join("tests/facts/README.md")).expect("it is there");
    for row in fleet("plinth") {
        let file = format!("`{}.json`", text(&row, "machine"));
        assert!(
            readme.contains(&file),
            "{file} has no source in tests/facts/README.md"
        );
    }
    assert!(facts("h100-box").ends_with("h100-box.json"));
}

/// The plan of a machine with a model, in full.
fn plan(machine: &str, model: &str, more: &[&str]) -> Value {
    plan_of(machine, &model_facts(model), more)
}

/// The same, for the facts of a model in a file.
fn plan_of(machine: &str, model: &str, more: &[&str]) -> Value {
    let machine = facts(machine);
    let base = [
        "plan",
        "--json",
        "--facts",
        &machine,
        "--model",
        model,
        "--catalogue",
        "vllm-0.22.1",
    ];
    serde_json::from_str(&plinth(&[&base[..], more].concat()).succeeds()).expect("JSON")
}

#[test]
fn the_vendors_all_reduce_wants_direct_links() {
    for (machine, devices, expected) in [
        ("h200-8", "8", true),
        ("l40s-4", "4", false),
        ("rtx4090-2", "2", true),
        ("mi300x-8", "8", true),
        ("mi250x-8", "4", false),
        ("intel-max1550-4", "4", false),
    ] {
        let plan = plan(machine, "smollm2-135m", &["--tensor-parallel", devices]);
        let (parallel, said) = (&plan["parallel"], &plan["parallel"]["notes"][0]["message"]);
        assert_eq!(parallel["custom_allreduce"], expected, "{machine}: {said}");
        assert!(
            said.as_str().is_some_and(|why| !why.is_empty()),
            "{machine}"
        );
    }
}

#[test]
fn latent_attention_has_a_backend_of_its_own_for_prefill() {
    let hopper = plan("h200-8", "deepseek-v3", &["--tensor-parallel", "8"]);
    assert_eq!(
        hopper["kernels"]["attention_prefill"],
        "MLA_PREFILL/FLASH_ATTN"
    );
    assert_eq!(hopper["kernels"]["attention_decode"], "FLASH_ATTN_MLA");
    let blackwell = plan("b200-8", "deepseek-v3", &["--tensor-parallel", "8"]);
    assert_eq!(
        blackwell["block"]["block_size"], 32,
        "what FLASHINFER_MLA takes"
    );
    assert_eq!(blackwell["block"]["kv_layout"], "HND");
    let order = &blackwell["selections"][0]["ranking"];
    assert_eq!(order[1], "MLA_PREFILL/TRTLLM_RAGGED");
}

#[test]
fn a_hybrid_model_s_blocks_hold_its_state() {
    // Of 8 kv heads of 128 in bf16 each of 8 devices has one: 512 bytes a token. A state of 1,000,000 bytes needs 1,954
    // of them, in whole blocks of 16: 1,968 tokens, 1,007,616 bytes.
    let text = std::fs::read_to_string(model_facts("llama-3.3-70b")).expect("it is there");
    let mut model: Value = serde_json::from_str(&text).expect("JSON");
    model["hybrid"] = true.into();
    model["state_bytes"] = 1_000_000.into();
    let path = temporary("hybrid.json");
    std::fs::write(&path, model.to_string()).expect("it can be written");
    let model = path.display().to_string();
    let plan = plan_of("h200-8", &model, &["--tensor-parallel", "8"]);
    assert_eq!(plan["block"]["block_size"], 1968);
    assert_eq!(plan["block"]["state_page_padded"], 1_007_616);
}

#[test]
fn a_trait_that_nobody_knows_is_a_reason_to_reject() {
    for (plugin, machine) in [
        ("cpu", "xeon-spr-2s"),
        ("cuda", "h100-1"),
        ("rocm", "mi300x-8"),
        ("xpu", "arc-b580-1"),
        ("tpu", "tpu-v6e-8"),
    ] {
        let machine = facts(machine);
        let input = r#"{"dtype": "bf16", "kv_dtype": "auto", "traits": ["time-travel"]}"#;
        let args = [
            "plugin",
            "decide",
            plugin,
            "select-attention",
            "--facts",
            &machine,
            "--catalogue",
            "vllm-0.22.1",
            "--input",
            input,
        ];
        let said: Value = serde_json::from_str(&plinth(&args).succeeds()).expect("JSON");
        let refused = &said["answer"]["refused"];
        assert!(
            refused.to_string().contains("time-travel"),
            "{plugin}: {said:#}"
        );
    }
}

#[test]
fn a_vision_encoder_has_attention_of_its_own() {
    for (machine, vision, decode) in [
        ("h100-box", "FLASH_ATTN", "TRITON_ATTN"),
        ("v100-8", "TORCH_SDPA", "TRITON_ATTN"),
        ("mi300x-8", "TORCH_SDPA", "ROCM_ATTN"),
    ] {
        let plan = plan(machine, "gemma-3-27b", &["--tensor-parallel", "8"]);
        let selections = plan["selections"].as_array().expect("a list");
        let of_vision = selections
            .iter()
            .find(|selection| selection["subject"] == "vision");
        assert_eq!(
            of_vision.map(|s| s["selected"].clone()),
            Some(vision.into()),
            "{machine}"
        );
        assert_eq!(
            plan["kernels"]["attention_decode"], decode,
            "{machine}: images attend in both directions"
        );
        let whole = plan["engine"]["extra"].to_string();
        assert_eq!(
            whole.contains("chunked-mm-input"),
            !machine.starts_with("mi"),
            "{machine}: {whole}"
        );
    }
}
