//! The configuration while it is being decided: each field with who decided it and why.

use crate::plan::{DecidedBy, Setting};
use crate::policy::{EngineConfig, GraphMode, Patch, Value};
use crate::text;
use std::collections::BTreeMap;

/// Fields by name, in the order of [`EngineConfig`].
pub(crate) const FIELDS: [&str; 22] = [
    "dtype",
    "kv-dtype",
    "block-size",
    "max-model-len",
    "max-num-seqs",
    "max-batched-tokens",
    "chunked-prefill",
    "prefix-caching",
    "async-scheduling",
    "cascade-attention",
    "graph-mode",
    "capture-sizes",
    "attention-backend",
    "threads",
    "tensor-parallel",
    "pipeline-parallel",
    "custom-allreduce",
    "memory-utilization",
    "kv-bytes",
    "spec-tokens",
    "lora",
    "extra",
];

/// Largest of the numbers that count tokens.
pub(crate) const LARGEST: u32 = 1 << 30;

/// A configuration on its way to being decided.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub config: EngineConfig,
    decided: BTreeMap<String, (DecidedBy, String, Option<Value>)>,
}

impl Settings {
    /// What the user wrote, all else open.
    pub fn new(config: EngineConfig) -> Self {
        let by_user = |path: &String| {
            (
                path.clone(),
                (DecidedBy::User, "set by the user".to_owned(), None),
            )
        };
        Self {
            decided: config.user_set.iter().map(by_user).collect(),
            config,
        }
    }

    pub fn is_users(&self, path: &str) -> bool {
        self.config.user_set.iter().any(|set| set == path)
    }

    /// Decides a field. `value` is right for it, which the caller has seen to.
    pub fn decide(&mut self, path: &str, value: &Value, by: DecidedBy, reason: &str) {
        if let Err(fault) = set(&mut self.config, path, value) {
            unreachable!("{path} was to be decided as {value:?}: {fault}");
        }
        self.decided
            .insert(path.to_owned(), (by, reason.to_owned(), None));
    }

    /// Applies a platform's patches. Gives those by which it overrides the user, which are applied only if `allow`.
    ///
    /// # Errors
    /// A patch that a platform may not make, in words.
    pub fn apply(&mut self, patches: &[Patch], allow: bool) -> Result<Vec<(Patch, Value)>, String> {
        let mut overrides = Vec::new();
        for (n, patch) in patches.iter().enumerate() {
            let Patch {
                path,
                value,
                reason,
                overrides_user,
            } = patch;
            let shown = text::quote(path);
            if patches[..n].iter().any(|earlier| earlier.path == *path) {
                return Err(format!("two patches to {shown}"));
            }
            if let Some(fault) = text::fault(reason) {
                return Err(format!("the reason of the patch to {shown}: {fault}"));
            }
            if reason.trim().is_empty() {
                return Err(format!("the patch to {shown} has no reason"));
            }
            let mut patched = self.config.clone();
            set(&mut patched, path, value).map_err(|fault| format!("patch to {shown}: {fault}"))?;
            let before = get(&self.config, path);
            if !self.is_users(path) {
                self.config = patched;
                self.decided
                    .insert(path.clone(), (DecidedBy::Platform, reason.clone(), None));
            } else if get(&patched, path) != before {
                if !overrides_user {
                    return Err(format!(
                        "the patch to {shown} goes against the user without saying so"
                    ));
                }
                overrides.push((
                    patch.clone(),
                    before.clone().unwrap_or(Value::Text(String::new())),
                ));
                if allow {
                    self.config = patched;
                    self.decided
                        .insert(path.clone(), (DecidedBy::Platform, reason.clone(), before));
                }
            }
        }
        Ok(overrides)
    }

    /// Every field with who decided it.
    pub fn list(&self) -> Vec<Setting> {
        let default = || (DecidedBy::Floor, "the default".to_owned(), None);
        let setting = |path: &str| {
            let (by, reason, wanted) = self.decided.get(path).cloned().unwrap_or_else(default);
            Setting {
                path: path.to_owned(),
                value: get(&self.config, path),
                by,
                reason,
                wanted,
            }
        };
        let fields = FIELDS.iter().filter(|&&path| path != "extra");
        let extra = self
            .config
            .extra
            .iter()
            .map(|(name, _)| format!("{EXTRA}{name}"));
        fields
            .map(|path| setting(path))
            .chain(extra.map(|path| setting(&path)))
            .collect()
    }
}

