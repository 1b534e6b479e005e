//! Rows of activations in the groups that a register block takes, laid out so that the inner loop reads straight on.
//!
//! ```text
//! group of R rows:  [input or block of inputs][R]
//! groups:           one after the other, each with the largest R of 8, 4, 2, 1 that the instance allows and rows are
//!                   left for; so the data of row `r` begins at `r * length` whatever the groups are
//! ```

use crate::cpu::panel::QuantBlock;
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use crate::tensor::Rows;

/// The groups of a number of rows: pairs of first row and number of rows.
#[derive(Clone)]
pub(crate) struct RowGroups {
    next: usize,
    end: usize,
    largest: usize,
}

impl RowGroups {
    /// Groups of at most `largest` (a power of two) over `rows`, which begin at a multiple of `largest`.
    #[inline(always)]
    pub fn new(rows: std::ops::Range<usize>, largest: usize) -> Self {
        Self {
            next: rows.start,
            end: rows.end,
            largest,
        }
    }
}

impl Iterator for RowGroups {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let left = self.end - self.next;
        if left == 0 {
            return None;
        }
        let rows = self.largest.min(1 << left.ilog2());
        let first = self.next;
        self.next += rows;
        Some((first, rows))
    }
}

/// Copies rows into groups: `to` is `[groups][cols][R]`.
pub(crate) struct PackRows<'a> {
    pub x: Rows<'a>,
    pub largest: usize,
    pub to: &'a mut [f32],
}

impl PackRows<'_> {
    pub fn run(self) {
        let cols = self.x.cols();
        for (first, rows) in RowGroups::new(0..self.x.rows(), self.largest) {
            let to = &mut self.to[first * cols..][..rows * cols];
            for r in 0..rows {
                let from = self.x.row(first + r);
                for (to, from) in to[r..].iter_mut().step_by(rows).zip(from) {
                    *to = *from;
                }
            }
        }
    }
}

/// Quantises rows into groups: `to` is `[groups][cols / 32][R]`. A scale for each 32 inputs of each row, so a row's
/// result depends on that row alone.
pub(crate) struct QuantizeRows<'a> {
    pub x: Rows<'a>,
    pub largest: usize,
    pub to: &'a mut [QuantBlock],
}

impl LaneKernel for QuantizeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let blocks = self.x.cols() / 32;
        for (first, rows) in RowGroups::new(0..self.x.rows(), self.largest) {
            let to = &mut self.to[first * blocks..][..rows * blocks];
            for r in 0..rows {
                let (from, _) = self.x.row(first + r).as_chunks();
                for (to, from) in to[r..].iter_mut().step_by(rows).zip(from) {
                    *to = quantize(lanes, from);
                }
            }
        }
    }
}

#[inline(always)]
fn quantize<L: Lanes>(lanes: L, x: &[f32; 32]) -> QuantBlock {
    let halves: &[[f32; LANES]; 2] = x.as_chunks().0.as_array().expect("32 is 2 times 16");
    let (a, b) = (lanes.load(&halves[0]), lanes.load(&halves[1]));
    let largest = lanes.max_lane(lanes.max(lanes.abs(a), lanes.abs(b)));
    let scale = largest / 127.0;
    // A subnormal scale has no finite inverse worth the name; numbers that small are zero here.
    let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
    let inverse = lanes.splat(inverse);
    let a = lanes.round(lanes.mul(a, inverse));
    let b = lanes.round(lanes.mul(b, inverse));
    let mut q = [[0i8; LANES]; 2];
    lanes.store_i8(a, &mut q[0]);
    lanes.store_i8(b, &mut q[1]);
    let quads = q.as_flattened().as_chunks().0;
    let q = *quads.as_array().expect("32 is 8 times 4");
    // Sums of small integers are exact in any order, and lanes need not be taken apart for them.
    QuantBlock::new(q, scale, [lanes.sum(a) as i16, lanes.sum(b) as i16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable::Portable;

    #[test]
    fn groups_cover_every_row_once() {
        let groups = |rows, largest| RowGroups::new(0..rows, largest).collect::<Vec<_>>();
        assert_eq!(groups(0, 8), []);
        assert_eq!(groups(7, 8), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(groups(13, 4), [(0, 4), (4, 4), (8, 4), (12, 1)]);
    }

    #[test]
    fn quantised_activations_are_within_half_a_step() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * 3.0);
        let block = quantize(Portable, &x);
        for (q, x) in block.q.as_flattened().iter().zip(&x) {
            let error = (block.scale * f32::from(*q) - x).abs();
            assert!(error <= block.scale * 0.5001, "{x} became {q}");
        }
        let sum: i32 = block.q.as_flattened().iter().map(|&q| i32::from(q)).sum();
        assert_eq!(block.total(), sum);
    }

    #[test]
    fn rows_of_nothing_and_of_extremes_quantise() {
        for x in [0.0, 1e-42, f32::MAX, f32::INFINITY, f32::NAN] {
            let block = quantize(Portable, &[x; 32]);
            assert!(x != 0.0 || block.scale == 0.0);
        }
    }
}
