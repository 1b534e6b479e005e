//! The built-in platform `cuda`: NVIDIA devices of compute capability 8.0 and newer.
//!
//! It chooses among kernels of the provider `cuda`. Where the catalogue has none, it says so and is unavailable.

use plinth_sdk::prelude::*;

struct Cuda;

/// Oldest compute capability with bf16 and asynchronous copies, which the kernels are written for.
const OLDEST: (u32, u32) = (8, 0);

/// Memory from which a device counts as large.
const LARGE: u64 = 70 << 30;

fn device(facts: &Facts, index: u32) -> Option<&DeviceFacts> {
    facts.devices.get(index as usize)
}

/// Why a device cannot serve.
fn against(device: &DeviceFacts) -> Option<String> {
    let name = &device.name;
    match device.capability {
        None => Some(format!(
            "device {} ({name}): its compute capability is unknown",
            device.index
        )),
        Some(has) if has < OLDEST => {
            let ((major, minor), (least, _)) = (has, OLDEST);
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
            match against(device) {
                None => devices.push(position as u32),
                Some(reason) => reasons.push(reject("old-device", reason, None)),
            }
        }
        if !facts.kernels.iter().any(|kernel| kernel.provider == "cuda") {
            let found = format!(
                "{} found, but this build has no cuda kernel",
                counted(nvidia().map(|(_, device)| device.name.as_str()))
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

    fn device_capabilities(facts: &Facts, index: u32) -> Capabilities {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let capability = device(facts, index)
            .and_then(|device| device.capability)
            .unwrap_or(OLDEST);
        // FP8 in the tensor cores came with Ada, 8.9.
        let fp8 = capability >= (8, 9);
        let mut kv_dtypes = names(&["bf16", "f16", "f32"]);
        kv_dtypes.extend(fp8.then(|| "fp8".to_owned()));
        let pinned = (!facts.host.wsl).then(|| "pinned-memory".to_owned());
        Capabilities {
            dtypes: names(&["bf16", "f16", "f32"]),
            kv_dtypes,
            quantization: None,
            fp8_format: fp8.then(|| "e4m3fn".to_owned()),
            graph: true,
            features: pinned.into_iter().chain(["sleep".to_owned()]).collect(),
        }
    }

    /// vLLM's defaults for a server: more on large devices, but for the A100, which was measured to gain nothing.
    fn batch_defaults(facts: &Facts, _: &str, _: u32) -> BatchPlan {
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

    fn check_config(facts: &Facts, _: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let have = facts
            .devices
            .iter()
            .filter(|device| device.vendor == "nvidia" && against(device).is_none())
            .count();
        let want = config.tensor_parallel as usize * config.pipeline_parallel as usize;
        let mut diagnostics = Vec::new();
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

    fn plan_graphs(
        _: &Facts,
        config: &EngineConfig,
        weakest: GraphSupport,
    ) -> Result<GraphPlan, Diagnostic> {
        let (mode, why) = match weakest {
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
        let most = (2 * config.max_num_seqs).min(512);
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
        let Some(device) = device(facts, index) else {
            return Err(reject(
                "no-device",
                format!("there is no device {index}"),
                None,
            ));
        };
        let usable = (device.memory_free as f64 * config.memory_utilization) as u64;
        Ok(usable.saturating_sub(used))
    }

    fn plan_parallel(_: &Facts, config: &EngineConfig) -> ParallelPlan {
        let world = config.tensor_parallel * config.pipeline_parallel;
        let name = |several: &str, one: &str| {
            if world > 1 {
                several.to_owned()
            } else {
                one.to_owned()
            }
        };
        ParallelPlan {
            collective: name("nccl", "none"),
            custom_allreduce: world > 1 && config.custom_allreduce,
            executor: name("multi-process", "in-process"),
            gather: name("gather", "none"),
            notes: Vec::new(),
        }
    }

    fn plan_kv_transfer(_: &Facts) -> KvTransferPlan {
        KvTransferPlan {
            buffer_devices: vec!["cuda".to_owned(), "cpu".to_owned()],
            memory_type: Some("VRAM".to_owned()),
        }
    }
}

/// Names, each once with how often it occurs: `8 of NVIDIA H100`.
fn counted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut counts: Vec<(&str, u32)> = Vec::new();
    for name in names {
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, n)) => *n += 1,
            None => counts.push((name, 1)),
        }
    }
    let shown = counts.iter().map(|(name, n)| match n {
        1 => (*name).to_owned(),
        n => format!("{n} of {name}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

export_platform!(Cuda);
