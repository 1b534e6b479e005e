//! Matrix products of float panels: `out[m][n] = sum over k of x[m][k] * w[n][k]`.
//!
//! ```text
//! for each set of P panels (16 outputs each), for each group of R rows:
//!     sum[R][P] = 0
//!     for k in order:                      one fused multiply-add per sum; sums live in registers
//!         sum[r][p] = x[r][k] * w[p][k] + sum[r][p]
//! ```
//! **Invariant:** an output element is accumulated over `k` in one lane, in order, whatever R, P and the number of rows
//! are: this is what makes the float kernels batch invariant. For the same reason the inputs are never split.

use super::row_groups::RowGroups;
use crate::cpu::isa::Streaming;
use crate::cpu::panel::{FloatElement, PanelBlock};
use crate::cpu::vector::{LANES, LaneKernel, Lanes, load_part, store_part};
use crate::tensor::RowsMut;
use std::ops::Range;

/// What becomes of a finished sum.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// Added to every row; as long as there are outputs.
    pub bias: Option<&'a [f32]>,
    /// Add to what is there instead of overwriting it.
    pub add: bool,
}

impl Finish<'_> {
    /// Writes sixteen outputs of a row, or as many as `to` holds; the first of them is output `output`.
    #[inline(always)]
    pub fn write<L: Lanes>(&self, lanes: L, mut sum: L::F32, output: usize, to: &mut [f32]) {
        if let Some(bias) = self.bias {
            sum = lanes.add(sum, load_part(lanes, &bias[output..][..to.len()]));
        }
        match to.as_mut_array::<LANES>() {
            Some(to) if self.add => lanes.store(lanes.add(lanes.load(to), sum), to),
            Some(to) => lanes.store(sum, to),
            None if self.add => {
                let there = load_part(lanes, to);
                store_part(lanes, lanes.add(there, sum), to);
            }
            None => store_part(lanes, sum, to),
        }
    }

    /// Writes the sums of `R` rows and `P` panels: rows from `row` on, outputs from `output` on. `out` begins at output
    /// `first`.
    #[inline(always)]
    pub fn write_block<L: Lanes, const R: usize, const P: usize>(
        &self,
        lanes: L,
        sums: &[[L::F32; P]; R],
        row: usize,
        output: usize,
        first: usize,
        out: &mut RowsMut<'_>,
    ) {
        for (r, sums) in sums.iter().enumerate() {
            let to = &mut out.row_mut(row + r)[output - first..];
            for (p, (sum, to)) in sums.iter().zip(to.chunks_mut(LANES)).enumerate() {
                self.write(lanes, *sum, output + p * LANES, to);
            }
        }
    }
}

/// Where the float panels come from.
pub(crate) trait Panels: Copy {
    type Element: FloatElement;

    /// Makes panel `panel`, `[k][16]`, readable; `scratch` is free to use and keeps its size.
    fn panel<'a>(
        &'a self,
        panel: usize,
        k: usize,
        scratch: &'a mut Vec<[f32; LANES]>,
    ) -> &'a [[Self::Element; LANES]];
}

/// Float panels as they were packed.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a, E>(pub &'a [[E; LANES]]);

impl<E: FloatElement> Panels for Packed<'_, E> {
    type Element = E;

    #[inline(always)]
    fn panel<'a>(
        &'a self,
        panel: usize,
        k: usize,
        _: &'a mut Vec<[f32; LANES]>,
    ) -> &'a [[E; LANES]] {
        &self.0[panel * k..][..k]
    }
}

/// Panels of another kind, widened one at a time: the exact product with the dequantised weights. One product serves every
/// format; what widens panel `n` into `[k][16]` is behind a call.
#[derive(Clone, Copy)]
pub(crate) struct Widened<'a>(pub &'a dyn Fn(usize, &mut [[f32; LANES]]));

impl Panels for Widened<'_> {
    type Element = f32;

    #[inline(always)]
    fn panel<'a>(
        &'a self,
        panel: usize,
        k: usize,
        scratch: &'a mut Vec<[f32; LANES]>,
    ) -> &'a [[f32; LANES]] {
        scratch.resize(k, [0.0; LANES]);
        self.0(panel, scratch);
        scratch
    }
}

/// Quantised panels.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a, B>(pub &'a [B]);

impl<B: PanelBlock> Blocks<'_, B> {
    /// The blocks of a panel with `k` inputs.
    #[inline(always)]
    pub fn of(&self, panel: usize, k: usize) -> &[B] {
        let blocks = k / (32 * B::GROUPS);
        &self.0[panel * blocks..][..blocks]
    }
}

