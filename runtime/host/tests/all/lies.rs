//! Answers that are well formed and false: the plan is made without the liar, and says what it said.

use crate::guests::{facts, model, registry};
use plinth_platform::policy::EngineConfig;
use plinth_platform::resolve::{Refusal, Wishes, resolve};

fn wishes(lie: &str) -> Wishes {
    Wishes {
        env: vec![("ATTACK".to_owned(), lie.to_owned())],
        ..Wishes::default()
    }
}

/// The question and what is wrong with the answer.
const LIES: [(&str, &str); 18] = [
    ("unknown-kernel", "select-attention"),
    ("not-in-ranking", "select-attention"),
    ("unmet-kernel", "select-attention"),
    ("wrong-operation", "select-attention"),
    ("rejected-without-reason", "select-attention"),
    ("loop-in-decision", "select-attention"),
    ("unknown-setting", "check-config"),
    ("out-of-range", "check-config"),
    ("wrong-type", "check-config"),
    ("nan", "check-config"),
    ("twice", "check-config"),
    ("block-zero", "choose-block-size"),
    ("block-odd", "choose-block-size"),
    ("all-memory", "plan-memory"),
    ("many-threads", "plan-threads"),
    ("unknown-cpu", "plan-threads"),
    ("unknown-rule", "request-rules"),
    ("senseless-rule", "request-rules"),
];

#[test]
fn a_lie_is_found_and_the_plan_goes_on() {
    let mut registry = registry();
    for (lie, expected) in LIES {
        let plan = resolve(&mut registry, &facts(), &model(), &wishes(lie));
        let plan = plan.unwrap_or_else(|refusal| panic!("{lie}: {refusal}"));
        assert_eq!(plan.platform.id, "cpu", "{lie}");
        let record = plan.probes.iter().find(|record| record.id == "hostile");
        let aside = record.expect("it was probed").set_aside.as_deref();
        assert!(
            aside.is_some_and(|why| why.contains(expected)),
            "{lie}: {aside:?}"
        );
    }
}

#[test]
fn honest_it_is_chosen() {
    let plan = resolve(&mut registry(), &facts(), &model(), &wishes("none"));
    assert_eq!(plan.expect("it is honest").platform.id, "hostile");
}

#[test]
fn what_the_user_set_stands() {
    let with_user = |lie: &str, allow_overrides| Wishes {
        config: EngineConfig {
            max_num_seqs: 9,
            user_set: vec!["max-num-seqs".to_owned()],
            ..EngineConfig::default()
        },
        allow_overrides,
        ..wishes(lie)
    };
    let mut registry = registry();
    let mut plan = |lie, allow| resolve(&mut registry, &facts(), &model(), &with_user(lie, allow));
    // A patch that does not say that it overrides is an answer that cannot be.
    let other = plan("against-the-user", false).expect("another platform serves");
    assert_eq!(
        (other.platform.id.as_str(), other.engine.max_num_seqs),
        ("cpu", 9)
    );
    let refusal = plan("override", false).expect_err("the user has set it");
    assert!(matches!(*refusal, Refusal::Overrides { .. }), "{refusal}");
    assert!(refusal.to_string().contains("max-num-seqs"), "{refusal}");
    let granted = plan("override", true).expect("the user allows it");
    assert_eq!(granted.engine.max_num_seqs, 3);
    let told = granted
        .findings
        .iter()
        .any(|finding| finding.diagnostic.code == "overridden");
    assert!(told, "an override is visible");
}
