//! From the entries of safetensors files to the tensors of the model: a float tensor is one entry, a quantised one is
//! three or four.

use super::quantization::{FIELD, Quantization};
use super::safetensors::{Dtype, Entry};
use crate::error::{Checked, Problem, shown};
use crate::int4::{Grouped, f16_scales};
use crate::tensors::TensorInfo;
use plinth_kernels::Format;
use std::collections::BTreeMap;

/// Reads the bytes of a small entry.
pub(super) type ReadPlace<'a> = dyn Fn(&Entry) -> Checked<Vec<u8>> + 'a;

/// The tensors of the model, by their GGUF names.
pub(super) fn tensors(
    entries: Vec<Entry>,
    quantization: Option<Quantization>,
    read: &ReadPlace<'_>,
) -> Checked<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
    for entry in entries {
        let (stem, kind) = entry.name.rsplit_once('.').unwrap_or_default();
        match kind {
            "qweight" | "qzeros" | "scales" | "g_idx" => {
                let layer = layers.entry(stem.to_owned()).or_default();
                let part = layer.part(kind);
                if part.is_some() {
                    return Err(Problem::field(
                        field(&entry.name),
                        "it twice",
                        "each name once",
                    ));
                }
                *part = Some(entry);
            }
            _ => tensors.push(float(entry)?),
        }
    }
    for (stem, layer) in layers {
        let Some(quantization) = quantization else {
            let found = "a part of a quantised layer";
            let problem = Problem::field(field(&stem), found, format!("{FIELD} in config.json"));
            return Err(problem.fix("take config.json from where the model came from"));
        };
        tensors.push(layer.assemble(&stem, quantization, read)?);
    }
    Ok(tensors)
}

pub(super) fn field(name: &str) -> String {
    format!("tensor {}", shown(name))
}

fn float(entry: Entry) -> Checked<TensorInfo> {
    let format = float_format(&entry)?;
    Ok(TensorInfo {
        matrices: entry.matrices,
        ..TensorInfo::new(entry.gguf_name, format, entry.rows, entry.cols, entry.place)
    })
}

/// The format of what must hold floats.
pub(super) fn float_format(entry: &Entry) -> Checked<Format> {
    match entry.dtype {
        Dtype::Float(format) => Ok(format),
        other => Err(Problem::field(
            field(&entry.name),
            other.name(),
            "F32, F16 or BF16",
        )),
    }
}

/// The parts of a quantised layer.
#[derive(Default)]
struct Layer {
    weights: Option<Entry>,
    zeros: Option<Entry>,
    scales: Option<Entry>,
    order: Option<Entry>,
}

impl Layer {
    fn part(&mut self, kind: &str) -> &mut Option<Entry> {
        match kind {
            "qweight" => &mut self.weights,
            "qzeros" => &mut self.zeros,
            "scales" => &mut self.scales,
            _ => &mut self.order,
        }
    }

    fn assemble(
        self,
        stem: &str,
        quantization: Quantization,
        read: &ReadPlace<'_>,
    ) -> Checked<TensorInfo> {
        let weights = needed(self.weights, stem, "qweight")?;
        let zeros = needed(self.zeros, stem, "qzeros")?;
        let scales = needed(self.scales, stem, "scales")?;
        let packing = quantization.packing;
        let shape = packing.layer_shape(weights.rows, weights.cols);
        let whole = |&(outputs, inputs): &(usize, usize)| outputs % 8 == 0 && inputs % 32 == 0;
        let Some((outputs, inputs)) = shape.filter(whole) else {
            let expected = "outputs that are a multiple of 8 and inputs that are a multiple of 32";
            return Err(Problem::field(
                field(&weights.name),
                weights.shape(),
                expected,
            ));
        };
        let group_size = quantization.group_size.unwrap_or(inputs);
        let groups = inputs.div_ceil(group_size);
        integers(&weights, packing.weight_shape(outputs, inputs))?;
        integers(&zeros, (groups, outputs / 8))?;
        let scale_format = float_format(&scales)?;
        shaped(&scales, (groups, outputs))?;
        if scale_format != Format::F16 {
            f16_scales(&scales.name, scale_format, read(&scales)?)?;
        }
        if let Some(order) = &self.order {
            integers(order, (1, inputs))?;
            check_order(order, &read(order)?, group_size)?;
        }
        let name = weights
            .gguf_name
            .strip_suffix("qweight")
            .unwrap_or_default();
        let name = format!("{name}weight");
        Ok(TensorInfo {
            grouped: Some(Grouped {
                packing,
                group_size,
                zeros: zeros.place,
                scales: scales.place,
                scale_format,
            }),
            ..TensorInfo::new(name, Format::Int4, outputs, inputs, weights.place)
        })
    }
}

pub(super) fn needed(part: Option<Entry>, stem: &str, kind: &str) -> Checked<Entry> {
    part.ok_or_else(|| {
        let expected = "it beside the other parts of the quantised layer";
        Problem::field(field(&format!("{stem}.{kind}")), "none", expected)
            .fix("the model is incomplete: fetch it again")
    })
}

fn integers(entry: &Entry, shape: (usize, usize)) -> Checked<()> {
    match entry.dtype {
        Dtype::I32 => shaped(entry, shape),
        other => {
            let found = format!("{} elements", other.name());
            Err(Problem::field(
                field(&entry.name),
                found,
                "dtype I32: integers packed in words",
            ))
        }
    }
}

fn shaped(entry: &Entry, (rows, cols): (usize, usize)) -> Checked<()> {
    if (entry.matrices, entry.rows, entry.cols) == (1, rows, cols) {
        return Ok(());
    }
    let expected = format!("shape [{rows}, {cols}]");
    Err(
        Problem::field(field(&entry.name), entry.shape(), expected).fix(format!(
            "bits and group_size of {FIELD} must be those of the weights"
        )),
    )
}

/// A group is a run of inputs; any other order would need the activations in it.
fn check_order(entry: &Entry, bytes: &[u8], group_size: usize) -> Checked<()> {
    let groups = bytes
        .as_chunks()
        .0
        .iter()
        .map(|group| i32::from_le_bytes(*group));
    let moved = groups
        .enumerate()
        .find(|&(input, group)| usize::try_from(group) != Ok(input / group_size));
    let Some((input, group)) = moved else {
        return Ok(());
    };
    let found = format!("input {input} in group {group}");
    let expected = format!(
        "it in group {}, each group being {group_size} inputs in a row",
        input / group_size
    );
    Err(Problem::field(field(&entry.name), found, expected).fix(
        "the model was quantised with desc_act (act-order), whose order of inputs is not supported: take one that was \
         quantised with desc_act off, or a GGUF file",
    ))
}
