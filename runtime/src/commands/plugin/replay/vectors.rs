//! Recorded decisions: one JSON object a line, with the kind, what went in, and what came out.

use crate::error::{Failure, Result};
use anyhow::Context;
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// One recorded decision.
#[derive(Debug, Deserialize)]
pub struct Vector {
    /// What was decided: `cuda.attn`.
    pub kind: String,
    /// What it was decided from.
    #[serde(rename = "in")]
    pub input: Value,
    /// The decision. A map whose order matters is read as a list of pairs.
    pub out: Value,
}

/// A field whose answer is not the recorded one.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Name of the field.
    pub field: String,
    /// As recorded.
    pub recorded: Value,
    /// As answered now.
    pub answered: Value,
}

/// Largest file of decisions that is read, in bytes: unpacked ones are small.
const MOST: u64 = 1 << 30;

/// The lines of a file, which may be compressed by gzip.
pub fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read '{shown}'"))
        .map_err(Failure::Input)?;
    let mut text = String::new();
    let read = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => GzDecoder::new(bytes.as_slice())
            .take(MOST)
            .read_to_string(&mut text),
        false => bytes.as_slice().take(MOST).read_to_string(&mut text),
    };
    read.with_context(|| format!("'{shown}' is neither text nor text compressed by gzip"))
        .map_err(Failure::Input)?;
    Ok(text)
}

impl Vector {
    /// Reads a line.
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        // The order of a map is lost by most readers of JSON, and is part of what is compared.
        let ordered: Ordered = serde_json::from_str(line)
            .context("expected an object with \"kind\", \"in\" and \"out\"")?;
        let mut vector: Self = serde_json::from_str(line)?;
        if let (Some(pairs), Some(out)) = (ordered.out.invalid, vector.out.as_object_mut()) {
            out.insert("invalid".to_owned(), serde_json::to_value(pairs.0)?);
        }
        Ok(vector)
    }
}

#[derive(Deserialize)]
struct Ordered {
    out: OrderedOut,
}

#[derive(Deserialize)]
struct OrderedOut {
    invalid: Option<Pairs>,
}

/// A map as the list of its pairs.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Lengths at which messages were cut when they were recorded.
const CUT_AT: [usize; 2] = [60, 80];

/// The fields that differ, in either direction. A recorded message that was cut equals one that begins so.
pub fn differences(recorded: &Value, answered: &Value) -> Vec<Difference> {
    let (Some(before), Some(now)) = (recorded.as_object(), answered.as_object()) else {
        return Vec::new();
    };
    let mut fields: Vec<_> = before.keys().chain(now.keys()).collect();
    fields.sort();
    fields.dedup();
    let value = |map: &serde_json::Map<String, Value>, field: &str| {
        map.get(field).cloned().unwrap_or(Value::Null)
    };
    fields
        .into_iter()
        .filter_map(|field| {
            let (recorded, answered) = (value(before, field), value(now, field));
            (!equal(field, &recorded, &answered)).then(|| Difference {
                field: field.clone(),
                recorded,
                answered,
            })
        })
        .collect()
}

fn equal(field: &str, recorded: &Value, answered: &Value) -> bool {
    match (field, recorded, answered) {
        ("error", Value::String(recorded), Value::String(answered))
            if CUT_AT.contains(&recorded.chars().count()) =>
        {
            answered.starts_with(recorded.as_str())
        }
        _ => recorded == answered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_order_of_candidates_is_part_of_the_answer() {
        let line = r#"{"kind": "k", "in": {}, "out": {"invalid": {"B": ["x"], "A": ["y"]}}}"#;
        let vector = Vector::parse(line).unwrap();
        assert_eq!(vector.out["invalid"], json!([["B", ["x"]], ["A", ["y"]]]));
        let swapped = json!({"invalid": [["A", ["y"]], ["B", ["x"]]]});
        assert_eq!(differences(&vector.out, &swapped).len(), 1);
    }

    #[test]
    fn only_a_message_that_was_cut_is_compared_by_its_beginning() {
        let cut = "a".repeat(60);
        let whole = json!({"error": format!("{cut} and so on")});
        assert!(differences(&json!({"error": cut}), &whole).is_empty());
        let short = json!({"error": "no device"});
        assert_eq!(
            differences(&short, &json!({"error": "no device at all"})).len(),
            1
        );
        assert_eq!(differences(&short, &json!({"error": null})).len(), 1);
        assert_eq!(differences(&json!({}), &short).len(), 1, "a field more");
    }
}
