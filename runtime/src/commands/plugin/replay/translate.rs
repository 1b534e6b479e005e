//! From a recorded decision to a question, and from the answer to what was recorded. Names change here, and nothing is
//! decided: no rule of any platform may be found in this file.

use super::machines::{arch, device, numbered, plain};
use super::vectors::Vector;
use anyhow::Context;
use plinth_platform::facts::{Facts, GraphSupport, MlaDims, ModelFacts};
use plinth_platform::policy::{
    AttentionQuery, BlockQuery, Choice, Decision, EngineConfig, Fault, GraphMode, GraphQuery,
    KernelRefusal, Platform, Rejected, Severity,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

type Answer = Result<Value, Fault>;

/// A question, ready to be asked.
pub struct Asked {
    /// Id of the built-in platform that decides such things.
    pub platform: &'static str,
    facts: Arc<Facts>,
    question: Question,
    input: Value,
}

enum Question {
    Attention(Box<AttentionQuery>, Box<ModelFacts>),
    Instructions(Box<AttentionQuery>),
    Threads(u32),
    Batch(u32),
    GraphMode(Box<GraphQuery>),
    CaptureSizes(Box<GraphQuery>),
    Capability,
}

/// Remembers facts: most records are of the same few machines, and facts are handed to a platform once.
#[derive(Default)]
pub struct Translator {
    machines: HashMap<String, Arc<Facts>>,
}

fn read<T: DeserializeOwned>(input: &Value) -> anyhow::Result<T> {
    T::deserialize(input).context("what went in is not of this kind")
}

/// Names of dtypes.
fn dtype(recorded: &str) -> String {
    match recorded {
        "bfloat16" => "bf16",
        "float16" => "f16",
        "float32" => "f32",
        other => other,
    }
    .to_owned()
}

impl Translator {
    /// The question behind a record.
    ///
    /// # Errors
    /// The kind is not known, or the record is not of its kind.
    pub fn question(&mut self, vector: &Vector) -> anyhow::Result<Asked> {
        let (platform, facts, question) = match vector.kind.as_str() {
            "cuda.attn" => self.attention(&vector.input)?,
            "cpu.attn_isa" => self.instructions(&vector.input)?,
            "cpu.autobind" => self.threads(&vector.input)?,
            "engine.batch_defaults" => self.batch(&vector.input)?,
            "graph.mode" => self.graph_mode(&vector.input)?,
            "graph.capture_sizes" => self.capture_sizes(&vector.input)?,
            "rocm.gcn_capability" => self.capability(&vector.input)?,
            other => anyhow::bail!(
                "the kind '{other}' is not known: expected cuda.attn, cpu.attn_isa, cpu.autobind, \
                 engine.batch_defaults, graph.mode, graph.capture_sizes or rocm.gcn_capability"
            ),
        };
        Ok(Asked {
            platform: super::built_in(platform)?,
            facts,
            question,
            input: vector.input.clone(),
        })
    }

    fn machine(&mut self, key: String, build: &str, change: impl FnOnce(&mut Facts)) -> Arc<Facts> {
        let made = || {
            let mut facts = plain(&format!("vllm-0.22.1/{build}"));
            change(&mut facts);
            Arc::new(facts)
        };
        Arc::clone(self.machines.entry(key).or_insert_with(made))
    }

    fn attention(&mut self, input: &Value) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            capability: (u32, u32),
            selected: Option<String>,
            num_heads: u32,
            head_size: u32,
            dtype: String,
            kv_cache_dtype: Option<String>,
            block_size: Option<u32>,
            use_mla: bool,
            has_sink: bool,
            use_sparse: bool,
            use_mm_prefix: bool,
            use_per_head_quant_scales: bool,
            attn_type: String,
            use_non_causal: bool,
            use_batch_invariant: bool,
            hf_mla_dims: Option<(u32, u32, u32)>,
            index_topk: bool,
            tokenspeed: bool,
            artifactory: bool,
        }
        let input: In = read(input)?;
        let key = format!(
            "cuda {:?} {} {}",
            input.capability, input.tokenspeed, input.artifactory
        );
        let facts = self.machine(key, "cuda", |facts| {
            let mut gpu = device("nvidia");
            gpu.capability = Some(input.capability);
            facts.devices = vec![gpu];
            if input.tokenspeed {
                facts.packages = vec!["tokenspeed_mla".to_owned()];
            }
            if input.artifactory {
                facts.services = vec!["nvidia-artifactory".to_owned()];
            }
        });
        let traits = [
            (input.has_sink, "sinks"),
            (input.use_sparse, "sparse"),
            (input.use_mm_prefix, "mm-prefix"),
            (input.use_per_head_quant_scales, "per-head-scales"),
            (input.use_non_causal, "non-causal"),
            (input.use_batch_invariant, "batch-invariant"),
            (input.index_topk, "index-topk"),
            (input.attn_type == "encoder", "encoder"),
            (input.attn_type == "encoder_only", "encoder-only"),
            (input.attn_type == "encoder_decoder", "encoder-decoder"),
        ];
        let asked_for = traits.iter().filter(|(holds, _)| *holds);
        let mla = input.hf_mla_dims.map(|(nope, rope, v)| MlaDims {
            nope,
            rope,
            v,
            lora_rank: input.head_size.saturating_sub(rope),
        });
        let query = AttentionQuery {
            layer_kind: if input.use_mla { "mla" } else { "full" }.to_owned(),
            head_size: input.head_size,
            num_heads: input.num_heads,
            num_kv_heads: input.num_heads,
            dtype: dtype(&input.dtype),
            kv_dtype: dtype(input.kv_cache_dtype.as_deref().unwrap_or("auto")),
            block_size: input.block_size,
            requested: input.selected,
            traits: asked_for.map(|(_, name)| (*name).to_owned()).collect(),
            mla,
            ..query()
        };
        let model = ModelFacts {
            mla,
            ..model(&query)
        };
        Ok((
            "cuda",
            facts,
            Question::Attention(Box::new(query), Box::new(model)),
        ))
    }

    fn instructions(
        &mut self,
        input: &Value,
    ) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            arch: String,
            amx: bool,
            avx512: bool,
            rvv: bool,
            dtype: String,
            block_size: u32,
            head_size: u32,
            kv_cache_dtype: Option<String>,
        }
        let input: In = read(input)?;
        let key = format!(
            "isa {} {} {} {}",
            input.arch, input.amx, input.avx512, input.rvv
        );
        let facts = self.machine(key, "cpu", |facts| {
            facts.host.arch = arch(&input.arch).to_owned();
            let features = [
                (input.amx, "amx_tile"),
                (input.avx512, "avx512f"),
                (input.rvv, "zvl128b"),
            ];
            let has = features.iter().filter(|(holds, _)| *holds);
            facts.host.isa = has.map(|(_, name)| (*name).to_owned()).collect();
        });
        let query = AttentionQuery {
            head_size: input.head_size,
            dtype: dtype(&input.dtype),
            kv_dtype: dtype(input.kv_cache_dtype.as_deref().unwrap_or("auto")),
            block_size: Some(input.block_size),
            ..query()
        };
        Ok(("cpu", facts, Question::Instructions(Box::new(query))))
    }

    fn threads(&mut self, input: &Value) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            arch: String,
            numa_nodes: u32,
            cores_per_node: u32,
            smt: u32,
            interleaved_ids: bool,
            local_world_size: u32,
            reserve: u32,
        }
        let key = format!("threads {input}");
        let input: In = read(input)?;
        let facts = self.machine(key, "cpu", |facts| {
            facts.host.arch = arch(&input.arch).to_owned();
            numbered(
                facts,
                input.numa_nodes,
                input.cores_per_node,
                input.smt,
                input.interleaved_ids,
            );
            // A record says how many are left to others: vLLM reads that from here.
            let name = "VLLM_CPU_NUM_OF_RESERVED_CPU".to_owned();
            facts.env = vec![(name, input.reserve.to_string())];
        });
        Ok(("cpu", facts, Question::Threads(input.local_world_size)))
    }

    fn batch(&mut self, input: &Value) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            kind: String,
            mem: u64,
            name: String,
            world_size: u32,
        }
        let key = format!("batch {input}");
        let input: In = read(input)?;
        // A platform out of tree has no rule of its own in vLLM: it is asked of one that has none either.
        let (platform, build, vendor) = match input.kind.as_str() {
            "cpu" => ("cpu", "cpu", ""),
            "tpu" => ("tpu", "tpu", "google"),
            "cuda" => ("cuda", "cuda", "nvidia"),
            "rocm" => ("rocm", "rocm", "amd"),
            "xpu" | "oot" => ("xpu", "xpu", "intel"),
            other => {
                anyhow::bail!("kind: found '{other}', expected cpu, tpu, cuda, rocm, xpu or oot")
            }
        };
        let facts = self.machine(key, build, |facts| {
            if !vendor.is_empty() {
                let mut one = device(vendor);
                one.name.clone_from(&input.name);
                one.memory_total = input.mem;
                facts.devices = vec![one];
            }
        });
        Ok((platform, facts, Question::Batch(input.world_size)))
    }

    fn graph_mode(
        &mut self,
        input: &Value,
    ) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            requested: Option<String>,
            min_support: String,
            uniform_decode_query_len: u32,
            splitting_ops_contain_attention: bool,
            compilation: String,
            inductor_partition: bool,
        }
        let input: In = read(input)?;
        let weakest = match input.min_support.as_str() {
            "ALWAYS" => GraphSupport::Always,
            "UNIFORM_BATCH" => GraphSupport::UniformBatch,
            "UNIFORM_SINGLE_TOKEN_DECODE" => GraphSupport::SingleTokenDecode,
            _ => GraphSupport::Never,
        };
        let extra = [
            (
                "compilation",
                input.compilation.to_lowercase().replace('_', "-"),
            ),
            ("inductor-partition", input.inductor_partition.to_string()),
            (
                "splitting-ops-contain-attention",
                input.splitting_ops_contain_attention.to_string(),
            ),
        ];
        let config = EngineConfig {
            graph_mode: graph_mode(input.requested.as_deref().unwrap_or("NONE"))?,
            spec_tokens: input.uniform_decode_query_len.saturating_sub(1),
            // Sizes that leave room for any draft: a record of the mode says nothing of them.
            max_num_seqs: 256,
            max_batched_tokens: 8192,
            extra: extra.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            ..EngineConfig::default()
        };
        let query = GraphQuery {
            config,
            weakest,
            // As the recorder called its backend.
            kernel: "B".to_owned(),
        };
        let facts = self.graphs();
        Ok(("cuda", facts, Question::GraphMode(Box::new(query))))
    }

    fn capture_sizes(
        &mut self,
        input: &Value,
    ) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            max_num_seqs: u32,
            spec_tokens: u32,
            max_num_batched_tokens: u32,
            performance_mode: String,
        }
        let input: In = read(input)?;
        let config = EngineConfig {
            // Recorded before the sizes are fitted to drafts, which is done where decode is captured whole.
            graph_mode: GraphMode::Piecewise,
            max_num_seqs: input.max_num_seqs,
            spec_tokens: input.spec_tokens,
            max_batched_tokens: input.max_num_batched_tokens,
            extra: vec![("performance-mode".to_owned(), input.performance_mode)],
            ..EngineConfig::default()
        };
        let query = GraphQuery {
            config,
            weakest: GraphSupport::Always,
            kernel: "B".to_owned(),
        };
        let facts = self.graphs();
        Ok(("cuda", facts, Question::CaptureSizes(Box::new(query))))
    }

    fn graphs(&mut self) -> Arc<Facts> {
        self.machine("graphs".to_owned(), "cuda", |facts| {
            let mut gpu = device("nvidia");
            gpu.capability = Some((9, 0));
            facts.devices = vec![gpu];
        })
    }

    fn capability(
        &mut self,
        input: &Value,
    ) -> anyhow::Result<(&'static str, Arc<Facts>, Question)> {
        #[derive(Deserialize)]
        struct In {
            arch: String,
        }
        let input: In = read(input)?;
        let facts = self.machine(format!("gcn {}", input.arch), "rocm", |facts| {
            let mut gpu = device("amd");
            gpu.arch.clone_from(&input.arch);
            facts.devices = vec![gpu];
        });
        Ok(("rocm", facts, Question::Capability))
    }
}

