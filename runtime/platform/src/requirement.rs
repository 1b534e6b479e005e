//! What a kernel requires of a machine, in words, and whether a machine has it.
//!
//! | word | is met by |
//! |---|---|
//! | `avx2` | a CPU with this feature |
//! | `arch:aarch64` | a host of this architecture |
//! | `sm_80` | a device of compute capability 8.0 or more |
//! | `sm_90..sm_103` | a device of a compute capability from 9.0 to 10.3 |
//! | `gfx:gfx94` | a device whose architecture begins with `gfx94` |
//! | `package:NAME`, `service:NAME` | facts that list it |
//!
//! Alternatives stand side by side: `gfx:gfx942|gfx:gfx950`.

use crate::facts::Facts;

/// Major and minor compute capability.
pub type Capability = (u32, u32);

/// Those of the requirements that the machine does not meet. `devices` are those that may be used; `capability` holds
/// where the platform derives one for them, else their own.
pub fn unmet<'a>(
    requirements: &'a [String],
    facts: &Facts,
    devices: &[u32],
    capability: Option<Capability>,
) -> Vec<&'a str> {
    let met = |requirement: &&String| {
        requirement
            .split('|')
            .any(|word| is_met(word, facts, devices, capability))
    };
    requirements
        .iter()
        .filter(|requirement| !met(requirement))
        .map(String::as_str)
        .collect()
}

fn is_met(word: &str, facts: &Facts, devices: &[u32], capability: Option<Capability>) -> bool {
    let listed = |list: &[String], name: &str| list.iter().any(|entry| entry == name);
    let mut usable = devices
        .iter()
        .filter_map(|&index| facts.devices.get(index as usize));
    if let Some(range) = range_of(word) {
        let has = |own: Option<Capability>| capability.or(own).is_some_and(|c| range.contains(&c));
        return usable.any(|device| has(device.capability));
    }
    match word.split_once(':') {
        Some(("arch", arch)) => facts.host.arch == arch,
        Some(("gfx", prefix)) => usable.any(|device| device.arch.starts_with(prefix)),
        Some(("package", name)) => listed(&facts.packages, name),
        Some(("service", name)) => listed(&facts.services, name),
        _ => listed(&facts.host.isa, word),
    }
}

/// `sm_80`, `sm_90..sm_103`.
fn range_of(word: &str) -> Option<std::ops::RangeInclusive<Capability>> {
    let one = |text: &str| {
        let digits: u32 = text.strip_prefix("sm_")?.parse().ok()?;
        Some((digits / 10, digits % 10))
    };
    match word.split_once("..") {
        Some((least, most)) => Some(one(least)?..=one(most)?),
        None => Some(one(word)?..=(u32::MAX, u32::MAX)),
    }
}
