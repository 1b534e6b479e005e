//! Which quantisation a device is allowed to serve (`config/vllm.py:590-600`, `get_min_capability` of each method).

use crate::prelude::{Capability, Diagnostic, ModelFacts, reject};

/// The least compute capability of each method.
const LEAST: [(&str, Capability); 24] = [
    ("auto_gptq", (6, 0)),
    ("gptq", (6, 0)),
    ("awq", (7, 5)),
    ("awq_marlin", (7, 5)),
    ("bitsandbytes", (7, 0)),
    ("compressed-tensors", (7, 0)),
    ("experts_int8", (8, 0)),
    ("fbgemm_fp8", (8, 0)),
    ("fp8", (7, 5)),
    ("fp_quant", (10, 0)),
    ("gguf", (6, 0)),
    ("humming", (7, 5)),
    ("inc", (6, 0)),
    ("modelopt", (8, 9)),
    ("modelopt_fp4", (7, 5)),
    ("modelopt_mixed", (8, 9)),
    ("modelopt_mxfp8", (8, 9)),
    ("moe_wna16", (7, 0)),
    ("mxfp4", (8, 0)),
    ("mxfp8", (8, 0)),
    ("nvfp4", (7, 5)),
    ("quark", (7, 0)),
    ("torchao", (7, 5)),
    ("w4a16", (6, 0)),
];

/// Formats of GGUF files, which are one method to vLLM.
const GGUF: [&str; 11] = [
    "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", "iq4_nl",
];

/// The method that serves a model's quantisation.
pub fn method(quantization: &str) -> &str {
    if GGUF.contains(&quantization) {
        "gguf"
    } else {
        quantization
    }
}

/// Why a device may not serve the model's quantisation; nothing where the device has no compute capability to hold it
/// against, as vLLM then asks nothing.
pub fn gate(model: &ModelFacts, capability: Option<Capability>) -> Option<Diagnostic> {
    let method = method(model.quantization.as_deref()?);
    let (_, least) = LEAST.iter().find(|(name, _)| *name == method)?;
    let has = capability?;
    let message = format!(
        "{method} needs compute capability {}.{}, and the device has {}.{}",
        least.0, least.1, has.0, has.1
    );
    let fix = "take the model in another quantisation".to_owned();
    (has < *least).then(|| Diagnostic {
        path: Some("quantization".to_owned()),
        ..reject("quantization", message, Some(fix))
    })
}
