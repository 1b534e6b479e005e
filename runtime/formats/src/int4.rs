//! The 4-bit weights of GPTQ and AWQ checkpoints, gathered into blocks of [`Format::Int4`].
//!
//! Both methods store a linear layer transposed, as three tensors, with a group of inputs sharing a scale and a zero:
//!
//! ```text
//! weight[output][input] = scales[group][output] * (qweight[input][output] - qzeros[group][output])
//! ```
//!
//! `qweight` and `qzeros` hold eight integers in a 32-bit word, the first in its lowest bits: along the outputs, but for
//! the `qweight` of GPTQ, which goes along the inputs. Sources: `pack` in AutoGPTQ's `qlinear_cuda_old.py`, AutoAWQ's
//! `gemm.py` and `packing_utils.py`.

use crate::error::{Checked, Problem};
use crate::tensors::{Place, TensorInfo};
use plinth_kernels::Format;
use plinth_kernels::format::int4_block;
use rayon::prelude::*;

/// Where the parts of such a tensor lie besides its `qweight`, and how to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grouped {
    pub packing: Packing,
    /// Inputs that share a scale and a zero: a multiple of 32. The last group may be shorter.
    pub group_size: usize,
    /// `qzeros`: `[groups][outputs / 8]`.
    pub zeros: Place,
    /// `[groups][outputs]`.
    pub scales: Place,
    /// F16, BF16 or F32.
    pub scale_format: Format,
}

/// How eight integers lie in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `qweight: [inputs / 8][outputs]`. The first version of the format stores zeros less one, and a borrow goes on
    /// into the next integer of the word: one is added to all eight as to one number, as GPTQModel does
    /// (`convert_gptq_v1_to_v2_format_module`).
    Gptq { zeros_less_one: bool },
    /// `qweight: [inputs][outputs / 8]`, with the outputs of a word in the order of [`AWQ_ORDER`].
    Awq,
}

/// Which of eight outputs each integer of an AWQ word belongs to.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Packing {
    /// Rows and columns of `qweight` for a layer of this shape.
    pub fn weight_shape(self, outputs: usize, inputs: usize) -> (usize, usize) {
        match self {
            Packing::Gptq { .. } => (inputs / 8, outputs),
            Packing::Awq => (inputs, outputs / 8),
        }
    }

    /// Outputs and inputs of the layer with a `qweight` of this shape.
    pub fn layer_shape(self, rows: usize, cols: usize) -> Option<(usize, usize)> {
        match self {
            Packing::Gptq { .. } => Some((cols, rows.checked_mul(8)?)),
            Packing::Awq => Some((cols.checked_mul(8)?, rows)),
        }
    }

    /// The integers of 32 inputs for each of eight outputs.
    fn tile(self, words: &[[u8; 4]], outputs: usize, first: usize, block: usize) -> [[u8; 32]; 8] {
        let mut tile = [[0; 32]; 8];
        match self {
            Packing::Gptq { .. } => {
                for word in 0..4 {
                    let words = &words[(4 * block + word) * outputs + first..][..8];
                    for (q, word_of_output) in tile.iter_mut().zip(words) {
                        q[8 * word..][..8]
                            .copy_from_slice(&integers(u32::from_le_bytes(*word_of_output)));
                    }
                }
            }
            Packing::Awq => {
                for k in 0..32 {
                    let word = words[(32 * block + k) * (outputs / 8) + first / 8];
                    let q = self.of_outputs(integers(u32::from_le_bytes(word)));
                    tile.iter_mut().zip(q).for_each(|(row, q)| row[k] = q);
                }
            }
        }
        tile
    }

    /// The zeros of eight outputs.
    fn zeros(self, word: [u8; 4]) -> [u8; 8] {
        let word = u32::from_le_bytes(word);
        self.of_outputs(integers(match self {
            Packing::Gptq {
                zeros_less_one: true,
            } => word.wrapping_add(0x1111_1111),
            _ => word,
        }))
    }

    /// Integers of a word that goes along the outputs, in the order of these.
    fn of_outputs(self, integers: [u8; 8]) -> [u8; 8] {
        match self {
            Packing::Gptq { .. } => integers,
            Packing::Awq => {
                let mut ordered = [0; 8];
                for (integer, output) in integers.into_iter().zip(AWQ_ORDER) {
                    ordered[output] = integer;
                }
                ordered
            }
        }
    }
}

