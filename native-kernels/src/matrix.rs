//! A weight matrix packed for the kernels.

use crate::Format;
use crate::cpu::panel::{
    FloatElement, Int4, Iq4Nl, Iq4Xs, Mxfp4, PanelBlock, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1,
    Q5K, Q6K, Q8_0,
};
use crate::cpu::vector::LANES;
use crate::memory::{self, Arena, Slab};
use crate::parallel::for_panels;
use crate::workers::Workers;
use half::{bf16, f16};
use std::io;

/// Weights of a linear layer, `[rows = outputs][cols = inputs]`, in panels of sixteen outputs.
///
/// It serves products ([`crate::Program::linear`]) and, for an embedding, single rows ([`crate::Program::embed`]).
/// The layout depends on the format alone, not on the instruction set.
#[derive(Debug)]
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    slab: Slab,
}

/// Why a matrix could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The file's fault.
    #[error("{rows} rows of {cols} {format} elements are {expected:?} bytes, found {found}")]
    Size {
        /// Format of the elements.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Bytes that those take; `None` if a row is no whole number of blocks or the product wraps.
        expected: Option<usize>,
        /// Bytes given.
        found: usize,
    },
    /// The plan's fault: it names no kernel for this format.
    #[error(
        "no matmul kernel was chosen for {format}; the plan must name one for every format of the model"
    )]
    NoKernel {
        /// Format of the matrix.
        format: Format,
    },
    /// The machine's fault.
    #[error("cannot reserve {bytes} bytes for a packed {format} matrix: {source}")]
    Memory {
        /// Format of the matrix.
        format: Format,
        /// Bytes needed.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl Matrix {
    /// Packs row-major blocks.
    pub(crate) fn pack(
        workers: &Workers,
        arena: &mut Arena,
        format: Format,
        (rows, cols): (usize, usize),
        bytes: &[u8],
    ) -> Result<Self, PackError> {
        let row_bytes = format.row_bytes(cols);
        let expected = row_bytes.and_then(|row_bytes| row_bytes.checked_mul(rows));
        if expected != Some(bytes.len()) {
            return Err(PackError::Size {
                format,
                rows,
                cols,
                expected,
                found: bytes.len(),
            });
        }
        let panel = panel_bytes(format, cols);
        let len = rows.div_ceil(LANES) * panel;
        let memory = |source| PackError::Memory {
            format,
            bytes: len,
            source,
        };
        let mut slab = arena.allocate(len).map_err(memory)?;
        if len > 0 {
            // As many panels at a time as make a piece worth handing to a worker.
            let panels = (256usize << 10).div_ceil(panel);
            for_panels(workers, &mut slab, (panel, panels), |first, piece| {
                for (i, to) in piece.chunks_exact_mut(panel).enumerate() {
                    let first = (first + i) * LANES;
                    let count = LANES.min(rows - first);
                    let row_bytes = bytes.len() / rows;
                    let from = &bytes[first * row_bytes..][..count * row_bytes];
                    with_panels(
                        format,
                        PackPanel {
                            from,
                            row_bytes,
                            to,
                        },
                    );
                }
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            slab,
        })
    }

    /// Format of the elements.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that the packed matrix takes.
    pub fn bytes(&self) -> usize {
        self.slab.len()
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        panel_bytes(self.format, self.cols)
    }

    /// The elements of a float matrix, `[panels][cols][16]`.
    pub(crate) fn floats<E: FloatElement>(&self) -> &[[E; LANES]] {
        memory::cast(&self.slab)
    }

    /// The blocks of a quantised matrix, `[panels][cols / block]`.
    pub(crate) fn blocks<B: PanelBlock>(&self) -> &[B] {
        memory::cast(&self.slab)
    }

    /// Writes row `row` dequantised: the same numbers as `Format::dequantize`.
    ///
    /// **Panics** if there is no such row or `to` is not as long as one.
    pub(crate) fn row(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert!(
            to.len() == self.cols,
            "a row of {} into {}",
            self.cols,
            to.len()
        );
        let read = ReadRow {
            matrix: self,
            panel: row / LANES,
            lane: row % LANES,
            to,
        };
        with_panels(self.format, read);
    }
}

fn panel_bytes(format: Format, cols: usize) -> usize {
    struct BlockBytes {
        cols: usize,
    }
    impl WithPanels for BlockBytes {
        type Output = usize;
        fn floats<E: FloatElement>(self) -> usize {
            self.cols * size_of::<[E; LANES]>()
        }
        fn blocks<B: PanelBlock>(self) -> usize {
            self.cols / (32 * B::GROUPS) * size_of::<B>()
        }
    }
    with_panels(format, BlockBytes { cols })
}

/// Something to do with the type that the panels of a format consist of.
pub(crate) trait WithPanels {
    type Output;
    fn floats<E: FloatElement>(self) -> Self::Output;
    fn blocks<B: PanelBlock>(self) -> Self::Output;
}

pub(crate) fn with_panels<W: WithPanels>(format: Format, w: W) -> W::Output {
    match format {
        Format::F32 => w.floats::<f32>(),
        Format::F16 => w.floats::<f16>(),
        Format::BF16 => w.floats::<bf16>(),
        Format::Q8_0 => w.blocks::<Q8_0>(),
        Format::Q4_0 => w.blocks::<Q4_0>(),
        Format::Q4_1 => w.blocks::<Q4_1>(),
        Format::Q5_0 => w.blocks::<Q5_0>(),
        Format::Q5_1 => w.blocks::<Q5_1>(),
        Format::Q2K => w.blocks::<Q2K>(),
        Format::Q3K => w.blocks::<Q3K>(),
        Format::Q4K => w.blocks::<Q4K>(),
        Format::Q5K => w.blocks::<Q5K>(),
        Format::Q6K => w.blocks::<Q6K>(),
        Format::Iq4Nl => w.blocks::<Iq4Nl>(),
        Format::Iq4Xs => w.blocks::<Iq4Xs>(),
        Format::Mxfp4 => w.blocks::<Mxfp4>(),
        Format::Int4 => w.blocks::<Int4>(),
    }
}

/// Packs up to sixteen rows of the file into one panel. Lanes without a row stay zero.
struct PackPanel<'a> {
    from: &'a [u8],
    row_bytes: usize,
    to: &'a mut [u8],
}

