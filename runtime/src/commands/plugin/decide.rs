//! `plinth plugin decide`: one question to one platform, and its answer, as JSON.

use crate::error::{Failure, Result};
use crate::{platforms, startup};
use anyhow::{Context, anyhow};
use plinth_platform::facts::{Facts, GraphSupport, ModelFacts};
use plinth_platform::policy::{
    AttentionQuery, BlockQuery, EngineConfig, Fault, GraphQuery, OpShape, Platform,
};
use plinth_platform::text;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What the user asks.
pub(super) struct Question<'a> {
    pub plugin: &'a str,
    pub name: &'a str,
    pub input: Option<&'a str>,
    pub model: Option<&'a Path>,
    pub facts: Option<&'a Path>,
    pub catalogue: Option<&'a str>,
}

/// Every question of the interface.
const QUESTIONS: [&str; 16] = [
    "describe",
    "probe",
    "device-capabilities",
    "batch-defaults",
    "default-config",
    "check-config",
    "select-attention",
    "select-vision-attention",
    "choose-block-size",
    "kernel-priority",
    "plan-graphs",
    "plan-memory",
    "plan-threads",
    "plan-parallel",
    "plan-kv-transfer",
    "request-rules",
];

pub(super) fn run(question: &Question<'_>, out: &mut dyn Write) -> Result<()> {
    if !QUESTIONS.contains(&question.name) {
        let known = text::list(&QUESTIONS);
        return Err(Failure::Input(anyhow!(
            "found the question '{}', expected one of {known}",
            question.name
        )));
    }
    let input = match question.input {
        None => Map::new(),
        Some(written) => serde_json::from_str(written)
            .context("--input: expected a JSON object")
            .map_err(Failure::Input)?,
    };
    let model = match question.model {
        Some(path) => startup::open(path)?.facts(),
        None => no_model(),
    };
    let mut asked = Asked {
        platform: platforms::one(question.plugin)?.guest()?,
        facts: startup::facts_of(question.facts, question.catalogue)?,
        model,
        input,
    };
    asked.facts = asked.visible_facts()?;
    Ok(writeln!(out, "{}", asked.ask(question.name)?)?)
}

/// A question about no model in particular is about a small one.
fn no_model() -> ModelFacts {
    ModelFacts {
        arch: "llama".to_owned(),
        dtype: "bf16".to_owned(),
        quantization: None,
        formats: vec![("bf16".to_owned(), 2 << 30)],
        weight_bytes: 2 << 30,
        head_size: 64,
        num_heads: 32,
        num_kv_heads: 8,
        layers: 16,
        hidden_size: 2048,
        intermediate_size: 8192,
        vocab_size: 128_256,
        max_len: 131_072,
        mla: None,
        vision: None,
        hybrid: false,
        state_bytes: None,
        moe: false,
        traits: Vec::new(),
    }
}

struct Asked<P> {
    platform: P,
    facts: Arc<Facts>,
    model: ModelFacts,
    input: Map<String, Value>,
}

/// Fields of questions that are no record of the interface.
#[derive(Serialize, Deserialize)]
struct Device {
    device: u32,
}

#[derive(Serialize, Deserialize)]
struct Batch {
    usage: String,
    world_size: u32,
}

#[derive(Serialize, Deserialize)]
struct Configured {
    config: EngineConfig,
}

#[derive(Serialize, Deserialize)]
struct OfModel {
    model: ModelFacts,
    config: EngineConfig,
}

#[derive(Serialize, Deserialize)]
struct Operation {
    op: String,
    #[serde(flatten)]
    shape: OpShape,
}

#[derive(Serialize, Deserialize)]
struct Memory {
    config: EngineConfig,
    device: u32,
    used: u64,
}

#[derive(Serialize, Deserialize)]
struct Ranks {
    ranks: u32,
}

#[derive(Serialize, Deserialize)]
struct Nothing {}

/// What is printed.
#[derive(Serialize)]
struct Exchange<Q, A> {
    question: Q,
    answer: A,
}

impl<P: Platform> Asked<P> {
    /// The environment as the platform's allow-list lets it be seen.
    fn visible_facts(&mut self) -> Result<Arc<Facts>> {
        let allowed = self
            .platform
            .describe()
            .map_err(Failure::failed)?
            .env_allowlist;
        let env: Vec<_> = std::env::vars().collect();
        Ok(plinth_platform::resolve::facts_for(
            &self.facts,
            &allowed,
            &env,
        ))
    }

