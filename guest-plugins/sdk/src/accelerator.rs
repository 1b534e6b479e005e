//! What platforms of accelerators have in common: they serve the devices of a vendor by the kernels of a provider.

use crate::prelude::{
    Availability, Diagnostic, EngineConfig, Facts, ParallelPlan, ProbeResult, info, reject,
};

/// Devices of a vendor, by their positions among the facts.
pub fn devices_of(facts: &Facts, vendor: &str) -> Vec<u32> {
    let of_vendor = facts.devices.iter().zip(0..);
    of_vendor
        .filter(|(device, _)| device.vendor == vendor)
        .map(|(_, position)| position)
        .collect()
}

/// Available if there is a device of the vendor, and a kernel of the provider in this build of the engine.
pub fn probe(facts: &Facts, vendor: &str, provider: &str) -> ProbeResult {
    let devices = devices_of(facts, vendor);
    if devices.is_empty() {
        let note = facts
            .driver_notes
            .iter()
            .find(|note| note.driver == provider);
        let reason = match note {
            Some(note) => reject("no-driver", note.found.clone(), note.fix.clone()),
            None => reject("no-device", format!("no {vendor} device"), None),
        };
        return ProbeResult::Unavailable(vec![reason]);
    }
    let names = devices
        .iter()
        .filter_map(|&n| facts.devices.get(n as usize));
    let found = counted(names.map(|device| device.name.as_str()));
    if !facts
        .kernels
        .iter()
        .any(|kernel| kernel.provider == provider)
    {
        let message = format!(
            "{found} found, but this build of {} has no {provider} kernel",
            facts.engine.name
        );
        return ProbeResult::Unavailable(vec![reject("no-kernels", message, None)]);
    }
    ProbeResult::Available(Availability {
        devices,
        score: 100,
        notes: vec![info("devices", found)],
    })
}

/// Names, each once with how often it occurs: `8 of NVIDIA H100`.
pub fn counted<'a>(names: impl Iterator<Item = &'a str>) -> String {
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

/// More devices asked for than there are.
pub fn too_few(facts: &Facts, vendor: &str, config: &EngineConfig) -> Option<Diagnostic> {
    let have = devices_of(facts, vendor).len();
    let want = config.tensor_parallel as usize * config.pipeline_parallel as usize;
    (want > have).then(|| {
        let fix = format!("lower the parallel sizes to {have} devices");
        let message = format!("{want} devices asked for, {have} can serve");
        reject("no-devices", message, Some(fix))
    })
}

/// What is left of the share of a device's memory that may be taken.
///
/// # Errors
/// There is no such device.
pub fn memory_left(
    facts: &Facts,
    config: &EngineConfig,
    device: u32,
    used: u64,
) -> Result<u64, Diagnostic> {
    let Some(device) = facts.devices.get(device as usize) else {
        let message = format!("there is no device {device}");
        return Err(reject("no-device", message, None));
    };
    let usable = (device.memory_free as f64 * config.memory_utilization) as u64;
    Ok(usable.saturating_sub(used))
}

/// Processes that share a model by a collective library, one a device.
pub fn parallel(config: &EngineConfig, collective: &str, custom_allreduce: bool) -> ParallelPlan {
    let several = config.tensor_parallel * config.pipeline_parallel > 1;
    let name = |many: &str, one: &str| if several { many } else { one }.to_owned();
    ParallelPlan {
        collective: name(collective, "none"),
        custom_allreduce: several && custom_allreduce && config.custom_allreduce,
        executor: name("multi-process", "in-process"),
        gather: name("gather", "none"),
        notes: Vec::new(),
    }
}
