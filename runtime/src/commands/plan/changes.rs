//! What differs between two plans.

use super::planner::Outcome;
use plinth_platform::decisions::{self, Decision};
use serde::Serialize;

/// A decision that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Path of the decision.
    pub path: String,
    /// As it is on the one side; absent where there is none.
    pub before: Option<String>,
    /// On the other.
    pub after: Option<String>,
    /// Why, on the other side.
    pub reason: String,
    /// It follows from other numbers step by step.
    pub gradual: bool,
}

/// Path of the decision whether there is a plan at all.
pub const PLAN: &str = "plan";

/// The decisions of an outcome. That there is a plan is the first, and of a refusal the only one.
pub fn decided(outcome: &Outcome) -> Vec<Decision> {
    let whole = |value: &str, reason: String| Decision {
        path: PLAN.to_owned(),
        value: value.to_owned(),
        by: "plinth".to_owned(),
        reason,
        others: Vec::new(),
        rejected: Vec::new(),
        gradual: false,
    };
    match outcome {
        Ok(plan) => {
            let made = whole("made", "every question has an answer that holds".to_owned());
            std::iter::once(made).chain(decisions::of(plan)).collect()
        }
        Err(refusal) => vec![whole("refused", first_reason(&refusal.to_string()))],
    }
}

/// The first line that says something: a heading alone does not.
pub fn first_reason(text: &str) -> String {
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    match (first.ends_with(':'), lines.next()) {
        (true, Some(second)) => format!("{first} {second}"),
        _ => first.to_owned(),
    }
}

/// All that differs, in the order in which it is decided.
pub fn between(before: &[Decision], after: &[Decision]) -> Vec<Change> {
    let find =
        |list: &[Decision], path: &str| list.iter().find(|decision| decision.path == path).cloned();
    // Where there is no plan on one side, that nothing is decided there goes without saying.
    let whole = |list: &[Decision]| find(list, PLAN).map(|decision| decision.value);
    let only_whole = whole(before) != whole(after);
    let mut paths: Vec<&str> = before
        .iter()
        .map(|decision| decision.path.as_str())
        .collect();
    for decision in after {
        if !paths.contains(&decision.path.as_str()) {
            paths.push(&decision.path);
        }
    }
    paths
        .into_iter()
        .filter(|path| !only_whole || *path == PLAN)
        .filter_map(|path| {
            let (old, new) = (find(before, path), find(after, path));
            let value = |decision: &Option<Decision>| decision.as_ref().map(|d| d.value.clone());
            (value(&old) != value(&new)).then(|| Change {
                path: path.to_owned(),
                before: value(&old),
                after: value(&new),
                reason: new.as_ref().map(|d| d.reason.clone()).unwrap_or_default(),
                gradual: new.or(old).is_some_and(|d| d.gradual),
            })
        })
        .collect()
}

/// A value, or that there is none.
pub fn side(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("nothing")
}
