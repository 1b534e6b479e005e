//! Tokens in a KV block, and blocks of hybrid models (`platforms/interface.py:489-678`).

use super::extra;
use crate::prelude::{
    BlockPlan, BlockQuery, BlockSize, Diagnostic, EngineConfig, Facts, Kernel, ModelFacts, reject,
    set_by_user, takes_block,
};

/// What vLLM takes where nothing speaks against it.
pub const DEFAULT: u32 = 16;

/// The block size for a backend: the user's, else `default` if the backend takes it, else the least that it takes; and
/// more where a state of a hybrid model needs more.
pub fn choose(facts: &Facts, query: &BlockQuery, default: u32) -> Result<BlockPlan, Diagnostic> {
    // The backend that reads blocks: one for prefill alone may read none.
    let of = |id: &String| facts.kernels.iter().find(|kernel| kernel.id == *id);
    let kernel = query
        .backends
        .iter()
        .filter_map(of)
        .find(|kernel| !kernel.block_sizes.is_empty());
    let by_user = set_by_user(&query.config, "block-size");
    let (size, reason) = match (by_user, kernel) {
        (true, _) => (query.config.block_size, "set by the user".to_owned()),
        (false, Some(kernel)) if !takes_block(kernel, default) => {
            (least(kernel), format!("the least that {} takes", kernel.id))
        }
        (false, _) => (default, format!("vLLM's default, {default}")),
    };
    if size == 0 {
        return Err(reject("block-size", "a block of no tokens", None));
    }
    let plan = BlockPlan {
        block_size: size,
        state_block_size: None,
        state_page_padded: None,
        kv_layout: None,
        reason,
    };
    match query.state_page_bytes {
        Some(page) if page > 0 && query.model.hybrid => Ok(aligned(query, kernel, plan, page)),
        _ => Ok(plan),
    }
}

/// The least block of a kernel.
fn least(kernel: &Kernel) -> u32 {
    let unit = |size: &BlockSize| match *size {
        BlockSize::Exact(unit) | BlockSize::MultipleOf(unit) => unit,
    };
    kernel
        .block_sizes
        .iter()
        .map(unit)
        .min()
        .unwrap_or(1)
        .max(1)
}

/// Bytes that a KV dtype takes for an element.
fn element(kv_dtype: &str, dtype: &str) -> u64 {
    match if kv_dtype == "auto" { dtype } else { kv_dtype } {
        "f32" => 4,
        name if name.starts_with("fp8") || name.starts_with("int8") => 1,
        _ => 2,
    }
}

/// Bytes of attention's cache for a token, in one layer, on one device.
fn token_bytes(model: &ModelFacts, config: &EngineConfig) -> u64 {
    let element = element(&config.kv_dtype, &config.dtype);
    // Devices that share a layer share its heads.
    let heads = model.num_kv_heads.div_ceil(config.tensor_parallel.max(1));
    match model.mla {
        Some(mla) => u64::from(mla.lora_rank + mla.rope) * element,
        None => 2 * u64::from(heads) * u64::from(model.head_size) * element,
    }
}

/// Blocks such that attention's page is no smaller than the state's, which is padded to match. `extra` may say
/// `state-cache` (`all`, `align`, or `none`, the default), `state-block-size` and `state-chunk`, in tokens.
fn aligned(query: &BlockQuery, kernel: Option<&Kernel>, plan: BlockPlan, page: u64) -> BlockPlan {
    let config = &query.config;
    let number = |name: &str| extra(config, name).and_then(|text| text.parse::<u64>().ok());
    let token = token_bytes(&query.model, config).max(1);
    let size = u64::from(plan.block_size);
    let unit = u64::from(kernel.map_or(1, least)).max(size);
    let cache = extra(config, "state-cache").unwrap_or("none");
    let tokens = match cache {
        "all" => {
            let chunk = number("state-block-size")
                .or(number("state-chunk"))
                .unwrap_or(1);
            let chunk = common_multiple(chunk.max(1), unit);
            chunk * page.div_ceil(token).div_ceil(chunk)
        }
        _ => unit * page.div_ceil(unit * token),
    };
    let block = size.max(tokens);
    let state_block = match cache {
        "all" => Some(tokens),
        "align" => Some(block),
        _ => number("state-block-size"),
    };
    let padded = block * token;
    let reason = match block > size {
        true => format!(
            "{block} tokens, so that a page of attention is no smaller than one of the state ({page} bytes)"
        ),
        false => plan.reason,
    };
    BlockPlan {
        block_size: u32::try_from(block).unwrap_or(u32::MAX),
        state_block_size: state_block.and_then(|n| u32::try_from(n).ok()),
        state_page_padded: (padded != page).then_some(padded),
        reason,
        ..plan
    }
}

fn common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}
