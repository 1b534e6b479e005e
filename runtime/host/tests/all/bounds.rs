//! Every way to take more than a call may: each ends with the bound's name, and the plan goes on without the guest.

use crate::guests::{self, facts, facts_with_attack, host_with_log, hostile, model, registry};
use plinth_platform::facts::Facts;
use plinth_platform::plan::Outcome;
use plinth_platform::policy::{Decision, Platform};
use plinth_platform::resolve::{Wishes, resolve};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is said of each attack.
const ATTACKS: [(&str, &str); 13] = [
    ("loop", "probe: it took longer than 50 ms"),
    (
        "loop-of-logs",
        "probe: wrote more than 64 log lines in one call",
    ),
    ("grow", "probe: it took more than 16777216 bytes of memory"),
    ("recurse", "probe: it recursed until its stack was full"),
    (
        "large-frames",
        "probe: it trapped: wasm trap: out of bounds memory access",
    ),
    (
        "trap",
        "probe: it trapped: it gave up (a panic, or an abort)",
    ),
    ("huge-log", "probe: wrote a log line"),
    (
        "log-flood",
        "probe: wrote more than 64 log lines in one call",
    ),
    (
        "long-answer",
        "probe: its answer is larger than the 1048576 bytes that the host lifts",
    ),
    (
        "many-answers",
        "probe: its answer is larger than the 1048576 bytes that the host lifts",
    ),
    (
        "control-characters",
        "probe gave an answer that cannot be: ",
    ),
    ("no-reason", "probe gave an answer that cannot be: "),
    ("no-such-device", "probe gave an answer that cannot be: "),
];

#[test]
fn an_attack_ends_with_its_reason_and_the_plan_goes_on() {
    let mut registry = registry();
    for (attack, expected) in ATTACKS {
        let wishes = Wishes {
            env: vec![("ATTACK".to_owned(), attack.to_owned())],
            ..Wishes::default()
        };
        let started = Instant::now();
        let plan = resolve(&mut registry, &facts(), &model(), &wishes);
        let took = started.elapsed();
        let plan = plan.unwrap_or_else(|refusal| panic!("{attack}: {refusal}"));
        println!("{attack}: {took:?}");
        assert_eq!(plan.platform.id, "cpu", "{attack}");
        let record = plan.probes.iter().find(|record| record.id == "hostile");
        let outcome = &record.expect("it was probed").outcome;
        let Outcome::Failed(message) = outcome else {
            panic!("{attack}: {outcome:?}");
        };
        assert!(message.contains(expected), "{attack}: {message}");
        assert!(
            message.len() < 500,
            "{attack}: {} bytes of message",
            message.len()
        );
        // Not a measurement (that is `benches/boundary.rs`): a bound that does not bind takes forever.
        assert!(took < Duration::from_secs(5), "{attack}: {took:?}");
    }
}

#[test]
fn strict_refuses_to_go_on_without_it() {
    let wishes = Wishes {
        strict: true,
        env: vec![("ATTACK".to_owned(), "loop".to_owned())],
        ..Wishes::default()
    };
    let refusal = resolve(&mut registry(), &facts(), &model(), &wishes).expect_err("strict");
    let text = refusal.to_string();
    assert!(text.contains("hostile") && text.contains("50 ms"), "{text}");
}

#[test]
fn after_an_error_the_next_question_meets_a_new_instance() {
    let mut guest = hostile();
    let before = guest.describe().expect("it can say who it is");
    for attack in ["grow", "trap", "loop"] {
        let fault = guest.probe(&facts_with_attack(attack)).expect_err(attack);
        assert_eq!(
            (fault.question.as_str(), fault.platform.as_str()),
            ("probe", "hostile")
        );
        assert_eq!(guest.describe().as_ref(), Ok(&before), "after {attack}");
    }
}

#[test]
fn a_guest_is_asked_the_same_and_answers_the_same() {
    let mut guest = hostile();
    let first = guest.probe(&facts_with_attack("none"));
    for _ in 0..3 {
        guest.restart().expect("it starts");
        assert_eq!(guest.probe(&facts_with_attack("none")), first);
    }
}

#[test]
fn log_lines_reach_the_reader_with_the_platforms_name_and_nothing_hidden() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let host = host_with_log(Some(Arc::new(
        move |platform: &str, severity, line: &str| {
            kept.lock()
                .expect("no test panics here")
                .push(format!("{platform} {severity:?} {line}"));
        },
    )));
    let component = crate::guests::component("hostile");
    let mut guest = host
        .load_bytes("hostile.wasm", &component)
        .expect("it loads");
    guest.describe().expect("it can say who it is");
    let _ = guest.probe(&facts_with_attack("log-flood"));
    let lines = lines.lock().expect("no test panics here");
    assert_eq!(lines.len(), 64, "what it wrote before its bound is kept");
    assert_eq!(lines[3], "hostile Warn line 3");
}

#[test]
fn every_answer_is_about_the_facts_that_it_was_asked_with() {
    let mut guest = guests::host()
        .load_bytes("cpu", &guests::component("cpu"))
        .expect("it loads");
    let wide = guests::facts();
    let mut narrow = Facts::clone(&wide);
    narrow.host.isa.clear();
    let narrow = Arc::new(narrow);
    let mut chosen = |facts: &Arc<Facts>| match guest.select_attention(facts, &guests::attention())
    {
        Ok(Decision::Chosen(choice)) => choice.selected,
        other => panic!("nothing chosen: {other:?}"),
    };
    // Facts are handed over once: going back and forth must not mix them up.
    for _ in 0..3 {
        assert_eq!(chosen(&wide), "cpu.avx2.attention");
        assert_eq!(chosen(&narrow), "cpu.portable.attention");
        assert_eq!(chosen(&narrow), "cpu.portable.attention");
    }
}
