//! Matrix products in tiles, for many rows: weights of any format are brought into tiles once for all of them.
//!
//! ```text
//! for each pair of panels (32 outputs):
//!     bring both into tiles of some inputs x 16 outputs           once, stays in the second-level cache
//!     for each pair of row tiles (32 rows):
//!         sum[2][2] tiles = 0
//!         for each tile of inputs in order:  four products of tiles, sums in registers
//! ```
//! What tiles hold is a [`TileKind`]: [`Bf16`] here, small integers in [`span_matmul`](super::span_matmul). A tile
//! register file is what [`TileUnit`] stands for.
//!
//! **Error** of [`Bf16`]: weights and activations are rounded to `bf16`, sums are `f32`. Each product is within `2^-6.99` of
//! the exact one (two roundings to 8 bits, each of `2^-8`), so an output is within `2^-6.99 + k 2^-23` of the sum of
//! magnitudes; where weights are integers with a scale, and by `2^-15` of the scale for each unit of activation more.

use super::elementwise::Activation;
use super::float_matmul::{Blocks, Finish, Packed};
use crate::cpu::panel::{FloatElement, PanelBlock, write_tiles};
use crate::cpu::vector::{LANES, Lanes, load_part, store_part};
use crate::tensor::{Rows, RowsMut};
use half::bf16;
use std::ops::Range;

/// Bytes ahead of their use at which weights are asked for: that which few rows do best with on CPUs that have tiles.
pub(super) const AHEAD: usize = 2 << 10;

/// Rows of a tile of activations.
pub(crate) const ROW_TILE: usize = 16;

/// A tile: activations as `[16 rows][32 inputs]`, weights as `[16 pairs of inputs][16 outputs][2]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileWords(pub [[bf16; 2 * LANES]; ROW_TILE]);

impl TileWords {
    pub const ZERO: Self = Self([[bf16::ZERO; 2 * LANES]; ROW_TILE]);
}

/// Sums: `[16 rows][16 outputs]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileSums(pub [[f32; LANES]; ROW_TILE]);

impl TileSums {
    pub const ZERO: Self = Self([[0.0; LANES]; ROW_TILE]);
}

/// What tiles hold, and how many inputs of a row.
pub(crate) trait TileKind: 'static {
    /// Some inputs of sixteen rows.
    type Rows: Copy + Send + Sync;
    /// The same inputs of sixteen outputs.
    type Weights: Copy;

    /// Inputs of a tile; the last of a row may have less.
    const INPUTS: usize;
    const NO_WEIGHTS: Self::Weights;
}

/// Tiles of 32 inputs, rounded to `bf16`.
pub(crate) struct Bf16;

impl TileKind for Bf16 {
    type Rows = TileWords;
    type Weights = TileWords;

    const INPUTS: usize = 32;
    const NO_WEIGHTS: TileWords = TileWords::ZERO;
}

/// What multiplies tiles of a kind.
pub(crate) trait TileProduct<T: TileKind>: Copy {
    /// The float lanes that go with it.
    type Lanes: Lanes;

    /// The float lanes that go with it.
    fn lanes(self) -> Self::Lanes;

    /// `sums[i][j] = sum over the k inputs of a[i] · b[j]`, for tiles that make up `k` inputs, which are not none.
    fn multiply<const A: usize>(
        self,
        k: usize,
        a: [&[T::Rows]; A],
        b: [&[T::Weights]; 2],
        sums: &mut [[TileSums; 2]; A],
    );
}

/// A [`TileUnit`] in a product.
#[derive(Clone, Copy)]
struct Words<U>(U);

impl<U: TileUnit> TileProduct<Bf16> for Words<U> {
    type Lanes = U::Lanes;

    #[inline(always)]
    fn lanes(self) -> U::Lanes {
        self.0.lanes()
    }

    #[inline(always)]
    fn multiply<const A: usize>(
        self,
        _: usize,
        a: [&[TileWords]; A],
        b: [&[TileWords]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        self.0.multiply(a, b, sums);
    }
}

/// A unit that multiplies tiles of `bf16`, in use by this thread.
pub(crate) trait TileUnit: PairUnit {
    /// `sums[i][j] = sum over t of a[i][t] · b[j][t]`, where `a` are tiles of activations and `b` of weights, all of one
    /// length, which is not zero. Tiles are added to the sum in order; how a tile is summed is in `emulated_tiles`.
    fn multiply<const A: usize>(
        self,
        a: [&[TileWords]; A],
        b: [&[TileWords]; 2],
        sums: &mut [[TileSums; 2]; A],
    );
}

/// An algorithm over tiles. As [`LaneKernel`].
pub(crate) trait TileKernel {
    fn run<U: TileUnit>(self, unit: U);
}

/// What writes tiles.
pub(crate) trait PairUnit: Copy {
    /// The float lanes that go with it.
    type Lanes: Lanes;