/// The value of a field; `None` where it is absent or has no value of its own.
pub(crate) fn get(config: &EngineConfig, path: &str) -> Option<Value> {
    let number = |n: u32| Some(Value::Unsigned(n.into()));
    match path {
        "dtype" => Some(Value::Text(config.dtype.clone())),
        "kv-dtype" => Some(Value::Text(config.kv_dtype.clone())),
        "block-size" => number(config.block_size),
        "max-model-len" => number(config.max_model_len),
        "max-num-seqs" => number(config.max_num_seqs),
        "max-batched-tokens" => number(config.max_batched_tokens),
        "chunked-prefill" => Some(Value::Boolean(config.chunked_prefill)),
        "prefix-caching" => Some(Value::Boolean(config.prefix_caching)),
        "async-scheduling" => Some(Value::Boolean(config.async_scheduling)),
        "cascade-attention" => Some(Value::Boolean(config.cascade_attention)),
        "graph-mode" => Some(Value::Text(graph_mode_name(config.graph_mode).to_owned())),
        "capture-sizes" => Some(Value::Numbers(
            config.capture_sizes.iter().map(|&n| n.into()).collect(),
        )),
        "attention-backend" => config.attention_backend.clone().map(Value::Text),
        "threads" => number(config.threads),
        "tensor-parallel" => number(config.tensor_parallel),
        "pipeline-parallel" => number(config.pipeline_parallel),
        "custom-allreduce" => Some(Value::Boolean(config.custom_allreduce)),
        "memory-utilization" => Some(Value::Float(config.memory_utilization)),
        "kv-bytes" => config.kv_bytes.map(Value::Unsigned),
        "spec-tokens" => number(config.spec_tokens),
        "lora" => Some(Value::Boolean(config.lora)),
        other => {
            let name = other.strip_prefix(EXTRA)?;
            let entry = config.extra.iter().find(|(known, _)| known == name)?;
            Some(Value::Text(entry.1.clone()))
        }
    }
}

const GRAPH_MODES: [(&str, GraphMode); 5] = [
    ("none", GraphMode::None),
    ("piecewise", GraphMode::Piecewise),
    ("full", GraphMode::Full),
    ("full-decode-only", GraphMode::FullDecodeOnly),
    ("full-and-piecewise", GraphMode::FullAndPiecewise),
];

fn graph_mode_name(mode: GraphMode) -> &'static str {
    GRAPH_MODES
        .iter()
        .find(|(_, other)| *other == mode)
        .map_or("none", |(name, _)| name)
}

