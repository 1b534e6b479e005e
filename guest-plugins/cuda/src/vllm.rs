//! What vLLM v0.22.1 decides on NVIDIA devices (`platforms/cuda.py`, and the backends under `v1/attention/backends`).

use crate::Cuda;
use plinth_sdk::prelude::*;
use plinth_sdk::vllm::attention::{Fits, asks_for, is_quantised, select};
use plinth_sdk::vllm::{KV_DTYPES, batch_defaults, blocks, defaults, graphs, linear, quantization};

/// Oldest compute capability that is served.
pub const OLDEST: Capability = (7, 0);

/// Major compute capabilities.
const HOPPER: u32 = 9;
const BLACKWELL: u32 = 10;

fn capability(facts: &Facts, device: u32) -> Capability {
    let device = facts.devices.get(device as usize);
    device
        .and_then(|device| device.capability)
        .unwrap_or((0, 0))
}

/// Activation dtypes by compute capability, best first (`platforms/cuda.py:163-174`).
fn dtypes(capability: Capability) -> &'static [&'static str] {
    match capability {
        (8.., _) => &["bf16", "f16", "f32"],
        (6.., _) => &["f16", "f32"],
        _ => &["f32"],
    }
}

/// Backends in the order of vLLM (`platforms/cuda.py:78-147`).
fn priorities(major: u32, query: &AttentionQuery) -> Vec<&'static str> {
    let latent = query.layer_kind == "mla";
    let quantised = is_quantised(&query.kv_dtype);
    match (latent, major) {
        (false, BLACKWELL) => vec![
            "FLASHINFER",
            "FLASH_ATTN",
            "TRITON_ATTN",
            "FLEX_ATTENTION",
            "TURBOQUANT",
        ],
        (false, _) => vec![
            "FLASH_ATTN",
            "FLASHINFER",
            "TRITON_ATTN",
            "FLEX_ATTENTION",
            "TURBOQUANT",
        ],
        (true, BLACKWELL) => {
            // FlashMLA pads few heads to many, and does not like a quantised cache.
            let mut sparse = ["FLASHMLA_SPARSE", "FLASHINFER_MLA_SPARSE"];
            if quantised || query.num_heads <= 16 {
                sparse.reverse();
            }
            let mut order = vec![
                "FLASHINFER_MLA",
                "TOKENSPEED_MLA",
                "CUTLASS_MLA",
                "FLASH_ATTN_MLA",
                "FLASHMLA",
                "TRITON_MLA",
            ];
            order.extend(sparse);
            order
        }
        (true, _) => vec![
            "FLASH_ATTN_MLA",
            "FLASHMLA",
            "FLASHINFER_MLA",
            "TRITON_MLA",
            "FLASHMLA_SPARSE",
        ],
    }
}

/// FlashAttention as built in: 2 from Ampere on, 3 on Hopper, 4 on Hopper and newer data centre devices
/// (`v1/attention/backends/fa_utils.py:53-175`).
fn flash_attention(major: u32, batch_invariant: bool) -> Option<u32> {
    match major {
        HOPPER => Some(3),
        BLACKWELL if !batch_invariant => Some(4),
        8.. => Some(2),
        _ => None,
    }
}

fn has_flash_attention_4(major: u32) -> bool {
    (9..=11).contains(&major)
}

/// Kernels of TensorRT-LLM behind FlashInfer: they are fetched (`utils/flashinfer.py:335-347`).
fn has_trtllm(facts: &Facts, major: u32, batch_invariant: bool) -> bool {
    let within_reach = facts
        .services
        .iter()
        .any(|name| name == "nvidia-artifactory");
    major == BLACKWELL && within_reach && !batch_invariant
}

