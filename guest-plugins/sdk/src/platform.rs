//! The questions, each with a default answer: that of a CPU, or of a vendor's devices, with no opinion of its own.

use crate::accelerator;
use crate::kernels::{Need, decide, takes_block};
use crate::prelude::{
    AttentionQuery, Availability, BatchPlan, BlockPlan, BlockQuery, Capabilities, CheckResult,
    Decision, Descriptor, Diagnostic, EngineConfig, Facts, GraphMode, GraphPlan, GraphQuery,
    Kernel, KvTransferPlan, ModelFacts, OpShape, ParallelPlan, Patch, ProbeResult, RankBinding,
    Rule, ThreadPlan, batch, info, names, reject, set_by_user,
};
use std::collections::BTreeSet;

/// A platform. What the questions mean is said in `wit/platform.wit`.
///
/// A platform is a pure function of what it is given: it has no `self`, and may not remember.
pub trait Platform {
    /// Who are you?
    fn describe() -> Descriptor;

    /// The provider whose kernels are chosen: `cpu` unless said otherwise.
    fn provider() -> &'static str {
        "cpu"
    }

    /// The vendor of the devices that it serves, as facts name it (`nvidia`). By default none: it runs on the host's CPU.
    fn vendor() -> Option<&'static str> {
        None
    }

    /// The kernel of an operation, and for attention of a phase, that goes before better ranks where it can serve. By default
    /// none: ranks decide.
    fn preferred(_: &Facts, _op: &str, _phase: Option<&str>) -> Option<&'static str> {
        None
    }

    /// Why a kernel won: said of every choice.
    fn why(_: &Facts, kernel: &Kernel) -> String {
        format!(
            "the highest rank of what this machine can run, {}",
            kernel.rank
        )
    }

    /// Can you serve? By default where the engine has kernels of the provider: on the vendor's devices, or on the CPU of
    /// any machine.
    fn probe(facts: &Facts) -> ProbeResult {
        let provider = Self::provider();
        match Self::vendor() {
            Some(vendor) => accelerator::probe(facts, vendor, provider),
            None if facts
                .kernels
                .iter()
                .any(|kernel| kernel.provider == provider) =>
            {
                ProbeResult::Available(Availability {
                    devices: Vec::new(),
                    score: 10,
                    notes: Vec::new(),
                })
            }
            None => {
                let found = format!(
                    "this build of {} has no {provider} kernel",
                    facts.engine.name
                );
                ProbeResult::Unavailable(vec![reject("no-kernels", found, None)])
            }
        }
    }

    /// What can this device compute?
    fn device_capabilities(_: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        Ok(Capabilities {
            dtypes: names(&["f32"]),
            kv_dtypes: names(&["f16", "bf16", "f32"]),
            quantization: None,
            fp8_format: None,
            graph: false,
            features: Vec::new(),
            capability: None,
        })
    }

    /// Tokens a step and sequences at once.
    fn batch_defaults(_: &Facts, _: &str, _: u32) -> BatchPlan {
        batch(
            512,
            64,
            "on a CPU larger steps are no faster, and others wait longer for their next token",
        )
    }

    /// Defaults before the check.
    fn default_config(_: &Facts, _: &ModelFacts, _: &EngineConfig) -> Vec<Patch> {
        Vec::new()
    }

    /// Is the configuration sound?
    fn check_config(_: &Facts, _: &ModelFacts, _: &EngineConfig) -> CheckResult {
        CheckResult {
            patches: Vec::new(),
            diagnostics: Vec::new(),
        }
    }

    /// Which attention kernel?
    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        let need = Need {
            preferred: Self::preferred(facts, "attention", Some(&query.phase)),
            ..attention_need(Self::provider(), query)
        };
        decide(facts, &need, |kernel| Self::why(facts, kernel))
    }

    /// Which attention kernel for a vision encoder?
    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        Self::select_attention(facts, query)
    }

    /// How many tokens in a KV block? By default the smallest that all chosen kernels take.
    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        block_of(facts, query, &SMALLEST_FIRST, SMALLEST)
    }

    /// Which kernel of another operation?
    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        best_rank::<Self>(facts, op, shape)
    }

    /// Which graphs?
    fn plan_graphs(_: &Facts, _: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        let notes = vec![info("no-graphs", "a CPU has no graphs to capture")];
        Ok(GraphPlan {
            mode: GraphMode::None,
            capture_sizes: Vec::new(),
            notes,
        })
    }

    /// How many bytes for the KV cache? By default all that is left of the share that may be taken.
    fn plan_memory(
        facts: &Facts,
        config: &EngineConfig,
        device: u32,
        used: u64,
    ) -> Result<u64, Diagnostic> {
        if Self::vendor().is_some() {
            return accelerator::memory_left(facts, config, device, used);
        }
        let usable = facts.host.budget.memory as f64 * config.memory_utilization;
        Ok((usable as u64).saturating_sub(used))
    }

    /// Which CPUs do the workers run on? By default one of each core, up to the budget.
    fn plan_threads(facts: &Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
        one_worker_a_core(facts, ranks)
    }

    /// How do several devices work together?
    fn plan_parallel(_: &Facts, _: &EngineConfig) -> ParallelPlan {
        ParallelPlan {
            collective: "none".to_owned(),
            custom_allreduce: false,
            executor: "in-process".to_owned(),
            gather: "none".to_owned(),
            notes: Vec::new(),
        }
    }

    /// Where may buffers for moving KV live?
    fn plan_kv_transfer(_: &Facts) -> KvTransferPlan {
        KvTransferPlan {
            buffer_devices: Vec::new(),
            memory_type: None,
        }
    }

    /// Which rules hold for every request?
    fn request_rules(_: &Facts, _: &EngineConfig) -> Vec<Rule> {
        Vec::new()
    }
}

