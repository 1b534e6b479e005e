//! Metadata values.

use crate::error::{Checked, Problem, shown};

/// One metadata value, in the type that the file gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A list of values of one type. The types that vocabularies use are kept dense.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Array {
    F32(Vec<f32>),
    I32(Vec<i32>),
    String(Vec<String>),
    /// The type's number, and its values.
    Other(u32, Vec<Value>),
}

impl Value {
    /// The number of its type in the file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// As a count, whatever integer type the writer chose.
    pub fn count(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// For an error: what stands there.
    pub fn describe(&self) -> String {
        match self {
            Self::String(text) => format!("the text {}", shown(text)),
            Self::Array(array) => format!("a list of {} values", array.len()),
            Self::Bool(value) => format!("the truth value {value}"),
            Self::F32(value) => format!("the number {value}"),
            Self::F64(value) => format!("the number {value}"),
            Self::I8(value) => format!("the integer {value}"),
            Self::I16(value) => format!("the integer {value}"),
            Self::I32(value) => format!("the integer {value}"),
            Self::I64(value) => format!("the integer {value}"),
            Self::U8(_) | Self::U16(_) | Self::U32(_) | Self::U64(_) => {
                format!("the integer {}", self.count().unwrap_or_default())
            }
        }
    }
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::String(list) => list.len(),
            Self::Other(_, list) => list.len(),
        }
    }
}

/// The metadata of a file, in its order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata(pub Vec<(String, Value)>);

impl Metadata {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Checked<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Problem::field(
                format!("metadata '{key}'"),
                value.describe(),
                expected,
            )),
        }
    }

    pub fn count(&self, key: &str) -> Checked<Option<u64>> {
        self.typed(key, "an integer that is not negative", Value::count)
    }

    pub fn id(&self, key: &str) -> Checked<Option<u32>> {
        self.typed(key, "a token id", |value| value.count()?.try_into().ok())
    }

    pub fn size(&self, key: &str) -> Checked<Option<usize>> {
        self.typed(key, "a size", |value| value.count()?.try_into().ok())
    }

    pub fn number(&self, key: &str) -> Checked<Option<f32>> {
        self.typed(key, "a number", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    pub fn truth(&self, key: &str) -> Checked<Option<bool>> {
        self.typed(key, "true or false", |value| match *value {
            Value::Bool(truth) => Some(truth),
            _ => None,
        })
    }

    /// A list of truth values; none where the key holds no list at all.
    pub fn truths(&self, key: &str) -> Checked<Option<Vec<bool>>> {
        let Some(Value::Array(_)) = self.get(key) else {
            return Ok(None);
        };
        self.typed(key, "a list of truth values", |value| match value {
            Value::Array(Array::Other(_, list)) => list
                .iter()
                .map(|value| match *value {
                    Value::Bool(truth) => Some(truth),
                    _ => None,
                })
                .collect(),
            // Older converters wrote them as integers.
            Value::Array(Array::I32(list)) => Some(list.iter().map(|&n| n != 0).collect()),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Checked<Option<&str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value {
            Value::String(text) => Ok(Some(text)),
            other => Err(Problem::field(
                format!("metadata '{key}'"),
                other.describe(),
                "a text",
            )),
        }
    }

    pub fn texts(&self, key: &str) -> Checked<Vec<String>> {
        let texts = self.typed(key, "a list of texts", |value| match value {
            Value::Array(Array::String(list)) => Some(list.clone()),
            _ => None,
        });
        Ok(texts?.unwrap_or_default())
    }

    pub fn numbers(&self, key: &str) -> Checked<Vec<f32>> {
        let numbers = self.typed(
            key,
            "a list of 32-bit floating-point numbers",
            |value| match value {
                Value::Array(Array::F32(list)) => Some(list.clone()),
                _ => None,
            },
        );
        Ok(numbers?.unwrap_or_default())
    }

    pub fn counts(&self, key: &str) -> Checked<Vec<u32>> {
        let counts = self.typed(
            key,
            "a list of integers that are not negative",
            |value| match value {
                Value::Array(Array::I32(list)) => list.iter().map(|&n| n.try_into().ok()).collect(),
                Value::Array(Array::Other(_, list)) => list
                    .iter()
                    .map(|value| value.count()?.try_into().ok())
                    .collect(),
                _ => None,
            },
        );
        Ok(counts?.unwrap_or_default())
    }

    /// `key` must be there.
    pub fn required<T>(&self, key: &str, value: Checked<Option<T>>, expected: &str) -> Checked<T> {
        value?.ok_or_else(|| {
            Problem::field(format!("metadata '{key}'"), "nothing", expected)
                .fix("the file is incomplete: make or fetch it again")
        })
    }
}
