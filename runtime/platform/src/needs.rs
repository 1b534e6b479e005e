//! Can a kernel serve? One answer for the floor, which chooses by it, and for the checks, which hold others to it.

use crate::facts::{Facts, Kernel};
use crate::requirement::{Capability, unmet};

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
    /// Compute capability as the platform derived it.
    pub capability: Option<Capability>,
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
    let missing = unmet(&kernel.requires, facts, devices, need.capability);
    unless(
        missing.is_empty(),
        format!(
            "requires {}, which this machine lacks",
            crate::text::list(&missing)
        ),
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
    if let Some(width) = need.head_size {
        let sizes = &kernel.head_sizes;
        unless(
            sizes.is_empty() || sizes.iter().any(|size| size.accepts(width)),
            format!(
                "head size {width}: it takes {}",
                listed(&crate::text::shown(sizes))
            ),
        );
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
    for only in kernel.traits.iter().filter_map(|t| t.strip_prefix("only:")) {
        unless(
            has(need.traits, only),
            format!("serves {only} and nothing else"),
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
