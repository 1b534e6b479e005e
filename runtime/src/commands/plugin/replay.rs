//! `plinth plugin replay`: recorded decisions, asked of platforms again.

mod machines;
mod recorded;
mod translate;
mod vectors;

use crate::builtin;
use crate::error::{Failure, Result};
use crate::platforms;
use crate::progress::Progress;
use anyhow::anyhow;
use plinth_host::Guest;
use plinth_platform::policy::Platform;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use translate::Translator;
use vectors::{Difference, Vector};

/// How many of a kind there were, and how many answers were as recorded.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Count {
    replayed: usize,
    equal: usize,
}

/// A recorded decision whose answer differs.
#[derive(Debug, Serialize)]
struct Mismatch {
    line: usize,
    kind: String,
    platform: String,
    question: serde_json::Value,
    differences: Vec<Difference>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    kinds: BTreeMap<String, Count>,
    replayed: usize,
    equal: usize,
    mismatches: Vec<Mismatch>,
}

/// The platforms that are asked, each loaded when it is first needed.
struct Platforms {
    /// The one that the user named.
    only: Option<String>,
    loaded: BTreeMap<String, Guest>,
}

impl Platforms {
    fn new(only: Option<&str>) -> Self {
        Self {
            only: only.map(str::to_owned),
            loaded: BTreeMap::new(),
        }
    }

    /// The one for `id`, or the one that the user named.
    fn get(&mut self, id: &str) -> Result<(String, &mut Guest)> {
        let name = self.only.clone().unwrap_or_else(|| id.to_owned());
        if !self.loaded.contains_key(&name) {
            let mut guest = platforms::one(&name)?.guest()?;
            guest.describe().map_err(Failure::failed)?;
            self.loaded.insert(name.clone(), guest);
        }
        let guest = self.loaded.get_mut(&name).expect("it was just loaded");
        Ok((name, guest))
    }
}

/// What is replayed: the one or the other.
pub(super) struct Source<'a> {
    pub recording: Option<&'a Path>,
    pub vectors: Option<&'a Path>,
}

/// Runs the command.
pub(super) fn run(
    source: &Source<'_>,
    plugin: Option<&str>,
    show: usize,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let mut platforms = Platforms::new(plugin);
    let mut report = match (source.recording, source.vectors) {
        (Some(path), _) => recorded::replay(path, &mut platforms)?,
        (None, Some(path)) => replay_vectors(path, &mut platforms, json)?,
        (None, None) => unreachable!("the command line wants one of them"),
    };
    report.replayed = report.kinds.values().map(|count| count.replayed).sum();
    report.equal = report.kinds.values().map(|count| count.equal).sum();
    print(&report, show, json, out)?;
    match report.replayed - report.equal {
        0 => Ok(()),
        1 => Err(Failure::Failed(anyhow!("1 answer differs"))),
        n => Err(Failure::Failed(anyhow!("{n} answers differ"))),
    }
}

fn replay_vectors(path: &Path, platforms: &mut Platforms, json: bool) -> Result<Report> {
    let text = vectors::read(path)?;
    let lines = text.lines().count() as u64;
    let mut translator = Translator::default();
    let mut report = Report::default();
    let progress = Progress::count("replaying", json);
    for (n, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let vector = Vector::parse(line).map_err(|error| {
            Failure::Input(error.context(format!("{}:{}", path.display(), n + 1)))
        })?;
        let mismatch = replay(&vector, n + 1, platforms, &mut translator)?;
        let count = report.kinds.entry(vector.kind.clone()).or_default();
        count.replayed += 1;
        count.equal += usize::from(mismatch.is_none());
        report.mismatches.extend(mismatch);
        progress.set(n as u64 + 1, lines);
    }
    match report.kinds.is_empty() {
        false => Ok(report),
        true => Err(Failure::Input(anyhow!(
            "'{}' holds no decision",
            path.display()
        ))),
    }
}

fn replay(
    vector: &Vector,
    line: usize,
    platforms: &mut Platforms,
    translator: &mut Translator,
) -> Result<Option<Mismatch>> {
    let asked = translator.question(vector);
    let (platform, answer, question) = match asked {
        Ok(asked) => {
            let (platform, guest) = platforms.get(asked.platform)?;
            let answer = asked.ask(guest);
            (platform, answer, asked.shown())
        }
        Err(error) => {
            let context = format!("line {line}: a decision of the kind '{}'", vector.kind);
            return Err(Failure::Input(error.context(context)));
        }
    };
    let differences = match answer {
        Ok(answer) => vectors::differences(&vector.out, &answer),
        Err(fault) => vec![Difference {
            field: "answer".to_owned(),
            recorded: vector.out.clone(),
            answered: fault.to_string().into(),
        }],
    };
    Ok((!differences.is_empty()).then(|| Mismatch {
        line,
        kind: vector.kind.clone(),
        platform,
        question,
        differences,
    }))
}

fn print(report: &Report, show: usize, json: bool, out: &mut dyn Write) -> Result<()> {
    if json {
        let shown = Report {
            kinds: report.kinds.clone(),
            replayed: report.replayed,
            equal: report.equal,
            mismatches: Vec::new(),
        };
        let mut value = serde_json::to_value(shown).map_err(Failure::failed)?;
        value["mismatches"] =
            serde_json::to_value(report.mismatches.iter().take(show).collect::<Vec<_>>())
                .map_err(Failure::failed)?;
        serde_json::to_writer_pretty(&mut *out, &value).map_err(Failure::failed)?;
        return Ok(writeln!(out)?);
    }
    let width = report.kinds.keys().map(String::len).max().unwrap_or(0);
    for (kind, Count { replayed, equal }) in &report.kinds {
        writeln!(out, "{kind:width$}  {equal} of {replayed} equal")?;
    }
    for mismatch in report.mismatches.iter().take(show) {
        writeln!(
            out,
            "\nline {}, {} asked of '{}': {}",
            mismatch.line, mismatch.kind, mismatch.platform, mismatch.question
        )?;
        for difference in &mismatch.differences {
            writeln!(out, "  {}", difference.field)?;
            writeln!(out, "    recorded  {}", difference.recorded)?;
            writeln!(out, "    answered  {}", difference.answered)?;
        }
    }
    let hidden = report.mismatches.len().saturating_sub(show);
    if hidden > 0 {
        writeln!(out, "\n{hidden} more differ (--show-mismatches)")?;
    }
    Ok(writeln!(
        out,
        "replayed {}: {} equal",
        report.replayed, report.equal
    )?)
}

/// The built-in platform with this id, or an error that says which there are.
fn built_in(id: &str) -> anyhow::Result<&'static str> {
    let known = builtin::COMPONENTS.iter().find(|(known, _)| *known == id);
    known
        .map(|(id, _)| *id)
        .ok_or_else(|| anyhow!("there is no built-in platform '{id}'"))
}