/// The eight integers of a word, from its lowest bits on.
fn integers(word: u32) -> [u8; 8] {
    std::array::from_fn(|j| (word >> (4 * j) & 0x0f) as u8)
}

/// The bytes of the parts, as they lie in the file.
#[derive(Default)]
pub(crate) struct Parts {
    pub weights: Vec<u8>,
    pub zeros: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Writes the blocks of a tensor into `out`, row after row.
///
/// # Errors
/// A scale is none that an `f16` holds.
///
/// **Panics** if the parts are not as long as the tensor's shape says: it was checked when the file was opened.
pub(crate) fn gather(
    info: &TensorInfo,
    grouped: &Grouped,
    parts: Parts,
    out: &mut Vec<u8>,
) -> Checked<()> {
    /// Tiles of eight outputs in a piece of work, so that what is read of a row of words is a cache line or more.
    const TILES: usize = 16;
    let scales = f16_scales(&info.name, grouped.scale_format, parts.scales)?;
    let (outputs, packing) = (info.rows, grouped.packing);
    let (weights, zeros, scales) = (
        parts.weights.as_chunks::<4>().0,
        parts.zeros.as_chunks::<4>().0,
        scales.as_chunks::<2>().0,
    );
    let block_bytes = Format::Int4.block_bytes();
    let row_bytes = info.cols / 32 * block_bytes;
    out.clear();
    out.resize(outputs * row_bytes, 0);
    let pieces = out.par_chunks_mut(8 * TILES * row_bytes).enumerate();
    pieces.for_each(|(piece, out)| {
        for block in 0..info.cols / 32 {
            let group = 32 * block / grouped.group_size;
            for (tile, out) in out.chunks_exact_mut(8 * row_bytes).enumerate() {
                let first = 8 * (piece * TILES + tile);
                let q = packing.tile(weights, outputs, first, block);
                let zeros = packing.zeros(zeros[group * (outputs / 8) + first / 8]);
                let scales = &scales[group * outputs + first..][..8];
                for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                    let block_of_row = int4_block(scales[row], zeros[row], &q[row]);
                    out[block * block_bytes..][..block_bytes].copy_from_slice(&block_of_row);
                }
            }
        }
    });
    Ok(())
}

/// The scales as bytes of `f16`.
///
/// # Errors
/// One of them is no `f16`: rounding it would change the weights.
pub(crate) fn f16_scales(tensor: &str, format: Format, bytes: Vec<u8>) -> Checked<Vec<u8>> {
    if format == Format::F16 {
        return Ok(bytes);
    }
    let count = bytes.len() / format.block_bytes();
    let (mut scales, mut halves) = (vec![0.0; count], vec![0; 2 * count]);
    format.dequantize(&bytes, &mut scales);
    Format::F16.quantize(&scales, &mut halves);
    let mut rounded = vec![0.0; count];
    Format::F16.dequantize(&halves, &mut rounded);
    match scales
        .iter()
        .zip(&rounded)
        .find(|(scale, rounded)| scale != rounded)
    {
        None => Ok(halves),
        Some((scale, _)) => {
            let found = format!("the {format} scale {scale}");
            let problem = Problem::field(
                format!("tensor '{tensor}'"),
                found,
                "scales that an f16 holds exactly",
            );
            Err(problem.fix("take the model with scales in float16, or a GGUF file"))
        }
    }
}
