//! Kernels of other operations: the first of vLLM's order that can serve (`model_executor/kernels/linear/__init__.py`). The
//! order is the rank of the catalogue; only kernels of the weights' format are candidates.

use crate::kernels::{Need, reasons_against};
use crate::prelude::{
    Capability, Choice, Decision, Facts, Kernel, OpShape, Refusal, Rejected, info,
};

/// Chooses.
pub fn kernel_priority(
    facts: &Facts,
    provider: &str,
    op: &str,
    shape: &OpShape,
    capability: Option<Capability>,
) -> Decision {
    let need = Need {
        op,
        provider,
        dtype: Some(&shape.dtype),
        format: shape.format.as_deref(),
        traits: &shape.traits,
        devices: &[0],
        capability,
        ..Need::default()
    };
    let of_format = |kernel: &&Kernel| match &shape.format {
        Some(format) => kernel.formats.contains(format),
        None => true,
    };
    let mut candidates: Vec<_> = facts
        .kernels
        .iter()
        .filter(|kernel| kernel.op == op && kernel.provider == provider)
        .filter(of_format)
        .collect();
    candidates.sort_by_key(|kernel| std::cmp::Reverse(kernel.rank));
    let count = candidates.len();
    let (mut ranking, mut rejected) = (Vec::new(), Vec::new());
    let mut place = 0;
    for (n, kernel) in candidates.into_iter().enumerate() {
        match reasons_against(facts, kernel, &need) {
            reasons if reasons.is_empty() => {
                if ranking.is_empty() {
                    place = n + 1;
                }
                ranking.push(kernel.id.clone());
            }
            reasons => rejected.push(Rejected {
                id: kernel.id.clone(),
                reasons,
            }),
        }
    }
    let what = shape.format.as_deref().unwrap_or(op);
    let Some(selected) = ranking.first().cloned() else {
        let message = match count {
            0 => format!("vLLM has no kernel for {what} on {provider}"),
            _ => format!("no kernel of vLLM for {what} can serve here"),
        };
        return Decision::Refused(Refusal {
            message,
            ranking,
            rejected,
        });
    };
    let why = match count {
        1 => format!("the one that vLLM has for {what}"),
        _ => format!("the first of vLLM's order for {what} that can serve ({place} of {count})"),
    };
    Decision::Chosen(Choice {
        selected,
        ranking,
        rejected,
        notes: vec![info("order", why)],
    })
}
