//! What vLLM v0.22.1 decides on CPUs (`platforms/cpu.py`, `v1/attention/backends/cpu_attn.py`).

use plinth_sdk::prelude::*;
use plinth_sdk::vllm::attention::{Fits, asks_for, is_quantised, select, unknown};
use plinth_sdk::vllm::{auto_dtype, blocks, linear, numa, share};

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

fn has(facts: &Facts, feature: &str) -> bool {
    facts.host.isa.iter().any(|known| known == feature)
}

fn has_amx(facts: &Facts) -> bool {
    has(facts, "amx_tile")
}

/// Vectors of 128 or 256 bits, and no longer ones (`cpu_attn.py:521-534`).
fn has_short_rvv(facts: &Facts) -> bool {
    let any = |names: [&str; 2]| names.iter().any(|name| has(facts, name));
    any(["zvl128b", "zvl256b"]) && !any(["zvl512b", "zvl1024b"])
}

/// An AMD CPU with AVX-512 whose own kernels are installed (`platforms/__init__.py:154-200`).
fn is_zen(facts: &Facts) -> bool {
    let installed = facts.packages.iter().any(|name| name == "zentorch");
    facts.host.vendor == "AuthenticAMD" && has(facts, "avx512f") && installed
}

/// Activation dtypes, best first (`platforms/cpu.py:44-66`).
fn dtypes(facts: &Facts) -> &'static [&'static str] {
    match (facts.host.arch.as_str(), facts.host.os.as_str()) {
        ("powerpc64le", _) => &["bf16", "f32"],
        ("aarch64", "macos") if !has(facts, "bf16") => &["f16", "f32"],
        _ if is_zen(facts) => &["bf16", "f32"],
        _ => &["bf16", "f16", "f32"],
    }
}

/// The vector unit that attention is compiled for: one backend, several sets of instructions (`cpu_attn.py:536-575`).
fn instructions(
    facts: &Facts,
    query: &AttentionQuery,
    block: u32,
) -> Result<&'static str, &'static str> {
    let quantised = is_quantised(&query.kv_dtype);
    if !query.head_size.is_multiple_of(32) && query.head_size.is_multiple_of(16) {
        return match quantised {
            true => Err("FP8 KV cache requires head_size divisible by 32 on CPU."),
            false => Ok("vec16"),
        };
    }
    if quantised && !has_amx(facts) && !has(facts, "avx512f") {
        return Err("FP8 KV cache on CPU requires x86 with AVX-512 or AMX.");
    }
    if !block.is_multiple_of(32) {
        return Ok("vec16");
    }
    Ok(match facts.host.arch.as_str() {
        _ if has_amx(facts) && query.dtype == "bf16" => "amx",
        "aarch64" => "neon",
        "riscv64" if has_short_rvv(facts) => "rvv",
        "s390x" => "vxe",
        "powerpc64le" => "vsx",
        _ => "vec",
    })
}

/// vLLM gives no reasons: it looks for one set of instructions and asks no further.
fn against(facts: &Facts, kernel: &Kernel, query: &AttentionQuery, chosen: &str) -> Vec<String> {
    let mut reasons = Fits::of(facts, kernel, query, None).reasons(query);
    let missing = unmet(&kernel.requires, facts, &[], None);
    if !missing.is_empty() {
        reasons.push(format!(
            "requires {}, which this machine lacks",
            missing.join(", ")
        ));
    }
    if reasons.is_empty() {
        reasons.push(format!("{chosen} goes before it"));
    }
    reasons
}

/// Tokens in a block where the user named none (`platforms/cpu.py:118-125`).
const BLOCK: u32 = 128;

/// The rules, for [`ByEngine`].
pub struct OfVllm;

impl Platform for OfVllm {
    fn describe() -> Descriptor {
        crate::Cpu::describe()
    }

    fn device_capabilities(facts: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        Ok(Capabilities {
            dtypes: names(dtypes(facts)),
            kv_dtypes: names(&["auto", "f16", "bf16", "fp8", "fp8_e4m3", "fp8_e5m2"]),
            quantization: None,
            fp8_format: None,
            graph: false,
            features: names(&["hybrid-kv"]),
            capability: None,
        })
    }

    fn batch_defaults(_: &Facts, usage: &str, world_size: u32) -> BatchPlan {
        let why = "so many a socket: each is a device of its own";
        match usage {
            "server" => batch(2048 * world_size, 128 * world_size, why),
            _ => batch(4096 * world_size, 256 * world_size, why),
        }
    }