    /// The float lanes that go with it.
    fn lanes(self) -> Self::Lanes;

    /// Rounds the lanes of two vectors to `bf16`, side by side: `a[0], b[0], a[1], …`. Numbers below the normal range may
    /// become zero.
    fn store_pairs(
        self,
        a: <Self::Lanes as Lanes>::F32,
        b: <Self::Lanes as Lanes>::F32,
        to: &mut [bf16; 2 * LANES],
    );

    /// Rounds the lanes of two vectors to `bf16`, one vector after the other, as [`store_pairs`](Self::store_pairs) does.
    fn store_row(
        self,
        a: <Self::Lanes as Lanes>::F32,
        b: <Self::Lanes as Lanes>::F32,
        to: &mut [bf16; 2 * LANES],
    );
}

/// An algorithm over pairs. As [`LaneKernel`].
pub(crate) trait PairKernel {
    fn run<U: PairUnit>(self, unit: U);
}

/// Weights that can be brought into tiles.
pub(crate) trait TilePanels: Copy {
    /// Writes panel `panel` of `k` inputs; inputs beyond `k` become zero.
    fn write<U: PairUnit>(&self, unit: U, panel: usize, k: usize, to: &mut [TileWords]);
}

impl<E: FloatElement> TilePanels for Packed<'_, E> {
    #[inline(always)]
    fn write<U: PairUnit>(&self, unit: U, panel: usize, k: usize, to: &mut [TileWords]) {
        let lanes = unit.lanes();
        let zero = lanes.splat(0.0);
        let inputs = &self.0[panel * k..][..k];
        for (inputs, to) in inputs.chunks(2 * ROW_TILE).zip(to) {
            for (p, to) in to.0.iter_mut().enumerate() {
                let load = |i: usize| inputs.get(i).map_or(zero, |w| E::load(lanes, w));
                unit.store_pairs(load(2 * p), load(2 * p + 1), to);
            }
        }
    }
}

impl<B: PanelBlock> TilePanels for Blocks<'_, B> {
    #[inline(always)]
    fn write<U: PairUnit>(&self, unit: U, panel: usize, k: usize, to: &mut [TileWords]) {
        let blocks = self.of(panel, k);
        for (block, to) in blocks.iter().zip(to.chunks_exact_mut(B::GROUPS)) {
            unit.lanes().prefetch_all(block, AHEAD);
            write_tiles(unit, block, to);
        }
    }
}

/// Memory of one worker for tiles of weights and sums.
pub(crate) struct TileScratch<T: TileKind> {
    weights: Vec<T::Weights>,
    sums: Box<[[TileSums; 2]; 2]>,
}

impl<T: TileKind> Default for TileScratch<T> {
    fn default() -> Self {
        Self {
            weights: Vec::new(),
            sums: Box::new([[TileSums::ZERO; 2]; 2]),
        }
    }
}

/// Brings one panel into tiles.
pub(crate) struct WriteTiles<'a, P> {
    pub weights: P,
    pub panel: usize,
    /// Inputs.
    pub k: usize,
    /// `[k / 32, rounded up]`.
    pub to: &'a mut [TileWords],
}

impl<P: TilePanels> PairKernel for WriteTiles<'_, P> {
    #[inline(always)]
    fn run<U: PairUnit>(self, unit: U) {
        self.weights.write(unit, self.panel, self.k, self.to);
    }
}

/// Where tiles of weights come from: writes the tiles of a panel.
pub(crate) type TileSource<'a, T> = &'a dyn Fn(usize, &mut [<T as TileKind>::Weights]);

/// What becomes of the sums.
pub(crate) enum TileOutput<'a, T: TileKind> {
    /// Products with one matrix.
    Product(TileSource<'a, T>, Finish<'a>),
    /// `activation(product with the first) * product with the second`; each with its bias.
    Gated {
        gate: TileSource<'a, T>,
        up: TileSource<'a, T>,
        bias: [Option<&'a [f32]>; 2],
        activation: Activation,
    },
}

/// The product for the panels in a range, all rows.
pub(crate) struct TileMatmul<'a, T: TileKind> {
    pub output: TileOutput<'a, T>,
    /// Panels to multiply with.
    pub panels: Range<usize>,
    /// Inputs.
    pub k: usize,
    /// `[row tiles][k / INPUTS, rounded up]`, zero beyond the last row.
    pub x: &'a [T::Rows],
    pub scratch: &'a mut TileScratch<T>,
    /// `[rows][16 * panels.len()]`, or less for the last panel.
    pub out: RowsMut<'a>,
}

impl TileKernel for TileMatmul<'_, Bf16> {
    #[inline(always)]
    fn run<U: TileUnit>(self, unit: U) {
        self.run_on(Words(unit));
    }
}

