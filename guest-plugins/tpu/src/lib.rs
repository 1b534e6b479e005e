//! The built-in platform `tpu`: Google's chips, as vLLM v0.22.1 decides on them. vLLM itself holds the batch sizes only; the
//! rest is in tpu-inference (commit b8692ff, `platforms/tpu_platform.py`), which it loads.

use plinth_sdk::accelerator::{devices_of, parallel, too_few};
use plinth_sdk::prelude::*;
use plinth_sdk::vllm::{auto_dtype, batch_defaults, blocks, linear, share};

struct Tpu;

fn chip(facts: &Facts) -> &str {
    facts
        .devices
        .first()
        .map_or("", |device| device.name.as_str())
}

/// Activation dtypes, best first.
const DTYPES: [&str; 3] = ["bf16", "f16", "f32"];

/// Tokens a step, in bulk and for a server, by chip (`engine/arg_utils.py:2332-2350`).
const TOKENS: [(&str, u32, u32); 3] = [("V6E", 2048, 1024), ("V5E", 1024, 512), ("V5P", 512, 256)];

/// Bytes of the scalar memory, half of which may hold the tables of blocks, four bytes an entry.
const SCALAR_MEMORY: u32 = 1 << 20;

/// Tokens in a block such that a context is 16 of them, which spares scalar registers, but no fewer than the tables of
/// blocks allow.
fn block_size(context: u32, sequences: u32) -> u32 {
    let by_registers = match context {
        8193.. => 16,
        _ => (context.next_power_of_two() / 16).clamp(16, 256),
    };
    let most_blocks = (SCALAR_MEMORY / 2 / sequences.max(1) / 4).max(1);
    let by_tables = context.div_ceil(most_blocks).next_power_of_two();
    by_registers.max(by_tables)
}

impl Platform for Tpu {
    fn describe() -> Descriptor {
        Descriptor {
            visible_devices_var: Some("TPU_VISIBLE_CHIPS".to_owned()),
            ..descriptor("tpu", "Plinth", (0, 1, 0))
        }
    }

    fn provider() -> &'static str {
        "tpu"
    }

    fn vendor() -> Option<&'static str> {
        Some("google")
    }

    fn why(_: &Facts, _: &Kernel) -> String {
        "the one that there is for TPUs".to_owned()
    }

    fn device_capabilities(facts: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        // Trillium keeps the wider exponent.
        let fp8 = if chip(facts) == "V6E" {
            "e5m2"
        } else {
            "e4m3fn"
        };
        Ok(Capabilities {
            dtypes: names(&DTYPES),
            kv_dtypes: names(&["auto", "bf16", "f16", "fp8", "fp8_e4m3", "fp8_e5m2"]),
            quantization: None,
            fp8_format: Some(fp8.to_owned()),
            graph: false,
            features: Vec::new(),
            capability: None,
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        let general = batch_defaults(facts, usage);
        match TOKENS.iter().find(|(name, ..)| *name == chip(facts)) {
            Some((name, bulk, server)) => {
                let tokens = if usage == "server" { *server } else { *bulk };
                let reason = format!("measured on {name}");
                batch(tokens, general.max_num_seqs, &reason)
            }
            None => general,
        }
    }

    fn default_config(_: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let dtype = auto_dtype(model, config, &DTYPES);
        dtype.into_iter().chain(share(config)).collect()
    }

    fn check_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let new_design = config
            .extra
            .iter()
            .any(|(name, value)| name == "new-model-design" && value == "true");
        let latent = (model.mla.is_some() && !new_design).then(|| {
            let fix = "set NEW_MODEL_DESIGN=1, and share attention by data".to_owned();
            let message = "latent attention needs the new model design";
            reject("mla", message, Some(fix))
        });
        let few = too_few(devices_of(facts, "google").len(), config);
        CheckResult {
            patches: Vec::new(),
            diagnostics: latent.into_iter().chain(few).collect(),
        }
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "tpu", op, shape, None)
    }

    /// One kernel for each kind of attention; another that was asked for is passed over with a note.
    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let only = match query.layer_kind.as_str() {
            "mla" => "FLASH_ATTN_MLA",
            _ => "FLASH_ATTN",
        };
        let free = AttentionQuery {
            requested: None,
            ..query.clone()
        };
        let need = Need {
            preferred: Some(only),
            ..attention_need("tpu", &free)
        };
        let asked = query.requested.as_deref().filter(|asked| *asked != only);
        match decide(facts, &need, |kernel| Self::why(facts, kernel)) {
            Decision::Chosen(mut choice) => {
                choice.notes.extend(asked.map(|asked| {
                    let message = format!("{asked} cannot be used on a TPU: {only} instead");
                    warn("attention-backend", message, None)
                }));
                Decision::Chosen(choice)
            }
            refused => refused,
        }
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let config = &query.config;
        let context = match config.max_model_len {
            0 => query.model.max_len,
            set => set,
        };
        blocks::choose(facts, query, block_size(context, config.max_num_seqs))
    }

    fn plan_graphs(_: &Facts, _: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        Ok(GraphPlan {
            mode: GraphMode::None,
            capture_sizes: Vec::new(),
            notes: vec![info(
                "no-graphs",
                "XLA compiles whole steps, and captures none",
            )],
        })
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        parallel(facts, config, "xla", None)
    }

    /// A seed of each request would be a compilation of each.
    fn request_rules(_: &Facts, _: &EngineConfig) -> Vec<Rule> {
        vec![Rule {
            field: "seed".to_owned(),
            op: "absent".to_owned(),
            operand: String::new(),
            prompts: None,
            message: "seed: a TPU draws from one stream for all requests; leave it out".to_owned(),
        }]
    }
}

export_platform!(Tpu);
