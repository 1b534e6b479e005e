//! The Jinja that chat templates are written in: what Hugging Face's renderer offers them, and nothing more.

use super::json;
use super::time::strftime;
use crate::error::TemplateError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use std::collections::BTreeMap;
use std::fmt;

const NAME: &str = "chat_template";
/// Instructions a rendering may take. The longest known templates take thousands a message; one that never ends is an error.
const FUEL: u64 = 50_000_000;

/// What a template is given.
pub(super) struct Inputs<'a> {
    pub(super) roles: Vec<&'a str>,
    /// One a role.
    pub(super) contents: Vec<String>,
    pub(super) variables: Vec<(&'a str, serde_json::Value)>,
    pub(super) add_generation_prompt: bool,
    pub(super) now: Option<i64>,
    pub(super) bos: &'a str,
    pub(super) eos: &'a str,
}

/// An environment that holds one template.
pub(super) fn new(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment
        .add_template_owned(NAME, prepared(source))
        .map_err(|error| TemplateError::Syntax(error.to_string()))?;
    Ok(environment)
}

/// A line that holds a block alone leaves nothing behind.
fn syntax() -> Result<SyntaxConfig, TemplateError> {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    syntax.map_err(|error| TemplateError::Syntax(error.to_string()))
}

pub(super) fn render(
    environment: &Environment<'_>,
    inputs: &Inputs<'_>,
) -> Result<String, TemplateError> {
    let messages: Vec<Value> = inputs
        .roles
        .iter()
        .zip(&inputs.contents)
        .map(|(role, content)| context! { role => *role, content => content.as_str() })
        .collect();
    let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
    for (name, value) in &inputs.variables {
        variables.insert(name, Value::from(Serde(value)));
    }
    variables.insert("messages", Value::from(messages));
    variables.insert(
        "add_generation_prompt",
        Value::from(inputs.add_generation_prompt),
    );
    variables.insert("bos_token", Value::from(inputs.bos));
    variables.insert("eos_token", Value::from(inputs.eos));
    if let Some(now) = inputs.now {
        let strftime_now = move |format: String| {
            strftime(now, &format).ok_or_else(|| {
                let problem = format!(
                    "strftime_now: found the format '{format}', expected directives of strftime"
                );
                Error::new(ErrorKind::InvalidOperation, problem)
            })
        };
        variables.insert("strftime_now", Value::from_function(strftime_now));
    }
    let template = environment.get_template(NAME).map_err(failed)?;
    template
        .render(Value::from_pairs(variables))
        .map_err(failed)
}

/// Is `token` written by this template, rather than only looked for in messages?
pub(super) fn writes(source: &str, token: &str) -> bool {
    source.match_indices(token).any(|(at, _)| {
        let (before, after) = (&source[..at], &source[at + token.len()..]);
        let literal = before.ends_with(['\'', '"']) && after.starts_with(['\'', '"']);
        let called = ["split(", "strip(", "startswith(", "endswith(", "replace("]
            .iter()
            .any(|call| before[..before.len().saturating_sub(1)].ends_with(call));
        let sought = after.get(1..).is_some_and(|after| {
            let after = after.trim_start();
            after.starts_with("in ") || after.starts_with("not in ")
        });
        !(literal && (called || sought))
    })
}

fn failed(error: Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        source = cause.source();
    }
    TemplateError::Render(error.to_string())
}

/// What a template says when it does not want the messages.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let refused = Error::new(
        ErrorKind::InvalidOperation,
        "the template refuses the messages",
    );
    Err(refused.with_source(Refusal(message)))
}

fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?; // Letters are never escaped.
    options.assert_all_used()?;
    let text = json::dumps(value, indent)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))?;
    Ok(Value::from(text))
}

/// The template without what this Jinja does not know: blocks `{% generation %}`, which tell a trainer which text is an
/// answer and are always taken, and line ends that a backslash takes out of a string.
fn prepared(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
        let (before, tag) = rest.split_at(open + 2);
        out.push_str(before);
        let close = if before.ends_with("{%") { "%}" } else { "}}" };
        let (inner, after) = split_tag(tag, close);
        match inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&inner.replace("generation", "if true")),
            "endgeneration" => out.push_str(&inner.replace("endgeneration", "endif")),
            _ => out.push_str(&inner),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// What is before `close`, with strings put on one line, and what follows from there.
fn split_tag<'s>(tag: &'s str, close: &str) -> (String, &'s str) {
    let mut inner = String::new();
    let mut quote = None;
    let mut chars = tag.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && tag[at..].starts_with(close) {
            return (inner, &tag[at..]);
        }
        if quote.is_some() && c == '\\' {
            match chars.next() {
                Some((_, '\n')) | None => {}
                Some((_, escaped)) => inner.extend([c, escaped]),
            }
            continue;
        }
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        inner.push(c);
    }
    (inner, "")
}
