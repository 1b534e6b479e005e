//! Why there is no plan, by whose fault it is.

use crate::memory::DoesNotFit;
use crate::plan::{Outcome, ProbeRecord};
use crate::policy::{Diagnostic, Fault, KernelRefusal, Rejected};
use crate::policy::{Patch, Value};
use crate::settings::show;
use crate::text;
use std::fmt;

/// No plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The platform that the user asked for cannot be had.
    Unavailable {
        /// Its id.
        wanted: String,
        /// What each platform said.
        probes: Vec<ProbeRecord>,
    },
    /// Several out-of-tree platforms are available, and the user named none.
    Ambiguous {
        /// Their names: id, origin, digest.
        candidates: Vec<String>,
    },
    /// Strict: something failed that would else be a finding.
    Strict(Vec<ProbeRecord>),
    /// The platform failed in a question.
    Fault(Fault),
    /// The platform gave an answer that cannot be.
    BadAnswer {
        /// Its id.
        platform: String,
        /// Its digest.
        digest: String,
        /// The question.
        question: String,
        /// What is wrong with the answer.
        message: String,
    },
    /// The platform rejects the configuration, or it cannot be: all reasons.
    Rejected {
        /// Who rejects.
        platform: String,
        /// Why.
        diagnostics: Vec<Diagnostic>,
    },
    /// The platform would override what the user set.
    Overrides {
        /// Its id.
        platform: String,
        /// Its patches, with what the user had set.
        patches: Vec<(Patch, Value)>,
    },
    /// No kernel can serve.
    NoKernel {
        /// Who looked.
        platform: String,
        /// What for: `attention of prefill`, `matmul of q4_1`.
        purpose: String,
        /// Every candidate, with its reasons.
        refusal: KernelRefusal,
    },
    /// Memory.
    DoesNotFit(DoesNotFit),
    /// Better platforms failed before the one that refuses.
    After {
        /// Why each was set aside.
        earlier: Vec<String>,
        /// What the last one says.
        refusal: Box<Refusal>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { wanted, probes } => {
                write!(f, "platform '{wanted}' cannot be had; these were probed:")?;
                probes
                    .iter()
                    .try_for_each(|record| write!(f, "\n  {}", of_record(record)))
            }
            Self::Ambiguous { candidates } => {
                write!(
                    f,
                    "several platforms that are not built in are available: choose one with --platform ID"
                )?;
                candidates
                    .iter()
                    .try_for_each(|name| write!(f, "\n  {name}"))
            }
            Self::Strict(records) => {
                write!(f, "with --strict a platform that fails is an error:")?;
                records
                    .iter()
                    .try_for_each(|record| write!(f, "\n  {}", of_record(record)))
            }
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::BadAnswer {
                platform,
                digest,
                question,
                message,
            } => {
                write!(
                    f,
                    "platform '{platform}' gave an answer to {question} that cannot be: {message}"
                )?;
                if !digest.is_empty() {
                    write!(f, " ({digest})")?;
                }
                Ok(())
            }
            Self::Rejected {
                platform,
                diagnostics,
            } => {
                write!(f, "platform '{platform}' cannot serve this configuration:")?;
                diagnostics
                    .iter()
                    .try_for_each(|diagnostic| write!(f, "\n  {}", of_diagnostic(diagnostic)))
            }
            Self::Overrides { platform, patches } => {
                write!(f, "platform '{platform}' would override what you set:")?;
                for (
                    Patch {
                        path,
                        value,
                        reason,
                        ..
                    },
                    wanted,
                ) in patches
                {
                    write!(
                        f,
                        "\n  {path}: {} instead of {}: {reason}",
                        show(value),
                        show(wanted)
                    )?;
                }
                write!(
                    f,
                    "\n  leave the setting out, or allow it with --allow-overrides"
                )
            }
            Self::After { earlier, refusal } => {
                for why in earlier {
                    writeln!(f, "set aside: {why}")?;
                }
                write!(f, "after that, {refusal}")
            }
            Self::NoKernel {
                platform,
                purpose,
                refusal:
                    KernelRefusal {
                        message,
                        ranking,
                        rejected,
                    },
            } => {
                write!(
                    f,
                    "platform '{platform}' finds no kernel for {purpose}: {message}"
                )?;
                if rejected.is_empty() && ranking.is_empty() {
                    write!(f, "\n  the catalogue has none")?;
                }
                if !ranking.is_empty() {
                    write!(f, "\n  {} could serve", text::list(ranking))?;
                }
                rejected.iter().try_for_each(|Rejected { id, reasons }| {
                    write!(f, "\n  {id}: {}", reasons.join("; "))
                })
            }
            Self::DoesNotFit(DoesNotFit {
                what,
                needed,
                available,
                limit,
                fix,
            }) => write!(
                f,
                "{what} do not fit: {} needed, {} there ({limit}); {fix}",
                text::bytes(*needed),
                text::bytes(*available)
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// One platform and what became of it, in a line.
pub(crate) fn of_record(record: &ProbeRecord) -> String {
    let name = match record.id.as_str() {
        "" => record.origin.to_string(),
        id => format!("{id} ({})", record.origin),
    };
    let outcome = match &record.outcome {
        Outcome::Available(_) => "available".to_owned(),
        Outcome::Unavailable(reasons) => {
            let reasons: Vec<_> = reasons.iter().map(of_diagnostic).collect();
            format!("unavailable: {}", reasons.join("; "))
        }
        Outcome::Failed(why) => format!("failed: {why}"),
        Outcome::Refused(why) => format!("refused: {why}"),
    };
    match &record.set_aside {
        Some(why) => format!("{name}: set aside: {why}"),
        None => format!("{name}: {outcome}"),
    }
}

/// A finding in a line.
pub(crate) fn of_diagnostic(diagnostic: &Diagnostic) -> String {
    let Diagnostic {
        path, message, fix, ..
    } = diagnostic;
    let path = path
        .as_ref()
        .map(|path| format!("{path}: "))
        .unwrap_or_default();
    let fix = fix
        .as_ref()
        .map(|fix| format!("; fix: {fix}"))
        .unwrap_or_default();
    format!("{path}{message}{fix}")
}
