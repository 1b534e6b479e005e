//! `--pack-cache`: the second start packs nothing and answers the same to the last bit, and whatever is wrong with what was
//! kept is said and costs time only.

use crate::support::{Ran, batch, model, plinth, temporary};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder of a test's own, with a copy of a tiny model and an empty cache.
struct Kept {
    folder: PathBuf,
    model: PathBuf,
}

impl Kept {
    fn new(name: &str) -> Self {
        let folder = temporary(&format!("pack-cache-{name}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder can be made");
        let model = folder.join("model.gguf");
        let kept = Self { folder, model };
        kept.write_model(1);
        kept
    }

    /// A model of as many bytes whatever the seed. The weights of one seed differ from those of another.
    fn write_model(&self, seed: u32) {
        let seed = seed.to_string();
        let path = self.model.display().to_string();
        let shape = [
            "--layers",
            "2",
            "--hidden-size",
            "256",
            "--feed-forward-size",
            "512",
            "--heads",
            "4",
            "--kv-heads",
            "2",
            "--context",
            "128",
        ];
        let args = [
            "synthetic",
            &path,
            "--vocabulary",
            &model(),
            "--type",
            "q8_0",
            "--seed",
            &seed,
        ];
        plinth(&[&args[..], &shape, &["--force", "--quiet"]].concat()).succeeds();
    }

    fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    fn flag(&self) -> String {
        format!("--pack-cache={}", self.cache().display())
    }

    fn run(&self, flags: &[&str]) -> Ran {
        let path = self.model.display().to_string();
        let args = [
            "run",
            &path,
            "Once upon",
            "--raw",
            "-n",
            "12",
            "--ignore-eos",
            "-t",
            "2",
        ];
        plinth(&[&args, flags].concat())
    }

    /// The answer without a cache.
    fn truth(&self) -> String {
        self.run(&[]).succeeds()
    }

    /// Starts with the cache: the answer is the true one, and the note says this.
    #[track_caller]
    fn says(&self, expected: &[&str]) {
        let ran = self.run(&[&self.flag()]);
        for expected in expected {
            assert!(ran.err.contains(expected), "{expected:?} in: {}", ran.err);
        }
        assert_eq!(
            ran.err.matches("packed weights: ").count(),
            1,
            "{}",
            ran.err
        );
        assert_eq!(ran.succeeds(), self.truth());
    }

    #[track_caller]
    fn is_used(&self) {
        let ran = self.run(&[&self.flag()]);
        let used = ["packed weights: mapped from", "packed weights: read from"];
        assert!(
            used.iter().any(|used| ran.err.contains(used)),
            "{}",
            ran.err
        );
        assert_eq!(ran.succeeds(), self.truth());
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache()).into_iter().flatten();
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .collect()
    }

    fn panels(&self) -> PathBuf {
        let files = self.files("panels");
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    /// Puts another file in the place of the panels.
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.panels();
        let mut bytes = fs::read(&path).expect("it can be read");
        change(&mut bytes);
        fs::remove_file(&path).expect("it can be removed");
        fs::write(&path, bytes).expect("it can be written");
    }
}

const WRITTEN: &str = "packed weights: written to";

#[test]
fn a_second_start_uses_what_the_first_has_packed() {
    let kept = Kept::new("twice");
    kept.says(&[WRITTEN]);
    assert_eq!(kept.files("model").len(), 1);
    kept.is_used();
    kept.is_used();
    // Under another name it is the same model.
    let moved = kept.folder.join("moved.gguf");
    fs::rename(&kept.model, &moved).expect("it can be renamed");
    let kept = Kept {
        model: moved,
        ..kept
    };
    kept.is_used();
    let quiet = kept.run(&[&kept.flag(), "-q"]);
    assert!(!quiet.err.contains("packed"), "{}", quiet.err);
}

#[test]
fn log_probabilities_are_the_same_to_the_last_bit() {
    let folder = temporary("pack-cache-logprobs");
    let _ = fs::remove_dir_all(&folder);
    let flag = format!("--pack-cache={}", folder.display());
    let requests = [
        json!({"prompt": "The capital of France is", "max_tokens": 12, "logprobs": 5, "temperature": 0}),
        json!({"prompt": "One, two, three,", "max_tokens": 12, "logprobs": 5, "temperature": 0.8, "seed": 3}),
    ];
    let expected = batch(&model(), &requests, &[]);
    assert_eq!(
        batch(&model(), &requests, &[&flag]),
        expected,
        "first start"
    );
    assert_eq!(
        batch(&model(), &requests, &[&flag]),
        expected,
        "second start"
    );
    fs::remove_dir_all(&folder).expect("it was made");
}

#[test]
fn what_was_damaged_is_named_and_packed_again() {
    let kept = Kept::new("damaged");
    kept.says(&[WRITTEN]);
    let bytes = fs::read(kept.panels()).expect("it can be read");
    let table = u64::from_le_bytes(std::array::from_fn(|n| bytes[8 + n])) as usize;
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let changes: [(&str, Change); 8] = [
        ("magic", Box::new(flip(3))),
        ("magic", Box::new(flip(7))),
        ("table", Box::new(flip(16))),
        ("digest of the table", Box::new(flip(30))),
        ("digest of the table", Box::new(flip(table + 9))),
        ("sum of", Box::new(flip(table / 2))),
        (
            "table: found",
            Box::new(|bytes| bytes.truncate(bytes.len() / 2)),
        ),
        ("bytes: found 0", Box::new(Vec::clear)),
    ];
    for (expected, change) in changes {
        kept.change(change);
        kept.says(&[
            "warning: ",
            WRITTEN,
            ".panels'",
            expected,
            "found",
            "expected",
        ]);
        kept.is_used();
    }
}

