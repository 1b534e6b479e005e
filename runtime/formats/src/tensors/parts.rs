//! Tensors that are one in the file and several in the model.

use super::{Place, TensorInfo};
use crate::config::ModelConfig;
use crate::error::{Checked, Problem};
use std::collections::HashSet;

/// The tensors of a file with each of those taken apart.
pub(super) fn of(list: Vec<TensorInfo>, config: &ModelConfig) -> Checked<Vec<TensorInfo>> {
    let names: HashSet<String> = list.iter().map(|info| info.name.clone()).collect();
    let mut parts = Vec::with_capacity(list.len());
    for info in list {
        match split(&info, config, &names)? {
            Some(split) => parts.extend(split),
            None if info.matrices > 1 => {
                let found = format!("{} matrices", info.matrices);
                let field = format!("tensor '{}'", info.name);
                return Err(Problem::field(field, found, "a vector or a matrix"));
            }
            None => parts.push(info),
        }
    }
    Ok(parts)
}

/// The parts of a tensor, if it is a fused one.
fn split(
    info: &TensorInfo,
    config: &ModelConfig,
    names: &HashSet<String>,
) -> Checked<Option<Vec<TensorInfo>>> {
    let Some((layer, part, kind)) = in_layer(&info.name) else {
        return Ok(None);
    };
    let name = |part: &str| format!("blk.{layer}.{part}.{kind}");
    let (queries, keys) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let ranges = match part {
        // gpt-oss: the norm before the feed-forward part, named after what it follows.
        "post_attention_norm" if config.architecture == "gpt-oss" => {
            vec![(name("ffn_norm"), config.hidden_size)]
        }
        "attn_qkv" => vec![
            (name("attn_q"), queries),
            (name("attn_k"), keys),
            (name("attn_v"), keys),
        ],
        // Phi 3: gate and up in one, the gate first.
        "ffn_up" if config.experts.is_none() && !names.contains(&name("ffn_gate")) => vec![
            (name("ffn_gate"), config.intermediate_size),
            (name("ffn_up"), config.intermediate_size),
        ],
        _ => match experts(part, config) {
            Some(stacked) => stacked,
            None => return Ok(None),
        }
        .into_iter()
        // A bias of all experts has a row for each.
        .map(|(part, rows)| (name(&part), if kind == "bias" { 1 } else { rows }))
        .collect(),
    };
    ranged(info, ranges).map(Some)
}

/// The matrices of all experts that lie one behind the other in a tensor of this name, with the rows of each.
fn experts(part: &str, config: &ModelConfig) -> Option<Vec<(String, usize)>> {
    let experts = config.experts?;
    let (inner, hidden) = (experts.intermediate_size, config.hidden_size);
    let each: &[(&str, usize)] = match part {
        "ffn_gate_exps" => &[("ffn_gate", inner)],
        "ffn_up_exps" => &[("ffn_up", inner)],
        "ffn_down_exps" => &[("ffn_down", hidden)],
        "ffn_gate_up_exps" => &[("ffn_gate", inner), ("ffn_up", inner)],
        _ => return None,
    };
    let parts = (0..experts.count).flat_map(|expert| {
        each.iter()
            .map(move |(part, rows)| (format!("{part}.{expert}"), *rows))
    });
    Some(parts.collect())
}

/// Layer, part and kind of `blk.3.attn_qkv.weight`.
fn in_layer(name: &str) -> Option<(&str, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    Some((layer, part, kind))
}

/// Ranges of a tensor: rows of a matrix, elements of a vector (a fused bias). Together they must be all of it.
fn ranged(info: &TensorInfo, parts: Vec<(String, usize)>) -> Checked<Vec<TensorInfo>> {
    let field = || format!("tensor '{}'", info.name);
    if info.grouped.is_some() {
        let found = "weights with 4 bits that are several of the model's tensors in one";
        let problem = Problem::field(field(), found, "float weights, or a tensor for each");
        return Err(problem.fix(
            "GPTQ and AWQ weights of models with fused projections are not supported: take the float model, or a GGUF \
             file",
        ));
    }
    let vector = info.rows == 1 && info.matrices == 1;
    let length = if vector { info.cols } else { info.rows };
    let expected: usize = parts.iter().map(|(_, length)| length).sum();
    if length != expected {
        let names: Vec<_> = parts
            .iter()
            .take(3)
            .map(|(name, _)| name.as_str())
            .collect();
        let unit = if vector { "elements" } else { "rows" };
        let expected = format!("{expected}, for {} and so on", names.join(", "));
        return Err(Problem::field(
            field(),
            format!("{length} {unit}"),
            expected,
        ));
    }
    let mut offset = info.place.offset;
    let mut ranges = Vec::with_capacity(parts.len());
    for (name, length) in parts {
        let (rows, cols) = if vector {
            (1, length)
        } else {
            (length, info.cols)
        };
        let row_bytes = info.format.row_bytes(cols).ok_or_else(|| {
            let found = format!("a part of {cols} elements");
            let blocks = format!("whole {} blocks", info.format);
            Problem::field(field(), found, blocks)
        })?;
        let bytes = (row_bytes * rows) as u64;
        let place = Place {
            offset,
            bytes,
            ..info.place
        };
        ranges.push(TensorInfo::new(name, info.format, rows, cols, place));
        offset += bytes;
    }
    Ok(ranges)
}
