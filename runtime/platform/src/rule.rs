//! Rules of a plan, applied to a request natively: no guest is asked while a request waits.

use crate::policy::Rule;

/// What rules may look at. Absent is what the request does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RequestView {
    /// Tokens of the prompt.
    pub prompt_len: u32,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Likeliest tokens to draw from.
    pub top_k: Option<u32>,
    /// Probability of the tokens to draw from.
    pub top_p: Option<f32>,
    /// Least share of the likeliest token's probability.
    pub min_p: Option<f32>,
    /// Seed of the draws.
    pub seed: Option<u64>,
    /// Log probabilities asked for.
    pub logprobs: Option<u32>,
}

/// Fields that a rule may name.
pub(crate) const FIELDS: [&str; 8] = [
    "prompt-len",
    "max-tokens",
    "temperature",
    "top-k",
    "top-p",
    "min-p",
    "seed",
    "logprobs",
];

/// Operations that a rule may name.
pub(crate) const OPERATIONS: [&str; 4] = ["at-most", "at-least", "absent", "cap"];

impl RequestView {
    fn field(&self, name: &str) -> Option<f64> {
        match name {
            "prompt-len" => Some(self.prompt_len.into()),
            "max-tokens" => self.max_tokens.map(f64::from),
            "temperature" => self.temperature.map(f64::from),
            "top-k" => self.top_k.map(f64::from),
            "top-p" => self.top_p.map(f64::from),
            "min-p" => self.min_p.map(f64::from),
            "seed" => self.seed.map(|seed| seed as f64),
            "logprobs" => self.logprobs.map(f64::from),
            _ => None,
        }
    }
}

/// Judges a request by all rules: the most tokens that its answer may have (`None`: as many as it asks for), or what the
/// caller is told.
///
/// # Errors
/// The message of the first rule that the request breaks.
pub fn judge(rules: &[Rule], request: &RequestView) -> Result<Option<u32>, String> {
    let mut cap: Option<u32> = None;
    let applies = |rule: &&Rule| {
        let (least, most) = rule.prompts.unwrap_or((0, u32::MAX));
        (least..=most).contains(&request.prompt_len)
    };
    for rule in rules.iter().filter(applies) {
        let found = request.field(&rule.field);
        let operand: f64 = rule.operand.parse().unwrap_or(f64::NAN);
        let kept = match (rule.op.as_str(), found) {
            ("absent", found) => found.is_none(),
            ("at-most", Some(found)) => found <= operand,
            ("at-least", Some(found)) => found >= operand,
            ("cap", _) => {
                let operand = operand as u32;
                cap = Some(cap.map_or(operand, |cap| cap.min(operand)));
                true
            }
            _ => true,
        };
        if !kept {
            return Err(rule.message.clone());
        }
    }
    Ok(cap)
}

/// What is wrong with a rule, if anything.
pub(crate) fn fault(rule: &Rule) -> Option<String> {
    if !FIELDS.contains(&rule.field.as_str()) {
        let known = crate::text::list(&FIELDS);
        return Some(format!(
            "rule on the field {}: expected one of {known}",
            crate::text::quote(&rule.field)
        ));
    }
    if !OPERATIONS.contains(&rule.op.as_str()) {
        let known = crate::text::list(&OPERATIONS);
        return Some(format!(
            "rule with the operation {}: expected one of {known}",
            crate::text::quote(&rule.op)
        ));
    }
    if rule.op == "cap" && rule.field != "max-tokens" {
        return Some(format!(
            "rule that caps {}: only max-tokens can be capped",
            rule.field
        ));
    }
    let operand = rule.operand.parse::<f64>();
    let sound = match rule.op.as_str() {
        "absent" => rule.operand.is_empty(),
        "cap" => operand.is_ok_and(|n| n >= 1.0 && n.fract() == 0.0 && n <= f64::from(u32::MAX)),
        _ => operand.is_ok_and(f64::is_finite),
    };
    if !sound {
        let operand = crate::text::quote(&rule.operand);
        return Some(format!(
            "rule {} {} {operand}: the operand is not what the operation takes",
            rule.field, rule.op
        ));
    }
    if rule.message.is_empty() {
        return Some(format!(
            "rule {} {}: it has no message for who breaks it",
            rule.field, rule.op
        ));
    }
    crate::text::fault(&rule.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(field: &str, op: &str, operand: &str) -> Rule {
        Rule {
            field: field.into(),
            op: op.into(),
            operand: operand.into(),
            prompts: None,
            message: format!("{field} {op}"),
        }
    }

    #[test]
    fn requests_are_judged() {
        let request = RequestView {
            prompt_len: 100,
            max_tokens: Some(50),
            min_p: Some(0.1),
            ..RequestView::default()
        };
        let check = |rules: &[Rule], want: Result<Option<u32>, &str>| {
            assert_eq!(
                judge(rules, &request),
                want.map_err(str::to_owned),
                "{rules:?}"
            );
        };
        check(&[], Ok(None));
        check(&[rule("prompt-len", "at-most", "100")], Ok(None));
        check(
            &[rule("prompt-len", "at-most", "99")],
            Err("prompt-len at-most"),
        );
        check(
            &[rule("max-tokens", "at-least", "51")],
            Err("max-tokens at-least"),
        );
        check(&[rule("min-p", "absent", "")], Err("min-p absent"));
        check(&[rule("seed", "absent", "")], Ok(None));
        check(&[rule("temperature", "at-most", "1")], Ok(None));
        check(
            &[
                rule("max-tokens", "cap", "40"),
                rule("max-tokens", "cap", "60"),
            ],
            Ok(Some(40)),
        );
    }

    #[test]
    fn senseless_rules_are_faults() {
        let check = |rule: Rule, want: Option<&str>| match (fault(&rule), want) {
            (None, None) => {}
            (Some(fault), Some(want)) => assert!(fault.contains(want), "{fault}"),
            (fault, want) => panic!("{rule:?}: {fault:?}, expected {want:?}"),
        };
        check(rule("prompt-len", "at-most", "100"), None);
        check(rule("max-tokens", "cap", "1"), None);
        check(rule("colour", "at-most", "1"), Some("'colour'"));
        check(rule("seed", "is", "1"), Some("'is'"));
        check(rule("seed", "absent", "1"), Some("operand"));
        check(rule("min-p", "at-most", "NaN"), Some("operand"));
        check(rule("top-k", "cap", "5"), Some("only max-tokens"));
        check(
            Rule {
                message: "\u{202E}".into(),
                ..rule("seed", "absent", "")
            },
            Some("U+202E"),
        );
        check(
            Rule {
                message: String::new(),
                ..rule("seed", "absent", "")
            },
            Some("no message"),
        );
    }
}
