//! The built-in platform `cpu`: what a machine does best without an accelerator. Asked about vLLM's kernels, it decides as
//! vLLM does.

mod vllm;

use plinth_sdk::prelude::*;
use plinth_sdk::vllm as of_vllm;

struct Cpu;

/// What vLLM's users say about its workers and its cache.
const ENV: [&str; 3] = [
    "CPU_VISIBLE_MEMORY_NODES",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
];

/// Vector units by the feature that sets each apart, widest first.
const UNITS: [(&str, &str); 3] = [
    ("avx512_vnni", "AVX-512 with VNNI"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2 with FMA and F16C"),
];

impl Platform for Cpu {
    fn describe() -> Descriptor {
        Descriptor {
            env_allowlist: ENV.map(str::to_owned).to_vec(),
            ..descriptor("cpu", "Plinth", (0, 1, 0))
        }
    }

    /// vLLM has no floor: its CPU build is another than its CUDA build, and has kernels of its own.
    fn probe(facts: &Facts) -> ProbeResult {
        if !facts.kernels.iter().any(|kernel| kernel.provider == "cpu") {
            let found = format!("this build of {} has no CPU kernel", facts.engine.name);
            return ProbeResult::Unavailable(vec![reject("no-kernels", found, None)]);
        }
        ProbeResult::Available(Availability {
            devices: Vec::new(),
            score: 10,
            notes: Vec::new(),
        })
    }

    fn why(facts: &Facts, kernel: &Kernel) -> String {
        // What a kernel needs beyond all others is what it is chosen for.
        let needs = |feature: &str| kernel.requires.iter().any(|name| name == feature);
        let unit = match UNITS.iter().find(|(feature, _)| needs(feature)) {
            None if kernel.requires.is_empty() => {
                return format!(
                    "no kernel is written for the vector unit of this machine ({}), and the portable one runs everywhere",
                    facts.host.arch
                );
            }
            Some((_, unit)) => *unit,
            None => kernel.requires[0].as_str(),
        };
        format!("written for {unit}, the widest that this machine has a kernel for")
    }

    fn device_capabilities(facts: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        if of_vllm::asks(facts) {
            return Ok(Capabilities {
                dtypes: vllm::dtypes(facts),
                kv_dtypes: names(&["auto", "f16", "bf16", "fp8", "fp8_e4m3", "fp8_e5m2"]),
                quantization: None,
                fp8_format: None,
                graph: false,
                features: names(&["hybrid-kv"]),
                capability: None,
            });
        }
        let pinned = (!facts.host.wsl).then(|| "pinned-memory".to_owned());
        Ok(Capabilities {
            // Sums are kept in f32: no kernel of the catalogue computes in less.
            dtypes: names(&["f32"]),
            // Half the bytes of f32, and more digits than bf16.
            kv_dtypes: names(&["f16", "bf16", "f32"]),
            quantization: None,
            fp8_format: None,
            graph: false,
            features: pinned.into_iter().collect(),
            capability: None,
        })
    }

    fn batch_defaults(facts: &Facts, usage: &str, world_size: u32) -> BatchPlan {
        match of_vllm::asks(facts) {
            true => vllm::batch_defaults(usage, world_size),
            false => batch(
                512,
                64,
                "on a CPU larger steps are no faster, and others wait longer for their next token",
            ),
        }
    }

    fn default_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        match of_vllm::asks(facts) {
            true => vllm::default_config(facts, model, config),
            false => Vec::new(),
        }
    }

    fn kernel_priority(facts: &Facts, op: &str, shape: &OpShape) -> Decision {
        match of_vllm::asks(facts) {
            true => of_vllm::linear::kernel_priority(facts, "cpu", op, shape, None),
            false => best_rank::<Self>(facts, op, shape),
        }
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        match of_vllm::asks(facts) {
            true => vllm::select_attention(facts, query),
            false => decide(facts, &attention_need("cpu", query), |kernel| {
                Self::why(facts, kernel)
            }),
        }
    }

    fn select_vision_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        match of_vllm::asks(facts) {
            true => vllm::select_vision_attention(facts, query),
            false => Self::select_attention(facts, query),
        }
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        match of_vllm::asks(facts) {
            true => vllm::choose_block_size(facts, query),
            false => block_of(facts, query, &SMALLEST_FIRST, SMALLEST),
        }
    }

    fn plan_threads(facts: &Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
        match of_vllm::asks(facts) {
            true => of_vllm::numa::bind(facts, ranks),
            false => one_worker_a_core(facts, ranks),
        }
    }

    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        if of_vllm::asks(facts) {
            return CheckResult {
                patches: Vec::new(),
                diagnostics: vllm::findings(config),
            };
        }
        let mut diagnostics = Vec::new();
        let parallel = config.tensor_parallel * config.pipeline_parallel;
        if parallel > 1 {
            let message = format!("{parallel} devices asked for, and a CPU is one");
            diagnostics.push(reject(
                "no-devices",
                message,
                Some("leave the parallel sizes at 1".to_owned()),
            ));
        }
        let nodes = facts.host.numa.iter().filter(|node| node.visible).count();
        if nodes > 1 {
            let message = format!(
                "{nodes} NUMA nodes: weights lie where they were packed, and some workers read across"
            );
            let fix = "run one process a node, each bound to its own".to_owned();
            diagnostics.push(warn("numa", message, Some(fix)));
        }
        CheckResult {
            patches: Vec::new(),
            diagnostics,
        }
    }
}

export_platform!(Cpu);
