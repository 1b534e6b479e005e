//! Can a kernel serve? One answer for the floor, which chooses by it, and for the checks, which hold others to it.

use crate::facts::{Facts, Kernel};

/// What a kernel is needed for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Need<'a> {
    /// Operation.
    pub op: &'a str,
    /// For attention: `prefill`, `decode`, or `any` for both.
    pub phase: Option<&'a str>,
    /// Activation dtype.
    pub dtype: Option<&'a str>,
    /// For attention.
    pub kv_dtype: Option<&'a str>,
    /// For attention.
    pub head_size: Option<u32>,
    /// For attention, where it is fixed.
    pub block_size: Option<u32>,
    /// For matmul: weight format.
    pub format: Option<&'a str>,
    /// What else must hold of it.
    pub traits: &'a [String],
}

/// Every reason why `kernel` cannot serve; none if it can. `devices` are those that its platform has.
pub(crate) fn reasons_against(
    kernel: &Kernel,
    need: &Need<'_>,
    facts: &Facts,
    devices: &[u32],
) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut unless = |holds: bool, reason: String| {
        if !holds {
            reasons.push(reason);
        }
    };
    let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted);
    let listed = |list: &[String]| crate::text::list(list);
    unless(
        kernel.op == need.op,
        format!("does {}, not {}", kernel.op, need.op),
    );
    if kernel.provider != "cpu" && devices.is_empty() {
        unless(false, format!("runs on {}: no device", kernel.provider));
    }
    let missing: Vec<_> = kernel
        .requires
        .iter()
        .filter(|need| !is_met(need, facts, devices))
        .cloned()
        .collect();
    unless(
        missing.is_empty(),
        format!("requires {}, which this machine lacks", listed(&missing)),
    );
    for phase in need.phase.into_iter().flat_map(phases) {
        unless(
            has(&kernel.traits, phase),
            format!("does not serve {phase}"),
        );
    }
    if let Some(dtype) = need.dtype {
        unless(
            has(&kernel.dtypes, dtype),
            format!("activations {dtype}: it takes {}", listed(&kernel.dtypes)),
        );
    }
    if let Some(dtype) = need.kv_dtype {
        unless(
            has(&kernel.kv_dtypes, dtype),
            format!("kv cache {dtype}: it reads {}", listed(&kernel.kv_dtypes)),
        );
    }
    if let Some(size) = need.head_size {
        let fits = match kernel.head_sizes.as_slice() {
            [] => (8..=256).contains(&size) && size.is_multiple_of(8),
            sizes => sizes.contains(&size),
        };
        let takes = match kernel.head_sizes.as_slice() {
            [] => "multiples of 8 up to 256".to_owned(),
            sizes => crate::text::list(&sizes.iter().map(u32::to_string).collect::<Vec<_>>()),
        };
        unless(fits, format!("head size {size}: it takes {takes}"));
    }
    if let Some(size) = need.block_size {
        unless(
            takes_block(kernel, size),
            format!("kv block size {size}: it does not take it"),
        );
    }
    if let Some(format) = need.format {
        unless(
            has(&kernel.formats, format),
            format!("weights {format}: it takes {}", listed(&kernel.formats)),
        );
    }
    for wanted in need.traits {
        unless(
            has(&kernel.traits, wanted),
            format!("lacks the trait {wanted}"),
        );
    }
    reasons
}

/// Does the kernel take KV blocks of this many tokens?
pub(crate) fn takes_block(kernel: &Kernel, tokens: u32) -> bool {
    kernel.block_sizes.is_empty() || kernel.block_sizes.iter().any(|size| size.accepts(tokens))
}

fn phases(phase: &str) -> Vec<&str> {
    match phase {
        "any" => vec!["prefill", "decode"],
        one => vec![one],
    }
}

/// Is one requirement of a kernel met? `sm_XY` by a device of at least that compute capability, all else by the CPU.
fn is_met(requirement: &str, facts: &Facts, devices: &[u32]) -> bool {
    let Some(capability) = requirement
        .strip_prefix("sm_")
        .and_then(|text| text.parse::<u32>().ok())
    else {
        return facts.host.isa.iter().any(|feature| feature == requirement);
    };
    let wanted = (capability / 10, capability % 10);
    devices.iter().any(|&index| {
        facts
            .devices
            .get(index as usize)
            .and_then(|device| device.capability)
            .is_some_and(|has| has >= wanted)
    })
}