impl<T: TileKind> TileMatmul<'_, T> {
    #[inline(always)]
    pub fn run_on<U: TileProduct<T>>(mut self, unit: U) {
        let steps = self.k.div_ceil(T::INPUTS);
        let mut weights = std::mem::take(&mut self.scratch.weights);
        if weights.len() < 2 * steps {
            weights.resize(2 * steps, T::NO_WEIGHTS);
        }
        let (first, second) = weights[..2 * steps].split_at_mut(steps);
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let mut b: [&[T::Weights]; 2];
            match &self.output {
                TileOutput::Product(source, _) => {
                    source(panel, first);
                    let two = panel + 1 < self.panels.end;
                    if two {
                        source(panel + 1, second);
                    }
                    b = [first, if two { second } else { first }];
                }
                TileOutput::Gated { gate, up, .. } => {
                    gate(panel, first);
                    up(panel, second);
                    b = [first, second];
                }
            }
            if steps == 0 {
                b = [&[], &[]];
            }
            let row_tiles = self.out.rows().div_ceil(ROW_TILE);
            let mut tile = 0;
            while tile + 2 <= row_tiles {
                self.block::<U, 2>(unit, tile, panel, b);
                tile += 2;
            }
            if tile < row_tiles {
                self.block::<U, 1>(unit, tile, panel, b);
            }
            panel += match self.output {
                TileOutput::Product(..) => 2,
                TileOutput::Gated { .. } => 1,
            };
        }
        self.scratch.weights = weights;
    }

    #[inline(always)]
    fn block<U: TileProduct<T>, const A: usize>(
        &mut self,
        unit: U,
        tile: usize,
        panel: usize,
        b: [&[T::Weights]; 2],
    ) {
        let steps = b[0].len();
        let mut a = [&[][..]; A];
        for (i, a) in a.iter_mut().enumerate() {
            *a = &self.x[(tile + i) * steps..][..steps];
        }
        let sums = self.scratch.sums.first_chunk_mut::<A>();
        let sums = sums.expect("one or two tiles of rows");
        match steps {
            0 => *sums = [[TileSums::ZERO; 2]; A],
            _ => unit.multiply(self.k, a, b, sums),
        }
        let lanes = unit.lanes();
        let first = (panel - self.panels.start) * LANES;
        for (i, sums) in sums.iter().enumerate() {
            let rows = (tile + i) * ROW_TILE..self.out.rows().min((tile + i + 1) * ROW_TILE);
            for (r, row) in rows.enumerate() {
                let to = &mut self.out.row_mut(row)[first..];
                match &self.output {
                    TileOutput::Product(_, finish) => {
                        for (j, to) in to.chunks_mut(LANES).take(2).enumerate() {
                            let sum = lanes.load(&sums[j].0[r]);
                            finish.write(lanes, sum, (panel + j) * LANES, to);
                        }
                    }
                    TileOutput::Gated {
                        bias, activation, ..
                    } => {
                        let to = to.chunks_mut(LANES).next().expect("a panel has outputs");
                        let mut halves = [lanes.load(&sums[0].0[r]), lanes.load(&sums[1].0[r])];
                        for (half, bias) in halves.iter_mut().zip(bias) {
                            if let Some(bias) = bias {
                                let bias = &bias[panel * LANES..][..to.len()];
                                *half = lanes.add(*half, load_part(lanes, bias));
                            }
                        }
                        let gated = activation.gate(lanes, halves[0], halves[1]);
                        match to.as_mut_array::<LANES>() {
                            Some(to) => lanes.store(gated, to),
                            None => store_part(lanes, gated, to),
                        }
                    }
                }
            }
        }
    }
}

/// Rounds up to sixteen rows to tiles; rows and inputs that are not there become zero.
pub(crate) struct TileRows<'a> {
    pub x: Rows<'a>,
    /// `[x.cols() / 32, rounded up]`.
    pub to: &'a mut [TileWords],
}

impl PairKernel for TileRows<'_> {
    #[inline(always)]
    fn run<U: PairUnit>(self, unit: U) {
        let lanes = unit.lanes();
        for r in 0..ROW_TILE {
            if r >= self.x.rows() {
                self.to.iter_mut().for_each(|to| to.0[r] = [bf16::ZERO; 32]);
                continue;
            }
            let row = self.x.row(r);
            for (from, to) in row.chunks(32).zip(&mut *self.to) {
                let mut padded = [0.0; 32];
                let from = match from.as_array::<32>() {
                    Some(from) => from,
                    None => {
                        padded[..from.len()].copy_from_slice(from);
                        &padded
                    }
                };
                let halves: &[[f32; LANES]; 2] = from.as_chunks().0.as_array().expect("two of 16");
                unit.store_row(lanes.load(&halves[0]), lanes.load(&halves[1]), &mut to.0[r]);
            }
        }
    }
}
