//! Choosing among the kernels of the catalogue, with every reason.

use crate::prelude::{
    BlockSize, Choice, Decision, Facts, HeadRange, HeadSize, Kernel, Refusal, Rejected, info,
};
use crate::requirement::{Capability, unmet};

/// What a kernel is needed for. What is `None` does not matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need<'a> {
    /// `attention`, `matmul`, `elementwise`.
    pub op: &'a str,
    /// Kernels of this provider only.
    pub provider: &'a str,
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
    /// Latent attention.
    pub mla: bool,
    /// What else must hold of it.
    pub traits: &'a [String],
    /// Positions of the devices that may be used, for kernels that require one.
    pub devices: &'a [u32],
    /// Their compute capability, where it is not that of the facts.
    pub capability: Option<Capability>,
    /// The kernel that the user asked for: it is selected if it can serve.
    pub requested: Option<&'a str>,
    /// The kernel that goes before better ranks, for a platform that knows better.
    pub preferred: Option<&'a str>,
}

/// Ranks all kernels of an operation that can serve, best first, and rejects the others with every reason. `why` says
/// why the winner won.
pub fn decide(facts: &Facts, need: &Need<'_>, why: impl FnOnce(&Kernel) -> String) -> Decision {
    let mut valid = Vec::new();
    let mut rejected = Vec::new();
    for kernel in facts.kernels.iter().filter(|kernel| kernel.op == need.op) {
        let reasons = reasons_against(facts, kernel, need);
        match reasons.is_empty() {
            true => valid.push(kernel),
            false => rejected.push(Rejected {
                id: kernel.id.clone(),
                reasons,
            }),
        }
    }
    let requested = |kernel: &Kernel| need.requested == Some(kernel.id.as_str());
    let preferred = |kernel: &Kernel| need.preferred == Some(kernel.id.as_str());
    valid.sort_by(|a, b| {
        preferred(b)
            .cmp(&preferred(a))
            .then(b.rank.cmp(&a.rank))
            .then(a.id.cmp(&b.id))
    });
    let asked_for = valid.iter().find(|kernel| requested(kernel));
    let Some(&best) = asked_for.or(valid.first()) else {
        return Decision::Refused(Refusal {
            message: format!("no kernel of the catalogue can do {} here", need.op),
            ranking: Vec::new(),
            rejected,
        });
    };
    let why = if requested(best) {
        "it was asked for".to_owned()
    } else {
        why(best)
    };
    Decision::Chosen(Choice {
        selected: best.id.clone(),
        ranking: valid.iter().map(|kernel| kernel.id.clone()).collect(),
        rejected,
        notes: vec![info("why", why)],
    })
}

/// Every reason why a kernel cannot serve; none if it can.
pub fn reasons_against(facts: &Facts, kernel: &Kernel, need: &Need<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut unless = |holds: bool, reason: &dyn Fn() -> String| {
        if !holds {
            reasons.push(reason());
        }
    };
    let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted);
    if kernel.provider != need.provider {
        return vec![format!(
            "runs on {}, and this platform serves {}",
            kernel.provider, need.provider
        )];
    }
    let missing = unmet(&kernel.requires, facts, need.devices, need.capability);
    unless(missing.is_empty(), &|| {
        format!("requires {}, which this machine lacks", missing.join(", "))
    });
    let phases = match need.phase {
        Some("any") => vec!["prefill", "decode"],
        Some(phase) => vec![phase],
        None => vec![],
    };
    for phase in phases {
        unless(has(&kernel.traits, phase), &|| {
            format!("does not serve {phase}")
        });
    }
    let lists = [
        ("activations", need.dtype, &kernel.dtypes),
        ("kv cache", need.kv_dtype, &kernel.kv_dtypes),
        ("weights", need.format, &kernel.formats),
    ];
    for (what, wanted, list) in lists {
        if let Some(wanted) = wanted {
            unless(has(list, wanted), &|| {
                format!("{what} {wanted}: it takes {}", list.join(", "))
            });
        }
    }
    if let Some(size) = need.head_size {
        unless(takes_head(kernel, size), &|| {
            format!("head size {size}: it takes {}", head_sizes(kernel))
        });
    }
    if let Some(size) = need.block_size {
        unless(takes_block(kernel, size), &|| {
            format!("kv block size {size}: it does not take it")
        });
    }
    let asked: Vec<&str> = need
        .traits
        .iter()
        .map(String::as_str)
        .chain(need.mla.then_some("mla"))
        .collect();
    for &wanted in &asked {
        unless(has(&kernel.traits, wanted), &|| {
            format!("lacks the trait {wanted}")
        });
    }
    for only in kernel.traits.iter().filter_map(|t| t.strip_prefix("only:")) {
        unless(asked.contains(&only), &|| {
            format!("serves {only} and nothing else")
        });
    }
    reasons
}

fn head_sizes(kernel: &Kernel) -> String {
    let shown = kernel.head_sizes.iter().map(|size| match size {
        HeadSize::Exact(only) => only.to_string(),
        HeadSize::Range(range) => format!(
            "multiples of {} from {} to {}",
            range.multiple_of, range.least, range.most
        ),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Does the kernel take heads of this width?
pub fn takes_head(kernel: &Kernel, width: u32) -> bool {
    let accepts = |size: &HeadSize| match *size {
        HeadSize::Exact(only) => width == only,
        HeadSize::Range(HeadRange {
            least,
            most,
            multiple_of,
        }) => {
            (least..=most).contains(&width) && multiple_of > 0 && width.is_multiple_of(multiple_of)
        }
    };
    kernel.head_sizes.is_empty() || kernel.head_sizes.iter().any(accepts)
}

/// Does the kernel take KV blocks of this many tokens?
pub fn takes_block(kernel: &Kernel, tokens: u32) -> bool {
    let accepts = |size: &BlockSize| match *size {
        BlockSize::Exact(exact) => tokens == exact,
        BlockSize::MultipleOf(unit) => unit > 0 && tokens > 0 && tokens.is_multiple_of(unit),
    };
    kernel.block_sizes.is_empty() || kernel.block_sizes.iter().any(accepts)
}
