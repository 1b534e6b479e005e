//! One tensor from one format into another, row by row in parallel, with its rows in the order that the target wants.

use crate::config::RopeLayout;
use crate::error::{Checked, FormatError, Problem};
use crate::model_file::ModelFile;
use crate::tensors::TensorInfo;
use plinth_kernels::Format;
use rayon::prelude::*;

/// Reads tensors of a model in a given format and rotary layout. Buffers are used again from tensor to tensor.
pub(super) struct Reader<'a> {
    model: &'a ModelFile,
    layout: RopeLayout,
    bytes: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Rows of queries and keys come out as `layout` wants them.
    pub fn new(model: &'a ModelFile, layout: RopeLayout) -> Checked<Self> {
        let config = model.config();
        if layout != config.rope.layout && config.rope.dims != config.head_dim {
            let expected = format!("all {} elements of a head", config.head_dim);
            let problem = Problem::field("rotary dimensions", config.rope.dims, expected);
            return Err(problem.fix(
                "a model that rotates a part of each head cannot be moved between these formats",
            ));
        }
        Ok(Self {
            model,
            layout,
            bytes: Vec::new(),
        })
    }

    /// The tensor in `format`, whose blocks must divide its rows.
    pub fn read(&mut self, info: &TensorInfo, format: Format) -> Result<Vec<u8>, FormatError> {
        self.model.read(&info.name, &mut self.bytes)?;
        let from = |row: usize| self.source_row(info, row);
        Ok(match info.rows {
            1 => vector(info, &self.bytes, format, |n| {
                self.source_row_of_bias(info, n)
            }),
            _ => matrix(info, &self.bytes, format, from),
        })
    }

    /// Heads of a tensor whose rows are permuted between the layouts, if it is such a tensor and they differ.
    fn permuted_heads(&self, name: &str) -> Option<usize> {
        let config = self.model.config();
        let (stem, _) = name.rsplit_once('.')?;
        let heads = match stem.rsplit('.').next()? {
            "attn_q" => config.num_heads,
            "attn_k" => config.num_kv_heads,
            _ => return None,
        };
        (self.layout != config.rope.layout).then_some(heads)
    }

    fn source_row(&self, info: &TensorInfo, row: usize) -> usize {
        match self.permuted_heads(&info.name) {
            Some(_) => source_of(row, self.model.config().head_dim, self.layout),
            None => row,
        }
    }

    fn source_row_of_bias(&self, info: &TensorInfo, n: usize) -> usize {
        if info.name.ends_with(".bias") {
            self.source_row(info, n)
        } else {
            n
        }
    }
}

/// Which row of the other layout becomes `row` of this one. Within a head of d rows, pair i of the half-split layout is
/// (i, i + d/2), and of the interleaved one (2i, 2i + 1).
fn source_of(row: usize, head_dim: usize, layout: RopeLayout) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    let source = match layout {
        RopeLayout::Interleaved => (at % 2) * half + at / 2,
        RopeLayout::HalfSplit => 2 * (at % half) + at / half,
    };
    head * head_dim + source
}

fn vector(
    info: &TensorInfo,
    bytes: &[u8],
    format: Format,
    from: impl Fn(usize) -> usize,
) -> Vec<u8> {
    let mut values = vec![0.0; info.cols];
    info.format.dequantize(bytes, &mut values);
    let ordered: Vec<_> = (0..info.cols).map(|n| values[from(n)]).collect();
    let mut out = vec![
        0;
        format
            .row_bytes(info.cols)
            .expect("a float format fits any length")
    ];
    format.quantize(&ordered, &mut out);
    out
}

fn matrix(
    info: &TensorInfo,
    bytes: &[u8],
    format: Format,
    from: impl Fn(usize) -> usize + Sync,
) -> Vec<u8> {
    let source_bytes = info
        .format
        .row_bytes(info.cols)
        .expect("checked when the file was opened");
    let row_bytes = format
        .row_bytes(info.cols)
        .expect("the format was chosen for this row length");
    let mut out = vec![0; row_bytes * info.rows];
    out.par_chunks_mut(row_bytes).enumerate().for_each_init(
        || vec![0.0; info.cols],
        |values, (row, out)| {
            let begin = from(row) * source_bytes;
            let source = &bytes[begin..begin + source_bytes];
            if info.format == format {
                out.copy_from_slice(source);
                return;
            }
            info.format.dequantize(source, values);
            format.quantize(values, out);
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_each_others_inverse() {
        for row in 0..24 {
            let interleaved = source_of(row, 8, RopeLayout::Interleaved);
            assert_eq!(source_of(interleaved, 8, RopeLayout::HalfSplit), row);
        }
        // Head of 4: halves (0 1)(2 3) become pairs (0 2)(1 3).
        let order: Vec<_> = (0..4)
            .map(|row| source_of(row, 4, RopeLayout::Interleaved))
            .collect();
        assert_eq!(order, [0, 2, 1, 3]);
    }
}
