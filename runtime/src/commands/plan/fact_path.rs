//! Facts by path: `devices.capability=8.0`, `host.isa=-avx512f`, `host.budget.memory=8GiB`, `packages=+aiter`.

use anyhow::{Context, anyhow, bail};
use plinth_platform::facts::Facts;
use serde_json::Value;
use std::sync::Arc;

/// Where a fact is.
#[derive(Clone, Debug, PartialEq)]
pub struct FactPath {
    parts: Vec<String>,
}

impl FactPath {
    /// Reads `host.budget.memory`; hyphens and underscores are the same.
    pub fn parse(text: &str) -> Self {
        let parts = text.split('.').map(|part| part.trim().replace('-', "_"));
        Self {
            parts: parts.collect(),
        }
    }

    /// The group that it belongs to: `host`.
    pub fn starts_with(&self, group: &str) -> bool {
        self.parts.first().is_some_and(|first| first == group)
    }

    /// The fact's own name: `memory`.
    pub fn last(&self) -> &str {
        self.parts.last().map_or("", String::as_str)
    }

    /// The places that it names: a list without an index means all of its entries.
    fn visit(
        &self,
        value: &mut Value,
        depth: usize,
        change: &mut dyn FnMut(&mut Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let Some(part) = self.parts.get(depth) else {
            change(value)?;
            return Ok(1);
        };
        match value {
            Value::Object(fields) => {
                let known: Vec<_> = fields.keys().cloned().collect();
                let field = fields.get_mut(part).ok_or_else(|| {
                    anyhow!(
                        "there is no fact '{}', only {}",
                        self.parts[..=depth].join("."),
                        known.join(", ")
                    )
                })?;
                self.visit(field, depth + 1, change)
            }
            Value::Array(entries) => match part.parse::<usize>() {
                Ok(index) => {
                    let count = entries.len();
                    let entry = entries.get_mut(index);
                    let entry = entry.ok_or_else(|| {
                        anyhow!("'{}' has {count} entries", self.parts[..depth].join("."))
                    })?;
                    self.visit(entry, depth + 1, change)
                }
                Err(_) => {
                    let mut visited = 0;
                    for entry in entries {
                        visited += self.visit(entry, depth, change)?;
                    }
                    Ok(visited)
                }
            },
            _ => bail!("'{}' has no parts", self.parts[..depth].join(".")),
        }
    }

    /// What stands there, of the first place if there are several.
    pub fn get(&self, facts: &Facts) -> anyhow::Result<Value> {
        let mut whole = serde_json::to_value(facts)?;
        let mut found = None;
        self.visit(&mut whole, 0, &mut |value| {
            found.get_or_insert_with(|| value.clone());
            Ok(())
        })?;
        found.ok_or_else(|| anyhow!("this machine has no '{}'", self.parts.join(".")))
    }

    /// The facts with another value there.
    pub fn set(&self, facts: &Facts, new: &Value) -> anyhow::Result<Arc<Facts>> {
        let mut whole = serde_json::to_value(facts)?;
        let changed = self.visit(&mut whole, 0, &mut |value| {
            value.clone_from(new);
            Ok(())
        })?;
        if changed == 0 {
            bail!("this machine has no '{}'", self.parts.join("."));
        }
        let facts = serde_path_to_error::deserialize(whole);
        Ok(Arc::new(facts.with_context(|| {
            format!("'{}' cannot be {new}", self.parts.join("."))
        })?))
    }
}

impl std::fmt::Display for FactPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.parts.join("."))
    }
}

/// A written value in the form of the one that it takes the place of.
pub fn value_like(old: &Value, written: &str) -> anyhow::Result<Value> {
    let written = written.trim();
    if let Ok(json) = serde_json::from_str::<Value>(written)
        && !(old.is_array() && json.is_number())
    {
        return Ok(json);
    }
    match old {
        // `+name,-name` changes a list; names alone take its place. `8.0` is a capability.
        Value::Array(entries) if entries.iter().all(Value::is_number) && !entries.is_empty() => {
            pair(written)
        }
        Value::Array(entries) => Ok(changed_list(entries, written)),
        Value::Number(_) => bytes(written),
        Value::Null if written.contains('.') => pair(written).or_else(|_| Ok(written.into())),
        _ => Ok(written.into()),
    }
}

