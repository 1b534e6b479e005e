//! What platforms of accelerators have in common: they serve the devices of a vendor by the kernels of a provider.

use crate::prelude::{
    Availability, DeviceFacts, Diagnostic, EngineConfig, Facts, ParallelPlan, ProbeResult, info,
    reject, set_by_user,
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

/// More devices asked for than can serve.
pub fn too_few(have: usize, config: &EngineConfig) -> Option<Diagnostic> {
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

/// Processes that share a model by a collective library, one a device. `link` is what the vendor's own all-reduce runs
/// over, where there is one.
pub fn parallel(
    facts: &Facts,
    config: &EngineConfig,
    collective: &str,
    link: Option<&str>,
) -> ParallelPlan {
    let several = config.tensor_parallel * config.pipeline_parallel > 1;
    let name = |many: &str, one: &str| if several { many } else { one }.to_owned();
    let (custom_allreduce, why) = custom_allreduce(facts, config, link);
    ParallelPlan {
        collective: name(collective, "none"),
        custom_allreduce,
        executor: name("multi-process", "in-process"),
        gather: name("gather", "none"),
        notes: several
            .then(|| info("allreduce", why))
            .into_iter()
            .collect(),
    }
}

/// Numbers of devices that vendors' own all-reduces are written for.
const SHARED_BY: [u32; 4] = [2, 4, 6, 8];

/// Is the vendor's own all-reduce used, and why? More than two devices must all be linked directly
/// (vLLM 0.22.1, `distributed/device_communicators/custom_all_reduce.py:51-170`).
fn custom_allreduce(facts: &Facts, config: &EngineConfig, link: Option<&str>) -> (bool, String) {
    let sharing = config.tensor_parallel;
    let by_user = set_by_user(config, "custom-allreduce");
    let Some(link) = link else {
        return (
            false,
            "the platform has no all-reduce of its own".to_owned(),
        );
    };
    if sharing < 2 {
        return (false, "every layer is on one device".to_owned());
    }
    if by_user && !config.custom_allreduce {
        return (false, "switched off by the user".to_owned());
    }
    if !SHARED_BY.contains(&sharing) {
        return (
            false,
            format!("written for {SHARED_BY:?} devices, not for {sharing}"),
        );
    }
    let first: Vec<_> = facts.devices.iter().take(sharing as usize).collect();
    let linked = |a: &DeviceFacts, b: &DeviceFacts| {
        a.peers
            .iter()
            .any(|peer| peer.device == b.index && peer.link == link && peer.hops == 1)
    };
    let all = first
        .iter()
        .all(|a| first.iter().all(|b| a.index == b.index || linked(a, b)));
    match sharing > 2 && !all {
        true => (
            false,
            format!("{sharing} devices, not all linked directly by {link}"),
        ),
        false => (
            true,
            format!("{sharing} devices on one node, linked well enough"),
        ),
    }
}
