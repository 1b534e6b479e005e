//! The memory budget: weights, activations and KV cache against what the machine has.

use crate::facts::{Facts, ModelFacts};
use crate::plan::{DecidedBy, MemoryBudget};
use crate::policy::EngineConfig;
use crate::text;

/// Bits of one element of the KV cache; `auto` is the activations' own dtype.
fn kv_bits(kv_dtype: &str, dtype: &str) -> u64 {
    match if kv_dtype == "auto" { dtype } else { kv_dtype } {
        "f32" => 32,
        "nvfp4" | "turboquant_4bit_nc" => 4,
        "turboquant_3bit_nc" => 3,
        // Keys and values differ: the mean of both.
        "turboquant_k8v4" => 6,
        "turboquant_k3v4_nc" => 4,
        name if name == "q8" || name.starts_with("fp8") || name.starts_with("int8") => 8,
        _ => 16,
    }
}

/// Bits of what the elements of one head and token share, beside them.
fn scale_bits(kv_dtype: &str) -> u64 {
    match kv_dtype {
        "q8" => 32,
        _ => 0,
    }
}

/// Bytes of one KV block on one device: its layers, and its share of the heads. Latent attention keeps one vector a token
/// for all heads, and every device all of it (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
pub fn kv_block_bytes(model: &ModelFacts, config: &EngineConfig) -> u64 {
    let bits = kv_bits(&config.kv_dtype, &config.dtype);
    let layers = u64::from(model.layers).div_ceil(config.pipeline_parallel.max(1).into());
    let of_token = match model.mla {
        Some(mla) => (u64::from(mla.lora_rank) + u64::from(mla.rope)) * bits,
        None => {
            let heads =
                u64::from(model.num_kv_heads).div_ceil(config.tensor_parallel.max(1).into());
            let head = u64::from(model.head_size) * bits + scale_bits(&config.kv_dtype);
            2 * heads * head
        }
    };
    let token = layers * of_token.div_ceil(8);
    token.saturating_mul(config.block_size.into())
}

/// Bytes of the weights that one device holds.
pub fn weight_bytes(model: &ModelFacts, config: &EngineConfig) -> u64 {
    let devices = config.tensor_parallel.max(1) * config.pipeline_parallel.max(1);
    model.weight_bytes.div_ceil(devices.into())
}

/// Bytes that a step may need besides weights and KV cache: an upper bound. Every buffer has a row a token of the step;
/// logits are computed 32 rows at a time; the rotary table has a row a position.
pub fn activation_bytes(model: &ModelFacts, config: &EngineConfig) -> u64 {
    let wide = |n: u32| u64::from(n);
    // Devices that share a layer share its heads and its columns.
    let shared = |n: u64| n.div_ceil(config.tensor_parallel.max(1).into());
    let queries = shared(wide(model.num_heads) * wide(model.head_size));
    let keys = shared(wide(model.num_kv_heads) * wide(model.head_size));
    let columns = shared(wide(model.intermediate_size));
    let row = 2 * wide(model.hidden_size) + 2 * queries + 2 * keys + 3 * columns;
    let steps = row.saturating_mul(wide(config.max_batched_tokens));
    let logits = 32 * (wide(model.vocab_size) + wide(model.hidden_size));
    let rotary = 2 * wide(model.head_size) * wide(config.max_model_len);
    let element = match config.dtype.as_str() {
        "f16" | "bf16" => 2,
        _ => 4,
    };
    let rows = steps.saturating_mul(element);
    rows.saturating_add(logits.saturating_add(rotary).saturating_mul(4))
}

/// What a plan may take, and from where.
pub(crate) struct Room {
    pub available: u64,
    pub usable: u64,
    pub limit: String,
    /// Devices that the platform has.
    pub devices: usize,
}

impl Room {
    /// On the first device of the platform, or on the host.
    pub fn of(facts: &Facts, devices: &[u32], utilization: f64) -> Self {
        let device = devices
            .first()
            .and_then(|&index| facts.devices.get(index as usize));
        let (available, limit) = match device {
            Some(device) => (
                device.memory_free,
                format!("free on device {} ({})", device.index, device.name),
            ),
            None => (
                facts.host.budget.memory,
                facts.host.budget.memory_limit.clone(),
            ),
        };
        Self {
            available,
            usable: (available as f64 * utilization) as u64,
            limit,
            devices: devices.len(),
        }
    }
}

/// What the cache is sized for.
pub(crate) struct Wish<'a> {
    pub model: &'a ModelFacts,
    pub config: &'a EngineConfig,
    /// Did the user name the longest context?
    pub len_by_user: bool,
    /// Bytes that the platform leaves to the cache.
    pub granted: u64,
    /// Take all of them, as another engine does.
    pub all: bool,
}

/// A model that does not fit: what is needed and what is there, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoesNotFit {
    /// What does not fit: `weights and activations`, `the KV cache of one full context`.
    pub what: String,
    /// Bytes needed.
    pub needed: u64,
    /// Bytes there.
    pub available: u64,
    /// Which limit decided `available`.
    pub limit: String,
    /// What to do.
    pub fix: String,
}

