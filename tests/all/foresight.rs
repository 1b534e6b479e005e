//! Plans for machines that are not here: why, what if, what differs, and as recorded.

use crate::support::{Ran, acme, facts, model, model_facts, plinth, temporary};
use serde_json::Value;

/// A plan of what vLLM would run.
fn plan(machine: &str, model: &str, more: &[&str]) -> Ran {
    let (machine, model) = (facts(machine), model_facts(model));
    let mut args = vec![
        "plan",
        "--model",
        &model,
        "--facts",
        &machine,
        "--catalogue",
        "vllm-0.22.1",
    ];
    args.extend(more);
    plinth(&args)
}

fn json(ran: Ran) -> Value {
    serde_json::from_str(&ran.succeeds()).expect("it prints JSON")
}

#[test]
fn why_names_the_facts_that_a_decision_rests_on() {
    let said = plan("h100-1", "smollm2-135m", &["--why", "attention.decode"]).succeeds();
    for expected in [
        "attention.decode: FLASH_ATTN",
        "decided by the platform cuda (sha256:",
        "not        TURBOQUANT: kv_cache_dtype not supported",
        "devices.0.capability",
        "with 10.0 it would be FLASHINFER",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(
        !said.contains("host.model"),
        "its name sways nothing: {said}"
    );
    plan("h100-1", "smollm2-135m", &["--why", "colour"])
        .fails(2, &["'colour'", "attention.decode"]);
}

#[test]
fn what_if_finds_the_least_change() {
    let report = json(plan(
        "h100-1",
        "smollm2-135m",
        &["--what-if", "devices.capability=7.0", "--json"],
    ));
    let turn = |path: &str| {
        let turns = report["turns"].as_array().expect("a list");
        let turn = turns.iter().find(|turn| turn["path"] == path);
        turn.map(|turn| (turn["becomes"].clone(), turn["from"].clone()))
    };
    assert_eq!(
        turn("attention.decode"),
        Some(("TRITON_ATTN".into(), "up to 7.2".into()))
    );
    assert_eq!(turn("dtype"), Some(("f16".into(), "up to 7.5".into())));
    assert_eq!(turn("batch.max-num-seqs"), None, "the memory is the same");
    let memory = plan(
        "h100-1",
        "smollm2-135m",
        &["--what-if", "devices.memory-total=16G"],
    )
    .succeeds();
    assert!(
        memory.contains("256 up to 70 GiB (75161927679 bytes)"),
        "{memory}"
    );
}

#[test]
fn a_fact_without_a_value_is_walked_through() {
    let said = plan(
        "h100-1",
        "smollm2-135m",
        &["--what-if", "devices.capability"],
    )
    .succeeds();
    for expected in [
        "FLASH_ATTN from 8.0",
        "FLASHINFER from 7.5",
        "HND from 10.0",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let isa = plan("xeon-spr-2s", "smollm2-135m", &["--what-if", "host.isa"]).succeeds();
    assert!(isa.contains("CPU_ATTN/vec without amx_tile"), "{isa}");
}

#[test]
fn a_package_and_a_switch_are_facts() {
    let with = ["--what-if", "packages=+aiter"];
    let said = plan("mi300x-8", "deepseek-v3", &with).succeeds();
    assert!(said.contains("AiterFp8BlockScaledMMKernel"), "{said}");
    assert!(said.contains("with aiter"), "{said}");
}

#[test]
fn a_fact_that_is_none_is_refused() {
    for (change, expected) in [
        ("host.colour=red", "there is no fact 'host.colour', only"),
        ("devices.capability=fast", "expected 8.0"),
        ("host.budget.memory=much", "expected a number"),
        ("devices.99.name=x", "has 1 entries"),
        ("host.os", "give a value"),
    ] {
        plan("h100-1", "smollm2-135m", &["--what-if", change]).fails(2, &[expected]);
    }
}

#[test]
fn a_difference_is_laid_to_the_fact_that_makes_it() {
    let (a, b) = (facts("a100-80gb-8"), facts("h200-8"));
    let model = model_facts("llama-3.3-70b");
    let args = [
        "plan",
        "--model",
        &model,
        "--catalogue",
        "vllm-0.22.1",
        "--json",
        "--diff",
        &a,
        &b,
    ];
    let changes = json(plinth(&args));
    let because = |path: &str| {
        let change = changes
            .as_array()
            .expect("a list")
            .iter()
            .find(|change| change["path"] == path);
        change
            .map(|change| change["because_of"].to_string())
            .unwrap_or_default()
    };
    assert!(
        because("batch.max-num-seqs").contains("devices.name"),
        "{changes:#}"
    );
    assert!(
        because("fp8-format").contains("devices.capability"),
        "{changes:#}"
    );
    let same = [
        "plan",
        "--model",
        &model,
        "--catalogue",
        "vllm-0.22.1",
        "--diff",
        &a,
        &a,
    ];
    assert_eq!(plinth(&same).succeeds(), "nothing is decided differently\n");
    plinth(&["plan", "--model", &model, "--diff", &a, &model])
        .fails(2, &["expected two of a kind"]);
}

#[test]
fn a_recorded_plan_is_asked_again_anywhere() {
    let path = temporary("recorded.json").display().to_string();
    let machine = facts("xeon-spr-2s");
    let record = ["plan", &model(), "--facts", &machine, "--record", &path];
    let said = plinth(&record).succeeds();
    assert!(said.starts_with("recorded "), "{said}");
    let again = plinth(&["plugin", "replay", &path]).succeeds();
    let last = again.lines().last().unwrap_or_default().to_owned();
    let (asked, equal) = last
        .strip_prefix("replayed ")
        .and_then(|rest| rest.split_once(": "))
        .expect("it counts");
    assert_eq!(equal, format!("{asked} equal"), "{again}");
    // A vendor's plugin, asked the same, says what it would have said.
    let vendor = plinth(&["plugin", "replay", &path, "--plugin", &acme()]);
    assert!(
        vendor.out.contains("batch-defaults       0 of 1 equal"),
        "{}",
        vendor.out
    );
    vendor.fails(1, &["differ"]);
    std::fs::write(&path, "{\"recording\": 9}").expect("it can be written");
    plinth(&["plugin", "replay", &path]).fails(2, &["no recording of this version"]);
}

#[test]
fn a_fleet_is_a_table_for_people_programs_and_browsers() {
    let folder = temporary("fleet");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    for name in ["h100-1", "xeon-spr-2s", "t4-1"] {
        std::fs::copy(facts(name), folder.join(format!("{name}.json"))).expect("it is there");
    }
    // A name that would like to be part of a page.
    let hostile = std::fs::read_to_string(facts("t4-1")).expect("it is there");
    let hostile = hostile.replace("Tesla T4", "<script>alert(1)</script>");
    std::fs::write(folder.join("odd, \"name\".json"), hostile).expect("it can be written");
    let (fleet, page) = (
        folder.display().to_string(),
        temporary("fleet.html").display().to_string(),
    );
    let (small, large) = (model_facts("smollm2-135m"), model_facts("deepseek-v3"));
    let base = [
        "plan",
        "--fleet",
        &fleet,
        "--model",
        &small,
        "--model",
        &large,
        "--catalogue",
        "vllm-0.22.1",
    ];
    let with = |more: &[&str]| plinth(&[&base[..], more].concat()).succeeds();
    let table = with(&["--html", &page]);
    assert!(table.ends_with("4 of 8 can be served\n"), "{table}");
    assert!(
        table.contains("refused: weights and activations do not fit"),
        "{table}"
    );
    let html = std::fs::read_to_string(&page).expect("it was written");
    assert!(!html.contains("<script>alert"), "a name wrote the page");
    assert_eq!(html.matches("<tr class=").count(), 8);
    let csv = with(&["--csv"]);
    assert_eq!(
        csv.lines().next().map(|line| line.split(',').count()),
        Some(14)
    );
    assert!(csv.contains("\"odd, \"\"name\"\"\""), "{csv}");
    let rows: Value = serde_json::from_str(&with(&["--json"])).expect("JSON");
    assert_eq!(rows.as_array().map(Vec::len), Some(8));
    plinth(&["plan", "--fleet", "/nowhere", "--model", &small]).fails(2, &["'/nowhere'"]);
    plinth(&["plan", "--fleet", &fleet]).fails(2, &["<MODEL>"]);
}
