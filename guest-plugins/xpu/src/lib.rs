//! The built-in platform `xpu`: Intel devices, as vLLM v0.22.1 decides on them (`platforms/xpu.py`).

use plinth_sdk::accelerator::{devices_of, parallel, too_few};
use plinth_sdk::prelude::*;
use plinth_sdk::vllm::attention::{Fits, asks_for, select};
use plinth_sdk::vllm::{KV_DTYPES, auto_dtype, batch_defaults, blocks, graphs, linear, share};

struct Xpu;

/// Graphs are off unless this is on.
const GRAPHS: &str = "VLLM_XPU_ENABLE_XPU_GRAPH";

/// A device that lacks bf16, by its name (`platforms/xpu.py`, `check_if_supports_dtype`).
const WITHOUT_BF16: &str = "a770";

/// Activation dtypes, best first.
const DTYPES: [&str; 3] = ["bf16", "f16", "f32"];

fn name(facts: &Facts) -> String {
    let device = facts.devices.first();
    device.map_or(String::new(), |device| device.name.to_ascii_lowercase())
}

fn graphs_are_on(facts: &Facts) -> bool {
    let entry = facts.env.iter().find(|(known, _)| known == GRAPHS);
    entry.is_some_and(|(_, value)| value == "1")
}

/// The one backend for what is asked; another that was asked for is an error only where there is a choice.
fn backend(query: &AttentionQuery) -> &'static str {
    let wants_triton = query.requested.as_deref() == Some("TRITON_ATTN");
    if query.kv_dtype.starts_with("turboquant_") {
        "TURBOQUANT"
    } else if asks_for(query, "sparse") {
        "XPU_MLA_SPARSE"
    } else if query.layer_kind == "mla" {
        "TRITON_MLA"
    } else if wants_triton || query.dtype == "f32" {
        "TRITON_ATTN"
    } else {
        "FLASH_ATTN"
    }
}

impl Platform for Xpu {
    fn describe() -> Descriptor {
        Descriptor {
            visible_devices_var: Some("ZE_AFFINITY_MASK".to_owned()),
            env_allowlist: vec![GRAPHS.to_owned()],
            ..descriptor("xpu", "Plinth", (0, 1, 0))
        }
    }

    fn provider() -> &'static str {
        "xpu"
    }

    fn vendor() -> Option<&'static str> {
        Some("intel")
    }

    fn device_capabilities(_: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        Ok(Capabilities {
            dtypes: names(&DTYPES),
            kv_dtypes: names(&KV_DTYPES),
            quantization: None,
            fp8_format: Some("e4m3fn".to_owned()),
            graph: true,
            features: names(&["hybrid-kv", "pinned-memory"]),
            capability: None,
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        batch_defaults(facts, usage)
    }

    fn default_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let dtype = auto_dtype(model, config, &DTYPES);
        let wish = graphs::default_mode(model, config).map(|wish| match graphs_are_on(facts) {
            true => wish,
            false => {
                let reason = "graphs are off on Intel devices unless VLLM_XPU_ENABLE_XPU_GRAPH=1";
                patch("graph-mode", Value::Text("none".to_owned()), reason)
            }
        });
        let fusion = patch(
            "extra.fusion-passes",
            Value::Text("none".to_owned()),
            "Intel devices support none of them yet",
        );
        dtype
            .into_iter()
            .chain(wish)
            .chain(share(config))
            .chain([fusion])
            .collect()
    }

    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let no_bf16 = (config.dtype == "bf16" && name(facts).contains(WITHOUT_BF16)).then(|| {
            let fix = Some("take --dtype f16".to_owned());
            let rejected = reject("dtype", "the Arc A770 does not compute in bf16", fix);
            Diagnostic {
                path: Some("dtype".to_owned()),
                ..rejected
            }
        });
        let few = too_few(devices_of(facts, "intel").len(), config);
        CheckResult {
            patches: Vec::new(),
            diagnostics: no_bf16.into_iter().chain(few).collect(),
        }
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "xpu", op, shape, None)
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let only = backend(query);
        let free = matches!(only, "FLASH_ATTN" | "TRITON_ATTN");
        let asked = match (&query.requested, free) {
            // Where there is no choice, vLLM does not look at the wish.
            (_, false) => None,
            (Some(_), true) if query.dtype == "f32" => None,
            (asked, true) => asked.clone(),
        };
        let query = AttentionQuery {
            requested: asked,
            ..query.clone()
        };
        let decision = select("xpu", facts, &query, &[only], |kernel| match free {
            // Intel's kernels are not held against the checks: there is one for each case.
            true if kernel.id != only => vec!["not for this device".to_owned()],
            _ => Fits {
                capability: true,
                ..Fits::of(facts, kernel, &query, None)
            }
            .reasons(&query),
        });
        match decision {
            Decision::Chosen(mut choice) if query.dtype == "f32" && only == "TRITON_ATTN" => {
                let message =
                    "FLASH_ATTN does not compute in f32 on Intel devices: TRITON_ATTN instead";
                choice.notes.push(warn("dtype", message, None));
                Decision::Chosen(choice)
            }
            decision => decision,
        }
    }

    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        select("xpu", facts, query, &["FLASH_ATTN"], |_| Vec::new())
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let flash = query.backends.first().is_some_and(|id| id == "FLASH_ATTN");
        let plan = blocks::choose(facts, query, if flash { 64 } else { blocks::DEFAULT })?;
        Ok(BlockPlan {
            kv_layout: Some("NHD".to_owned()),
            ..plan
        })
    }

    fn plan_graphs(_: &Facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        graphs::plan(query, query.weakest)
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        parallel(facts, config, "xccl", None)
    }

    fn plan_kv_transfer(_: &Facts) -> KvTransferPlan {
        KvTransferPlan {
            buffer_devices: vec!["xpu".to_owned(), "cpu".to_owned()],
            memory_type: Some("VRAM".to_owned()),
        }
    }
}

export_platform!(Xpu);