    /// What vLLM sets on every CPU.
    fn default_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let off = |path: &str, reason: &str| {
            (!set_by_user(config, path)).then(|| patch(path, Value::Boolean(false), reason))
        };
        let mut patches: Vec<_> = auto_dtype(model, config, dtypes(facts))
            .into_iter()
            .collect();
        patches.extend(off("async-scheduling", "a CPU does not wait for a device"));
        let (compilation, reason) = match config.lora {
            true => ("none", "adapters are not compiled"),
            false => (
                "dynamo-trace-once",
                "a CPU traces once, and compiles with inductor",
            ),
        };
        patches.push(patch(
            "extra.compilation",
            Value::Text(compilation.to_owned()),
            reason,
        ));
        if facts.host.arch == "aarch64" {
            let reason = "its own GELU is faster there";
            patches.push(patch(
                "extra.custom-ops",
                Value::Text("gelu".to_owned()),
                reason,
            ));
        }
        patches.extend(off("cascade-attention", "the CPU's attention has none"));
        patches.extend(share(config));
        let space = facts
            .env
            .iter()
            .find(|(name, _)| name == "VLLM_CPU_KVCACHE_SPACE");
        let gigabytes = space.and_then(|(_, text)| text.parse::<u64>().ok());
        if let (Some(gigabytes), false) = (gigabytes, set_by_user(config, "kv-bytes")) {
            patches.push(patch(
                "kv-bytes",
                Value::Unsigned(gigabytes * GIB),
                "VLLM_CPU_KVCACHE_SPACE, in GiB",
            ));
        }
        let linear = model.traits.iter().any(|name| name == "linear-attention");
        let reason = match (facts.host.arch.as_str(), linear && has_amx(facts)) {
            ("riscv64", _) => Some("RISC-V CPUs do not support it"),
            (_, true) => Some("layers of linear attention do not support it on AMX"),
            _ => None,
        };
        if let Some(reason) = reason {
            patches.extend(off("chunked-prefill", reason));
            patches.extend(off("prefix-caching", reason));
        }
        patches
    }

    /// What vLLM warns of.
    fn check_config(_: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let odd = config.block_size > 0 && !config.block_size.is_multiple_of(32);
        let message = "blocks that are no multiple of 32 tokens are served by slower code";
        let fix = "take --block-size 128".to_owned();
        let odd = odd.then(|| warn("block-size", message, Some(fix)));
        CheckResult {
            patches: Vec::new(),
            diagnostics: odd.into_iter().collect(),
        }
    }

    /// Always the one backend; what was asked for is passed over with a note, and what it cannot do is an error.
    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let block = query.block_size.unwrap_or(BLOCK);
        let of_cpu = |kernel: &&Kernel| kernel.id.starts_with("CPU_ATTN/");
        let refuse = |message: &str| {
            let rejected = facts.kernels.iter().filter(of_cpu).map(|kernel| Rejected {
                id: kernel.id.clone(),
                reasons: vec![message.to_owned()],
            });
            Decision::Refused(Refusal {
                message: message.to_owned(),
                ranking: Vec::new(),
                rejected: rejected.collect(),
            })
        };
        if query.layer_kind == "mla" {
            return refuse("MLA is not supported on CPU.");
        }
        if asks_for(query, "sparse") {
            return refuse("Sparse Attention is not supported on CPU.");
        }
        if let Some(message) = unknown(query) {
            return refuse(&message);
        }
        let chosen = match instructions(facts, query, block) {
            Ok(name) => format!("CPU_ATTN/{name}"),
            Err(message) => return refuse(message),
        };
        if let Some(kernel) = facts.kernels.iter().find(|kernel| kernel.id == chosen) {
            // vLLM does not look, and would run without what it has no code for.
            let fits = Fits {
                head_size: true,
                dtype: true,
                kv_dtype: true,
                block_size: true,
                capability: true,
                batch_invariant: true,
                ..Fits::of(facts, kernel, query, None)
            };
            if let Some(reason) = fits.reasons(query).first() {
                return refuse(&format!("CPU_ATTN: {reason}"));
            }
        }
        let rejected: Vec<_> = facts
            .kernels
            .iter()
            .filter(of_cpu)
            .filter(|kernel| kernel.id != chosen)
            .map(|kernel| Rejected {
                id: kernel.id.clone(),
                reasons: against(facts, kernel, query, &chosen),
            })
            .collect();
        let why = format!(
            "head size {}, blocks of {block} tokens and {} on {}: {chosen}",
            query.head_size, query.dtype, facts.host.arch
        );
        let mut notes = vec![info("instructions", why)];
        if let Some(asked) = query.requested.as_ref().filter(|asked| **asked != chosen) {
            notes.push(warn(
                "attention-backend",
                format!("{asked} cannot be used on a CPU, which has one backend"),
                None,
            ));
        }
        Decision::Chosen(Choice {
            ranking: vec![chosen.clone()],
            selected: chosen,
            rejected,
            notes,
        })
    }

    /// Vision encoders: plain PyTorch, which takes all (`platforms/interface.py:262-297`).
    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        select("cpu", facts, query, &["TORCH_SDPA"], |_| Vec::new())
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        let plan = blocks::choose(facts, query, BLOCK)?;
        Ok(BlockPlan {
            kv_layout: Some("HND".to_owned()),
            ..plan
        })
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        linear::kernel_priority(facts, "cpu", op, shape, None)
    }

    fn plan_threads(facts: &Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
        numa::bind(facts, ranks)
    }
}
