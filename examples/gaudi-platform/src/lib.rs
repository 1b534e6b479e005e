//! A platform out of tree: Intel Gaudi devices, as vllm-gaudi decides on them for vLLM 0.22.1 (`vllm_gaudi/platform.py`).
//!
//! There it is Python with the rights of the server, which patches modules of vLLM as it is loaded. Here it is a page of
//! rules that can touch nothing.

use plinth_sdk::accelerator::{devices_of, parallel, too_few};
use plinth_sdk::prelude::*;
use plinth_sdk::vllm::{batch_defaults, blocks, linear, share};

struct Gaudi;

/// Tokens in a block: smaller ones work, and waste most of what the matrix engine could do.
const BLOCK: u32 = 128;

/// Quantisation that the plugin knows.
const QUANTIZATION: [&str; 8] = [
    "auto_gptq",
    "awq",
    "awq_hpu",
    "compressed-tensors",
    "fp8",
    "gptq",
    "gptq_hpu",
    "inc",
];

/// May buffers of KV move from device to device?
const DEVICE_TO_DEVICE: &str = "VLLM_NIXL_DEVICE_TO_DEVICE";

impl Platform for Gaudi {
    fn describe() -> Descriptor {
        Descriptor {
            visible_devices_var: Some("HABANA_VISIBLE_MODULES".to_owned()),
            env_allowlist: vec![DEVICE_TO_DEVICE.to_owned()],
            extra_quantization: names(&["inc", "awq_hpu", "gptq_hpu"]),
            ..descriptor("gaudi", "An example, after Intel's", (0, 1, 0))
        }
    }

    fn provider() -> &'static str {
        "gaudi"
    }

    fn vendor() -> Option<&'static str> {
        Some("habana")
    }

    fn why(_: &Facts, _: &Kernel) -> String {
        "the one for this kind of attention".to_owned()
    }

    fn device_capabilities(facts: &Facts, device: u32) -> Result<Capabilities, Diagnostic> {
        let device = facts.devices.get(device as usize);
        // Gaudi 2 scales FP8 to a range of 240, which is that of the format without a negative zero.
        let second = device.is_some_and(|device| device.arch == "gaudi2");
        Ok(Capabilities {
            dtypes: names(&["bf16"]),
            kv_dtypes: names(&["auto", "bf16", "fp8_inc"]),
            quantization: Some(names(&QUANTIZATION)),
            fp8_format: Some(if second { "e4m3fnuz" } else { "e4m3fn" }.to_owned()),
            graph: false,
            features: names(&["sync-weights"]),
            capability: None,
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        batch_defaults(facts, usage)
    }

    fn default_config(_: &Facts, _: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let mut patches: Vec<_> = share(config).into_iter().collect();
        if !set_by_user(config, "dtype") {
            let reason = "what the matrix engine computes in";
            patches.push(patch("dtype", Value::Text("bf16".to_owned()), reason));
        }
        patches
    }

    /// Other dtypes are not had: vllm-gaudi goes on in bf16 with a warning. Here the user is asked.
    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let other = set_by_user(config, "dtype") && config.dtype != "bf16";
        let patches = other.then(|| Patch {
            overrides_user: true,
            ..patch(
                "dtype",
                Value::Text("bf16".to_owned()),
                "Gaudi does not compute in 16- or 32-bit IEEE floats",
            )
        });
        CheckResult {
            patches: patches.into_iter().collect(),
            diagnostics: too_few(devices_of(facts, "habana").len(), config)
                .into_iter()
                .collect(),
        }
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        // What is asked for has no say: there is one kernel for each kind.
        let free = AttentionQuery {
            requested: None,
            ..query.clone()
        };
        decide(facts, &attention_need("gaudi", &free), |kernel| {
            Self::why(facts, kernel)
        })
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        blocks::choose(facts, query, BLOCK)
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "gaudi", op, shape, None)
    }

    fn plan_graphs(_: &Facts, _: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        Ok(GraphPlan {
            mode: GraphMode::None,
            capture_sizes: Vec::new(),
            notes: vec![info(
                "no-graphs",
                "its own graphs are recorded by bucket, not captured by vLLM",
            )],
        })
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        parallel(facts, config, "hccl", None)
    }

    fn plan_kv_transfer(facts: &Facts) -> KvTransferPlan {
        let direct = facts
            .env
            .iter()
            .any(|(name, value)| name == DEVICE_TO_DEVICE && value == "1");
        KvTransferPlan {
            buffer_devices: vec!["cpu".to_owned(), "hpu".to_owned()],
            memory_type: Some(if direct { "VRAM" } else { "DRAM" }.to_owned()),
        }
    }
}

export_platform!(Gaudi);
