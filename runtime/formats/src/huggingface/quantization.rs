//! What `config.json` says of quantised weights: GPTQ and AWQ with 4 bits are read, and MXFP4 of gpt-oss.

use crate::error::{Checked, Problem, shown};
use crate::int4::Packing;
use serde_json::Value;

/// How the quantised tensors of a folder are packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantization {
    pub packing: Packing,
    /// Inputs that share a scale; `None` means all of them.
    pub group_size: Option<usize>,
}

/// Reads `quantization_config`; `None` if there is none.
pub(super) fn read(json: &Value) -> Checked<Option<Quantization>> {
    let Some(config) = json.get(FIELD).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let gpt_oss = json.get("model_type").and_then(Value::as_str) == Some("gpt_oss");
    if gpt_oss && text("quant_method") == Some("mxfp4") {
        // Its tensors say the rest: blocks and scales in place of a matrix.
        return Ok(None);
    }
    let packing = match text("quant_method") {
        Some("gptq") => Packing::Gptq {
            zeros_less_one: match text("checkpoint_format") {
                None | Some("gptq") => true,
                Some("gptq_v2") => false,
                Some(other) => {
                    return Err(refused(
                        "checkpoint_format",
                        shown(other),
                        "'gptq' or 'gptq_v2'",
                    ));
                }
            },
        },
        Some("awq") => match text("version") {
            None => Packing::Awq,
            Some(version) if version.eq_ignore_ascii_case("gemm") => Packing::Awq,
            Some(other) => return Err(refused("version", shown(other), "'gemm'")),
        },
        other => {
            return Err(refused(
                "quant_method",
                shown(other.unwrap_or_default()),
                "'gptq' or 'awq'",
            ));
        }
    };
    // The second names are those of AWQ's own files.
    let number = |name: &str, other: &str| config.get(name).or_else(|| config.get(other));
    let bits = number("bits", "w_bit").unwrap_or(&Value::Null);
    if bits.as_u64() != Some(4) {
        return Err(refused("bits", bits, "4"));
    }
    let group_size = number("group_size", "q_group_size").unwrap_or(&Value::Null);
    let group_size = match group_size.as_i64() {
        Some(-1) => None,
        Some(size) if size > 0 && size % 32 == 0 => Some(size as usize),
        _ => {
            return Err(refused(
                "group_size",
                group_size,
                "a multiple of 32, or -1 for one group",
            ));
        }
    };
    Ok(Some(Quantization {
        packing,
        group_size,
    }))
}

/// The field of `config.json`.
pub(crate) const FIELD: &str = "quantization_config";

fn refused(name: &str, found: impl std::fmt::Display, expected: &str) -> Problem {
    Problem::field(format!("{FIELD}: {name}"), found, expected).fix(
        "quantised safetensors are read with 4 bits from GPTQ or AWQ, and gpt-oss in MXFP4: take such a model, the \
         float model, or a GGUF file",
    )
}