/// Sets a field.
///
/// # Errors
/// There is no such field, or it cannot take the value.
pub(crate) fn set(config: &mut EngineConfig, path: &str, value: &Value) -> Result<(), String> {
    let number = |most: u32| match value {
        Value::Unsigned(n) if (1..=u64::from(most)).contains(n) => Ok(*n as u32),
        other => Err(format!(
            "found {}, expected a number from 1 to {most}",
            show(other)
        )),
    };
    let truth = || match value {
        Value::Boolean(truth) => Ok(*truth),
        other => Err(format!("found {}, expected true or false", show(other))),
    };
    let name = |known: &[&str]| match value {
        Value::Text(name) if known.contains(&name.as_str()) => Ok(name.clone()),
        other => Err(format!(
            "found {}, expected one of {}",
            show(other),
            text::list(known)
        )),
    };
    match path {
        "dtype" => config.dtype = name(&["f32", "f16", "bf16"])?,
        "kv-dtype" => {
            config.kv_dtype = match value {
                Value::Text(name) if is_name(name) => name.clone(),
                other => {
                    return Err(format!(
                        "found {}, expected the name of a dtype",
                        show(other)
                    ));
                }
            }
        }
        "block-size" => config.block_size = number(1 << 16)?,
        "max-model-len" => config.max_model_len = number(LARGEST)?,
        "max-num-seqs" => config.max_num_seqs = number(1 << 16)?,
        "max-batched-tokens" => config.max_batched_tokens = number(1 << 20)?,
        "chunked-prefill" => config.chunked_prefill = truth()?,
        "prefix-caching" => config.prefix_caching = truth()?,
        "async-scheduling" => config.async_scheduling = truth()?,
        "cascade-attention" => config.cascade_attention = truth()?,
        "graph-mode" => {
            let name = name(&GRAPH_MODES.map(|(name, _)| name))?;
            config.graph_mode = GRAPH_MODES
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(GraphMode::None, |m| m.1);
        }
        "capture-sizes" => match value {
            Value::Numbers(sizes)
                if sizes.len() <= 1024 && sizes.iter().all(|n| (1..=1 << 16).contains(n)) =>
            {
                config.capture_sizes = sizes.iter().map(|&n| n as u32).collect();
            }
            other => {
                return Err(format!(
                    "found {}, expected up to 1024 batch sizes",
                    show(other)
                ));
            }
        },
        "attention-backend" => match value {
            Value::Text(id) if (1..=128).contains(&id.len()) => {
                config.attention_backend = Some(id.clone())
            }
            other => {
                return Err(format!(
                    "found {}, expected the id of a kernel",
                    show(other)
                ));
            }
        },
        "threads" => config.threads = number(1 << 14)?,
        "tensor-parallel" => config.tensor_parallel = number(1024)?,
        "pipeline-parallel" => config.pipeline_parallel = number(1024)?,
        "custom-allreduce" => config.custom_allreduce = truth()?,
        "memory-utilization" => match value {
            Value::Float(share) if *share > 0.0 && *share <= 1.0 => {
                config.memory_utilization = *share
            }
            other => {
                return Err(format!(
                    "found {}, expected a share over 0, up to 1",
                    show(other)
                ));
            }
        },
        "kv-bytes" => match value {
            Value::Unsigned(bytes) if *bytes > 0 && *bytes < 1 << 60 => {
                config.kv_bytes = Some(*bytes)
            }
            other => return Err(format!("found {}, expected a number of bytes", show(other))),
        },
        "spec-tokens" => match value {
            Value::Unsigned(n) if *n <= 64 => config.spec_tokens = *n as u32,
            other => return Err(format!("found {}, expected 0 to 64", show(other))),
        },
        "lora" => config.lora = truth()?,
        other if other.strip_prefix(EXTRA).is_some_and(is_extra_name) => {
            let text = match value {
                Value::Text(text) if text.len() <= 128 && text::fault(text).is_none() => {
                    text.clone()
                }
                Value::Boolean(truth) => truth.to_string(),
                Value::Unsigned(n) => n.to_string(),
                wrong => {
                    return Err(format!(
                        "found {}, expected a word or a number",
                        show(wrong)
                    ));
                }
            };
            let name = &other[EXTRA.len()..];
            let known = config.extra.iter_mut().find(|(known, _)| known == name);
            if let Some((_, old)) = known {
                *old = text;
            } else if config.extra.len() < MOST_EXTRA {
                config.extra.push((name.to_owned(), text));
            } else {
                return Err(format!("more than {MOST_EXTRA} settings without a field"));
            }
        }
        other => {
            let known: Vec<_> = FIELDS.iter().filter(|&&field| field != "extra").collect();
            let known = text::list(&known.iter().map(|field| **field).collect::<Vec<_>>());
            return Err(format!(
                "there is no setting {}: expected one of {known}",
                text::quote(other)
            ));
        }
    }
    Ok(())
}

/// Settings of another engine that have no field here: `extra.compilation`.
const EXTRA: &str = "extra.";

/// Most of them.
const MOST_EXTRA: usize = 64;

fn is_extra_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=64).contains(&name.len()) && name.chars().all(plain)
}

/// Dtypes of caches are open text: what a platform offers is in its capabilities.
fn is_name(text: &str) -> bool {
    let of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=64).contains(&text.len()) && text.chars().all(of_name)
}

/// A value as a person reads it.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Boolean(truth) => if *truth { "on" } else { "off" }.to_owned(),
        Value::Unsigned(n) => text::count(*n),
        Value::Float(x) => format!("{x}"),
        Value::Text(name) => text::quote(name),
        Value::Numbers(list) => format!("{list:?}"),
    }
}