/// Every reason against a backend, from the catalogue and from what depends on the device.
fn reasons(facts: &Facts, kernel: &Kernel, query: &AttentionQuery) -> Vec<String> {
    let has = capability(facts, query.device);
    let major = has.0;
    let invariant = asks_for(query, "batch-invariant");
    let sinks = asks_for(query, "sinks");
    let sparse = asks_for(query, "sparse");
    let mut fits = Fits::of(facts, kernel, query, Some(has));
    match kernel.id.as_str() {
        "FLASH_ATTN" => {
            let version = flash_attention(major, invariant);
            let quantised = query.kv_dtype.starts_with("fp8");
            fits.kv_dtype &= !quantised || (version == Some(3) && major == HOPPER);
            fits.head_size &= query.head_size <= 256 || has_flash_attention_4(major);
            fits.per_head_scales &=
                !asks_for(query, "per-head-scales") || version.is_some_and(|n| n >= 3);
            fits.sinks &= !sinks || matches!(version, Some(3 | 4));
            if sinks && has < (9, 0) {
                fits.combination = Some("sink not supported on compute capability < 9.0".into());
            }
        }
        "FLASHINFER" => fits.sinks &= !sinks || has_trtllm(facts, major, invariant),
        "FLASH_ATTN_MLA" if major != HOPPER => {
            fits.combination = Some("FlashAttention MLA not supported on this device".into());
        }
        "FLASHMLA" if sparse && !matches!(major, HOPPER | BLACKWELL) => {
            let reason = "FlashMLA Sparse is only supported on Hopper and Blackwell devices.";
            fits.combination = Some(reason.into());
        }
        "FLASHMLA" if !sparse && major != HOPPER => {
            let reason = "FlashMLA Dense is only supported on Hopper devices.";
            fits.combination = Some(reason.into());
        }
        "FLASHINFER_MLA" => fits.combination = flashinfer_widths(query, "", &[64, 128, 192]),
        "FLASHINFER_MLA_SPARSE" => {
            let keys = (!asks_for(query, "index-topk"))
                .then(|| "FlashInfer MLA Sparse requires model with index_topk config".to_owned());
            fits.combination = flashinfer_widths(query, " Sparse", &[128, 192]).or(keys);
        }
        "TOKENSPEED_MLA" => fits.combination = tokenspeed(facts, query),
        _ => {}
    }
    fits.reasons(query)
}

/// FlashInfer's kernels for latent attention are compiled for some widths.
fn flashinfer_widths(query: &AttentionQuery, kind: &str, widths: &[u32]) -> Option<String> {
    let nope = query.mla.map_or(1, |mla| mla.nope);
    (!widths.contains(&nope)).then(|| {
        format!(
            "FlashInfer MLA{kind} kernel requires qk_nope_head_dim in {widths:?}, but got {nope}"
        )
    })
}

/// The optional package, for DeepSeek R1's widths alone.
fn tokenspeed(facts: &Facts, query: &AttentionQuery) -> Option<String> {
    if !facts.packages.iter().any(|name| name == "tokenspeed_mla") {
        let reason = "tokenspeed_mla package is not installed. Install it with: `uv pip install tokenspeed-mla`";
        return Some(reason.to_owned());
    }
    let (nope, rope, v) = query
        .mla
        .map_or((0, 0, 0), |mla| (mla.nope, mla.rope, mla.v));
    ((nope, rope, v) != (128, 64, 128)).then(|| {
        format!(
            "tokenspeed_mla requires DeepSeek R1 MLA dimensions (qk_nope_head_dim=128, qk_rope_head_dim=64, \
             v_head_dim=128), got ({nope}, {rope}, {v})"
        )
    })
}

/// Latent attention in prefill has backends of its own, unless it is sparse (`mla/prefill/selector.py:54-190`).
const MLA_PREFILL: [&str; 4] = [
    "MLA_PREFILL/FLASH_ATTN",
    "MLA_PREFILL/TRTLLM_RAGGED",
    "MLA_PREFILL/FLASHINFER",
    "MLA_PREFILL/TOKENSPEED_MLA",
];

/// DeepSeek R1's widths: without rotation, with, and of a value.
const R1: (u32, u32, u32) = (128, 64, 128);

fn select_mla_prefill(facts: &Facts, query: &AttentionQuery) -> Decision {
    let has = capability(facts, query.device);
    let order = if has.0 == BLACKWELL {
        &MLA_PREFILL[..]
    } else {
        &MLA_PREFILL[..1]
    };
    let widths = query.mla.map(|mla| (mla.nope, mla.rope, mla.v));
    // What was asked for is the backend of decode.
    let query = AttentionQuery {
        requested: None,
        ..query.clone()
    };
    select("cuda", facts, &query, order, |kernel| {
        let (sm, packages): (Vec<_>, Vec<_>) =
            unmet(&kernel.requires, facts, &[query.device], Some(has))
                .into_iter()
                .partition(|word| word.starts_with("sm_"));
        let mut reasons = Vec::new();
        if !sm.is_empty() {
            reasons.push(format!(
                "compute capability {}.{} not supported",
                has.0, has.1
            ));
        }
        if !kernel.dtypes.contains(&query.dtype) {
            reasons.push(format!("dtype {} not supported", query.dtype));
        }
        if !packages.is_empty() {
            reasons.push("required dependencies not available".to_owned());
        }
        if kernel.id != MLA_PREFILL[0] && widths != Some(R1) {
            reasons.push(
                "model does not have DeepSeek R1 MLA dimensions (qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)"
                    .to_owned(),
            );
        }
        reasons
    })
}