fn graph_mode(name: &str) -> anyhow::Result<GraphMode> {
    Ok(match name {
        "NONE" => GraphMode::None,
        "PIECEWISE" => GraphMode::Piecewise,
        "FULL" => GraphMode::Full,
        "FULL_DECODE_ONLY" => GraphMode::FullDecodeOnly,
        "FULL_AND_PIECEWISE" => GraphMode::FullAndPiecewise,
        other => anyhow::bail!("graph mode: found '{other}'"),
    })
}

fn graph_mode_name(mode: GraphMode) -> &'static str {
    match mode {
        GraphMode::None => "NONE",
        GraphMode::Piecewise => "PIECEWISE",
        GraphMode::Full => "FULL",
        GraphMode::FullDecodeOnly => "FULL_DECODE_ONLY",
        GraphMode::FullAndPiecewise => "FULL_AND_PIECEWISE",
    }
}

fn query() -> AttentionQuery {
    AttentionQuery {
        device: 0,
        phase: "any".to_owned(),
        layer_kind: "full".to_owned(),
        head_size: 64,
        num_heads: 32,
        num_kv_heads: 32,
        dtype: "bf16".to_owned(),
        kv_dtype: "auto".to_owned(),
        block_size: None,
        requested: None,
        traits: Vec::new(),
        mla: None,
        config: EngineConfig::default(),
    }
}

