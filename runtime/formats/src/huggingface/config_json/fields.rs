//! Fields of `config.json` by type. A field that is null is one that is not there.

use crate::error::{Checked, Problem, shown};
use serde_json::Value;

pub(super) fn size(json: &Value, name: &str) -> Checked<Option<usize>> {
    let read = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    typed(json, name, "an integer that is not negative", read)
}

pub(super) fn number(json: &Value, name: &str) -> Checked<Option<f32>> {
    let read = |value: &Value| value.as_f64().map(|number| number as f32);
    typed(json, name, "a number", read)
}

/// A number for which 0 stands for none.
pub(super) fn positive(json: &Value, name: &str) -> Checked<Option<f32>> {
    Ok(number(json, name)?.filter(|&number| number != 0.0))
}

pub(super) fn truth(json: &Value, name: &str) -> Checked<Option<bool>> {
    typed(json, name, "true or false", Value::as_bool)
}

pub(super) fn text<'a>(json: &'a Value, name: &str) -> Checked<Option<&'a str>> {
    typed(json, name, "a text", Value::as_str)
}

pub(super) fn numbers(json: &Value, name: &str) -> Checked<Option<Vec<f32>>> {
    typed(json, name, "a list of numbers", |value| {
        let list = value.as_array()?.iter();
        list.map(|value| value.as_f64().map(|number| number as f32))
            .collect()
    })
}

fn typed<'a, T>(
    json: &'a Value,
    name: &str,
    expected: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Checked<Option<T>> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Problem::field(name, shown(&value.to_string()), expected)),
        },
    }
}

pub(super) fn needed<T>(
    json: &Value,
    name: &str,
    read: impl Fn(&Value, &str) -> Checked<Option<T>>,
) -> Checked<T> {
    read(json, name)?
        .ok_or_else(|| Problem::field(name, "nothing", "a number").fix("the file is incomplete"))
}

pub(super) fn needed_size(json: &Value, name: &str) -> Checked<usize> {
    needed(json, name, size)
}
