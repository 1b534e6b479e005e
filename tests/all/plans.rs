//! Plans for machines on file, as people read them, kept in `tests/golden`. `PLINTH_BLESS=1` writes them anew.

use crate::support::{acme, assert_golden, facts, model, plinth, plinth_with, root, temporary};
use serde_json::{Value, json};

/// Digests follow the compiler's version, and where a component lies is this machine's affair.
fn without_digests(plan: &str) -> String {
    let plan = plan.replace(&acme(), "acme.wasm");
    let mut out = String::new();
    let mut rest = plan.as_str();
    while let Some(at) = rest.find("sha256:") {
        out.push_str(&rest[..at]);
        out.push_str("sha256:…");
        let tail = &rest[at + "sha256:".len()..];
        let end = tail
            .find(|c: char| !c.is_ascii_hexdigit() && c != '…')
            .unwrap_or(tail.len());
        rest = &tail[end..];
    }
    out + rest
}

/// As if lines had no end: where they end depends on the length of this checkout's path.
fn unwrapped(plan: &str) -> String {
    plan.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The catalogue of a build for another architecture has other kernels.
#[cfg(target_arch = "x86_64")]
#[test]
fn machines_on_file_have_these_plans() {
    let machines = [
        "arm-graviton3",
        "epyc-zen3",
        "h100-box",
        "h100-box-cuda-build",
        "small-container",
        "xeon-spr-2s",
    ];
    for machine in machines {
        let plan = plinth(&["plan", &model(), "--facts", &facts(machine)]).succeeds();
        assert_golden(&format!("{machine}.txt"), &without_digests(&plan));
    }
}

/// Pairs of `bf16` take Intel's cores twice the time of `f32`, and AMD's half of it. With tiles there is no need of either.
#[cfg(target_arch = "x86_64")]
#[test]
fn pairs_of_bf16_serve_where_they_are_fast() {
    let attention = |machine: &str, change: &str| {
        let args = [
            "plan",
            &model(),
            "--facts",
            &facts(machine),
            "--what-if",
            change,
            "--json",
        ];
        let said: Value = serde_json::from_str(&plinth(&args).succeeds()).expect("it prints JSON");
        let turns = said["turns"].as_array().expect("a list");
        let turn = turns
            .iter()
            .find(|turn| turn["path"] == "attention.prefill");
        turn.map(|turn| turn["becomes"].clone())
    };
    assert_eq!(
        attention("xeon-spr-2s", "host.isa=-amx_tile"),
        Some("cpu.avx512.attention".into())
    );
    assert_eq!(
        attention("epyc-zen4", "host.isa=-avx512_bf16"),
        Some("cpu.avx512.attention".into()),
        "with pairs it is another"
    );
}

/// One query has little to multiply, but a long context makes it wait for that as for memory: the cache is of what pairs
/// take where they are fast, and nowhere else.
#[cfg(target_arch = "x86_64")]
#[test]
fn decode_attends_in_pairs_where_they_are_fast() {
    let plan = |machine: &str, more: &[&str]| {
        let plan = json_plan(&[&["--facts", &facts(machine)], more].concat());
        let dtype = plan["engine"]["kv_dtype"].as_str().map(str::to_owned);
        (
            dtype.expect("a cache"),
            plan["kernels"]["attention_decode"].clone(),
        )
    };
    let (pairs, lanes) = ("cpu.avx512-bf16.attention.pairs", "cpu.avx512.attention");
    assert_eq!(
        plan("epyc-zen4", &[]),
        ("bf16".to_owned(), json!(pairs)),
        "AMD"
    );
    let f16 = plan("epyc-zen4", &["--kv-dtype", "f16"]);
    assert_eq!(f16, ("f16".to_owned(), json!(lanes)), "another cache");
    let intel = plan("xeon-spr-2s", &["--kv-dtype", "bf16"]);
    assert_eq!(intel, ("bf16".to_owned(), json!(lanes)), "Intel");
}

/// A model that the engine can run is of no use if no kernel of the catalogue is said to serve it.
#[test]
fn every_kind_of_model_that_runs_has_a_plan_here() {
    let folder = root().join("tests/models/tiny");
    let kinds: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of tiny models")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(kinds.len() >= 9, "{kinds:?}");
    for kind in kinds {
        for model in [kind.clone(), kind.join("model.gguf")] {
            plinth(&["plan", &model.display().to_string()]).succeeds();
        }
    }
}

fn json_plan(args: &[&str]) -> Value {
    let model = model();
    let args = [&["plan", &model, "--json"], args].concat();
    serde_json::from_str(&plinth(&args).succeeds()).expect("a plan is JSON")
}

#[test]
fn a_vendors_component_changes_the_plan_and_no_line_of_the_runtime() {
    let machine = facts("xeon-spr-2s");
    let before = json_plan(&["--facts", &machine]);
    let after = json_plan(&["--facts", &machine, "--plugin", &acme()]);
    assert_eq!(
        (&before["platform"]["id"], &after["platform"]["id"]),
        (&json!("cpu"), &json!("acme"))
    );
    assert_eq!(after["kernels"]["attention_decode"], "cpu.avx2.attention");
    assert_ne!(
        before["kernels"]["attention_decode"],
        after["kernels"]["attention_decode"]
    );
    assert_eq!(
        (
            &before["block"]["block_size"],
            &after["block"]["block_size"]
        ),
        (&json!(16), &json!(32))
    );
    assert_eq!(after["engine"]["max_num_seqs"], 32);
    assert_eq!(after["engine"]["max_batched_tokens"], 4096);
    assert_ne!(before["digest"], after["digest"]);
    // The user still comes first.
    let user = json_plan(&[
        "--facts",
        &machine,
        "--plugin",
        &acme(),
        "--max-num-seqs",
        "5",
        "--block-size",
        "16",
        "--attention-kernel",
        "cpu.avx512.attention",
    ]);
    assert_eq!(user["engine"]["max_num_seqs"], 5);
    assert_eq!(user["block"]["block_size"], 16);
    assert_eq!(user["kernels"]["attention_decode"], "cpu.avx512.attention");
}

#[test]
fn a_vendors_component_leaves_machines_alone_that_it_does_not_know() {
    let args = [
        "plan",
        &model(),
        "--facts",
        &facts("arm-graviton3"),
        "--plugin",
        &acme(),
    ];
    let plan = plinth(&args).succeeds();
    assert!(plan.contains("platform     cpu "), "{plan}");
    assert!(
        unwrapped(&plan).contains("is not a machine that Acme sells"),
        "{plan}"
    );
    // Unless it is told to, by the one variable that it may see.
    let told = [("ACME_APPLIANCE", "rack-2")];
    let args = [
        "plan",
        &model(),
        "--plugin",
        &acme(),
        "--facts",
        &facts("epyc-zen3"),
    ];
    let plan = plinth_with(&args, "", &told).succeeds();
    assert!(plan.contains("sees ACME_APPLIANCE='rack-2'"), "{plan}");
}

#[test]
fn a_real_prompt_runs_on_the_vendors_plan() {
    let args = [
        "run",
        &model(),
        "The capital of France is",
        "--raw",
        "-n",
        "2",
        "--plugin",
        &acme(),
    ];
    let ran = plinth_with(&args, "", &[("ACME_APPLIANCE", "desk-1")]);
    assert!(ran.err.contains("acme"), "{}", ran.err);
    assert!(ran.succeeds().contains("Paris"));
}

#[test]
fn components_of_a_folder_are_loaded_and_bad_ones_are_findings() {
    let folder = temporary("plugins");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    std::fs::copy(acme(), folder.join("acme.wasm")).expect("it can be copied");
    std::fs::write(folder.join("broken.wasm"), "not a component").expect("it can be written");
    std::fs::write(
        folder.join("readme.txt"),
        "no component, and not said to be one",
    )
    .expect("yes");
    let folder = folder.display().to_string();
    let machine = facts("xeon-spr-2s");
    let args = ["plan", &model(), "--facts", &machine];
    for (flags, env) in [
        (&["--plugin-dir", &folder][..], None),
        (&[], Some(("PLINTH_PLUGIN_DIR", folder.as_str()))),
    ] {
        let env: Vec<_> = env.into_iter().collect();
        let plan = plinth_with(&[&args[..], flags].concat(), "", &env).succeeds();
        assert!(plan.contains("platform     acme "), "{plan}");
        assert!(
            plan.contains("broken.wasm") && plan.contains("expected a WebAssembly component"),
            "{plan}"
        );
        assert!(!plan.contains("readme.txt"), "{plan}");
    }
    let strict = [&args[..], &["--plugin-dir", &folder, "--strict"]].concat();
    plinth(&strict).fails(3, &["--strict", "broken.wasm"]);
    let missing = [&args[..], &["--plugin-dir", "no/such/folder"]].concat();
    plinth(&missing).fails(2, &["no/such/folder"]);
}

#[test]
fn one_component_given_twice_is_refused_twice() {
    let copy = temporary("acme-copy.wasm");
    std::fs::copy(acme(), &copy).expect("it can be copied");
    let copy = copy.display().to_string();
    let machine = facts("xeon-spr-2s");
    let args = [
        "plan",
        &model(),
        "--facts",
        &machine,
        "--plugin",
        &acme(),
        "--plugin",
        &copy,
    ];
    let plan = plinth(&args).succeeds();
    assert!(plan.contains("platform     cpu "), "{plan}");
    assert!(
        unwrapped(&plan).contains("the id 'acme' is claimed by"),
        "{plan}"
    );
    let wanted = [&args[..], &["--platform", "acme"]].concat();
    plinth(&wanted).fails(3, &["acme", "claimed by"]);
}

#[test]
fn what_is_asked_for_is_had_or_refused_with_all_reasons() {
    let plan = json_plan(&["--platform", "native"]);
    assert_eq!(plan["platform"]["id"], "native");
    let machine = facts("epyc-zen3");
    let args = ["plan", &model(), "--facts", &machine, "--platform"];
    plinth(&[&args[..], &["cuda"]].concat()).fails(3, &["cuda", "libcuda.so.1", "cpu (built in)"]);
    plinth(&[&args[..], &["abacus"]].concat()).fails(3, &["'abacus'", "cpu (built in)"]);
}

#[test]
fn a_plan_says_of_which_node_each_worker_is() {
    let machine = facts("xeon-spr-2s");
    for (threads, on_nodes, severity) in [
        ("112", [56, 56], Some("info")),
        // All on one node, and nobody reads across.
        ("8", [8, 0], None),
        // Not pinned: nobody knows who reads across.
        ("300", [0, 0], Some("warn")),
    ] {
        let plan = json_plan(&["--facts", &machine, "--threads", threads]);
        let nodes = plan["threads"]["nodes"].as_array().into_iter().flatten();
        let mut found = [0, 0];
        nodes.for_each(|node| found[node.as_u64().expect("a number") as usize] += 1);
        assert_eq!(found, on_nodes, "{threads} threads");
        let findings = plan["findings"].as_array().expect("a list");
        let about = findings
            .iter()
            .find(|finding| finding["diagnostic"]["code"] == "numa");
        let found = about.map(|finding| &finding["diagnostic"]["severity"]);
        assert_eq!(
            found,
            severity.map(Value::from).as_ref(),
            "{threads} threads"
        );
    }
}

#[test]
fn facts_read_back_are_the_same_facts() {
    let printed = plinth(&["facts", "--json"]).succeeds();
    let path = temporary("facts.json");
    std::fs::write(&path, &printed).expect("they can be written");
    let path = path.display().to_string();
    assert_eq!(
        plinth(&["facts", "--json", "--facts", &path]).succeeds(),
        printed
    );
    std::fs::write(&path, "{\"host\": 3}").expect("it can be written");
    plinth(&["plan", &model(), "--facts", &path]).fails(2, &[&path, "does not hold facts"]);
}

#[test]
fn a_plugin_can_be_looked_at_and_asked() {
    let listed = plinth(&["plugin", "list", "--plugin", &acme()]).succeeds();
    for expected in ["cpu 0.1.0", "cuda 0.1.0", "acme 1.0.0", "unavailable: "] {
        assert!(listed.contains(expected), "{listed}");
    }
    let seen = plinth(&["plugin", "inspect", &acme(), "--json"]).succeeds();
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(seen["descriptor"]["id"], "acme");
    assert_eq!(seen["imports"], json!(["plinth:platform/types@0.1.0"]));
    let machine = facts("xeon-spr-2s");
    let ask = |plugin: &str, question: &str, input: &str| {
        plinth(&[
            "plugin", "decide", plugin, question, "--facts", &machine, "--input", input,
        ])
    };
    let said = ask(&acme(), "select-attention", r#"{"phase": "prefill"}"#).succeeds();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["answer"]["chosen"]["selected"], "cpu.avx2.attention");
    assert_eq!(said["question"]["phase"], "prefill");
    ask("cpu", "select-attention", r#"{"phases": 1}"#).fails(2, &["'phases'", "phase"]);
    ask("cpu", "select-attention", "[").fails(2, &["--input"]);
    ask("cpu", "select-colour", "{}").fails(2, &["select-colour", "select-attention"]);
    ask("nowhere.wasm", "probe", "{}").fails(2, &["nowhere.wasm"]);
}

#[test]
fn every_question_of_the_interface_can_be_asked() {
    let questions = [
        "describe",
        "probe",
        "device-capabilities",
        "batch-defaults",
        "default-config",
        "check-config",
        "select-attention",
        "select-vision-attention",
        "choose-block-size",
        "kernel-priority",
        "plan-graphs",
        "plan-memory",
        "plan-threads",
        "plan-parallel",
        "plan-kv-transfer",
        "request-rules",
    ];
    let contract = std::fs::read_to_string(root().join("wit/platform.wit")).expect("the contract");
    for question in questions {
        assert!(
            contract.contains(&format!("{question}: func")),
            "{question} is in the contract"
        );
        let said = plinth(&[
            "plugin",
            "decide",
            "cpu",
            question,
            "--facts",
            &facts("epyc-zen3"),
        ])
        .succeeds();
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert!(!said["answer"].is_null(), "{question}: {said}");
    }
    assert_eq!(
        contract.matches(": func(").count(),
        questions.len() + 1,
        "all of it, and log"
    );
}
