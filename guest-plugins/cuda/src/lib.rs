//! The built-in platform `cuda`: NVIDIA devices of compute capability 8.0 and newer.
//!
//! It chooses among kernels of the provider `cuda`. Where the catalogue has none, it says so and is unavailable. Asked about
//! vLLM's kernels, it decides as vLLM does, and serves what vLLM serves.

mod vllm;

use plinth_sdk::accelerator::{counted, memory_left, parallel};
use plinth_sdk::prelude::*;
use plinth_sdk::vllm as of_vllm;

struct Cuda;

/// Oldest compute capability with bf16 and asynchronous copies, which the kernels are written for.
const OLDEST: (u32, u32) = (8, 0);

/// Memory from which a device counts as large.
const LARGE: u64 = 70 << 30;

fn device(facts: &Facts, index: u32) -> Option<&DeviceFacts> {
    facts.devices.get(index as usize)
}

/// Why a device cannot serve.
fn against(facts: &Facts, device: &DeviceFacts) -> Option<String> {
    let name = &device.name;
    let oldest = match of_vllm::asks(facts) {
        // Its wheels are compiled for Volta and newer.
        true => (7, 0),
        false => OLDEST,
    };
    match device.capability {
        None => Some(format!(
            "device {} ({name}): its compute capability is unknown",
            device.index
        )),
        Some(has) if has < oldest => {
            let ((major, minor), (least, _)) = (has, oldest);
            Some(format!(
                "device {} ({name}): compute capability {major}.{minor}, expected at least {least}.0",
                device.index
            ))
        }
        Some(_) => None,
    }
}

impl Platform for Cuda {
    fn describe() -> Descriptor {
        let visible_devices_var = Some("CUDA_VISIBLE_DEVICES".to_owned());
        Descriptor {
            visible_devices_var,
            ..descriptor("cuda", "Plinth", (0, 1, 0))
        }
    }

