//! The built-in platform `cuda`: NVIDIA devices of compute capability 8.0 and newer.
//!
//! It chooses among kernels of the provider `cuda`. Where the catalogue has none, it says so and is unavailable. Asked about
//! vLLM's kernels, it decides as vLLM does, and serves what vLLM serves.

mod vllm;

use plinth_sdk::accelerator::{self, parallel, too_few};
use plinth_sdk::prelude::*;
use std::collections::BTreeSet;

struct Cuda;

/// Oldest compute capability with bf16 and asynchronous copies, which the kernels are written for.
const OLDEST: (u32, u32) = (8, 0);

/// What can be done about kernels that are missing.
const NOT_YET: &str = "none yet: the CUDA kernels are not written, and the model runs on the CPU";

fn device(facts: &Facts, index: u32) -> Option<&DeviceFacts> {
    facts.devices.get(index as usize)
}

/// Why a device cannot serve, where the oldest that can is of this compute capability.
fn against(device: &DeviceFacts, oldest: Capability) -> Option<String> {
    let name = &device.name;
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

/// Available on the devices that are new enough, which the SDK's own probe does not look at.
fn probe(facts: &Facts, oldest: Capability) -> ProbeResult {
    let availability = match accelerator::probe(facts, "nvidia", "cuda") {
        ProbeResult::Available(availability) => availability,
        unavailable => return unavailable,
    };
    let (mut devices, mut reasons) = (Vec::new(), Vec::new());
    for position in availability.devices {
        let device = facts.devices.get(position as usize);
        match device.and_then(|device| against(device, oldest)) {
            None => devices.push(position),
            Some(reason) => reasons.push(reject("old-device", reason, None)),
        }
    }
    if devices.is_empty() {
        return ProbeResult::Unavailable(reasons);
    }
    // What holds for a device that is left out is worth knowing, but rejects nothing.
    let left_out = reasons.into_iter().map(|reason| Diagnostic {
        severity: Severity::Warn,
        ..reason
    });
    ProbeResult::Available(Availability {
        devices,
        notes: availability.notes.into_iter().chain(left_out).collect(),
        ..availability
    })
}

/// What is wrong with the number of devices that are asked for, or with their kinds.
fn devices_asked_for(facts: &Facts, config: &EngineConfig, oldest: Capability) -> Vec<Diagnostic> {
    let nvidia = || {
        facts
            .devices
            .iter()
            .filter(|device| device.vendor == "nvidia")
    };
    let have = nvidia()
        .filter(|device| against(device, oldest).is_none())
        .count();
    let kinds: BTreeSet<_> = nvidia().map(|device| device.capability).collect();
    let several = config.tensor_parallel * config.pipeline_parallel > 1;
    let mixed = (several && kinds.len() > 1).then(|| {
        let message = "devices of different compute capability: kernels are chosen for the first";
        let fix = "hide the others with CUDA_VISIBLE_DEVICES".to_owned();
        warn("mixed-devices", message, Some(fix))
    });
    too_few(have, config).into_iter().chain(mixed).collect()
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

    fn vendor() -> Option<&'static str> {
        Some("nvidia")
    }

    fn why(_: &Facts, kernel: &Kernel) -> String {
        let needs = kernel.requires.join(", ");
        format!("the newest kernel that this device can run ({needs})")
    }

    fn probe(facts: &Facts) -> ProbeResult {
        match probe(facts, OLDEST) {
            ProbeResult::Unavailable(mut reasons) => {
                for reason in reasons
                    .iter_mut()
                    .filter(|reason| reason.code == "no-kernels")
                {
                    reason.fix = Some(NOT_YET.to_owned());
                }
                ProbeResult::Unavailable(reasons)
            }
            available => available,
        }
    }

    fn device_capabilities(facts: &Facts, index: u32) -> Result<Capabilities, Diagnostic> {
        let capability = device(facts, index)
            .and_then(|device| device.capability)
            .unwrap_or(OLDEST);
        // FP8 in the tensor cores came with Ada, 8.9.
        let fp8 = capability >= (8, 9);
        let pinned = (!facts.host.wsl).then(|| "pinned-memory".to_owned());
        let mut kv_dtypes = names(&["bf16", "f16", "f32"]);
        kv_dtypes.extend(fp8.then(|| "fp8".to_owned()));
        let features = ["sleep", "hybrid-kv", "custom-allreduce"];
        Ok(Capabilities {
            dtypes: names(&["bf16", "f16", "f32"]),
            kv_dtypes,
            quantization: None,
            fp8_format: fp8.then(|| "e4m3fn".to_owned()),
            graph: true,
            features: pinned.into_iter().chain(names(&features)).collect(),
            capability: None,
        })
    }

    /// vLLM's defaults for a server, in bulk too: nobody has measured better ones yet.
    fn batch_defaults(facts: &Facts, _: &str, _: u32) -> BatchPlan {
        plinth_sdk::vllm::batch_defaults(facts, "server")
    }

    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        CheckResult {
            patches: Vec::new(),
            diagnostics: devices_asked_for(facts, config, OLDEST),
        }
    }

    fn plan_graphs(_: &Facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic> {
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

export_platform!(ByEngine<Cuda, vllm::OfVllm>);
