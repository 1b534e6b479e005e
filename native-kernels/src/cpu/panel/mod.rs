//! Weights in the layout that the kernels read: panels of sixteen outputs, packed once.
//!
//! A lane of a vector is an output, so products need no sum across lanes. A quantised panel is a run of blocks along the
//! inputs, each with the integers of 16 outputs x 32 (or 256) inputs and their scales beside them; a float panel is
//! `[inputs][16]`. Integers take as many bits as they have in the file, as reading them is what a step of one row waits for.
//! Scales keep their precision, and no integer is rounded again: widening a panel gives exactly the numbers that
//! `Format::dequantize` gives.

mod float;
mod integers;
mod scaling;
mod small_blocks;
mod super_blocks;
mod tables;
#[cfg(test)]
mod tests;

pub(crate) use float::FloatElement;
pub(crate) use scaling::write_tiles;
pub(crate) use small_blocks::{Int4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use super_blocks::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use tables::{Iq4Nl, Iq4Xs, Mxfp4};

use super::vector::{Int8, LANES, Lanes, Quads};
use crate::memory::Pod;

/// 32 activations of one row as signed bytes: `x[k]` is about `scale * q[k]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantBlock {
    /// The integers, -127 to 127.
    pub q: [[i8; 4]; 8],
    /// Largest magnitude / 127.
    pub scale: f32,
    /// Sums of the first and the last 16 integers.
    pub sums: [i16; 2],
    /// Sum of all integers, scaled.
    pub sum: f32,
}

impl QuantBlock {
    pub const ZERO: Self = Self {
        q: [[0; 4]; 8],
        scale: 0.0,
        sums: [0; 2],
        sum: 0.0,
    };

    /// A block of these integers.
    #[inline(always)]
    pub fn new(q: [[i8; 4]; 8], scale: f32, sums: [i16; 2]) -> Self {
        let mut block = Self {
            q,
            scale,
            sums,
            sum: 0.0,
        };
        block.sum = scale * block.total() as f32;
        block
    }

    /// Sum of all 32 integers.
    #[inline(always)]
    pub fn total(&self) -> i32 {
        i32::from(self.sums[0]) + i32::from(self.sums[1])
    }
}

/// Weights of 16 outputs x `32 * GROUPS` inputs, to multiply with.
pub(crate) trait Multiplier: Pod {
    /// Blocks of 32 inputs in it.
    const GROUPS: usize;

    /// Adds, for each of `R` rows, the products of the weights with `x` (`GROUPS` blocks of each row).
    ///
    /// The order is fixed: group by group, the scaled dot product first, then the minimum. It does not depend on `R`.
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    );
}

/// A block of a quantised panel.
pub(crate) trait PanelBlock: Multiplier {
    /// The same numbers with each integer in a byte of its own: what many rows multiply with, for which nothing has to be
    /// taken apart any more. The same type where a byte is what integers have anyway.
    type Loose: Multiplier;

    /// Whether integers have less than a byte.
    const TIGHT: bool;
    /// What [`raised`](Self::raised) adds.
    const RAISE: f32;
    /// The least and the largest integer (or value of a table) that there may be.
    const RANGE: [f32; 2];

    /// Puts one block of a row of the file into `lane`.
    fn pack(&mut self, lane: usize, block: &[u8]);

    /// The weight of an output and an input, as `Format::dequantize` gives it.
    fn element(&self, lane: usize, k: usize) -> f32;

    /// All weights, `[32 * GROUPS][16]`, each as `Format::dequantize` gives it.
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]);

    /// Scale and minimum of each half of the 32 inputs of a group: a weight is nearly `scale * integer + minimum`.
    fn factors<L: Lanes>(&self, lanes: L, group: usize) -> [[L::F32; 2]; 2];

    /// The integers (or values of a table) of inputs `4 four` to `4 four + 3` of a group, each raised by
    /// [`RAISE`](Self::RAISE): what is cheapest to make.
    fn raised<L: Lanes>(&self, lanes: L, group: usize, four: usize) -> [L::F32; 4];

    /// Takes integers apart.
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose);
}

/// The float vector of an [`Int8`] instance.
pub(crate) type F32Of<I> = <<I as Quads>::Lanes as Lanes>::F32;
