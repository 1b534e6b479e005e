//! Who may answer to which name.

use crate::fake::{Fake, machine, registry};
use plinth_platform::plan::{Outcome, ProbeRecord};
use plinth_platform::registry::Candidate;
use plinth_platform::resolve::probe;

fn probed(candidates: impl IntoIterator<Item = Candidate>) -> Vec<ProbeRecord> {
    probe(&mut registry(candidates), &machine().into(), &[])
}

fn refusal(record: &ProbeRecord) -> &str {
    match &record.outcome {
        Outcome::Refused(why) => why,
        other => panic!("{}: {other:?}", record.id),
    }
}

#[test]
fn two_claimants_of_an_id_are_both_refused_with_file_and_digest() {
    let records = probed([
        Fake::new("acme").file("/a/acme.wasm"),
        Fake::new("other").file("/b/other.wasm"),
        Fake::new("acme").file("/c/copy.wasm"),
    ]);
    for record in [&records[0], &records[2]] {
        let why = refusal(record);
        for expected in ["'acme'", "/a/acme.wasm", "/c/copy.wasm", "sha256:of-acme"] {
            assert!(why.contains(expected), "expected {expected}: {why}");
        }
    }
    assert!(matches!(records[1].outcome, Outcome::Available(_)));
}

#[test]
fn a_third_claimant_does_not_bring_the_first_back() {
    let three = ["/1", "/2", "/3"].map(|path| Fake::new("acme").file(path));
    for record in probed(three) {
        let why = refusal(&record);
        assert!(
            why.contains("/1") && why.contains("/2") && why.contains("/3"),
            "{why}"
        );
    }
}

#[test]
fn names_of_built_ins_and_of_the_floor_are_reserved() {
    for id in ["cpu", "cuda", "native"] {
        let records = probed([Fake::new(id).file("/vendor.wasm")]);
        assert!(refusal(&records[0]).contains("reserved"), "{id}");
    }
    // The built-in itself is not disturbed by the impostor.
    let records = probed([
        Fake::new("cpu").built_in(),
        Fake::new("cpu").file("/x.wasm"),
    ]);
    assert!(matches!(records[0].outcome, Outcome::Available(_)));
    assert!(refusal(&records[1]).contains("reserved"));
}

#[test]
fn an_id_that_could_deceive_is_refused() {
    let long = "x".repeat(33);
    for id in ["", "CPU", "cp u", "cpu\n", "сpu", "a/b", &long] {
        let records = probed([Fake::new(id).file("/vendor.wasm")]);
        assert!(refusal(&records[0]).contains("its id is"), "{id:?}");
    }
}