    /// The question in full, and the answer.
    fn ask(&mut self, name: &str) -> Result<String> {
        let config = EngineConfig::default();
        let model = self.model.clone();
        match name {
            "describe" => self.say(Nothing {}, |p, _, _| p.describe()),
            "probe" => self.say(Nothing {}, |p, f, _| p.probe(f)),
            "device-capabilities" => self.say(Device { device: 0 }, |p, f, q| {
                p.device_capabilities(f, q.device)
            }),
            "batch-defaults" => {
                let question = Batch {
                    usage: "llm".to_owned(),
                    world_size: 1,
                };
                self.say(question, |p, f, q| {
                    p.batch_defaults(f, &q.usage, q.world_size)
                })
            }
            "default-config" => self.say(OfModel { model, config }, |p, f, q| {
                p.default_config(f, &q.model, &q.config)
            }),
            "check-config" => self.say(OfModel { model, config }, |p, f, q| {
                p.check_config(f, &q.model, &q.config)
            }),
            "select-attention" => self.say(self.attention(), |p, f, q| p.select_attention(f, q)),
            "select-vision-attention" => {
                self.say(self.attention(), |p, f, q| p.select_vision_attention(f, q))
            }
            "choose-block-size" => {
                let question = BlockQuery {
                    device: 0,
                    backends: Vec::new(),
                    model,
                    config,
                    state_page_bytes: None,
                };
                self.say(question, |p, f, q| p.choose_block_size(f, q))
            }
            "kernel-priority" => self.say(self.operation(), |p, f, q| {
                p.kernel_priority(f, &q.op, &q.shape)
            }),
            "plan-graphs" => {
                let question = GraphQuery {
                    config,
                    weakest: GraphSupport::Always,
                    kernel: String::new(),
                };
                self.say(question, |p, f, q| p.plan_graphs(f, q))
            }
            "plan-memory" => {
                let question = Memory {
                    config,
                    device: 0,
                    used: self.model.weight_bytes,
                };
                self.say(question, |p, f, q| {
                    p.plan_memory(f, &q.config, q.device, q.used)
                })
            }
            "plan-threads" => self.say(Ranks { ranks: 1 }, |p, f, q| p.plan_threads(f, q.ranks)),
            "plan-parallel" => self.say(Configured { config }, |p, f, q| {
                p.plan_parallel(f, &q.config)
            }),
            "plan-kv-transfer" => self.say(Nothing {}, |p, f, _| p.plan_kv_transfer(f)),
            _ => self.say(Configured { config }, |p, f, q| {
                p.request_rules(f, &q.config)
            }),
        }
    }

    fn attention(&self) -> AttentionQuery {
        let ModelFacts {
            head_size,
            num_heads,
            num_kv_heads,
            ref traits,
            mla,
            ..
        } = self.model;
        AttentionQuery {
            device: 0,
            phase: "decode".to_owned(),
            layer_kind: if mla.is_some() { "mla" } else { "full" }.to_owned(),
            head_size,
            num_heads,
            num_kv_heads,
            dtype: self.activations(),
            kv_dtype: "f16".to_owned(),
            block_size: None,
            requested: None,
            traits: traits.clone(),
            mla,
            config: EngineConfig::default(),
        }
    }

    fn operation(&self) -> Operation {
        let format = self.model.formats.iter().max_by_key(|(_, bytes)| *bytes);
        let shape = OpShape {
            m: None,
            n: self.model.intermediate_size,
            k: self.model.hidden_size,
            dtype: self.activations(),
            format: format.map(|(format, _)| format.clone()),
            traits: Vec::new(),
        };
        Operation {
            op: "matmul".to_owned(),
            shape,
        }
    }

    /// What most kernels of the catalogue compute in.
    fn activations(&self) -> String {
        let first = self.facts.kernels.first();
        first
            .and_then(|kernel| kernel.dtypes.first())
            .cloned()
            .unwrap_or_else(|| "f32".to_owned())
    }

    fn say<Q: Serialize + DeserializeOwned, A: Serialize>(
        &mut self,
        defaults: Q,
        ask: impl FnOnce(&mut P, &Arc<Facts>, &Q) -> Result<A, Fault>,
    ) -> Result<String> {
        let mut question = serde_json::to_value(&defaults).map_err(Failure::failed)?;
        merge(&mut question, &self.input, "--input").map_err(Failure::Input)?;
        let question: Q = serde_json::from_value(question)
            .context("--input does not fit the question")
            .map_err(Failure::Input)?;
        let answer = ask(&mut self.platform, &self.facts, &question).map_err(Failure::failed)?;
        serde_json::to_string_pretty(&Exchange { question, answer }).map_err(Failure::failed)
    }
}

/// Puts what the user wrote over the defaults. A field that the question does not have is an error, not ignored.
fn merge(question: &mut Value, input: &Map<String, Value>, path: &str) -> anyhow::Result<()> {
    let Value::Object(fields) = question else {
        return Err(anyhow!("{path}: it has no fields"));
    };
    for (name, value) in input {
        let known: Vec<_> = fields.keys().cloned().collect();
        let Some(field) = fields.get_mut(name) else {
            let expected = match known.is_empty() {
                true => "none: the question has no fields".to_owned(),
                false => format!("one of {}", text::list(&known)),
            };
            return Err(anyhow!(
                "{path}: found the field '{name}', expected {expected}"
            ));
        };
        match (&mut *field, value) {
            (Value::Object(_), Value::Object(inner)) => {
                merge(field, inner, &format!("{path}: {name}"))?;
            }
            _ => *field = value.clone(),
        }
    }
    Ok(())
}
