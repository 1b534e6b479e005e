//! A weight matrix packed for the kernels.

use crate::Format;
use crate::cpu::generic::float_matmul::Blocks;
use crate::cpu::generic::span_matmul::{WeightSpan, WriteSpans};
use crate::cpu::isa::LaneIsa;
use crate::cpu::panel::{
    FloatElement, Int4, Iq4Nl, Iq4Xs, Mxfp4, PanelBlock, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1,
    Q5K, Q6K, Q8_0,
};
use crate::cpu::vector::LANES;
use crate::memory::{self, Arena, Slab};
use crate::panel_file::{PanelFile, Piece};
use crate::parallel::{for_near_pieces, for_panels};
use crate::workers::Workers;
use half::{bf16, f16};
use std::ops::Deref;
use std::sync::OnceLock;
use std::{fmt, io};

/// Weights of a linear layer, `[rows = outputs][cols = inputs]`, in panels of sixteen outputs.
///
/// It serves products ([`crate::Program::linear`]) and, for an embedding, single rows ([`crate::Program::embed`]).
/// The layout depends on the format alone, not on the instruction set.
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    panels: Panels,
}

/// Where the panels of a matrix lie.
enum Panels {
    Own(Slab),
    File(Piece),
}

impl Deref for Panels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(slab) => slab,
            Self::File(piece) => piece.bytes(),
        }
    }
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
        let mut slab = allocate(arena, format, rows.div_ceil(LANES) * panel)?;
        if !slab.is_empty() {
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
            panels: Panels::Own(slab),
        })
    }

    /// Takes panels that were packed before: `read(offset, piece)` fills each piece of `piece` bytes, of which the last may
    /// be shorter, and `offset` is where it begins.
    ///
    /// **Errors**: the first that `read` gave, or no memory.
    pub(crate) fn restore<E: From<PackError> + Send + Sync>(
        workers: &Workers,
        arena: &mut Arena,
        format: Format,
        (rows, cols): (usize, usize),
        (piece, read): (usize, &ReadPiece<'_, E>),
    ) -> Result<Self, E> {
        let len = checked_bytes(format, rows, cols)?;
        let mut slab = allocate(arena, format, len)?;
        let failed = OnceLock::new();
        for_near_pieces(workers, &mut slab, piece, |offset, piece| {
            if failed.get().is_none()
                && let Err(error) = read(offset, piece)
            {
                // Of two that fail at the same time one is told.
                let _ = failed.set(error);
            }
        });
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(Self {
                format,
                rows,
                cols,
                panels: Panels::Own(slab),
            }),
        }
    }

    /// Takes panels that were packed before where they lie in a file.
    pub(crate) fn of_file(
        format: Format,
        (rows, cols): (usize, usize),
        file: &PanelFile,
        offset: usize,
    ) -> Result<Self, PackError> {
        let len = checked_bytes(format, rows, cols)?;
        Ok(Self {
            format,
            rows,
            cols,
            panels: Panels::File(file.piece(offset, len)),
        })
    }

    /// The packed matrix as bytes: what [`crate::KernelSet::restore`] makes the same matrix of, on a machine of the same
    /// [`panel_layout`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.panels
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
        self.panels.len()
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
        memory::cast(&self.panels)
    }

    /// The blocks of a quantised matrix, `[panels][cols / block]`.
    pub(crate) fn blocks<B: PanelBlock>(&self) -> &[B] {
        memory::cast(&self.panels)
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

    /// Brings one panel into spans, `[cols / 256, rounded up]`.
    ///
    /// **Panics** if the matrix is of floats.
    pub(crate) fn write_spans(&self, lanes: LaneIsa, panel: usize, to: &mut [WeightSpan]) {
        let write = PanelSpans {
            matrix: self,
            lanes,
            panel,
            to,
        };
        with_panels(self.format, write);
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} {}", self.rows, self.cols, self.format)
    }
}

/// Fills a piece of panels that begins at an offset.
pub type ReadPiece<'a, E> = dyn Fn(usize, &mut [u8]) -> Result<(), E> + Sync + 'a;

/// Bytes that a packed matrix takes; `None` if a row is no whole number of blocks or the product wraps.
pub fn packed_bytes(format: Format, rows: usize, cols: usize) -> Option<usize> {
    format.row_bytes(cols)?;
    rows.div_ceil(LANES).checked_mul(panel_bytes(format, cols))
}

/// What tells one layout of panels from another: a matrix of every format, of made-up bytes, as it lies when packed.
///
/// Nobody has to remember to count a version up: a change to the panels of any format, another order of bytes, or a new
/// format gives other bytes. Less than half a megabyte, in about a millisecond.
///
/// **Errors**: no memory.
pub fn panel_layout(workers: &Workers) -> Result<Vec<u8>, PackError> {
    // Several super-blocks side by side, and a last panel that is not full.
    let (rows, cols) = (LANES + 3, 512);
    // Any sequence does that repeats nowhere within a panel (Knuth's MMIX generator).
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let (mut arena, mut layout) = (Arena::default(), Vec::new());
    for format in Format::ALL {
        let row_bytes = format.row_bytes(cols).expect("512 is whole blocks");
        let bytes: Vec<u8> = (0..rows * row_bytes).map(|_| next()).collect();
        let matrix = Matrix::pack(workers, &mut arena, format, (rows, cols), &bytes)?;
        layout.extend(format.name().as_bytes());
        layout.extend(matrix.as_bytes());
    }
    Ok(layout)
}