fn pair(written: &str) -> anyhow::Result<Value> {
    let (major, minor) = written.split_once('.').unwrap_or((written, "0"));
    let number = |text: &str| {
        let number: u32 = text
            .parse()
            .with_context(|| format!("found '{written}', expected 8.0"))?;
        anyhow::Ok(number)
    };
    Ok(serde_json::json!([number(major)?, number(minor)?]))
}

fn changed_list(entries: &[Value], written: &str) -> Value {
    let names = written
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let changes = written.starts_with(['+', '-']);
    let mut list: Vec<Value> = if changes {
        entries.to_vec()
    } else {
        Vec::new()
    };
    for name in names {
        match (name.strip_prefix('+'), name.strip_prefix('-')) {
            (_, Some(gone)) => list.retain(|entry| entry != gone),
            (Some(new), None) if !list.iter().any(|entry| entry == new) => list.push(new.into()),
            (Some(_), None) => {}
            (None, None) => list.push(name.into()),
        }
    }
    list.sort_by_key(Value::to_string);
    Value::Array(list)
}

/// `16GiB`, `16G`, `512M`.
fn bytes(written: &str) -> anyhow::Result<Value> {
    let number = written.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = written[number.len()..]
        .trim_end_matches("iB")
        .trim_end_matches('B');
    let shift = match unit {
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!("found '{written}', expected a number, or one with K, M, G or T"),
    };
    let number: f64 = number
        .parse()
        .with_context(|| format!("found '{written}'"))?;
    Ok(((number * (1u64 << shift) as f64) as u64).into())
}

/// A value as it is written.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(pair) if pair.len() == 2 && pair.iter().all(Value::is_number) => {
            format!("{}.{}", pair[0], pair[1])
        }
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let names: Vec<_> = list.iter().filter_map(Value::as_str).collect();
            match names.as_slice() {
                [] => "nothing".to_owned(),
                names => names.join(", "),
            }
        }
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    }
}

/// The same, with bytes as people read them.
pub fn shown_at(path: &FactPath, value: &Value) -> String {
    let name = path.last();
    let bytes = name.starts_with("memory") || ["total", "available", "bytes"].contains(&name);
    match value.as_u64() {
        Some(n) if bytes => plinth_platform::text::bytes(n),
        _ => shown(value),
    }
}

/// How one value differs from another: of lists, what was taken away and what was added.
pub fn change_at(path: &FactPath, old: &Value, new: &Value) -> String {
    if let (Value::Array(before), Value::Array(after)) = (old, new)
        && before.iter().chain(after).all(Value::is_string)
    {
        let gone = before.iter().filter(|entry| !after.contains(entry));
        let added = after.iter().filter(|entry| !before.contains(entry));
        let gone = gone.map(|entry| format!("without {}", shown(entry)));
        let words: Vec<_> = gone
            .chain(added.map(|entry| format!("with {}", shown(entry))))
            .collect();
        return words.join(", ");
    }
    format!("{} instead of {}", shown_at(path, new), shown_at(path, old))
}

/// Facts that may sway a decision, each leaf with its path, and lists of names whole.
pub fn leaves(facts: &Facts) -> anyhow::Result<Vec<(FactPath, Value)>> {
    let whole = serde_json::to_value(facts)?;
    let mut found = Vec::new();
    collect(&whole, &mut Vec::new(), &mut found);
    Ok(found)
}

/// Parts of facts that are large, and of which no entry alone is a fact that a person would change.
const WHOLE: [&str; 5] = ["logical", "numa", "caches", "kernels", "peers"];

fn collect(value: &Value, path: &mut Vec<String>, found: &mut Vec<(FactPath, Value)>) {
    let is_whole = path
        .last()
        .is_some_and(|name| WHOLE.contains(&name.as_str()));
    let of_objects = |list: &[Value]| list.first().is_some_and(Value::is_object) && !is_whole;
    match value {
        Value::Object(fields) if !is_whole => {
            for (name, field) in fields {
                path.push(name.clone());
                collect(field, path, found);
                path.pop();
            }
        }
        Value::Array(list) if of_objects(list) => {
            for (n, entry) in list.iter().enumerate() {
                path.push(n.to_string());
                collect(entry, path, found);
                path.pop();
            }
        }
        other => found.push((
            FactPath {
                parts: path.clone(),
            },
            other.clone(),
        )),
    }
}
