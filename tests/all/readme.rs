//! What README.md shows is what happens.

use crate::support::{acme, model, plinth_in, root, temporary};

/// Fenced blocks, with what follows the fence.
fn blocks() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md can be read");
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some((kind.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn the_first_two_blocks_are_the_two_commands() {
    let commands = ["bash examples/quickstart.sh\n", "bash tests/run.sh\n"];
    for (block, command) in blocks().iter().zip(commands) {
        assert_eq!(*block, ("bash".to_owned(), command.to_owned()));
    }
}

#[test]
fn every_command_works_as_it_stands() {
    // A folder with the names that the page uses.
    let folder = temporary("readme");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("tests")).expect("a folder can be made");
    let link = |from: &std::path::Path, to: &str| {
        std::fs::hard_link(from, folder.join(to))
            .or_else(|_| std::fs::copy(from, folder.join(to)).map(|_| ()))
            .unwrap_or_else(|error| panic!("{to}: {error}"));
    };
    link(model().as_ref(), "model.gguf");
    link(acme().as_ref(), "vendor.wasm");
    for part in ["facts", "models", "reference"] {
        std::fs::create_dir_all(folder.join("tests").join(part)).expect("a folder can be made");
        for entry in std::fs::read_dir(root().join("tests").join(part)).expect("it is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                continue;
            }
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            link(&path, &format!("tests/{part}/{name}"));
        }
    }
    let request = r#"{"prompt": "The capital of France is", "max_tokens": 4}"#;
    std::fs::write(folder.join("requests.jsonl"), request).expect("it can be written");

    let mut ran = 0;
    for (_, block) in blocks().iter().filter(|(kind, _)| kind == "sh") {
        for line in block.lines() {
            let words = words(line);
            let (first, args) = words.split_first().expect("a command");
            assert_eq!(first, "plinth", "{line}");
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let out = plinth_in(&folder, &args, "", &[]).succeeds();
            let silent = args[0] == "convert";
            assert!(
                silent || !out.trim().is_empty(),
                "{line}: it prints nothing"
            );
            ran += 1;
        }
    }
    assert!(ran >= 10, "only {ran} commands found");
}

/// As a shell splits words with double quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('"').enumerate() {
        match n % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn the_plan_is_one_that_was_made() {
    let golden = root().join("tests/golden/xeon-spr-2s.txt");
    let golden = std::fs::read_to_string(golden).expect("it can be read");
    let shown = blocks().into_iter().find(|(kind, _)| kind == "text");
    let (_, shown) = shown.expect("a plan is shown");
    assert!(
        shown == golden,
        "the plan in README.md is not tests/golden/xeon-spr-2s.txt any more"
    );
}

#[test]
fn the_platform_is_the_sdk_s_example_which_compiles() {
    let sdk = root().join("guest-plugins/sdk/src/lib.rs");
    let sdk = std::fs::read_to_string(sdk).expect("it can be read");
    let documented: String = sdk
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    let shown = blocks().into_iter().find(|(kind, _)| kind == "rust");
    let (_, shown) = shown.expect("a platform is shown");
    assert!(
        documented.contains(&shown),
        "README.md:\n{shown}\nguest-plugins/sdk:\n{documented}"
    );
}
