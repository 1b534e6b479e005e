//! Which platform answers.

use crate::fake::{Fake, available, machine, machines, model, registry};
use plinth_platform::facts::MatmulCost;
use plinth_platform::plan::{DecidedBy, Outcome, Plan};
use plinth_platform::policy::{Decision, KernelRefusal, Probe, Severity};
use plinth_platform::registry::Candidate;
use plinth_platform::resolve::{Refusal, Wishes, resolve};
use std::sync::Arc;

fn planned(
    candidates: impl IntoIterator<Item = Candidate>,
    wishes: &Wishes,
) -> Result<Plan, Box<Refusal>> {
    resolve(
        &mut registry(candidates),
        &machine().into(),
        &model("q4_1"),
        wishes,
    )
}

fn chosen(candidates: impl IntoIterator<Item = Candidate>) -> Plan {
    planned(candidates, &Wishes::default()).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn with_score(id: &str, score: u32) -> Fake {
    Fake {
        probe: Ok(available(score)),
        ..Fake::new(id)
    }
}

fn wanting(id: &str) -> Wishes {
    Wishes {
        platform: Some(id.to_owned()),
        ..Wishes::default()
    }
}

#[test]
fn of_built_ins_the_best_score_wins() {
    let plan = chosen([
        with_score("cpu", 10).built_in(),
        with_score("cuda", 100).built_in(),
    ]);
    assert_eq!(plan.platform.id, "cuda");
    assert!(
        plan.platform.reason.contains("100"),
        "{}",
        plan.platform.reason
    );
}

#[test]
fn one_out_of_tree_goes_before_better_built_ins() {
    let plan = chosen([
        with_score("cuda", 100).built_in(),
        with_score("acme", 1).file("/acme"),
    ]);
    assert_eq!(plan.platform.id, "acme");
    // One that is not available does not stand in the way.
    let plan = chosen([
        with_score("cpu", 10).built_in(),
        Fake::unavailable("acme", "no device").file("/acme"),
    ]);
    assert_eq!(plan.platform.id, "cpu");
}

#[test]
fn two_out_of_tree_are_an_error_that_names_both_and_the_way_out() {
    let two = || {
        [
            Fake::new("acme").file("/acme"),
            Fake::new("zeta").file("/zeta"),
        ]
    };
    let text = planned(two(), &Wishes::default())
        .expect_err("two")
        .to_string();
    for expected in ["acme", "/acme", "zeta", "/zeta", "--platform ID"] {
        assert!(text.contains(expected), "{text}");
    }
    let plan = planned(two(), &wanting("zeta")).expect("it was named");
    assert_eq!(
        (plan.platform.id.as_str(), plan.platform.by),
        ("zeta", DecidedBy::User)
    );
}

#[test]
fn what_the_user_names_is_had_or_every_reason_is_told() {
    let candidates = || {
        [
            Fake::new("cpu").built_in(),
            Fake::unavailable("cuda", "no driver").built_in(),
            Fake::failing("acme", "it trapped").file("/acme"),
        ]
    };
    for wanted in ["cuda", "acme", "nobody"] {
        let text = planned(candidates(), &wanting(wanted))
            .expect_err(wanted)
            .to_string();
        for expected in [wanted, "no driver", "undo 'no driver'", "it trapped", "cpu"] {
            assert!(text.contains(expected), "{wanted}: {text}");
        }
    }
    assert_eq!(
        planned(candidates(), &wanting("cpu"))
            .expect("it is there")
            .platform
            .id,
        "cpu"
    );
}

#[test]
fn the_floor_serves_when_nobody_else_does() {
    let plan = chosen([Fake::unavailable("cpu", "on holiday").built_in()]);
    assert_eq!(plan.platform.id, "native");
    assert!(
        matches!(plan.probes[0].outcome, Outcome::Unavailable(_)),
        "the reason is kept"
    );
    assert_eq!(chosen([]).platform.id, "native");
    assert_eq!(
        planned([], &wanting("native"))
            .expect("it is always there")
            .platform
            .id,
        "native"
    );
}

#[test]
fn a_failed_probe_is_a_finding_or_with_strict_an_error() {
    let candidates = || {
        [
            Fake::new("cpu").built_in(),
            Fake::failing("acme", "it trapped").file("/acme"),
        ]
    };
    let plan = chosen(candidates());
    let failed = Outcome::Failed("probe: it trapped".to_owned());
    assert_eq!(plan.probes[1].outcome, failed);
    let strict = Wishes {
        strict: true,
        ..Wishes::default()
    };
    let text = planned(candidates(), &strict)
        .expect_err("strict")
        .to_string();
    assert!(
        text.contains("--strict") && text.contains("it trapped"),
        "{text}"
    );
}

#[test]
fn who_answers_wrongly_is_set_aside_unless_the_user_wants_it() {
    let liar = || Fake {
        attention: Some(Decision::Refused(KernelRefusal::default())),
        ..Fake::new("acme")
    };
    let lying = |fake: Fake| {
        let mut fake = fake;
        fake.batch = Some(plinth_platform::policy::BatchDefaults {
            max_batched_tokens: 0,
            max_num_seqs: 0,
            reason: String::new(),
        });
        fake
    };
    let candidates = || [Fake::new("cpu").built_in(), lying(liar()).file("/acme")];
    let plan = chosen(candidates());
    assert_eq!(
        plan.platform.id, "cpu",
        "one plan never mixes two platforms"
    );
    let aside = plan.probes[1].set_aside.as_deref().unwrap_or_default();
    assert!(aside.contains("batch-defaults"), "{aside}");
    let refusal = planned(candidates(), &wanting("acme")).expect_err("it was asked for");
    assert!(matches!(*refusal, Refusal::BadAnswer { .. }), "{refusal}");
}

#[test]
fn a_probe_may_not_be_empty_nor_contradict_the_facts() {
    let senseless = [
        Probe::Unavailable(Vec::new()),
        Probe::Available(plinth_platform::policy::Availability {
            devices: vec![9],
            score: 1,
            notes: Vec::new(),
        }),
    ];
    for probe in senseless {
        let fake = Fake {
            probe: Ok(probe.clone()),
            ..Fake::new("acme")
        };
        let plan = chosen([Fake::new("cpu").built_in(), fake.file("/acme")]);
        assert!(
            matches!(plan.probes[1].outcome, Outcome::Failed(_)),
            "{probe:?}"
        );
    }
}

#[test]
fn a_platform_sees_the_variables_that_it_names_and_no_others() {
    let fake = Fake {
        env_allowlist: vec!["ACME_DEVICES".to_owned()],
        ..Fake::new("acme")
    };
    let seen = fake.seen_env.clone();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let wishes = Wishes {
        env: vec![pair("TOKEN", "secret"), pair("ACME_DEVICES", "0,1")],
        ..Wishes::default()
    };
    let plan = planned([fake.file("/acme")], &wishes).expect("it serves");
    assert_eq!(
        *seen.lock().expect("no panic"),
        [vec![pair("ACME_DEVICES", "0,1")]]
    );
    assert_eq!(plan.platform.env, [pair("ACME_DEVICES", "0,1")]);
    let all = serde_json::to_string(&plan).expect("a plan is JSON");
    assert!(
        !all.contains("secret"),
        "no other variable gets into the plan"
    );
}

#[test]
fn what_is_probed_is_probed_once() {
    let fake = Fake::new("acme");
    let seen = fake.seen_env.clone();
    chosen([fake.file("/acme")]);
    assert_eq!(seen.lock().expect("no panic").len(), 1);
}

#[test]
fn a_rejected_configuration_is_refused_with_the_platforms_words() {
    let mut fake = Fake::new("acme");
    fake.check.diagnostics = vec![
        crate::fake::diagnostic(Severity::Warn, "slow"),
        crate::fake::diagnostic(Severity::Reject, "too hot"),
    ];
    let refusal = planned([fake.file("/acme")], &Wishes::default()).expect_err("rejected");
    let text = refusal.to_string();
    assert!(text.contains("too hot; fix: undo 'too hot'"), "{text}");
    assert!(!text.contains("slow"), "a warning is no reason: {text}");
}

/// Costs of `few` and `many` by (rows, µs of few, µs of many).
fn costs(few: &str, many: &str, at: &[(u32, f64, f64)]) -> Vec<MatmulCost> {
    let cost = |kernel: &str, tokens, us| MatmulCost {
        kernel: kernel.to_owned(),
        format: "q4_1".to_owned(),
        outputs: 576,
        inputs: 1536,
        weight_bytes: 576 * 1536 * 5 / 8,
        tokens,
        us,
    };
    let both = |&(tokens, a, b)| [cost(few, tokens, a), cost(many, tokens, b)];
    at.iter().flat_map(both).collect()
}

/// The plan of the floor for a machine with tiles, with costs by rows.
fn plan_with_costs(at: &[(u32, f64, f64)]) -> Plan {
    let machines = machines();
    let (_, mut facts) = machines
        .into_iter()
        .find(|(name, _)| *name == "xeon-spr-2s")
        .expect("it is on file");
    facts.costs = costs("cpu.avx512-vnni.matmul.int8", "cpu.amx.matmul.bf16", at);
    let facts = Arc::new(facts);
    resolve(
        &mut registry([]),
        &facts,
        &model("q4_1"),
        &Wishes::default(),
    )
    .expect("a plan")
}

#[cfg(target_arch = "x86_64")]
#[test]
fn measured_costs_say_from_how_many_rows_a_kernel_serves() {
    let unmeasured = plan_with_costs(&[]);
    let many = |plan: &Plan| plan.kernels.matmul_many.clone();
    assert_eq!(many(&unmeasured).len(), 1, "{:?}", unmeasured.kernels);
    assert_eq!(unmeasured.kernels.many_from, []);

    let at = [(8, 80.0, 100.0), (16, 160.0, 100.0)];
    let measured = plan_with_costs(&at);
    assert_eq!(many(&measured), many(&unmeasured));
    assert_eq!(measured.kernels.many_from, [("q4_1".to_owned(), 10)]);
    let why = "from 10 rows on, as measured: 100 µs against 80 µs at 8 rows, 100 µs against 160 µs at 16 rows";
    let reasons: Vec<_> = measured.selections.iter().map(|s| &s.reason).collect();
    assert!(reasons.iter().any(|r| r.ends_with(why)), "{reasons:#?}");
    assert_ne!(measured.digest, unmeasured.digest);
    assert_eq!(measured, plan_with_costs(&at), "same facts, same plan");

    let slower = plan_with_costs(&[(8, 80.0, 100.0), (512, 800.0, 900.0)]);
    assert_eq!((many(&slower), slower.kernels.many_from), (vec![], vec![]));
    let why =
        "'cpu.amx.matmul.bf16' is not faster for many rows: 900 µs against 800 µs at 512 rows";
    let reasons: Vec<_> = slower.selections.iter().map(|s| &s.reason).collect();
    assert!(reasons.iter().any(|r| r.ends_with(why)), "{reasons:#?}");
}
