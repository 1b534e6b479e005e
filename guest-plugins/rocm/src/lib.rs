//! The built-in platform `rocm`: AMD devices, as vLLM v0.22.1 decides on them (`platforms/rocm.py`).

use plinth_sdk::accelerator::{devices_of, parallel, too_few};
use plinth_sdk::prelude::*;
use plinth_sdk::vllm::attention::{Fits, select};
use plinth_sdk::vllm::{KV_DTYPES, batch_defaults, blocks, defaults, graphs, linear, quantization};

struct Rocm;

/// Switches of AMD's kernels: the first is for all, and off unless set.
const ENV: [&str; 4] = [
    "VLLM_ROCM_USE_AITER",
    "VLLM_ROCM_USE_AITER_MHA",
    "VLLM_ROCM_USE_AITER_MLA",
    "VLLM_ROCM_USE_AITER_RMSNORM",
];

/// Quantisation that vLLM lets through on AMD devices (`platforms/rocm.py:411-435`).
const QUANTIZATION: [&str; 23] = [
    "auto_gptq",
    "awq",
    "awq_marlin",
    "bitsandbytes",
    "compressed-tensors",
    "deepseek_v4_fp8",
    "fbgemm_fp8",
    "fp8",
    "fp8_per_block",
    "fp8_per_tensor",
    "gguf",
    "gpt_oss_mxfp4",
    "gptq",
    "gptq_marlin",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mixed",
    "modelopt_mxfp8",
    "mxfp4",
    "mxfp8",
    "online",
    "quark",
    "torchao",
];

fn arch(facts: &Facts, device: u32) -> &str {
    let device = facts.devices.get(device as usize);
    device.map_or("", |device| device.arch.as_str())
}

fn is_any(arch: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| arch.contains(part))
}

/// MI200 and MI300 series.
fn is_data_centre(arch: &str) -> bool {
    is_any(arch, &["gfx90a", "gfx942", "gfx950"])
}

/// A compute capability out of an architecture: `gfx942` is 9.4, `gfx1100` is 11.0. Nothing where it is no name of AMD's
/// (`platforms/rocm.py:201-269`).
fn capability(arch: &str) -> Result<Option<Capability>, Diagnostic> {
    let Some(rest) = arch.strip_prefix("gfx") else {
        return Ok(None);
    };
    let digits: Vec<u32> = rest.chars().map_while(|c| c.to_digit(10)).collect();
    let wrong = |message: String| {
        let fix = "report the device to vLLM".to_owned();
        Err(reject("gcn-arch", message, Some(fix)))
    };
    let (major, minor) = match digits.as_slice() {
        [] => return Ok(None),
        [_] => {
            return wrong(format!(
                "GCN arch '{arch}' has too few digits (1) after 'gfx' to derive a capability"
            ));
        }
        // The last of three is the stepping.
        &[major, minor] | &[major, minor, _] => (major, minor),
        &[tens, ones, minor, _] => (10 * tens + ones, minor),
        more => {
            return wrong(format!(
                "GCN arch '{arch}' has {} digits after 'gfx', which exceeds what can be told apart",
                more.len()
            ));
        }
    };
    match major {
        9..=12 => Ok(Some((major, minor))),
        _ => {
            let known = if major < 9 { "under 9" } else { "over 12" };
            wrong(format!(
                "Parsed unknown ROCm architecture from GCN arch '{arch}': major={major}, minor={minor}, {known}"
            ))
        }
    }
}

fn derived(facts: &Facts, device: u32) -> Option<Capability> {
    capability(arch(facts, device)).ok().flatten()
}

fn has_package(facts: &Facts) -> bool {
    facts.packages.iter().any(|name| name == "aiter")
}

/// Is a switch on? All but the first are on unless unset, if the first is.
fn aiter(facts: &Facts, switch: &str) -> bool {
    let value = |name: &str| {
        let entry = facts.env.iter().find(|(known, _)| known == name);
        entry.map(|(_, value)| matches!(value.to_ascii_lowercase().as_str(), "1" | "true"))
    };
    let usable = has_package(facts) && is_data_centre(arch(facts, 0));
    usable && value("VLLM_ROCM_USE_AITER") == Some(true) && value(switch) != Some(false)
}

/// Activation dtypes, best first.
const DTYPES: [&str; 3] = ["bf16", "f16", "f32"];

impl Platform for Rocm {
    fn describe() -> Descriptor {
        Descriptor {
            // ROCm reads the name that CUDA reads, and keeps its own in step.
            visible_devices_var: Some("HIP_VISIBLE_DEVICES".to_owned()),
            env_allowlist: names(&ENV),
            ..descriptor("rocm", "Plinth", (0, 1, 0))
        }
    }