/// Block sizes that are tried by default, in this order.
pub const SMALLEST_FIRST: [u32; 5] = [16, 32, 64, 128, 256];

/// Why that order.
pub const SMALLEST: &str =
    "the smallest that the chosen kernels take: prefixes are shared in whole blocks";

/// One worker on each core, up to the budget.
///
/// # Errors
/// There are fewer cores than ranks.
pub fn one_worker_a_core(facts: &Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
    let budget = &facts.host.budget;
    let mut cpus = one_cpu_a_core(facts);
    cpus.truncate(budget.threads as usize);
    let share = cpus.len() / ranks.max(1) as usize;
    if share == 0 {
        let message = format!("{ranks} ranks on {} cores", cpus.len());
        return Err(reject(
            "no-cores",
            message,
            Some("ask for fewer ranks".to_owned()),
        ));
    }
    let bind = |rank: u32| {
        let cpus = cpus
            .iter()
            .skip(rank as usize * share)
            .take(share)
            .copied()
            .collect();
        RankBinding {
            rank,
            cpus,
            numa: None,
        }
    };
    let notes = vec![info("threads", budget.threads_limit.clone())];
    Ok(ThreadPlan {
        ranks: (0..ranks).map(bind).collect(),
        reserved: Vec::new(),
        notes,
    })
}

/// The kernel of the best rank that can serve.
pub fn best_rank<P: Platform + ?Sized>(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
    let need = Need {
        preferred: P::preferred(facts, op, None),
        ..op_need(P::provider(), op, shape)
    };
    decide(facts, &need, |kernel| P::why(facts, kernel))
}

/// What an operation of this shape asks of a kernel.
pub fn op_need<'a>(provider: &'a str, op: &'a str, shape: &'a OpShape) -> Need<'a> {
    Need {
        op,
        provider,
        dtype: Some(&shape.dtype),
        format: shape.format.as_deref(),
        traits: &shape.traits,
        devices: &[0],
        ..Need::default()
    }
}

/// What an attention query asks of a kernel.
pub fn attention_need<'a>(provider: &'a str, query: &'a AttentionQuery) -> Need<'a> {
    Need {
        op: "attention",
        provider,
        phase: Some(&query.phase),
        dtype: Some(&query.dtype),
        kv_dtype: Some(&query.kv_dtype),
        head_size: Some(query.head_size),
        block_size: query.block_size,
        format: None,
        mla: query.layer_kind == "mla",
        traits: &query.traits,
        devices: std::slice::from_ref(&query.device),
        capability: None,
        requested: query.requested.as_deref(),
        preferred: None,
    }
}

/// The first of `sizes` that all chosen kernels take, or the user's.
pub fn block_of(
    facts: &Facts,
    query: &BlockQuery,
    sizes: &[u32],
    reason: &str,
) -> Result<BlockPlan, Diagnostic> {
    let chosen: Vec<_> = facts
        .kernels
        .iter()
        .filter(|kernel| query.backends.contains(&kernel.id))
        .collect();
    let wanted = query.config.block_size;
    let by_user = set_by_user(&query.config, "block-size");
    let sizes = if by_user {
        vec![wanted]
    } else {
        sizes.to_vec()
    };
    let fits = |&size: &u32| chosen.iter().all(|kernel| takes_block(kernel, size));
    let Some(block_size) = sizes.into_iter().find(fits) else {
        let message = match by_user {
            true => format!("a block of {wanted} tokens, which the chosen kernels do not take"),
            false => "no block size suits all chosen kernels".to_owned(),
        };
        let fix = by_user.then(|| "leave --block-size out".to_owned());
        return Err(Diagnostic {
            path: Some("block-size".to_owned()),
            ..reject("block-size", message, fix)
        });
    };
    Ok(BlockPlan {
        block_size,
        state_block_size: None,
        state_page_padded: None,
        kv_layout: chosen
            .first()
            .and_then(|kernel| kernel.kv_layouts.first().cloned()),
        reason: if by_user {
            "set by the user".to_owned()
        } else {
            reason.to_owned()
        },
    })
}

/// One logical CPU of each core that may be used, those of one NUMA node side by side.
pub fn one_cpu_a_core(facts: &Facts) -> Vec<u32> {
    let mut cpus: Vec<_> = facts
        .host
        .logical
        .iter()
        .filter(|cpu| cpu.allowed)
        .collect();
    cpus.sort_by_key(|cpu| (cpu.node, cpu.id));
    let mut cores = BTreeSet::new();
    cpus.into_iter()
        .filter(|cpu| cores.insert(cpu.core))
        .map(|cpu| cpu.id)
        .collect()
}