fn model(query: &AttentionQuery) -> ModelFacts {
    ModelFacts {
        arch: "llama".to_owned(),
        dtype: query.dtype.clone(),
        quantization: None,
        formats: Vec::new(),
        weight_bytes: 0,
        head_size: query.head_size,
        num_heads: query.num_heads,
        num_kv_heads: query.num_kv_heads,
        layers: 32,
        hidden_size: 4096,
        intermediate_size: 16384,
        vocab_size: 32768,
        max_len: 32768,
        mla: None,
        vision: None,
        hybrid: false,
        state_bytes: None,
        moe: false,
        traits: Vec::new(),
    }
}

fn pairs(rejected: Vec<Rejected>) -> Value {
    let pairs = rejected
        .into_iter()
        .map(|rejected| (rejected.id, rejected.reasons));
    json!(pairs.collect::<Vec<_>>())
}

impl Asked {
    /// What the record says went in.
    pub fn shown(&self) -> Value {
        self.input.clone()
    }

    /// Asks, and gives the answer in the form of the record.
    pub fn ask(&self, platform: &mut dyn Platform) -> Answer {
        let facts = &self.facts;
        match &self.question {
            Question::Attention(query, model) => attention(platform, facts, query, model),
            Question::Instructions(query) => Ok(match platform.select_attention(facts, query)? {
                Decision::Chosen(choice) => {
                    let instructions = choice.selected.rsplit('/').next();
                    json!({"isa": instructions, "error": null})
                }
                Decision::Refused(refusal) => json!({"isa": null, "error": refusal.message}),
            }),
            Question::Threads(ranks) => Ok(match platform.plan_threads(facts, *ranks)? {
                Ok(plan) => {
                    let ranks: Vec<_> = plan.ranks.into_iter().map(|rank| rank.cpus).collect();
                    json!({"ranks": ranks, "reserved": plan.reserved, "error": null})
                }
                Err(diagnostic) => {
                    json!({"ranks": null, "reserved": null, "error": diagnostic.message})
                }
            }),
            Question::Batch(world) => {
                let bulk = platform.batch_defaults(facts, "llm", *world)?;
                let server = platform.batch_defaults(facts, "server", *world)?;
                let both = |bulk: u32, server: u32| json!({"LLM_CLASS": bulk, "OPENAI_API_SERVER": server});
                Ok(json!({
                    "max_num_batched_tokens": both(bulk.max_batched_tokens, server.max_batched_tokens),
                    "max_num_seqs": both(bulk.max_num_seqs, server.max_num_seqs),
                }))
            }
            Question::GraphMode(query) => Ok(match platform.plan_graphs(facts, query)? {
                Ok(plan) => json!({"mode": graph_mode_name(plan.mode), "error": null}),
                Err(diagnostic) => json!({"mode": null, "error": diagnostic.message}),
            }),
            Question::CaptureSizes(query) => Ok(match platform.plan_graphs(facts, query)? {
                Ok(plan) => {
                    let sizes = plan.capture_sizes;
                    json!({"max": sizes.last(), "sizes": sizes, "error": null})
                }
                Err(diagnostic) => json!({"max": null, "sizes": null, "error": diagnostic.message}),
            }),
            Question::Capability => Ok(match platform.device_capabilities(facts, 0)? {
                Ok(capabilities) => json!({"cap": capabilities.capability, "error": null}),
                Err(diagnostic) => json!({"cap": null, "error": diagnostic.message}),
            }),
        }
    }
}

