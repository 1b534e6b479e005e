//! `plinth doctor`: probes everything, and gives each finding a verdict and a fix.

use crate::cli::{DoctorArgs, EngineArgs};
use crate::error::{Failure, Result};
use crate::{platforms, startup};
use anyhow::anyhow;
use plinth_platform::facts::Facts;
use plinth_platform::plan::{Outcome, ProbeRecord};
use plinth_platform::policy::Severity;
use plinth_platform::resolve::probe;
use serde::Serialize;
use std::io::Write;

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Good,
    Note,
    Warning,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    subject: String,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn new(
        subject: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            subject: subject.into(),
            verdict,
            found: found.into(),
            fix,
        }
    }
}

/// Runs the command. Its exit code is 1 if anything is bad.
pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> Result<()> {
    let facts = startup::facts(args.platform.facts.as_deref())?;
    let mut findings = machine(&facts);
    findings.extend(drivers(&facts));
    findings.extend(kernels(&facts));
    let mut registry = platforms::registry(&args.platform)?;
    let env: Vec<_> = std::env::vars().collect();
    findings.extend(probe(&mut registry, &facts, &env).iter().map(platform));
    if let Some(model) = &args.model {
        let engine = EngineArgs {
            platform: args.platform.clone(),
            ..EngineArgs::default()
        };
        findings.extend(plan(model, &engine));
    }
    match args.json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &findings).map_err(Failure::failed)?;
            writeln!(out)?;
        }
        false => print(&findings, out)?,
    }
    match findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count()
    {
        0 => Ok(()),
        n => Err(Failure::Failed(anyhow!(
            "{n} of {} findings are bad",
            findings.len()
        ))),
    }
}

fn print(findings: &[Finding], out: &mut dyn Write) -> Result<()> {
    let width = findings
        .iter()
        .map(|finding| finding.subject.chars().count())
        .max()
        .unwrap_or(0);
    for Finding {
        subject,
        verdict,
        found,
        fix,
    } in findings
    {
        let verdict = match verdict {
            Verdict::Good => "good",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD",
        };
        writeln!(out, "{verdict:<8} {subject:<width$}  {found}")?;
        if let Some(fix) = fix {
            writeln!(out, "{:<8} {:<width$}  fix: {fix}", "", "")?;
        }
    }
    Ok(())
}

fn machine(facts: &Facts) -> Vec<Finding> {
    let budget = &facts.host.budget;
    let memory = plinth_platform::text::bytes(budget.memory);
    let (verdict, fix) = match budget.memory {
        0..0x2000_0000 => (
            Verdict::Warning,
            Some("free memory, or raise the limit: small models need 512 MiB".to_owned()),
        ),
        _ => (Verdict::Good, None),
    };
    vec![
        Finding::new(
            "threads",
            Verdict::Good,
            format!("{} ({})", budget.threads, budget.threads_limit),
            None,
        ),
        Finding::new(
            "memory",
            verdict,
            format!("{memory} to be had ({})", budget.memory_limit),
            fix,
        ),
        vector_unit(facts),
    ]
}

fn vector_unit(facts: &Facts) -> Finding {
    let has = |feature: &str| facts.host.isa.iter().any(|known| known == feature);
    let (verdict, found, fix) = match facts.host.arch.as_str() {
        "x86_64" if has("avx512f") => (Verdict::Good, "AVX-512", None),
        "x86_64" if has("avx2") && has("fma") => (Verdict::Good, "AVX2 and FMA", None),
        "x86_64" => {
            let fix = "on a virtual machine, let it have the host's CPU features".to_owned();
            (
                Verdict::Warning,
                "neither AVX2 nor AVX-512: the portable kernels are slow",
                Some(fix),
            )
        }
        "aarch64" if has("asimddp") && has("i8mm") => {
            (Verdict::Good, "NEON with dotprod and i8mm", None)
        }
        "aarch64" if has("asimddp") => (Verdict::Good, "NEON with dotprod", None),
        "aarch64" if has("asimd") => (Verdict::Good, "NEON", None),
        _ => (
            Verdict::Note,
            "no kernels for this architecture yet: the portable ones serve, slowly",
            None,
        ),
    };
    Finding::new("vector unit", verdict, found, fix)
}

fn drivers(facts: &Facts) -> Vec<Finding> {
    let devices = facts.devices.iter().map(|device| {
        let free = plinth_platform::text::bytes(device.memory_free);
        Finding::new(
            format!("device {}", device.index),
            Verdict::Good,
            format!("{}, {free} free", device.name),
            None,
        )
    });
    let notes = facts.driver_notes.iter().map(|note| {
        Finding::new(
            format!("driver {}", note.driver),
            Verdict::Note,
            &note.found,
            note.fix.clone(),
        )
    });
    devices.chain(notes).collect()
}

fn kernels(facts: &Facts) -> Vec<Finding> {
    let runs = |kernel: &&plinth_platform::facts::Kernel| {
        kernel.provider == "cpu"
            && kernel
                .requires
                .iter()
                .all(|need| facts.host.isa.contains(need))
    };
    let usable = facts.kernels.iter().filter(runs).count();
    let found = format!(
        "{usable} of {} in this build can run here",
        facts.kernels.len()
    );
    vec![Finding::new(
        "kernels",
        if usable == 0 {
            Verdict::Bad
        } else {
            Verdict::Good
        },
        found,
        None,
    )]
}

fn platform(record: &ProbeRecord) -> Finding {
    let subject = match record.id.as_str() {
        "" => record.origin.to_string(),
        id => format!("platform {id}"),
    };
    match &record.outcome {
        Outcome::Available(availability) => {
            let found = format!(
                "available, score {} ({})",
                availability.score, record.origin
            );
            Finding::new(subject, Verdict::Good, found, None)
        }
        Outcome::Unavailable(reasons) => {
            let found: Vec<_> = reasons
                .iter()
                .map(|reason| reason.message.as_str())
                .collect();
            let fix = reasons.iter().find_map(|reason| reason.fix.clone());
            Finding::new(
                subject,
                Verdict::Note,
                format!("unavailable: {}", found.join("; ")),
                fix,
            )
        }
        Outcome::Failed(why) => Finding::new(subject, Verdict::Bad, format!("failed: {why}"), None),
        Outcome::Refused(why) => {
            Finding::new(subject, Verdict::Bad, format!("refused: {why}"), None)
        }
    }
}

fn plan(model: &std::path::Path, args: &EngineArgs) -> Vec<Finding> {
    let subject = format!("model {}", model.display());
    let planned = startup::open(model).and_then(|file| startup::plan(&file, args));
    let plan = match planned {
        Ok(plan) => plan,
        Err(failure) => {
            return vec![Finding::new(
                subject,
                Verdict::Bad,
                failure.to_string(),
                None,
            )];
        }
    };
    let found = format!(
        "runs on platform {}, {} sequences at {} tokens",
        plan.platform.id, plan.memory.full_sequences, plan.engine.max_model_len
    );
    let mut findings = vec![Finding::new(&subject, Verdict::Good, found, None)];
    findings.extend(plan.findings.iter().map(|finding| {
        let verdict = match finding.diagnostic.severity {
            Severity::Info => Verdict::Note,
            Severity::Warn | Severity::Reject => Verdict::Warning,
        };
        Finding::new(
            &subject,
            verdict,
            &finding.diagnostic.message,
            finding.diagnostic.fix.clone(),
        )
    }));
    findings
}
