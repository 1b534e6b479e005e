//! The rules of the house that Cargo cannot hold.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project with one of these endings, as (path from the root, text).
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default()
                .to_owned();
            if path.is_dir() {
                if !["target", ".git", "models", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending))
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push((relative.to_string_lossy().into_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no file found: the walk is broken");
    found.sort();
    found
}

/// Lines of Rust that hold `word` outside comments, as `path:line: text`.
fn code_lines_with(text: &str, path: &str, word: &str) -> Vec<String> {
    let holds = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(word).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            let part_of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !part_of_name(before) && !part_of_name(after)
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| holds(line));
    lines
        .map(|(n, line)| format!("{path}:{}: {}", n + 1, line.trim()))
        .collect()
}

#[test]
fn unsafe_lives_in_its_rooms() {
    let allowed =
        |path: &str| path.starts_with("native-kernels/") || path == "runtime/host/src/aot.rs";
    let mut found = Vec::new();
    for (path, text) in files(&[".rs"]) {
        // What a guest's bindings expand to is generated; the guest itself lives inside the sandbox.
        if !allowed(&path)
            && !path.starts_with("guest-plugins/")
            && !path.starts_with("tests/all/tidy.rs")
        {
            found.extend(code_lines_with(&text, &path, "unsafe"));
        }
    }
    found.retain(|line| !line.contains("forbid(unsafe") && !line.contains("deny(unsafe"));
    assert!(
        found.is_empty(),
        "unsafe outside its rooms:\n{}",
        found.join("\n")
    );
}

#[test]
fn rooms_do_not_look_where_they_must_not() {
    let forbidden = [
        (
            "runtime/platform/src",
            ["std::fs", "std::env", "std::time"].as_slice(),
        ),
        (
            "runtime/engine/src",
            &["wasmtime", "serde_json", "std::time", "std::fs", "std::env"],
        ),
        (
            "native-kernels/src/cpu",
            &["std::env", "std::fs", "std::time"],
        ),
        (
            "runtime/host/src",
            &["plinth_engine", "plinth_kernels", "std::env"],
        ),
        (
            "runtime/text/src",
            &["plinth_engine", "std::env", "std::time"],
        ),
        (
            "runtime/formats/src",
            &["plinth_engine", "std::env", "std::time"],
        ),
    ];
    let mut found = Vec::new();
    for (path, text) in files(&[".rs"]) {
        for (room, words) in &forbidden {
            if path.starts_with(room) {
                let product = text.split("#[cfg(test)]").next().unwrap_or_default();
                found.extend(
                    words
                        .iter()
                        .flat_map(|word| code_lines_with(product, &path, word)),
                );
            }
        }
    }
    assert!(
        found.is_empty(),
        "a room looks where it must not:\n{}",
        found.join("\n")
    );
}

/// What ARCHITECTURE.md says of who knows whom is what Cargo is told.
#[test]
fn rooms_know_whom_the_map_says() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map can be read");
    let edges = map
        .lines()
        .filter(|line| line.contains('←'))
        .flat_map(|line| line.split("   "));
    let mut seen = 0;
    for edge in edges.map(str::trim).filter(|edge| !edge.is_empty()) {
        let (room, known) = edge.split_once(" ← ").expect("a room and whom it knows");
        let folder = match room {
            "kernels" => "native-kernels".to_owned(),
            room => format!("runtime/{room}"),
        };
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml"));
        let manifest = manifest.unwrap_or_else(|error| panic!("{room}: {error}"));
        let section = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        let names = section
            .lines()
            .filter_map(|line| line.strip_prefix("plinth-"));
        let mut found: Vec<_> = names
            .filter_map(|line| line.split(['.', ' ']).next())
            .collect();
        let mut said: Vec<_> = known
            .split(", ")
            .filter(|name| *name != "nothing")
            .collect();
        found.sort_unstable();
        said.sort_unstable();
        assert_eq!(
            found, said,
            "{room}: what its Cargo.toml has, and what the map says"
        );
        seen += 1;
    }
    assert_eq!(seen, 6, "every room under runtime, and the kernels");
}

#[test]
fn no_test_sleeps_or_is_ignored() {
    let mut found = Vec::new();
    for (path, text) in files(&[".rs"]) {
        if path.contains("tests/") && path != "tests/all/tidy.rs" {
            found.extend(code_lines_with(&text, &path, "thread::sleep"));
            found.extend(code_lines_with(&text, &path, "ignore"));
        }
    }
    found.retain(|line| line.contains("#[ignore") || line.contains("thread::sleep"));
    assert!(
        found.is_empty(),
        "a test that sleeps or is skipped:\n{}",
        found.join("\n")
    );
}

#[test]
fn nothing_is_left_unfinished() {
    let mut found = Vec::new();
    for (path, text) in files(&[".rs"]) {
        if path != "tests/all/tidy.rs" {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                let lines = text
                    .lines()
                    .enumerate()
                    .filter(|(_, line)| line.contains(word));
                found.extend(lines.map(|(n, line)| format!("{path}:{}: {}", n + 1, line.trim())));
            }
        }
    }
    assert!(found.is_empty(), "unfinished:\n{}", found.join("\n"));
}

/// Licences of everything that this machine compiles, as Cargo knows them.
#[test]
fn every_dependency_has_a_permissive_licence() {
    // Of this machine's target: what others need besides may not have been downloaded.
    let version = std::process::Command::new("rustc").arg("-vV").output();
    let version = version.expect("rustc runs").stdout;
    let version = String::from_utf8_lossy(&version);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", host.expect("rustc names its host")])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let permissive = [
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "0BSD",
        "Unicode-3.0",
        "CC0-1.0",
        "Unlicense",
        "BSL-1.0",
        "MIT-0",
    ];
    // "A OR B" needs one of them, "A AND B" both; the old slash means OR.
    let accepted = |licence: &str| {
        licence
            .replace('/', " OR ")
            .replace(['(', ')'], " ")
            .split(" AND ")
            .all(|part| {
                part.split(" OR ")
                    .any(|name| permissive.contains(&name.trim()))
            })
    };
    let packages = metadata["packages"].as_array().expect("packages is a list");
    assert!(
        packages.len() > 50,
        "only {} packages: the list is not whole",
        packages.len()
    );
    let refused: Vec<_> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(accepted))
        .map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["version"], package["license"]
            )
        })
        .collect();
    assert!(
        refused.is_empty(),
        "licences to look at:\n{}",
        refused.join("\n")
    );
}

#[test]
fn every_script_and_page_that_the_readme_names_exists() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md can be read");
    let targets = readme.match_indices("](").map(|(at, _)| &readme[at + 2..]);
    let missing: Vec<_> = targets
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| {
            !target.is_empty()
                && !target.contains("://")
                && !Path::new(&root().join(target)).exists()
        })
        .collect();
    assert!(
        missing.is_empty(),
        "README.md points to what is not there: {missing:?}"
    );
}

#[test]
fn what_a_kernel_requires_is_understood_alike_on_both_sides() {
    // The guests' workspace cannot know the runtime's: the one file that both need is kept twice.
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("it is there");
    let host = read("runtime/platform/src/requirement.rs");
    let guests = read("guest-plugins/sdk/src/requirement.rs");
    let host = host.replace("use crate::facts::Facts;", "use crate::prelude::Facts;");
    assert_eq!(host, guests, "the two requirement.rs differ");
}
