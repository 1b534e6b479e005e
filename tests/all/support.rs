//! The command as a user runs it, on the real model, with a home of its own.

#[path = "../../guest-plugins/build_guests.rs"]
mod build_guests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// SmolLM2-135M-Instruct, Q4_1.
pub fn model() -> String {
    let path = root().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.is_file(),
        "the model is not there: run examples/get-model.sh"
    );
    path.display().to_string()
}

/// The same, dequantised to F32 once by the command itself.
pub fn model_f32() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = temporary("SmolLM2-135M-Instruct.F32.gguf")
            .display()
            .to_string();
        plinth(&[
            "convert",
            &model(),
            &path,
            "--type",
            "f32",
            "--force",
            "--quiet",
        ])
        .succeeds();
        path
    })
    .clone()
}

/// A path of the tests' own, kept between runs.
pub fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The vendor's component, built from its own workspace.
pub fn acme() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| example("vendor-platform", "acme"))
        .clone()
}

/// The out-of-tree platform of Gaudi devices.
pub fn gaudi() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| example("gaudi-platform", "gaudi"))
        .clone()
}

/// The platform of compiled shapes.
pub fn shapes() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| example("shapes-platform", "shapes"))
        .clone()
}

fn example(folder: &str, name: &str) -> String {
    // One Cargo at a time: they share a folder.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _alone = BUILDING.lock();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests");
    let workspace = root().join("examples").join(folder);
    let built = build_guests::build_guests(&workspace, &target, &[name]);
    let built = built.unwrap_or_else(|why| panic!("{why}"));
    // Copied away from where another build may replace it.
    let path = temporary(&format!("{name}.wasm"));
    std::fs::copy(built.join(format!("{name}.wasm")), &path).expect("it was built");
    path.display().to_string()
}

/// Facts of a model.
pub fn model_facts(name: &str) -> String {
    root()
        .join(format!("tests/models/{name}.json"))
        .display()
        .to_string()
}

pub fn facts(name: &str) -> String {
    root()
        .join(format!("tests/facts/{name}.json"))
        .display()
        .to_string()
}

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub command: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.command, self.err);
        self.out
    }

    /// Fails with this exit code, and an error of a few lines that says all of `expected`.
    #[track_caller]
    pub fn fails(self, code: i32, expected: &[&str]) {
        let Self { command, err, .. } = &self;
        assert_eq!(self.code, Some(code), "{command}\n{err}");
        for expected in expected {
            assert!(
                err.contains(expected),
                "{command}\nexpected {expected:?} in: {err}"
            );
        }
        assert!(!err.contains("panicked"), "{command}\n{err}");
    }
}

/// Holds a text against a file of `tests/golden`.
#[track_caller]
pub fn assert_golden(name: &str, text: &str) {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("PLINTH_BLESS").is_some() {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((n, (got, want))) = text
        .lines()
        .zip(golden.lines())
        .enumerate()
        .find(|(_, (got, want))| got != want)
    {
        panic!(
            "{name}:{}\n  got  {got}\n  want {want}\nPLINTH_BLESS=1 writes it anew",
            n + 1
        );
    }
    assert_eq!(text, golden, "{name}: a part is missing");
}

pub fn plinth(args: &[&str]) -> Ran {
    plinth_with(args, "", &[])
}

pub fn plinth_with(args: &[&str], input: &str, env: &[(&str, &str)]) -> Ran {
    plinth_in(&root(), args, input, env)
}

pub fn plinth_in(folder: &Path, args: &[&str], input: &str, env: &[(&str, &str)]) -> Ran {
    let home = temporary("home");
    std::fs::create_dir_all(&home).expect("a folder can be made");
    let mut child = Command::new(env!("CARGO_BIN_EXE_plinth"))
        .args(args)
        .current_dir(folder)
        .env("HOME", home)
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("PLINTH_PLUGIN_DIR")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("plinth starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that reads no input may end before it is written.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("plinth ends");
    Ran {
        command: format!("plinth {}", args.join(" ")),
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("it writes UTF-8"),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a batch and gives one JSON value a line.
pub fn batch(
    model: &str,
    requests: &[serde_json::Value],
    flags: &[&str],
) -> Vec<serde_json::Value> {
    let lines: String = requests
        .iter()
        .map(|request| format!("{request}\n"))
        .collect();
    let args = [&["batch", model, "-"], flags].concat();
    let out = plinth_with(&args, &lines, &[]).succeeds();
    let parse = |line| serde_json::from_str(line).expect("a line of results is JSON");
    out.lines().map(parse).collect()
}
