//! The experts of gpt-oss: tensors of all of them in one, taken apart into those of each.

use super::assemble::{field, float_format, needed};
use super::safetensors::{Dtype, Entry};
use crate::config::ModelConfig;
use crate::error::{Checked, Problem};
use crate::interleaved::Interleaved;
use crate::tensors::{Place, TensorInfo};
use plinth_kernels::Format;
use std::collections::BTreeMap;

/// Is this a tensor of all experts?
pub(super) fn is_of_experts(entry: &Entry) -> bool {
    place_in_layer(&entry.gguf_name).is_some()
}

/// What the tensors of all experts hold, by the names of those of each.
pub(super) fn tensors(entries: Vec<Entry>, config: &ModelConfig) -> Checked<Vec<TensorInfo>> {
    let mut stacks: BTreeMap<String, Stack> = BTreeMap::new();
    for entry in entries {
        let Some((stem, kind)) = place_in_layer(&entry.gguf_name) else {
            continue;
        };
        let stack = stacks.entry(stem.to_owned()).or_default();
        let part = match kind {
            "weight" => &mut stack.floats,
            "bias" => &mut stack.bias,
            "blocks" => &mut stack.blocks,
            _ => &mut stack.scales,
        };
        if part.is_some() {
            let found = Problem::field(field(&entry.name), "it twice", "each name once");
            return Err(found);
        }
        *part = Some(entry);
    }
    let mut tensors = Vec::new();
    for (stem, stack) in stacks {
        stack.take_apart(&stem, config, &mut tensors)?;
    }
    Ok(tensors)
}

/// `blk.3.ffn_down_exps` and the kind.
fn place_in_layer(gguf_name: &str) -> Option<(&str, &str)> {
    let (stem, kind) = gguf_name.rsplit_once('.')?;
    (stem.ends_with("ffn_gate_up_exps") || stem.ends_with("ffn_down_exps")).then_some((stem, kind))
}

/// What a folder holds of one kind of matrices of a layer.
#[derive(Default)]
struct Stack {
    /// `[experts][inputs][outputs]`.
    floats: Option<Entry>,
    /// `[experts][outputs]`.
    bias: Option<Entry>,
    /// `[experts][outputs][inputs / 32][16]`.
    blocks: Option<Entry>,
    /// `[experts][outputs][inputs / 32]`.
    scales: Option<Entry>,
}

/// Sizes of a stack.
struct Sizes {
    experts: usize,
    inputs: usize,
    /// Of all matrices that share it.
    outputs: usize,
    /// Matrices that take turns with their outputs.
    turns: usize,
}

impl Stack {
    fn take_apart(self, stem: &str, config: &ModelConfig, to: &mut Vec<TensorInfo>) -> Checked<()> {
        let Some(experts) = config.experts else {
            unreachable!("a model of this architecture has experts")
        };
        let (hidden, inner) = (config.hidden_size, experts.intermediate_size);
        let layer = stem.rsplit_once('.').map_or("", |(layer, _)| layer);
        let (parts, inputs, outputs): (&[&str], _, _) = match stem.ends_with("ffn_down_exps") {
            true => (&["ffn_down"], inner, hidden),
            false => (&["ffn_gate", "ffn_up"], hidden, 2 * inner),
        };
        let sizes = Sizes {
            experts: experts.count,
            inputs,
            outputs,
            turns: parts.len(),
        };
        let mut push = |kind: &str, all: &dyn Fn(usize, usize) -> TensorInfo| {
            for expert in 0..experts.count {
                for (first, part) in parts.iter().enumerate() {
                    let info = all(expert, first);
                    to.push(TensorInfo {
                        name: format!("{layer}.{part}.{expert}.{kind}"),
                        ..info
                    });
                }
            }
        };
        if let Some(bias) = &self.bias {
            let format = float_format(bias)?;
            shaped(bias, [1, sizes.experts, outputs])?;
            push("bias", &|expert, first| {
                sizes.bias(bias, format, expert, first)
            });
        }
        match (&self.floats, &self.blocks) {
            (Some(floats), Some(blocks)) => Err(Problem::field(
                field(&blocks.name),
                "it in the file",
                format!("either it or '{}'", floats.name),
            )),
            (Some(floats), None) => {
                let format = float_format(floats)?;
                shaped(floats, [sizes.experts, inputs, outputs])?;
                push("weight", &|expert, first| {
                    sizes.floats(floats, format, expert, first)
                });
                Ok(())
            }
            (None, Some(blocks)) => {
                let scales = needed(self.scales, stem, "scales")?;
                if !inputs.is_multiple_of(32) {
                    let problem = Problem::field(
                        field(&blocks.name),
                        format!("rows of {inputs} elements"),
                        "rows of whole blocks of 32",
                    );
                    return Err(problem);
                }
                for (entry, bytes) in [(blocks, inputs / 2), (&scales, inputs / 32)] {
                    if entry.dtype != Dtype::U8 {
                        let found = format!("{} elements", entry.dtype.name());
                        return Err(Problem::field(field(&entry.name), found, "dtype U8"));
                    }
                    shaped(entry, [sizes.experts, outputs, bytes])?;
                }
                push("weight", &|expert, first| {
                    sizes.mxfp4(blocks, &scales, expert, first)
                });
                Ok(())
            }
            // What is missing is named when the whole model is checked.
            (None, None) => Ok(()),
        }
    }
}

impl Sizes {
    fn bias(&self, entry: &Entry, format: Format, expert: usize, first: usize) -> TensorInfo {
        let picked = Interleaved::Floats {
            first,
            rows_apart: 0,
            cols_apart: self.turns,
        };
        self.info(
            entry,
            format,
            expert,
            (1, self.outputs / self.turns),
            picked,
        )
    }

    fn floats(&self, entry: &Entry, format: Format, expert: usize, first: usize) -> TensorInfo {
        let picked = Interleaved::Floats {
            first,
            rows_apart: self.turns,
            cols_apart: self.outputs,
        };
        let shape = (self.outputs / self.turns, self.inputs);
        self.info(entry, format, expert, shape, picked)
    }

    fn mxfp4(&self, blocks: &Entry, scales: &Entry, expert: usize, first: usize) -> TensorInfo {
        let picked = Interleaved::Mxfp4 {
            first,
            rows_apart: self.turns,
            scales: self.place(scales, expert),
        };
        let shape = (self.outputs / self.turns, self.inputs);
        self.info(blocks, Format::Mxfp4, expert, shape, picked)
    }

    fn info(
        &self,
        entry: &Entry,
        format: Format,
        expert: usize,
        (rows, cols): (usize, usize),
        picked: Interleaved,
    ) -> TensorInfo {
        let place = self.place(entry, expert);
        TensorInfo {
            interleaved: Some(picked),
            ..TensorInfo::new(String::new(), format, rows, cols, place)
        }
    }

    /// The part of an expert.
    fn place(&self, entry: &Entry, expert: usize) -> Place {
        let bytes = entry.place.bytes / self.experts as u64;
        Place {
            offset: entry.place.offset + expert as u64 * bytes,
            bytes,
            ..entry.place
        }
    }
}

fn shaped(entry: &Entry, [matrices, rows, cols]: [usize; 3]) -> Checked<()> {
    if (entry.matrices, entry.rows, entry.cols) == (matrices, matrices * rows, cols) {
        return Ok(());
    }
    let expected = match matrices {
        1 => format!("shape [{rows}, {cols}]"),
        _ => format!("shape [{matrices}, {rows}, {cols}]"),
    };
    Err(Problem::field(field(&entry.name), entry.shape(), expected))
}