/// The backend, and the block size and KV layout that follow from it where the user fixed neither.
fn attention(
    platform: &mut dyn Platform,
    facts: &Arc<Facts>,
    query: &AttentionQuery,
    model: &ModelFacts,
) -> Answer {
    let Choice {
        selected,
        ranking,
        rejected,
        notes,
    } = match platform.select_attention(facts, query)? {
        Decision::Chosen(choice) => choice,
        Decision::Refused(KernelRefusal {
            message,
            ranking,
            rejected,
        }) => {
            return Ok(json!({
                "selected": null, "error": message, "order": ranking, "invalid": pairs(rejected),
                "warn": [], "preferred_block": null, "layout": null,
            }));
        }
    };
    let block = platform.choose_block_size(
        facts,
        &BlockQuery {
            device: 0,
            backends: vec![selected.clone()],
            model: model.clone(),
            config: EngineConfig::default(),
            state_page_bytes: None,
        },
    )?;
    let (size, layout) = match block {
        Ok(plan) => (json!(plan.block_size), json!(plan.kv_layout)),
        Err(diagnostic) => (json!(diagnostic.message), Value::Null),
    };
    let warnings = notes.iter().filter(|note| note.severity == Severity::Warn);
    let warnings: Vec<_> = warnings.map(|note| note.message.clone()).collect();
    Ok(json!({
        "selected": selected, "error": null, "order": ranking, "invalid": pairs(rejected),
        "warn": warnings, "preferred_block": size, "layout": layout,
    }))
}
