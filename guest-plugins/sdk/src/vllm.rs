//! What vLLM v0.22.1 decides in the same way on every device, for platforms that are asked about its kernels.
//!
//! A platform that serves two engines is a [`crate::ByEngine`]. Rules that differ by device are in the platforms themselves.
//! Every function names the lines of vLLM's source (commit 0decac0d9) that it restates.

pub mod attention;
pub mod blocks;
pub mod graphs;
pub mod linear;
pub mod numa;
pub mod quantization;

use crate::prelude::{
    BatchPlan, EngineConfig, Facts, ModelFacts, Patch, Value, batch, patch, set_by_user,
};

/// Is the question about vLLM's kernels?
pub fn asks(facts: &Facts) -> bool {
    facts.engine.name == "vllm"
}

/// Memory from which a device counts as large.
const LARGE: u64 = 70 << 30;

/// Tokens a step and sequences at once, by the memory and the name of the first device; no device counts as a small one
/// (`engine/arg_utils.py:2282-2330`).
pub fn batch_defaults(facts: &Facts, usage: &str) -> BatchPlan {
    let large = facts.devices.first().is_some_and(|device| {
        device.memory_total >= LARGE && !device.name.to_ascii_lowercase().contains("a100")
    });
    match (large, usage) {
        (true, "server") => batch(8192, 1024, "a device of 70 GiB or more"),
        (true, _) => batch(16384, 1024, "a device of 70 GiB or more"),
        (false, "server") => batch(
            2048,
            256,
            "a device of under 70 GiB, or an A100, which larger steps slow down",
        ),
        (false, _) => batch(
            8192,
            256,
            "a device of under 70 GiB, or an A100, which larger steps slow down",
        ),
    }
}

/// Models whose numbers overflow in 16-bit floats (`config/model.py:1977-1983`).
const NEVER_F16: [&str; 5] = ["gemma2", "gemma3", "gemma3_text", "plamo2", "glm4"];

/// The activation dtype where the user named none: the model's own if the device computes in it, else the first that it
/// does (`config/model.py:2001-2044`). `dtypes` are the device's, in order of preference.
pub fn auto_dtype(model: &ModelFacts, config: &EngineConfig, dtypes: &[&str]) -> Option<Patch> {
    if config.dtype != "auto" || set_by_user(config, "dtype") {
        return None;
    }
    let sound = |dtype: &&str| !(*dtype == "f16" && NEVER_F16.contains(&model.arch.as_str()));
    let served: Vec<&str> = dtypes.iter().copied().filter(sound).collect();
    let pooling = model.traits.iter().any(|name| name == "pooling");
    let half = served.iter().find(|dtype| **dtype == "f16");
    let preferred = *half.filter(|_| pooling).or(served.first())?;
    // Weights in f32 are converted.
    let own = match model.dtype.as_str() {
        "f32" => preferred,
        other => other,
    };
    let (dtype, reason) = match served.contains(&own) {
        true if own == model.dtype => (own, "the model's own"),
        true => (own, "the device's first: the model's f32 is converted"),
        false => (
            preferred,
            "the device's first: it does not compute in the model's own",
        ),
    };
    Some(patch("dtype", Value::Text(dtype.to_owned()), reason))
}

/// What vLLM sets on every device that captures graphs, where the user set nothing.
pub fn defaults(model: &ModelFacts, config: &EngineConfig, dtypes: &[&str]) -> Vec<Patch> {
    let dtype = auto_dtype(model, config, dtypes);
    let graphs = graphs::default_mode(model, config);
    dtype
        .into_iter()
        .chain(graphs)
        .chain(share(config))
        .collect()
}

/// The share of the memory that vLLM takes (`config/cache.py`, `gpu_memory_utilization`).
pub fn share(config: &EngineConfig) -> Option<Patch> {
    let by_user = set_by_user(config, "memory-utilization");
    let share = patch(
        "memory-utilization",
        Value::Float(0.92),
        "vLLM's default share",
    );
    (!by_user).then_some(share)
}

/// KV-cache dtypes that may be set, the default first: that of the activations.
pub const KV_DTYPES: [&str; 14] = [
    "auto",
    "f16",
    "bf16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_ds_mla",
    "nvfp4",
    "int8_per_token_head",
    "fp8_per_token_head",
    "turboquant_k8v4",
    "turboquant_4bit_nc",
    "turboquant_k3v4_nc",
    "turboquant_3bit_nc",
];

/// What `extra` says under a name.
pub fn extra<'a>(config: &'a EngineConfig, name: &str) -> Option<&'a str> {
    let entry = config.extra.iter().find(|(known, _)| known == name)?;
    Some(entry.1.as_str())
}
