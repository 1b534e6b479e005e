//! Workers and the NUMA nodes that they are of.

use crate::fake::{Fake, machines, model, registry};
use plinth_platform::facts::Facts;
use plinth_platform::plan::{Plan, ThreadChoice};
use plinth_platform::policy::EngineConfig;
use plinth_platform::render;
use plinth_platform::resolve::{Wishes, resolve};

fn facts(name: &str) -> Facts {
    let machines = machines();
    let (_, facts) = machines.into_iter().find(|(n, _)| *n == name).unwrap();
    facts
}

fn planned(facts: &Facts, fake: Fake, threads: Option<u32>) -> Plan {
    let config = EngineConfig {
        threads: threads.unwrap_or(0),
        user_set: threads.map(|_| "threads".to_owned()).into_iter().collect(),
        ..EngineConfig::default()
    };
    let wishes = Wishes {
        config,
        ..Wishes::default()
    };
    let mut registry = registry([fake.built_in()]);
    let plan = resolve(
        &mut registry,
        &facts.clone().into(),
        &model("q4_1"),
        &wishes,
    );
    plan.unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// The nodes of the workers, and what people read of them.
fn of(facts: &Facts, threads: Option<u32>) -> (ThreadChoice, String) {
    let plan = planned(facts, Fake::new("cpu"), threads);
    let shown = render::plan(&plan).replace("\n               ", " ");
    let line = shown.lines().find(|line| line.starts_with("threads "));
    (plan.threads, line.unwrap().to_owned())
}

#[track_caller]
fn assert_shows(line: &str, end: Option<&str>) {
    match end {
        Some(end) => assert!(line.ends_with(&format!(" · {end}")), "{line}"),
        None => assert!(!line.contains("node"), "{line}"),
    }
}

#[test]
fn a_worker_is_of_the_node_of_its_cpu() {
    for (name, by_node, shown) in [
        (
            "xeon-spr-2s",
            &[(0, 56), (1, 56)][..],
            Some("56 on each of NUMA nodes 0 and 1, each with its share of every matrix"),
        ),
        (
            "epyc-zen3",
            &[(0, 6), (1, 6), (2, 6), (3, 6)],
            Some("6 on each of NUMA nodes 0, 1, 2 and 3, each with its share of every matrix"),
        ),
        ("arm-graviton3", &[(0, 64)], None),
        ("small-container", &[(0, 1)], None),
    ] {
        let facts = facts(name);
        let (threads, line) = of(&facts, None);
        assert_eq!(threads.by_node(), by_node, "{name}");
        assert_eq!(threads.nodes.len(), threads.cpus.len(), "{name}");
        for (cpu, node) in threads.cpus.iter().zip(&threads.nodes) {
            let known = facts.host.logical.iter().find(|logical| logical.id == *cpu);
            assert_eq!(known.unwrap().node, *node, "{name}: CPU {cpu}");
        }
        assert_shows(&line, shown);
    }
}

#[test]
fn nodes_need_not_have_the_same_number_of_workers() {
    let facts = facts("xeon-spr-2s");
    let cpus = of(&facts, None).0.cpus;
    let first = cpus.iter().position(|cpu| {
        let known = facts.host.logical.iter().find(|logical| logical.id == *cpu);
        known.unwrap().node == 1
    });
    // As many as are of node 0, and three more.
    let workers = first.unwrap() + 3;
    let (threads, line) = of(&facts, Some(workers as u32));
    assert_eq!(threads.by_node(), [(0, workers - 3), (1, 3)]);
    let shown = format!(
        "{} on NUMA node 0 and 3 on NUMA node 1, each with its share of every matrix",
        workers - 3
    );
    assert_shows(&line, Some(&shown));
}

#[test]
fn threads_that_are_not_pinned_are_of_no_node() {
    let (threads, line) = of(&facts("epyc-zen3"), Some(40));
    assert_eq!((threads.cpus, threads.nodes), (vec![], vec![]));
    assert_shows(&line, None);
}

#[test]
fn a_node_without_memory_for_this_process_has_no_share() {
    let mut facts = facts("epyc-zen3");
    facts.host.numa[0].visible = false;
    facts.host.numa[2].visible = false;
    // The workers of both count to the first that is left.
    assert_eq!(of(&facts, None).0.by_node(), [(1, 18), (3, 6)]);
}

#[test]
fn a_rank_that_names_a_node_is_of_that_one() {
    let facts = facts("xeon-spr-2s");
    let fake = Fake {
        numa: Some(1),
        ..Fake::new("cpu")
    };
    let plan = planned(&facts, fake, None);
    assert_eq!(plan.threads.by_node(), [(1, 112)]);
    assert_eq!(plan.thread_reason.numa, Some(1));
    // It is decided otherwise, so it is another plan.
    let by_cpu = planned(&facts, Fake::new("cpu"), None);
    assert_eq!(plan.threads.cpus, by_cpu.threads.cpus);
    assert_ne!(plan.digest, by_cpu.digest);
}

/// Plans that were written before workers had nodes are read as before.
#[test]
fn a_plan_without_nodes_is_one() {
    let old = r#"{"workers": 2, "cpus": [0, 1]}"#;
    let threads: ThreadChoice = serde_json::from_str(old).unwrap();
    assert_eq!((threads.workers, threads.by_node()), (2, vec![]));
}