/// The rules, for [`ByEngine`].
pub struct OfVllm;

impl Platform for OfVllm {
    fn describe() -> Descriptor {
        Cuda::describe()
    }

    fn provider() -> &'static str {
        Cuda::provider()
    }

    fn vendor() -> Option<&'static str> {
        Cuda::vendor()
    }

    /// vLLM's wheels are compiled for Volta and newer.
    fn probe(facts: &Facts) -> ProbeResult {
        crate::probe(facts, OLDEST)
    }

    fn device_capabilities(facts: &Facts, device: u32) -> Result<Capabilities, Diagnostic> {
        Ok(Capabilities {
            dtypes: names(dtypes(capability(facts, device))),
            kv_dtypes: names(&KV_DTYPES),
            ..Cuda::device_capabilities(facts, device)?
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        batch_defaults(facts, usage)
    }

    fn default_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let has = |name: &str| model.traits.iter().any(|known| known == name);
        let whole_images = (has("multimodal") && has("mm-prefix")).then(|| {
            patch(
                "extra.chunked-mm-input",
                Value::Boolean(false),
                "images attend in both directions, so that their tokens are not split over steps",
            )
        });
        let defaults = defaults(model, config, dtypes(capability(facts, 0)));
        defaults.into_iter().chain(whole_images).collect()
    }

    /// What vLLM raises or warns of at the start.
    fn check_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let has = capability(facts, 0);
        let mut findings = crate::devices_asked_for(facts, config, OLDEST);
        findings.extend(quantization::gate(model, Some(has)));
        if config.dtype == "bf16" && has < (8, 0) {
            let message = format!(
                "bf16 needs compute capability 8.0, and the device has {}.{}",
                has.0, has.1
            );
            let rejected = reject("dtype", message, Some("take --dtype f16".to_owned()));
            findings.push(Diagnostic {
                path: Some("dtype".to_owned()),
                ..rejected
            });
        }
        CheckResult {
            patches: Vec::new(),
            diagnostics: findings,
        }
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let (major, _) = capability(facts, query.device);
        if query.phase == "prefill" && query.layer_kind == "mla" && !asks_for(query, "sparse") {
            return select_mla_prefill(facts, query);
        }
        let order = priorities(major, query);
        select("cuda", facts, query, &order, |kernel| {
            reasons(facts, kernel, query)
        })
    }

    /// Vision encoders: the first that takes width, dtype and device; plain PyTorch takes all (`platforms/cuda.py:387-440`).
    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let has = capability(facts, query.device);
        let order = match has >= (8, 0) {
            true => ["FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA", "FLASHINFER"],
            false => ["FLASH_ATTN", "TORCH_SDPA", "TRITON_ATTN", "FLASHINFER"],
        };
        select("cuda", facts, query, &order, |kernel| {
            let fits = Fits::of(facts, kernel, query, Some(has));
            let checked = Fits {
                kv_dtype: true,
                block_size: true,
                mla: true,
                sparse: true,
                layer_type: true,
                non_causal: true,
                ..fits
            };
            checked.reasons(query)
        })
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let (major, _) = capability(facts, query.device);
        let plan = blocks::choose(facts, query, blocks::DEFAULT)?;
        let layout = |backend: &String| match backend.as_str() {
            "FLASHINFER" if major == BLACKWELL => Some("HND"),
            "FLASHINFER_MLA" | "FLASHINFER_MLA_SPARSE" | "TOKENSPEED_MLA" => Some("HND"),
            _ => None,
        };
        let kv_layout = query.backends.iter().find_map(layout);
        Ok(BlockPlan {
            kv_layout: kv_layout.map(str::to_owned),
            ..plan
        })
    }

    /// Graphs. What a backend supports may depend on the device and on what it was built with.
    fn plan_graphs(facts: &Facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        let (major, _) = capability(facts, 0);
        let here = match query.kernel.as_str() {
            "FLASH_ATTN" if major != HOPPER => GraphSupport::UniformBatch,
            "FLASHINFER" if !has_trtllm(facts, major, false) => GraphSupport::SingleTokenDecode,
            _ => query.weakest,
        };
        graphs::plan(query, here.min(query.weakest))
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "cuda", op, shape, None)
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        Cuda::plan_parallel(facts, config)
    }

    fn plan_kv_transfer(facts: &Facts) -> KvTransferPlan {
        Cuda::plan_kv_transfer(facts)
    }
}