    fn provider() -> &'static str {
        "rocm"
    }

    fn vendor() -> Option<&'static str> {
        Some("amd")
    }

    fn device_capabilities(facts: &Facts, device: u32) -> Result<Capabilities, Diagnostic> {
        let arch = arch(facts, device);
        let fp8 = is_data_centre(arch) || arch.contains("gfx12");
        let mut features = names(&["hybrid-kv", "sleep"]);
        let optional = [
            (!facts.host.wsl, "pinned-memory"),
            (arch.contains("gfx95"), "mx"),
            (is_any(arch, &["gfx94", "gfx95"]), "custom-allreduce"),
        ];
        let on = optional.iter().filter(|(holds, _)| *holds);
        features.extend(on.map(|(_, name)| (*name).to_owned()));
        Ok(Capabilities {
            dtypes: names(&DTYPES),
            kv_dtypes: names(&KV_DTYPES),
            quantization: Some(names(&QUANTIZATION)),
            fp8_format: fp8.then(|| {
                // AMD's first FP8 has no negative zero.
                let format = if arch.contains("gfx94") {
                    "e4m3fnuz"
                } else {
                    "e4m3fn"
                };
                format.to_owned()
            }),
            graph: true,
            features,
            capability: capability(arch)?,
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        batch_defaults(facts, usage)
    }

    fn default_config(_: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let indexer = patch(
            "extra.custom-ops",
            Value::Text("sparse_attn_indexer".to_owned()),
            "ROCm's own, by default",
        );
        defaults(model, config, &DTYPES)
            .into_iter()
            .chain([indexer])
            .collect()
    }

    fn check_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let gate = quantization::gate(model, derived(facts, 0));
        let few = too_few(devices_of(facts, "amd").len(), config);
        CheckResult {
            patches: Vec::new(),
            diagnostics: gate.into_iter().chain(few).collect(),
        }
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "rocm", op, shape, derived(facts, 0))
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let sparse = query.traits.iter().any(|name| name == "sparse");
        let mut order = Vec::new();
        if sparse {
            order.push("ROCM_AITER_MLA_SPARSE");
        } else if query.layer_kind == "mla" && aiter(facts, "VLLM_ROCM_USE_AITER_MLA") {
            order.extend(["ROCM_AITER_MLA", "TRITON_MLA", "ROCM_AITER_TRITON_MLA"]);
        } else if query.layer_kind == "mla" {
            order.push("TRITON_MLA");
        } else {
            order.push("ROCM_ATTN");
            order.extend(aiter(facts, "VLLM_ROCM_USE_AITER_MHA").then_some("ROCM_AITER_FA"));
            let found = has_package(facts) && is_data_centre(arch(facts, query.device));
            order.extend(found.then_some("ROCM_AITER_UNIFIED_ATTN"));
            order.extend(["TRITON_ATTN", "TURBOQUANT"]);
        }
        let has = derived(facts, query.device);
        select("rocm", facts, query, &order, |kernel| {
            Fits::of(facts, kernel, query, has).reasons(query)
        })
    }

    /// FlashAttention where it can be loaded, else plain PyTorch (`platforms/rocm.py:570-615`).
    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let arch = arch(facts, query.device);
        let half = matches!(query.dtype.as_str(), "f16" | "bf16");
        let has_flash = facts.packages.iter().any(|name| name == "flash_attn");
        let mut order = Vec::new();
        if aiter(facts, "VLLM_ROCM_USE_AITER") {
            order.push("ROCM_AITER_FA");
        }
        if half && has_flash && (is_data_centre(arch) || is_any(arch, &["gfx11", "gfx12"])) {
            order.push("FLASH_ATTN");
        }
        order.push("TORCH_SDPA");
        select("rocm", facts, query, &order, |_| Vec::new())
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let unified = query
            .backends
            .first()
            .is_some_and(|id| id == "ROCM_AITER_UNIFIED_ATTN");
        blocks::choose(facts, query, if unified { 64 } else { blocks::DEFAULT })
    }

    fn plan_graphs(_: &Facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        graphs::plan(query, query.weakest)
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        let own = is_any(arch(facts, 0), &["gfx94", "gfx95"]);
        parallel(facts, config, "nccl", own.then_some("xgmi"))
    }

    fn plan_kv_transfer(_: &Facts) -> KvTransferPlan {
        KvTransferPlan {
            buffer_devices: vec!["cuda".to_owned(), "cpu".to_owned()],
            memory_type: Some("VRAM".to_owned()),
        }
    }
}

export_platform!(Rocm);
