//! A recorded plan, asked again: of the platform of that name today, or of another.

use super::vectors::{Difference, differences};
use super::{Count, Mismatch, Platforms, Report};
use crate::commands::plan::recording::Recording;
use crate::error::{Failure, Result};
use plinth_platform::exchange::Answer;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Asks every question of the recording.
pub(super) fn replay(path: &Path, platforms: &mut Platforms) -> Result<Report> {
    let recording = Recording::read(path)?;
    let facts = Arc::new(recording.facts);
    let mut report = Report::default();
    let (platform, guest) = platforms.get(&recording.platform)?;
    for (n, exchange) in recording.exchanges.iter().enumerate() {
        let answer = exchange.question.ask(guest, &facts);
        let kind = exchange.question.name().to_owned();
        let count = report
            .kinds
            .entry(kind.clone())
            .or_insert_with(Count::default);
        count.replayed += 1;
        count.equal += usize::from(answer == exchange.answer);
        if answer != exchange.answer {
            report.mismatches.push(Mismatch {
                line: n + 1,
                kind,
                platform: platform.clone(),
                question: question_in_short(&exchange.question)?,
                differences: compared(&exchange.answer, &answer)?,
            });
        }
    }
    Ok(report)
}

/// Without the model and the configuration, which the recording holds.
fn question_in_short(question: &plinth_platform::exchange::Question) -> Result<Value> {
    let mut json = serde_json::to_value(question).map_err(Failure::failed)?;
    if let Some(fields) = json
        .as_object_mut()
        .and_then(|whole| whole.values_mut().next())
        && let Some(fields) = fields.as_object_mut()
    {
        fields.remove("config");
        fields.remove("model");
    }
    Ok(json)
}

fn compared(recorded: &Answer, answered: &Answer) -> Result<Vec<Difference>> {
    let json = |answer: &Answer| serde_json::to_value(answer).map_err(Failure::failed);
    let (mut before, mut now) = (json(recorded)?, json(answered)?);
    // Down to where there are fields to tell apart.
    while let (Some(a), Some(b)) = (only_field(&before), only_field(&now)) {
        if a.0 != b.0 {
            break;
        }
        (before, now) = (a.1, b.1);
    }
    let found = differences(&before, &now);
    Ok(match found.is_empty() {
        false => found,
        true => vec![Difference {
            field: "answer".to_owned(),
            recorded: before,
            answered: now,
        }],
    })
}

fn only_field(value: &Value) -> Option<(String, Value)> {
    let fields = value.as_object()?;
    let (name, inner) = fields.iter().next()?;
    (fields.len() == 1 && inner.is_object()).then(|| (name.clone(), inner.clone()))
}
