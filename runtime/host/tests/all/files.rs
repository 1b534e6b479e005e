//! Files that are no platform plugin: each is refused with what was found, what was expected, and what to do.

use crate::guests::{component, host};
use plinth_host::{LoadError, inspect};
use plinth_platform::policy::Platform;

fn refusal(bytes: &[u8]) -> LoadError {
    let loaded = host().load_bytes("vendor.wasm", bytes);
    loaded.expect_err("it is no platform plugin")
}

fn assemble(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_refused(bytes: &[u8], expected: &[&str]) {
    let text = refusal(bytes).to_string();
    for expected in expected.iter().chain(&["'vendor.wasm'"]) {
        assert!(text.contains(expected), "expected {expected:?} in: {text}");
    }
    assert!(text.len() < 1000, "{} bytes of message", text.len());
}

#[test]
fn what_is_no_component_is_named() {
    let expected = "expected a WebAssembly component";
    let cases: [(&[u8], &str); 7] = [
        (b"", "found an empty file"),
        (b"\0asm\x01\0\0\0", "found a core WebAssembly module"),
        (
            b"\0asm\x0e\0\x01\0",
            "a WebAssembly binary of another version",
        ),
        (b"\x7fELF\x02\x01\x01\0", "compiled code"),
        (b"(component)", "found text"),
        (b"#!/usr/bin/env python3\n", "found a file that begins with"),
        (b"\0asm\x0d\0\x01\0garbage", "a binary that is not valid"),
    ];
    for (bytes, found) in cases {
        assert_refused(bytes, &[found, expected]);
    }
}

#[test]
fn a_component_cut_anywhere_is_refused() {
    let whole = component("cpu");
    for part in [9, 100, whole.len() / 2, whole.len() - 1] {
        let error = refusal(&whole[..part]);
        let refused = matches!(
            error,
            LoadError::NotAComponent { .. } | LoadError::Interface { .. }
        );
        assert!(refused, "cut at {part}: {error}");
    }
}

#[test]
fn a_component_with_flipped_bytes_is_refused_or_runs_within_its_bounds() {
    let whole = component("cpu");
    // Without the shared cache: each is another component.
    let host = plinth_host::Host::new(&plinth_host::HostOptions::default()).expect("Wasm runs");
    // Where a byte flips decides which reader meets it: a prime step walks through all sections.
    for at in (8..whole.len()).step_by((whole.len() / 20) | 1) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        if let Ok(mut guest) = host.load_bytes("flipped.wasm", &flipped) {
            // Whatever it answers, it comes back.
            let _ = guest.describe();
            let _ = guest.probe(&crate::guests::facts());
        }
    }
}

#[test]
fn every_import_but_log_is_refused_by_name() {
    let wasi = r#"(component
        (import "wasi:cli/environment@0.2.0" (instance
            (export "get-environment" (func (result (list (tuple string string)))))))
        (import "exfiltrate" (func (param "what" string))))"#;
    let fix = "for wasm32-unknown-unknown";
    let expected = ["wasi:cli/environment@0.2.0", "exfiltrate", fix];
    assert_refused(&assemble(wasi), &expected);
}

#[test]
fn a_function_hidden_among_the_types_is_an_import() {
    let hidden = r#"(component
        (import "plinth:platform/types@0.1.0" (instance (export "read-file" (func)))))"#;
    assert_refused(&assemble(hidden), &["plinth:platform/types@0.1.0"]);
}

#[test]
fn another_interface_or_version_is_named() {
    let exporting = |name: &str| {
        assemble(&format!(
            r#"(component (instance $empty) (export "{name}" (instance $empty)))"#
        ))
    };
    let expected = "expected plinth:platform/platform@0.1.0";
    assert_refused(
        &exporting("plinth:platform/platform@0.9.0"),
        &[
            "plinth:platform/platform@0.9.0",
            expected,
            "another version",
        ],
    );
    assert_refused(
        &exporting("wasi:http/incoming-handler@0.2.0"),
        &["wasi:http/incoming-handler", expected, "something else"],
    );
    assert_refused(&assemble("(component)"), &["exports nothing", expected]);
}

#[test]
fn an_interface_of_the_right_name_and_other_types_is_refused() {
    let empty = r#"(component
        (instance $empty) (export "plinth:platform/platform@0.1.0" (instance $empty)))"#;
    let text = refusal(&assemble(empty)).to_string();
    assert!(
        text.contains("does not fit plinth:platform/platform@0.1.0"),
        "{text}"
    );
    assert!(text.contains("build it against"), "{text}");
}