fn checked_bytes(format: Format, rows: usize, cols: usize) -> Result<usize, PackError> {
    packed_bytes(format, rows, cols).ok_or(PackError::Size {
        format,
        rows,
        cols,
        expected: None,
        found: 0,
    })
}

fn allocate(arena: &mut Arena, format: Format, bytes: usize) -> Result<Slab, PackError> {
    arena.allocate(bytes).map_err(|source| PackError::Memory {
        format,
        bytes,
        source,
    })
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

struct PanelSpans<'a> {
    matrix: &'a Matrix,
    lanes: LaneIsa,
    panel: usize,
    to: &'a mut [WeightSpan],
}

impl WithPanels for PanelSpans<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        unreachable!("no kernel of integers has a float format")
    }

    fn blocks<B: PanelBlock>(self) {
        self.lanes.run(WriteSpans {
            weights: Blocks::<B>(self.matrix.blocks()),
            panel: self.panel,
            k: self.matrix.cols,
            to: self.to,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up(format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let bytes = format.row_bytes(cols).unwrap() * rows;
        (0..bytes).map(|i| (i * 7 % 251) as u8).collect()
    }

    /// Matrices of less than a run of panels, and of several on every node; the last panel is not full.
    #[test]
    fn nodes_pack_the_same_bytes() {
        for (format, rows, cols) in [
            (Format::F32, 40, 64),
            (Format::F32, 16 * 50 + 3, 1024),
            (Format::Q4_0, 16 * 131 + 1, 2048),
        ] {
            let bytes = made_up(format, rows, cols);
            let packed = |nodes: &[u32]| {
                let workers = Workers::by_node(nodes.len(), &[], nodes).unwrap();
                let arena = &mut Arena::default();
                Matrix::pack(&workers, arena, format, (rows, cols), &bytes).unwrap()
            };
            let alone = packed(&[0]);
            assert!(alone.panels.iter().any(|&byte| byte != 0));
            for nodes in [&[0, 0][..], &[0, 0, 1, 1], &[0, 0, 0, 9], &[3, 1, 2]] {
                assert!(
                    *packed(nodes).panels == *alone.panels,
                    "{format} on {nodes:?}"
                );
            }
        }
    }

    /// Every piece is asked for once, on any nodes, and the last may be shorter.
    #[test]
    fn what_was_packed_is_restored_piece_by_piece() {
        for (format, rows, cols) in [
            (Format::Q4_0, 16 * 131 + 1, 2048),
            (Format::F16, 3, 64),
            (Format::Q8_0, 0, 64),
        ] {
            let alone = Workers::new(1, &[]).unwrap();
            let arena = &mut Arena::default();
            let bytes = made_up(format, rows, cols);
            let packed = Matrix::pack(&alone, arena, format, (rows, cols), &bytes).unwrap();
            let kept = packed.as_bytes();
            assert_eq!(packed_bytes(format, rows, cols), Some(kept.len()));
            for nodes in [&[0][..], &[0, 0], &[0, 1, 1], &[5, 0, 0, 0]] {
                let workers = Workers::by_node(nodes.len(), &[], nodes).unwrap();
                for piece in [64, 1000, 256 << 10] {
                    let read = |offset: usize, to: &mut [u8]| {
                        assert!(to.iter().all(|&byte| byte == 0) && offset.is_multiple_of(piece));
                        to.copy_from_slice(&kept[offset..][..to.len()]);
                        Ok::<_, PackError>(())
                    };
                    let shape = (rows, cols);
                    let restored =
                        Matrix::restore(&workers, arena, format, shape, (piece, &read)).unwrap();
                    assert!(restored.as_bytes() == kept, "{format} on {nodes:?}");
                }
            }
        }
    }

    #[test]
    fn a_piece_that_cannot_be_read_is_the_error_of_all() {
        let workers = Workers::new(2, &[]).unwrap();
        let arena = &mut Arena::default();
        let read = |offset: usize, _: &mut [u8]| match offset {
            8192 => Err(PackError::NoKernel {
                format: Format::Q2K,
            }),
            _ => Ok(()),
        };
        let restored = Matrix::restore(&workers, arena, Format::F32, (64, 64), (4096, &read));
        assert!(matches!(restored, Err(PackError::NoKernel { .. })));
        let ragged = Matrix::restore(&workers, arena, Format::Q4_0, (64, 33), (4096, &read));
        assert!(matches!(
            ragged,
            Err(PackError::Size { expected: None, .. })
        ));
    }

    #[test]
    fn the_layout_is_what_packing_gives_in_every_format() {
        let workers = Workers::new(1, &[]).unwrap();
        let layout = panel_layout(&workers).unwrap();
        assert_eq!(layout, panel_layout(&workers).unwrap());
        let mut rest = &layout[..];
        for format in Format::ALL {
            rest = rest.strip_prefix(format.name().as_bytes()).unwrap();
            let panels = packed_bytes(format, LANES + 3, 512).unwrap();
            let (panels, after) = rest.split_at(panels);
            // A block of which a byte could move unseen would show as a run of equal bytes.
            let most = (0..=255).map(|byte| panels.iter().filter(|&&b| b == byte).count());
            assert!(most.max() < Some(panels.len()), "{format}");
            assert!(panels.iter().any(|&byte| byte != 0), "{format}");
            rest = after;
        }
        assert!(rest.is_empty());
    }
}
