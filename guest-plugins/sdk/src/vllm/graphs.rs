//! Captured graphs: the mode that the attention backends allow, and the batch sizes (`config/compilation.py:1318-1509`,
//! `config/vllm.py:1179-1245` and `:1641-1715`).

use super::extra;
use crate::prelude::{
    Diagnostic, EngineConfig, GraphMode, GraphPlan, GraphQuery, GraphSupport, ModelFacts, Patch,
    Value, info, patch, reject, set_by_user, warn,
};
use std::collections::BTreeSet;

/// What is wished for where the user wished for nothing: all graphs, but what the kind of model rules out.
pub fn default_mode(model: &ModelFacts, config: &EngineConfig) -> Option<Patch> {
    if set_by_user(config, "graph-mode") {
        return None;
    }
    let is = |name: &str| model.traits.iter().any(|known| known == name);
    let (mode, reason) = if is("pooling") {
        ("piecewise", "pooling models are not captured whole")
    } else if is("encoder-decoder") {
        (
            "full-decode-only",
            "of encoder-decoder models only decode is captured",
        )
    } else {
        ("full-and-piecewise", "vLLM's default, optimisation level 2")
    };
    Some(patch("graph-mode", Value::Text(mode.to_owned()), reason))
}

/// Is the whole of a mixed batch captured?
fn mixed_is_full(mode: GraphMode) -> bool {
    mode == GraphMode::Full
}

/// Is a batch that only decodes captured whole?
fn decode_is_full(mode: GraphMode) -> bool {
    matches!(
        mode,
        GraphMode::Full | GraphMode::FullDecodeOnly | GraphMode::FullAndPiecewise
    )
}

/// vLLM's name of a mode.
fn name(mode: GraphMode) -> &'static str {
    match mode {
        GraphMode::None => "NONE",
        GraphMode::Piecewise => "PIECEWISE",
        GraphMode::Full => "FULL",
        GraphMode::FullDecodeOnly => "FULL_DECODE_ONLY",
        GraphMode::FullAndPiecewise => "FULL_AND_PIECEWISE",
    }
}

fn support_name(support: GraphSupport) -> &'static str {
    match support {
        GraphSupport::Never => "NEVER",
        GraphSupport::SingleTokenDecode => "UNIFORM_SINGLE_TOKEN_DECODE",
        GraphSupport::UniformBatch => "UNIFORM_BATCH",
        GraphSupport::Always => "ALWAYS",
    }
}

/// The mode and the sizes.
///
/// `extra` may say `compilation` (`vllm-compile`, the default, or `none`), `splitting-ops-contain-attention` and
/// `inductor-partition` (`true`, `false`), and `performance-mode` (`balanced`, the default, or `interactivity`).
///
/// # Errors
/// What was wished for cannot be captured, and nothing like it can.
pub fn plan(query: &GraphQuery, weakest: GraphSupport) -> Result<GraphPlan, Diagnostic> {
    let config = &query.config;
    let mut notes = Vec::new();
    let mode = mode(query, weakest, &mut notes)?;
    if mode == config.graph_mode {
        notes.insert(
            0,
            info("graphs", "as wished for: the attention kernel allows it"),
        );
    }
    let mut sizes = match config.graph_mode {
        GraphMode::None => Vec::new(),
        _ => capture_sizes(config),
    };
    let draft = config.spec_tokens + 1;
    if decode_is_full(mode) && draft > 1 {
        sizes = rounded(&sizes, draft)?;
    }
    Ok(GraphPlan {
        mode,
        capture_sizes: sizes,
        notes,
    })
}

fn mode(
    query: &GraphQuery,
    weakest: GraphSupport,
    notes: &mut Vec<Diagnostic>,
) -> Result<GraphMode, Diagnostic> {
    let config = &query.config;
    let on = |name: &str| extra(config, name).is_none_or(|value| value == "true");
    let splits_attention = on("splitting-ops-contain-attention");
    let compiled = extra(config, "compilation").is_none_or(|value| value == "vllm-compile");
    let partitioned = extra(config, "inductor-partition") == Some("true");
    let mut mode = config.graph_mode;
    let unsupported = |mode: GraphMode| {
        format!(
            "CUDAGraphMode.{} is not supported with {} backend (support: AttentionCGSupport.{})",
            name(mode),
            query.kernel,
            support_name(weakest)
        )
    };
    let mut instead = |from: GraphMode, to: GraphMode| {
        let message = format!("{}; {} instead", unsupported(from), name(to));
        notes.push(warn("graphs", message, None));
        to
    };
    if mode == GraphMode::None {
        return Ok(mode);
    }
    if mixed_is_full(mode) && weakest != GraphSupport::Always {
        if weakest == GraphSupport::Never {
            let fix = "wish for piecewise graphs, and compile".to_owned();
            return Err(reject("graphs", unsupported(mode), Some(fix)));
        }
        mode = match splits_attention {
            true => instead(mode, GraphMode::FullAndPiecewise),
            false => instead(mode, GraphMode::FullDecodeOnly),
        };
    }
    if decode_is_full(mode) && weakest == GraphSupport::Never {
        mode = match compiled && (splits_attention || partitioned) {
            true => instead(mode, GraphMode::Piecewise),
            false => instead(mode, GraphMode::None),
        };
    }
    // Drafts are checked several tokens a sequence.
    if decode_is_full(mode) && config.spec_tokens > 0 && weakest < GraphSupport::UniformBatch {
        mode = match splits_attention {
            true => instead(mode, GraphMode::Piecewise),
            false => instead(mode, GraphMode::None),
        };
    }
    Ok(mode)
}

/// Batch sizes: fine steps for small batches, coarse ones for large.
fn capture_sizes(config: &EngineConfig) -> Vec<u32> {
    let draft = config.spec_tokens + 1;
    let tokens = config.max_batched_tokens;
    let wanted = config.max_num_seqs.saturating_mul(draft).saturating_mul(2);
    let most = wanted.min(512).min(tokens);
    let interactive = extra(config, "performance-mode") == Some("interactivity");
    let mut sizes: BTreeSet<u32> = match interactive {
        true => (1..=most.min(32)).collect(),
        false => [1, 2, 4].into_iter().filter(|&n| n <= most).collect(),
    };
    sizes.extend((8..=most.min(255)).step_by(8));
    sizes.extend((256..=most).step_by(16));
    sizes.extend((tokens <= most).then_some(tokens));
    sizes.into_iter().collect()
}

/// Sizes rounded up to whole drafts (`config/compilation.py:1464-1509`).
fn rounded(sizes: &[u32], draft: u32) -> Result<Vec<u32>, Diagnostic> {
    let Some(&most) = sizes.last() else {
        return Ok(Vec::new());
    };
    let up = |size: &u32| size.next_multiple_of(draft);
    let rounded: BTreeSet<u32> = sizes.iter().map(up).filter(|&size| size <= most).collect();
    match rounded.is_empty() {
        false => Ok(rounded.into_iter().collect()),
        true if draft <= most => Ok(vec![draft]),
        true => {
            let message = format!(
                "No valid cudagraph sizes after rounding to multiple of {draft}: the largest is {most}"
            );
            let fix = "draft fewer tokens, or run more sequences at once".to_owned();
            Err(reject("capture-sizes", message, Some(fix)))
        }
    }
}