#[test]
fn what_no_policy_needs_is_refused_before_it_is_compiled() {
    let mut large = component("cpu");
    large.resize((8 << 20) + 1, 0);
    assert_refused(&large, &["8388609 bytes", "at most 8388608"]);

    let in_module = |text: &str| assemble(&format!("(component (core module {text}))"));
    assert_refused(
        &in_module(&"(func)".repeat(20_001)),
        &["20001 functions", "at most 20000"],
    );
    let locals = format!("(func (local {}))", "i32 ".repeat(5_001));
    assert_refused(&in_module(&locals), &["5001 locals of one function"]);
    let long = format!("(func {})", "nop ".repeat(600 << 10));
    assert_refused(&in_module(&long), &["bytes of one function"]);
    let nested = format!("{}{}", "(component ".repeat(20), ")".repeat(20));
    assert_refused(&assemble(&nested), &["modules inside each other"]);
    let many = format!("(component {})", "(core module) ".repeat(100));
    assert_refused(&assemble(&many), &["modules and components", "at most 64"]);
    let types = "(type (func)) ".repeat(20_001);
    assert_refused(
        &in_module(&types),
        &["types, imports, exports and instances"],
    );
}

/// The honest component with one more core module inside, which is instantiated with it.
fn with_module(text: &str, instances: u8) -> Vec<u8> {
    use wasmparser::{Parser, Payload};
    let mut bytes = component("cpu");
    let (mut depth, mut modules) = (0, 0u8);
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.expect("it is valid") {
            Payload::ModuleSection { .. } => {
                modules += u8::from(depth == 0);
                depth += 1;
            }
            Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            _ => {}
        }
    }
    let module = assemble(text);
    let mut section = |id: u8, content: &[u8]| {
        bytes.push(id);
        // LEB128, three groups of seven bits.
        let len = content.len() as u32;
        bytes.extend(
            [0, 7, 14].map(|shift| (len >> shift) as u8 & 0x7f | u8::from(shift < 14) << 7),
        );
        bytes.extend(content);
    };
    section(1, &module);
    let instance = [0, modules, 0];
    let instances = [&[instances][..], &instance.repeat(instances.into())].concat();
    section(2, &instances);
    bytes
}

#[test]
fn a_bomb_at_the_start_is_bounded_like_a_call() {
    let cases = [
        (
            "(module (memory 65536))",
            1,
            "it took more than 16777216 bytes of memory",
        ),
        (
            "(module (table 20000 funcref))",
            1,
            "it took a table of more than 10000 elements",
        ),
        (
            "(module (func $f (loop (br 0))) (start $f))",
            1,
            "it took longer than 50 ms",
        ),
        (
            "(module (func $f (call $f)) (start $f))",
            1,
            "it recursed until its stack was full",
        ),
        ("(module (func $f unreachable) (start $f))", 1, "it gave up"),
        ("(module)", 20, "instance count"),
    ];
    for (module, instances, expected) in cases {
        let loaded = host().load_bytes("vendor.wasm", &with_module(module, instances));
        let mut guest = loaded.unwrap_or_else(|error| panic!("{module}: {error}"));
        let fault = guest.describe().expect_err(module);
        assert!(
            fault.message.contains(expected),
            "{module}: {}",
            fault.message
        );
        assert_eq!(
            fault.platform, "vendor.wasm",
            "no id was learnt, so the file is named"
        );
    }
}

#[test]
fn inspection_runs_nothing_and_tells_what_crosses_the_border() {
    let bytes = component("hostile");
    let seen = inspect(&host(), "hostile.wasm", &bytes).expect("it is a plugin");
    assert_eq!(seen.exports, ["plinth:platform/platform@0.1.0"]);
    assert_eq!(seen.imports, ["plinth:platform/types@0.1.0", "log"]);
    assert_eq!(seen.bytes, bytes.len());
    assert_eq!(seen.digest, plinth_host::digest(&bytes));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let missing = std::path::Path::new("no/such/plugin.wasm");
    let error = host().load_file(missing).expect_err("it is not there");
    assert!(
        error.to_string().contains("'no/such/plugin.wasm'"),
        "{error}"
    );
}
