//! What users get wrong: exit code 2, and an error that names the file or field, what was found and what was expected.

use crate::support::{model, plinth, temporary};

/// The real model with a part changed.
fn broken(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = std::fs::read(model()).expect("the model can be read");
    change(&mut bytes);
    let path = temporary(name);
    std::fs::write(&path, bytes).expect("it can be written");
    path.display().to_string()
}

#[test]
fn a_file_that_is_no_model_is_named() {
    plinth(&["run", "no-such-model.gguf", "hi"]).fails(2, &["no-such-model.gguf"]);
    plinth(&["run", "README.md", "hi"]).fails(2, &["README.md"]);
    plinth(&["run", "tests", "hi"]).fails(2, &["tests", "config.json"]);
    plinth(&["plan", "tests/facts/h100-box.json"]).fails(2, &["h100-box.json"]);
}

#[test]
fn a_broken_model_is_named_with_what_is_wrong() {
    let half = broken("half.gguf", |bytes| bytes.truncate(bytes.len() / 2));
    plinth(&["run", &half, "hi"]).fails(2, &["half.gguf"]);
    let head = broken("head.gguf", |bytes| bytes.truncate(1000));
    plinth(&["run", &head, "hi"]).fails(2, &["head.gguf"]);
    let version = broken("version.gguf", |bytes| bytes[4] = 99);
    plinth(&["run", &version, "hi"]).fails(2, &["version.gguf", "99"]);
    let count = broken("count.gguf", |bytes| bytes[8..16].fill(0xff));
    plinth(&["run", &count, "hi"]).fails(2, &["count.gguf"]);
}

#[test]
fn senseless_flags_are_refused_with_the_range() {
    let cases: [(&[&str], &str); 9] = [
        (&["--temperature", "nan"], "temperature"),
        (&["--temperature", "-1"], "temperature"),
        (&["--top-p", "0"], "top"),
        (&["--min-p", "2"], "min"),
        (&["--repetition-penalty", "0"], "repetition"),
        (&["--logit-bias", "5"], "logit-bias"),
        (&["--kv-cache-memory", "lots"], "kv-cache-memory"),
        (&["--max-tokens", "-3"], "'-3'"),
        (&["--plugin", "README.md"], "README.md"),
    ];
    for (flags, expected) in cases {
        plinth(&[&["run", &model(), "hi"], flags].concat()).fails(2, &[expected]);
    }
    // A wish that no platform can grant is a plan refused, which scripts may tell from a wrong flag.
    let cases: [(&[&str], &str); 5] = [
        (&["--max-model-len", "100000"], "8,192"),
        (&["--dtype", "f8"], "f8"),
        (&["--attention-kernel", "cpu.abacus"], "cpu.abacus"),
        (&["--kv-cache-memory", "900T"], "--kv-cache-memory"),
        (&["--block-size", "17"], "17"),
    ];
    for (flags, expected) in cases {
        plinth(&[&["plan", &model()], flags].concat()).fails(3, &[expected]);
    }
}

#[test]
fn a_plan_for_another_machine_is_shown_but_not_run() {
    let facts = crate::support::facts("arm-graviton3");
    plinth(&["plan", &model(), "--facts", &facts]).succeeds();
    let arm = plinth(&["run", &model(), "hi", "-n", "1", "--facts", &facts]);
    // 64 workers on CPUs that are not there.
    if std::thread::available_parallelism().is_ok_and(|n| n.get() < 64) {
        arm.fails(3, &["another machine"]);
    }
}

#[test]
fn help_teaches_and_every_verb_has_it() {
    let help = plinth(&["--help"]).succeeds();
    for verb in [
        "run",
        "batch",
        "plan",
        "facts",
        "doctor",
        "tokenize",
        "detokenize",
        "perplexity",
        "bench",
        "calibrate",
        "convert",
        "synthetic",
        "plugin",
    ] {
        assert!(help.contains(verb), "{help}");
        let help = plinth(&[verb, "--help"]).succeeds();
        assert!(
            help.contains("Examples:") || verb == "plugin",
            "{verb} --help has no example"
        );
    }
    let completions = plinth(&["completions", "bash"]).succeeds();
    assert!(completions.contains("perplexity"));
    plinth(&["rnu"]).fails(2, &["rnu", "--help"]);
}