impl PackPanel<'_> {
    fn each_block<T: memory::Pod>(self, block_bytes: usize, pack: impl Fn(&mut T, usize, &[u8])) {
        let to = memory::cast_mut::<T>(self.to);
        if self.row_bytes == 0 {
            return;
        }
        for (lane, row) in self.from.chunks_exact(self.row_bytes).enumerate() {
            for (block, to) in row.chunks_exact(block_bytes).zip(&mut *to) {
                pack(to, lane, block);
            }
        }
    }
}

impl WithPanels for PackPanel<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        self.each_block::<[E; LANES]>(size_of::<E>(), |to, lane, bytes| {
            to[lane] = E::from_le(bytes);
        });
    }

    fn blocks<B: PanelBlock>(self) {
        let blocks = self.to.len() / size_of::<B>();
        let block_bytes = self.row_bytes / blocks.max(1);
        self.each_block::<B>(block_bytes, B::pack);
    }
}

struct ReadRow<'a> {
    matrix: &'a Matrix,
    panel: usize,
    lane: usize,
    to: &'a mut [f32],
}

impl WithPanels for ReadRow<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        let cols = self.matrix.cols;
        let panel = &self.matrix.floats::<E>()[self.panel * cols..][..cols];
        for (to, from) in self.to.iter_mut().zip(panel) {
            *to = from[self.lane].to_f32();
        }
    }

    fn blocks<B: PanelBlock>(self) {
        let inputs = 32 * B::GROUPS;
        let blocks = self.matrix.cols / inputs;
        let panel = &self.matrix.blocks::<B>()[self.panel * blocks..][..blocks];
        for (block, to) in panel.iter().zip(self.to.chunks_exact_mut(inputs)) {
            for (k, to) in to.iter_mut().enumerate() {
                *to = block.element(self.lane, k);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Matrices of less than a run of panels, and of several on every node; the last panel is not full.
    #[test]
    fn nodes_pack_the_same_bytes() {
        for (format, rows, cols) in [
            (Format::F32, 40, 64),
            (Format::F32, 16 * 50 + 3, 1024),
            (Format::Q4_0, 16 * 131 + 1, 2048),
        ] {
            let bytes = format.row_bytes(cols).unwrap() * rows;
            let bytes: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
            let packed = |nodes: &[u32]| {
                let workers = Workers::by_node(nodes.len(), &[], nodes).unwrap();
                let arena = &mut Arena::default();
                Matrix::pack(&workers, arena, format, (rows, cols), &bytes).unwrap()
            };
            let alone = packed(&[0]);
            assert!(alone.slab.iter().any(|&byte| byte != 0));
            for nodes in [&[0, 0][..], &[0, 0, 1, 1], &[0, 0, 0, 9], &[3, 1, 2]] {
                assert!(*packed(nodes).slab == *alone.slab, "{format} on {nodes:?}");
            }
        }
    }
}
