//! Sums over ranges of keys, and how they become one.

use super::super::exp::{LOG2_E, exp2};
use crate::cpu::vector::{LANES, LaneKernel, Lanes};

/// Sums over a range of keys for one query and head: `reference, normaliser, out[padded head_dim]`.
pub(crate) fn partial_len(head_dim: usize) -> usize {
    2 + head_dim.next_multiple_of(LANES)
}

/// Adds the sums `(reference, normaliser)` and `out[..][r]` over a range of keys to those over earlier ones.
#[inline(always)]
pub(super) fn merge<L: Lanes, const R: usize>(
    lanes: L,
    sums: &mut [f32],
    (reference, normaliser): (f32, f32),
    out: &[[[f32; LANES]; R]],
    r: usize,
) {
    if normaliser == 0.0 {
        return;
    }
    let (head, to) = sums.split_at_mut(2);
    let (mine, theirs) = weigh(lanes, head, reference, normaliser);
    for (to, out) in to.as_chunks_mut().0.iter_mut().zip(out) {
        let kept = lanes.mul(lanes.load(to), lanes.splat(mine));
        lanes.store(
            lanes.fma(lanes.load(&out[r]), lanes.splat(theirs), kept),
            to,
        );
    }
}

/// Brings `[reference, normaliser]` and another pair to one reference and adds them. Returns the factors of the two.
#[inline(always)]
fn weigh<L: Lanes>(lanes: L, head: &mut [f32], reference: f32, normaliser: f32) -> (f32, f32) {
    let first = head[1] == 0.0;
    let largest = if first {
        reference
    } else {
        head[0].max(reference)
    };
    let mut factors = [0.0; LANES];
    if !first {
        factors[0] = head[0] - largest;
    }
    factors[1] = reference - largest;
    let mut powers = [0.0; LANES];
    lanes.store(exp2(lanes, lanes.load(&factors)), &mut powers);
    let mine = if first { 0.0 } else { powers[0] };
    head[0] = largest;
    head[1] = head[1] * mine + normaliser * powers[1];
    (mine, powers[1])
}

/// Divides the sums by their normaliser, to which the sink is added.
#[inline(always)]
pub(super) fn finish<L: Lanes>(lanes: L, sums: &[f32], sink: Option<f32>, to: &mut [f32]) {
    let (head, out) = sums.split_at(2);
    let mut normaliser = lanes.splat(head[1]);
    if let Some(sink) = sink {
        normaliser = lanes.add(normaliser, sink_weight(lanes, sink, head[0]));
    }
    for (to, out) in to.chunks_mut(LANES).zip(out.as_chunks().0) {
        let mut whole = [0.0; LANES];
        lanes.store(lanes.div(lanes.load(out), normaliser), &mut whole);
        to.copy_from_slice(&whole[..to.len()]);
    }
}

/// What a sink adds to a normaliser whose weights are relative to `reference`, in every lane. One that is more than 127
/// powers of two above it counts as 127 above, which leaves nothing of the values either way.
#[inline(always)]
pub(in super::super) fn sink_weight<L: Lanes>(lanes: L, sink: f32, reference: f32) -> L::F32 {
    exp2(lanes, lanes.splat(sink * LOG2_E - reference))
}

/// Merges the sums of one query and head over all segments, in order, into its result.
pub(crate) struct Merge<'a> {
    /// Sums of the segments: slices of [`partial_len`].
    pub partials: &'a [&'a [f32]],
    /// Score of the head's sink.
    pub sink: Option<f32>,
    /// `[head_dim]`.
    pub out: &'a mut [f32],
}

impl LaneKernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let len = partial_len(self.out.len());
        let mut sums = vec![0.0; len];
        for partial in self.partials {
            let (head, out) = partial.split_at(2);
            let out = out.as_chunks::<LANES>().0;
            // One query: the shape that `merge` takes.
            let out = out.as_chunks::<1>().0;
            merge(lanes, &mut sums, (head[0], head[1]), out, 0);
        }
        finish(lanes, &sums, self.sink, self.out);
    }
}