    fn provider() -> &'static str {
        "cuda"
    }

    fn why(_: &Facts, kernel: &Kernel) -> String {
        let needs = kernel.requires.join(", ");
        format!("the newest kernel that this device can run ({needs})")
    }

    fn probe(facts: &Facts) -> ProbeResult {
        let nvidia = || {
            facts
                .devices
                .iter()
                .enumerate()
                .filter(|(_, device)| device.vendor == "nvidia")
        };
        if nvidia().next().is_none() {
            let note = facts.driver_notes.iter().find(|note| note.driver == "cuda");
            let reason = match note {
                Some(note) => reject("no-driver", note.found.clone(), note.fix.clone()),
                None => reject("no-device", "no NVIDIA device", None),
            };
            return ProbeResult::Unavailable(vec![reason]);
        }
        let (mut devices, mut reasons) = (Vec::new(), Vec::new());
        for (position, device) in nvidia() {
            match against(facts, device) {
                None => devices.push(position as u32),
                Some(reason) => reasons.push(reject("old-device", reason, None)),
            }
        }
        if !facts.kernels.iter().any(|kernel| kernel.provider == "cuda") {
            let found = format!(
                "{} found, but this build of {} has no cuda kernel",
                counted(nvidia().map(|(_, device)| device.name.as_str())),
                facts.engine.name
            );
            let fix = "none yet: the CUDA kernels are not written, and the model runs on the CPU"
                .to_owned();
            reasons.push(reject("no-kernels", found, Some(fix)));
            return ProbeResult::Unavailable(reasons);
        }
        match devices.is_empty() {
            true => ProbeResult::Unavailable(reasons),
            // What holds for a device that is left out is worth knowing, but rejects nothing.
            false => {
                let notes = reasons
                    .into_iter()
                    .map(|d| Diagnostic {
                        severity: Severity::Warn,
                        ..d
                    })
                    .collect();
                ProbeResult::Available(Availability {
                    devices,
                    score: 100,
                    notes,
                })
            }
        }
    }

    fn device_capabilities(facts: &Facts, index: u32) -> Result<Capabilities, Diagnostic> {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let capability = device(facts, index)
            .and_then(|device| device.capability)
            .unwrap_or(OLDEST);
        // FP8 in the tensor cores came with Ada, 8.9.
        let fp8 = capability >= (8, 9);
        let pinned = (!facts.host.wsl).then(|| "pinned-memory".to_owned());
        let (dtypes, kv_dtypes) = match of_vllm::asks(facts) {
            true => (vllm::dtypes(capability), names(&of_vllm::KV_DTYPES)),
            false => {
                let mut kv_dtypes = names(&["bf16", "f16", "f32"]);
                kv_dtypes.extend(fp8.then(|| "fp8".to_owned()));
                (names(&["bf16", "f16", "f32"]), kv_dtypes)
            }
        };
        let features = ["sleep", "hybrid-kv", "custom-allreduce"];
        Ok(Capabilities {
            dtypes,
            kv_dtypes,
            quantization: None,
            fp8_format: fp8.then(|| "e4m3fn".to_owned()),
            graph: true,
            features: pinned.into_iter().chain(names(&features)).collect(),
            capability: None,
        })
    }

    /// vLLM's defaults for a server, in bulk too: more on large devices, but for the A100, which gains nothing.
    fn batch_defaults(facts: &Facts, usage: &str, _: u32) -> BatchPlan {
        if of_vllm::asks(facts) {
            return of_vllm::batch_defaults(facts, usage);
        }
        let large = |device: &DeviceFacts| {
            device.memory_total >= LARGE && !device.name.to_ascii_lowercase().contains("a100")
        };
        match facts
            .devices
            .iter()
            .find(|device| device.vendor == "nvidia")
        {
            Some(device) if large(device) => {
                batch(8192, 1024, "a device of 70 GiB or more carries large steps")
            }
            _ => batch(
                2048,
                256,
                "a device of under 70 GiB, or one that gains nothing by larger steps",
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
            true => of_vllm::linear::kernel_priority(facts, "cuda", op, shape, None),
            false => best_rank::<Self>(facts, op, shape),
        }
    }

    fn select_attention(facts: &Facts, query: &AttentionQuery) -> Decision {
        match of_vllm::asks(facts) {
            true => vllm::select_attention(facts, query),
            false => decide(facts, &attention_need("cuda", query), |kernel| {
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

    fn check_config(facts: &Facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let have = facts
            .devices
            .iter()
            .filter(|device| device.vendor == "nvidia" && against(facts, device).is_none())
            .count();
        let want = config.tensor_parallel as usize * config.pipeline_parallel as usize;
        let mut diagnostics = match of_vllm::asks(facts) {
            true => vllm::findings(facts, model, config),
            false => Vec::new(),
        };
        if want > have {
            let fix = Some(format!("lower the parallel sizes to {have} devices"));
            diagnostics.push(reject(
                "no-devices",
                format!("{want} devices asked for, {have} can serve"),
                fix,
            ));
        }
        let kinds: std::collections::BTreeSet<_> = facts
            .devices
            .iter()
            .map(|device| device.capability)
            .collect();
        if want > 1 && kinds.len() > 1 {
            let message =
                "devices of different compute capability: kernels are chosen for the first";
            diagnostics.push(warn(
                "mixed-devices",
                message,
                Some("hide the others with CUDA_VISIBLE_DEVICES".to_owned()),
            ));
        }
        CheckResult {
            patches: Vec::new(),
            diagnostics,
        }
    }

    fn plan_graphs(facts: &Facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
        if of_vllm::asks(facts) {
            return vllm::plan_graphs(facts, query);
        }
        let (mode, why) = match query.weakest {
            GraphSupport::Never => (GraphMode::None, "the attention kernel cannot be captured"),
            GraphSupport::SingleTokenDecode => (
                GraphMode::FullDecodeOnly,
                "the attention kernel is captured in decode only",
            ),
            GraphSupport::UniformBatch | GraphSupport::Always => (
                GraphMode::FullAndPiecewise,
                "the attention kernel can be captured",
            ),
        };
        // 1, 2, 4, then every 8th up to twice the sequences, at most 512.
        let most = (2 * query.config.max_num_seqs).min(512);
        let sizes = [1, 2, 4].into_iter().chain((8..=most).step_by(8));
        let capture_sizes = if mode == GraphMode::None {
            Vec::new()
        } else {
            sizes.collect()
        };
        Ok(GraphPlan {
            mode,
            capture_sizes,
            notes: vec![info("graphs", why)],
        })
    }

    fn plan_memory(
        facts: &Facts,
        config: &EngineConfig,
        index: u32,
        used: u64,
    ) -> Result<u64, Diagnostic> {
        memory_left(facts, config, index, used)
    }

    fn plan_parallel(facts: &Facts, config: &EngineConfig) -> ParallelPlan {
        parallel(facts, config, "nccl", Some("nvlink"))
    }

    fn plan_kv_transfer(_: &Facts) -> KvTransferPlan {
        KvTransferPlan {
            buffer_devices: vec!["cuda".to_owned(), "cpu".to_owned()],
            memory_type: Some("VRAM".to_owned()),
        }
    }
}

export_platform!(Cuda);
