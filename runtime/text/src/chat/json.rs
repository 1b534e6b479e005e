//! JSON as Python writes it, which is what templates were trained with.

use crate::error::TemplateError;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn dumps(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(64));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine))?,
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The value with every text and every key changed.
pub(super) fn map_texts(
    value: &Value,
    text: &impl Fn(&str) -> Result<String, TemplateError>,
    key: &impl Fn(&str) -> Result<String, TemplateError>,
) -> Result<Value, TemplateError> {
    Ok(match value {
        Value::String(string) => Value::String(text(string)?),
        Value::Array(values) => {
            let values: Result<_, _> = values
                .iter()
                .map(|value| map_texts(value, text, key))
                .collect();
            Value::Array(values?)
        }
        Value::Object(fields) => {
            let fields: Result<_, TemplateError> = fields
                .iter()
                .map(|(name, value)| Ok((key(name)?, map_texts(value, text, key)?)))
                .collect();
            Value::Object(fields?)
        }
        other => other.clone(),
    })
}