/// Full contexts that the cache is made for by default, if there is memory: chats are rarely longer than a part of it.
const FULL_CONTEXTS: u64 = 4;

/// Tokens a sequence that the cache is made for by default, if there is memory and that is more.
const TOKENS_A_SEQUENCE: u64 = 1024;

/// Sizes the cache: the budget, and the longest context, which is shorter than the model's where no more fits.
pub(crate) fn budget(wish: &Wish<'_>, room: Room) -> Result<(MemoryBudget, u32), DoesNotFit> {
    let Wish { model, config, .. } = *wish;
    let weights = weight_bytes(model, config);
    let fixed = weights.saturating_add(activation_bytes(model, config));
    let fits = |what: &str, needed: u64, available: u64, fix: String| match needed <= available {
        true => Ok(()),
        false => Err(DoesNotFit {
            what: what.to_owned(),
            needed,
            available,
            limit: room.limit.clone(),
            fix,
        }),
    };
    let sharing = config.tensor_parallel.max(1) * config.pipeline_parallel.max(1);
    let share = match room.devices > sharing as usize {
        true => ", share it among more devices (--tensor-parallel)",
        false => "",
    };
    let smaller = format!(
        "take a smaller model or quantisation{share}, lower --max-num-batched-tokens, or free memory"
    );
    let what = match sharing {
        1 => "weights and activations".to_owned(),
        n => format!("weights and activations, shared among {n} devices,"),
    };
    fits(&what, fixed, room.usable, smaller)?;
    let block = kv_block_bytes(model, config).max(1);
    let block_tokens = u64::from(config.block_size.max(1));
    let (most, by, reason) = match config.kv_bytes {
        Some(bytes) => {
            let left = room.available.saturating_sub(fixed);
            fits(
                "the KV cache as set",
                bytes,
                left,
                "lower --kv-cache-memory".to_owned(),
            )?;
            (bytes, DecidedBy::User, "set by the user".to_owned())
        }
        None => default_bytes(wish, block),
    };
    let most_blocks = (most / block).min(u32::MAX.into());
    let context_blocks = u64::from(config.max_model_len).div_ceil(block_tokens);
    let max_model_len = match most_blocks >= context_blocks {
        true => config.max_model_len,
        false if wish.len_by_user || most_blocks == 0 => {
            let longest = most_blocks * block_tokens;
            let fix = match longest {
                0 => "give the cache more memory (--kv-cache-memory, --memory-utilization), or free memory".to_owned(),
                _ => format!("lower --max-model-len to {longest}, or give the cache more memory (--kv-cache-memory)"),
            };
            let needed = context_blocks * block;
            return Err(DoesNotFit {
                what: format!(
                    "the KV cache of one context of {} tokens",
                    text::count(config.max_model_len.into())
                ),
                needed,
                available: most,
                limit: room.limit,
                fix,
            });
        }
        false => (most_blocks * block_tokens) as u32,
    };
    let kv_tokens = most_blocks * block_tokens;
    let budget = MemoryBudget {
        weights,
        activations: fixed - weights,
        kv_bytes: most_blocks * block,
        kv_block_bytes: block,
        num_blocks: most_blocks as u32,
        kv_tokens,
        full_sequences: kv_tokens / u64::from(max_model_len.max(1)),
        available: room.available,
        usable: room.usable,
        limit: room.limit,
        by,
        reason,
    };
    Ok((budget, max_model_len))
}

/// Enough for a few full contexts or for many short ones, and no more than the platform grants.
fn default_bytes(wish: &Wish<'_>, block: u64) -> (u64, DecidedBy, String) {
    let all_granted = |granted: u64| {
        let reason = "all that the platform leaves beside weights and activations".to_owned();
        (granted, DecidedBy::Platform, reason)
    };
    if wish.all {
        return all_granted(wish.granted);
    }
    let config = wish.config;
    let len = u64::from(config.max_model_len);
    let sequences = u64::from(config.max_num_seqs);
    let (contexts, each) = (FULL_CONTEXTS * len, TOKENS_A_SEQUENCE * sequences);
    let all = sequences * len;
    let tokens = contexts.max(each).min(all);
    let shown = if tokens == all {
        "every sequence at the full context".to_owned()
    } else if tokens == each {
        format!(
            "{} tokens for each of {sequences} sequences",
            text::count(TOKENS_A_SEQUENCE)
        )
    } else {
        format!("{FULL_CONTEXTS} sequences at the full context")
    };
    let wanted = tokens
        .div_ceil(u64::from(config.block_size.max(1)))
        .saturating_mul(block);
    if wanted <= wish.granted {
        let reason = format!("room for {} tokens: {shown}", text::count(tokens));
        return (wanted, DecidedBy::Floor, reason);
    }
    all_granted(wish.granted)
}
