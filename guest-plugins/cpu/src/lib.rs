//! The built-in platform `cpu`: what a machine does best without an accelerator. Asked about vLLM's kernels, it decides as
//! vLLM does.

mod vllm;

use plinth_sdk::prelude::*;
use std::collections::BTreeSet;

struct Cpu;

/// What vLLM's users say about its workers and its cache.
const ENV: [&str; 3] = [
    "CPU_VISIBLE_MEMORY_NODES",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
];

/// Kernels for CPUs with AVX-512 and nothing better for floats.
const ATTENTION: &str = "cpu.avx512.attention";
const FLOAT: &str = "cpu.avx512.matmul.float";

/// Vector units by the feature that sets each apart, widest first.
const UNITS: [(&str, &str); 9] = [
    ("amx_tile", "AMX tiles"),
    ("avx512_bf16", "AVX-512 with BF16"),
    ("avx512_vnni", "AVX-512 with VNNI"),
    ("avx512f", "AVX-512"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx2", "AVX2 with FMA and F16C"),
    ("i8mm", "NEON with dotprod and i8mm"),
    ("asimddp", "NEON with dotprod"),
    ("asimd", "NEON"),
];

/// How fast a CPU multiplies pairs of `bf16`, if it can.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    None,
    /// In twice the time that as many products of `f32` take: Intel's cores.
    Slow,
    /// In half of it: AMD's.
    Fast,
}

fn pairs(facts: &Facts) -> Pairs {
    match facts.host.vendor.as_str() {
        _ if !has(facts, "avx512_bf16") => Pairs::None,
        "GenuineIntel" => Pairs::Slow,
        _ => Pairs::Fast,
    }
}

fn has(facts: &Facts, feature: &str) -> bool {
    facts.host.isa.iter().any(|name| name == feature)
}

impl Platform for Cpu {
    fn describe() -> Descriptor {
        Descriptor {
            env_allowlist: names(&ENV),
            ..descriptor("cpu", "Plinth", (0, 1, 0))
        }
    }

    fn preferred(facts: &Facts, op: &str, phase: Option<&str>) -> Option<&'static str> {
        if pairs(facts) != Pairs::Slow {
            return None;
        }
        match (op, phase) {
            // Few queries are not worth a tile.
            ("attention", Some("decode")) => Some(ATTENTION),
            _ if has(facts, "amx_tile") => None,
            ("attention", _) => Some(ATTENTION),
            ("matmul", _) => Some(FLOAT),
            _ => None,
        }
    }

    fn why(facts: &Facts, kernel: &Kernel) -> String {
        if Self::preferred(facts, &kernel.op, Some("decode")) == Some(&kernel.id) {
            return "written for AVX-512, on which this CPU multiplies f32 twice as fast as bf16"
                .to_owned();
        }
        // What a kernel needs beyond all others is what it is chosen for.
        let needs = |feature: &str| kernel.requires.iter().any(|name| name == feature);
        let unit = match UNITS.iter().find(|(feature, _)| needs(feature)) {
            None if kernel.requires.is_empty() => {
                return format!(
                    "this build has no kernel for the vector unit of this machine ({}), and the portable one runs everywhere",
                    facts.host.arch
                );
            }
            Some((_, unit)) => *unit,
            None => kernel.requires[0].as_str(),
        };
        format!("written for {unit}, the widest that this machine has a kernel for")
    }

    fn device_capabilities(facts: &Facts, _: u32) -> Result<Capabilities, Diagnostic> {
        let pinned = (!facts.host.wsl).then(|| "pinned-memory".to_owned());
        Ok(Capabilities {
            // Sums are kept in f32: no kernel of the catalogue computes in less.
            dtypes: names(&["f32"]),
            kv_dtypes: match pairs(facts) {
                // Half the instructions for a long context, and prompts are rounded to bf16 by their kernels as it is.
                Pairs::Fast => names(&["bf16", "f16", "f32", "q8"]),
                // Half the bytes of f32, and more digits than bf16.
                _ => names(&["f16", "bf16", "f32", "q8"]),
            },
            quantization: None,
            fp8_format: None,
            graph: false,
            features: pinned.into_iter().collect(),
            capability: None,
        })
    }

    fn default_config(_: &Facts, _: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        // With the token that is drawn anyway, as many rows as products take together.
        let reason =
            "guessed from a text's own repetitions: eight rows share one pass over the weights";
        let drafts = patch("spec-tokens", Value::Unsigned(7), reason);
        let open = !set_by_user(config, "spec-tokens");
        open.then_some(drafts).into_iter().collect()
    }

    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
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
        diagnostics.extend(far_memory(facts, config));
        CheckResult {
            patches: Vec::new(),
            diagnostics,
        }
    }
}

/// What workers of several NUMA nodes read from each other's, if they are of several.
fn far_memory(facts: &Facts, config: &EngineConfig) -> Option<Diagnostic> {
    let bound = Cpu::plan_threads(facts, 1).ok()?.ranks.into_iter().next()?;
    let workers = match config.threads {
        0 => bound.cpus.len(),
        set => set as usize,
    };
    let cpus: BTreeSet<u32> = bound.cpus.iter().copied().take(workers).collect();
    let visible = |id: u32| facts.host.numa.iter().any(|n| n.id == id && n.visible);
    let used = facts
        .host
        .logical
        .iter()
        .filter(|cpu| cpus.contains(&cpu.id));
    let nodes: BTreeSet<u32> = used.map(|cpu| cpu.node).filter(|id| visible(*id)).collect();
    let count = nodes.len();
    if count < 2 {
        return None;
    }
    if workers > bound.cpus.len() {
        let message = format!(
            "{count} NUMA nodes and more workers than cores: nobody knows whose memory is near to whom"
        );
        let fix = format!("--threads {}", bound.cpus.len());
        return Some(warn("numa", message, Some(fix)));
    }
    let message = format!(
        "{count} NUMA nodes: each has its share of the weights, but the KV cache lies where it is first written, and workers of other nodes read it across; with one process a node nobody does"
    );
    Some(info("numa", message))
}

export_platform!(ByEngine<Cpu, vllm::OfVllm>);