/// Widens one panel.
pub(crate) struct WidenPanel<'a, B> {
    pub blocks: Blocks<'a, B>,
    pub panel: usize,
    /// `[k][16]`.
    pub to: &'a mut [[f32; LANES]],
}

impl<B: PanelBlock> LaneKernel for WidenPanel<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let blocks = self.blocks.of(self.panel, self.to.len());
        let to = self.to.chunks_exact_mut(32 * B::GROUPS);
        for (block, to) in blocks.iter().zip(to) {
            block.widen(lanes, to);
        }
    }
}

/// The product for the panels in a range, all rows.
pub(crate) struct FloatMatmul<'a, P> {
    pub weights: P,
    /// Panels to multiply with.
    pub panels: Range<usize>,
    /// Inputs.
    pub k: usize,
    /// Rows in groups of at most `L::ROWS`, `[groups][k][R]`.
    pub x: &'a [f32],
    pub finish: Finish<'a>,
    /// How weights are read.
    pub streaming: Streaming,
    /// `[rows][16 * panels.len()]`, or less for the last panel.
    pub out: RowsMut<'a>,
}

impl<P: Panels> LaneKernel for FloatMatmul<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let mut scratch: [Vec<[f32; LANES]>; 4] = Default::default();
        let mut panel = self.panels.start;
        // Four panels side by side keep the multiply-add units and the memory busy when a row alone cannot.
        if self.out.rows() == 1 {
            while panel + 4 <= self.panels.end {
                self.panel_set::<L, 4>(lanes, panel, &mut scratch);
                panel += 4;
            }
        }
        while L::PANELS == 2 && panel + 2 <= self.panels.end {
            let (two, _) = scratch.split_first_chunk_mut().expect("2 of 4");
            self.panel_set::<L, 2>(lanes, panel, two);
            panel += 2;
        }
        while panel < self.panels.end {
            let (one, _) = scratch.split_first_chunk_mut().expect("1 of 4");
            self.panel_set::<L, 1>(lanes, panel, one);
            panel += 1;
        }
    }
}

impl<P: Panels> FloatMatmul<'_, P> {
    #[inline(always)]
    fn panel_set<L: Lanes, const N: usize>(
        &mut self,
        lanes: L,
        panel: usize,
        scratch: &mut [Vec<[f32; LANES]>; N],
    ) {
        let weights = self.weights;
        let mut panels = [&[][..]; N];
        for (n, scratch) in scratch.iter_mut().enumerate() {
            panels[n] = weights.panel(panel + n, self.k, scratch);
        }
        for (row, rows) in RowGroups::new(0..self.out.rows(), L::ROWS) {
            match rows {
                8 if L::ROWS >= 8 => self.block::<L, 8, N>(lanes, panels, panel, row),
                4 => self.block::<L, 4, N>(lanes, panels, panel, row),
                2 => self.block::<L, 2, N>(lanes, panels, panel, row),
                _ => self.block::<L, 1, N>(lanes, panels, panel, row),
            }
        }
    }

    #[inline(always)]
    fn block<L: Lanes, const R: usize, const N: usize>(
        &mut self,
        lanes: L,
        panels: [&[[P::Element; LANES]]; N],
        panel: usize,
        row: usize,
    ) {
        let x = self.x[row * self.k..][..R * self.k].as_chunks::<R>().0;
        let sums = multiply::<L, P::Element, R, N>(lanes, panels, x, self.streaming.ahead);
        let (output, first) = (panel * LANES, self.panels.start * LANES);
        self.finish
            .write_block(lanes, &sums, row, output, first, &mut self.out);
    }
}

#[inline(always)]
fn multiply<L: Lanes, E: FloatElement, const R: usize, const N: usize>(
    lanes: L,
    panels: [&[[E; LANES]]; N],
    x: &[[f32; R]],
    prefetch: usize,
) -> [[L::F32; N]; R] {
    let mut sums = [[lanes.splat(0.0); N]; R];
    let panels = panels.map(|panel| &panel[..x.len()]);
    for (k, x) in x.iter().enumerate() {
        for n in 0..N {
            lanes.prefetch(&panels[n][k], prefetch);
            let w = E::load(lanes, &panels[n][k]);
            for r in 0..R {
                sums[r][n] = lanes.fma(lanes.splat(x[r]), w, sums[r][n]);
            }
        }
    }
    sums
}