#[test]
fn panels_of_another_model_under_this_name_are_not_used() {
    let (kept, other) = (Kept::new("this"), Kept::new("other"));
    other.write_model(2);
    kept.says(&[WRITTEN]);
    other.says(&[WRITTEN]);
    assert_ne!(kept.truth(), other.truth(), "they are to tell apart");
    fs::copy(other.panels(), kept.panels()).expect("it can be copied");
    kept.says(&[WRITTEN, "model: found '"]);
    kept.is_used();
}

#[cfg(unix)]
#[test]
fn a_model_that_was_changed_with_its_time_put_back_is_packed_anew() {
    let kept = Kept::new("changed");
    kept.says(&[WRITTEN]);
    let old = fs::metadata(&kept.model).expect("it is there");
    let before = kept.truth();
    // In place: the same file, as long as it was, as old as it was.
    let file = fs::File::options()
        .append(true)
        .open(&kept.model)
        .expect("it is ours");
    let other = Kept::new("changed-into");
    other.write_model(2);
    let bytes = fs::read(&other.model).expect("it can be read");
    assert_eq!(bytes.len() as u64, old.len());
    fs::write(&kept.model, bytes).expect("it can be written");
    file.set_modified(old.modified().expect("it has one"))
        .expect("it is ours");
    assert_eq!(
        fs::metadata(&kept.model)
            .expect("it is there")
            .modified()
            .ok(),
        old.modified().ok()
    );
    assert_ne!(kept.truth(), before);
    kept.says(&[WRITTEN]);
    assert_eq!(kept.files("panels").len(), 1, "the old ones are gone");
    kept.is_used();
}

#[test]
fn panels_in_an_older_layout_are_removed() {
    let kept = Kept::new("layout");
    kept.says(&[WRITTEN]);
    let path = kept.panels();
    let name = path
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let (model, _) = name.split_once('-').expect("a model and a layout");
    let older = path.with_file_name(format!("{model}-0123456789abcdef.panels"));
    fs::rename(&path, &older).expect("it can be renamed");
    kept.says(&[WRITTEN]);
    assert_eq!(kept.panels(), path);
    kept.is_used();
}

#[test]
fn starts_at_the_same_time_do_not_disturb_each_other() {
    let kept = Kept::new("together");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_plinth"))
            .arg("run")
            .arg(&kept.model)
            .args(["Once upon", "--raw", "-n", "12", "--ignore-eos", "-t", "2"])
            .arg(kept.flag())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("plinth starts")
    };
    let expected = kept.truth();
    let started: Vec<_> = (0..4).map(|_| start()).collect();
    for child in started {
        let output = child.wait_with_output().expect("plinth ends");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert!(!err.contains("warning"), "{err}");
    }
    kept.panels();
    let left = fs::read_dir(kept.cache()).expect("it is there").count();
    assert_eq!(left, 2, "panels and what is known of the model");
    kept.is_used();
}

#[test]
fn a_folder_that_cannot_be_used_is_named_and_the_model_runs() {
    let kept = Kept::new("folder");
    fs::write(kept.cache(), "a file").expect("it can be written");
    kept.says(&[
        "warning: packed weights: not used: cannot make the folder",
        "cache'",
    ]);
    // Nobody can make anything there, whoever they are.
    if Path::new("/proc/self").exists() {
        let ran = kept.run(&["--pack-cache=/proc/packed"]);
        assert!(ran.err.contains("not used: cannot"), "{}", ran.err);
        assert_eq!(ran.succeeds(), kept.truth());
    }
}

/// A limit on the length of files stands for a disk without room: the same writes fail.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_the_cache_only() {
    let kept = Kept::new("full");
    let ran = Command::new("bash")
        .args(["-c", "ulimit -f 64; trap '' XFSZ; exec \"$@\"", "bash"])
        .arg(env!("CARGO_BIN_EXE_plinth"))
        .arg("run")
        .arg(&kept.model)
        .args(["Once upon", "--raw", "-n", "12", "--ignore-eos", "-t", "2"])
        .arg(kept.flag())
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let err = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{err}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), kept.truth());
    assert!(
        err.contains("not used: '") && err.contains("cannot write it"),
        "{err}"
    );
    assert_eq!(kept.files("panels").len(), 0);
    let partial = fs::read_dir(kept.cache()).expect("it is there");
    let partial = partial.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().contains("partial")
    });
    assert_eq!(partial.count(), 0, "half a file was left");
}

#[test]
fn without_a_folder_it_is_the_user_s_cache_and_bench_reports_it() {
    let kept = Kept::new("bench");
    let path = kept.model.display().to_string();
    let bench = || {
        let args = [
            "bench",
            &path,
            "-p",
            "8",
            "-n",
            "2",
            "-r",
            "1",
            "--json",
            "--pack-cache",
        ];
        let report = plinth(&args).succeeds();
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        report["packed_weights"].clone()
    };
    let first = bench();
    let file = PathBuf::from(first["file"].as_str().expect("a file"));
    assert!(
        file.starts_with(temporary("home").join(".cache/plinth/packed")),
        "{first}"
    );
    let second = bench();
    assert!(
        ["mapped", "read"].contains(&second["state"].as_str().expect("a state")),
        "{second}"
    );
    assert_eq!(second["file"], first["file"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(file.parent().expect("a folder")), 0o700);
    }
}
