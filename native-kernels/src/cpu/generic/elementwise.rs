//! What goes over rows without a matrix: normalisation, rotation, activation functions.

use super::exp::{sigmoid, tanh};
use crate::cpu::vector::{LANES, LaneKernel, Lanes, load_part, store_part};
use crate::rope::{RopeLayout, RopeTable};
use crate::tensor::{Rows, RowsMut};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
///
/// **Source**: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.
pub(crate) struct RmsNorm<'a> {
    pub x: Rows<'a>,
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: RowsMut<'a>,
}

impl LaneKernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        for row in 0..self.x.rows() {
            let x = self.x.row(row);
            let mean = sum_of_squares(lanes, x) / x.len() as f32;
            let inverse = lanes.splat(1.0 / (mean + self.eps).sqrt());
            map2(lanes, Scale(inverse), x, self.weight, self.out.row_mut(row));
        }
    }
}

struct Scale<V>(V);

impl<L: Lanes> Map2<L> for Scale<L::F32> {
    #[inline(always)]
    fn map(&self, lanes: L, x: L::F32, weight: L::F32) -> L::F32 {
        lanes.mul(lanes.mul(x, self.0), weight)
    }
}

#[inline(always)]
fn sum_of_squares<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks();
    let mut sum = lanes.splat(0.0);
    for chunk in chunks {
        let x = lanes.load(chunk);
        sum = lanes.fma(x, x, sum);
    }
    let x = load_part(lanes, tail);
    lanes.sum(lanes.fma(x, x, sum))
}

/// A function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`: Shazeer, "GLU Variants Improve Transformer", Swish with beta 1.
    Silu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2.
    GeluTanh,
    /// `x' · sigmoid(1.702 x')` with `x' = min(x, 7)`, and the other factor `y` counts as `clamp(y, -7, 7) + 1`: the
    /// gated unit of gpt-oss.
    ///
    /// **Source**: `swiglu` in `gpt_oss/torch/model.py` of openai/gpt-oss; the sigmoid is that of Hendrycks and Gimpel,
    /// "Gaussian Error Linear Units", section 2.
    ClampedSwiglu,
}

impl Activation {
    /// Every one.
    pub const ALL: [Activation; 3] = [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::ClampedSwiglu,
    ];

    /// `activation(gate) * up`, or what the activation makes of the two.
    #[inline(always)]
    pub(crate) fn gate<L: Lanes>(self, lanes: L, gate: L::F32, up: L::F32) -> L::F32 {
        match self {
            Activation::Silu => Swish.map(lanes, gate, up),
            Activation::GeluTanh => Gelu.map(lanes, gate, up),
            Activation::ClampedSwiglu => ClampedSwiglu.map(lanes, gate, up),
        }
    }
}

/// `out = activation(gate) * up`, or what the activation makes of the two, element by element.
pub(crate) struct Gated<'a> {
    pub gate: Rows<'a>,
    pub up: Rows<'a>,
    pub activation: Activation,
    pub out: RowsMut<'a>,
}

impl LaneKernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        for row in 0..self.gate.rows() {
            let (gate, up, out) = (self.gate.row(row), self.up.row(row), self.out.row_mut(row));
            match self.activation {
                Activation::Silu => map2(lanes, Swish, gate, up, out),
                Activation::GeluTanh => map2(lanes, Gelu, gate, up, out),
                Activation::ClampedSwiglu => map2(lanes, ClampedSwiglu, gate, up, out),
            }
        }
    }
}

struct Swish;

impl<L: Lanes> Map2<L> for Swish {
    #[inline(always)]
    fn map(&self, lanes: L, gate: L::F32, up: L::F32) -> L::F32 {
        lanes.mul(lanes.mul(gate, sigmoid(lanes, gate)), up)
    }
}

struct Gelu;

impl<L: Lanes> Map2<L> for Gelu {
    #[inline(always)]
    fn map(&self, lanes: L, gate: L::F32, up: L::F32) -> L::F32 {
        const ROOT: f32 = 0.797_884_6;
        let cube = lanes.mul(lanes.mul(gate, gate), gate);
        let inner = lanes.fma(cube, lanes.splat(0.044_715), gate);
        let tangent = tanh(lanes, lanes.mul(inner, lanes.splat(ROOT)));
        let half = lanes.mul(gate, lanes.splat(0.5));
        lanes.mul(lanes.fma(half, tangent, half), up)
    }
}

struct ClampedSwiglu;

impl<L: Lanes> Map2<L> for ClampedSwiglu {
    #[inline(always)]
    fn map(&self, lanes: L, gate: L::F32, up: L::F32) -> L::F32 {
        const LIMIT: f32 = 7.0;
        let limit = lanes.splat(LIMIT);
        let gate = lanes.min(gate, limit);
        let up = lanes.max(lanes.min(up, limit), lanes.splat(-LIMIT));
        let open = sigmoid(lanes, lanes.mul(gate, lanes.splat(1.702)));
        lanes.mul(lanes.mul(gate, open), lanes.add(up, lanes.splat(1.0)))
    }
}

/// `to += x`, element by element.
pub(crate) struct Add<'a> {
    pub x: Rows<'a>,
    pub to: RowsMut<'a>,
}

impl LaneKernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        for row in 0..self.x.rows() {
            let (x, x_tail) = self.x.row(row).as_chunks();
            let (to, to_tail) = self.to.row_mut(row).as_chunks_mut();
            for (x, to) in x.iter().zip(to) {
                lanes.store(lanes.add(lanes.load(to), lanes.load(x)), to);
            }
            for (x, to) in x_tail.iter().zip(to_tail) {
                *to += x;
            }
        }
    }
}

/// `x = cap * tanh(x / cap)`, element by element.
pub(crate) struct Cap<'a> {
    pub x: RowsMut<'a>,
    pub cap: f32,
}

impl LaneKernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let (cap, inverse) = (lanes.splat(self.cap), lanes.splat(1.0 / self.cap));
        for row in 0..self.x.rows() {
            for x in self.x.row_mut(row).chunks_mut(LANES) {
                let capped = tanh(lanes, lanes.mul(load_part(lanes, x), inverse));
                store_part(lanes, lanes.mul(cap, capped), x);
            }
        }
    }
}

/// A function of two vectors. A trait and no closure, because a closure is not certain to be inlined into the code that
/// has the instructions.
trait Map2<L: Lanes> {
    fn map(&self, lanes: L, a: L::F32, b: L::F32) -> L::F32;
}

/// `out = f(a, b)` over three slices of one length.
#[inline(always)]
fn map2<L: Lanes>(lanes: L, f: impl Map2<L>, a: &[f32], b: &[f32], out: &mut [f32]) {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        lanes.store(f.map(lanes, lanes.load(a), lanes.load(b)), out);
    }
    if !out_tail.is_empty() {
        let (a, b) = (load_part(lanes, a_tail), load_part(lanes, b_tail));
        store_part(lanes, f.map(lanes, a, b), out_tail);
    }
}

/// Rotates every head of every row by the angles of its position.
///
/// **Source**: Su et al., "RoFormer", equation 34; the two layouts are described at [`RopeLayout`].
pub(crate) struct Rope<'a> {
    pub x: RowsMut<'a>,
    pub head_dim: usize,
    pub table: &'a RopeTable,
    /// One for each row.
    pub positions: &'a [u32],
}

impl LaneKernel for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let dims = self.table.rotary_dims();
        for (row, &position) in self.positions.iter().enumerate() {
            let (cos, sin) = self.table.angles(position);
            for head in self.x.row_mut(row).chunks_exact_mut(self.head_dim) {
                let head = &mut head[..dims];
                match self.table.layout() {
                    RopeLayout::Interleaved => rotate_pairs(lanes, head, cos, sin),
                    RopeLayout::HalfSplit => rotate_halves(lanes, head, cos, sin),
                }
            }
        }
    }
}

/// `cos` and `sin` hold every angle twice, and `sin` the sign: `-s, s`.
#[inline(always)]
fn rotate_pairs<L: Lanes>(lanes: L, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let ((cos, cos_tail), (sin, sin_tail)) = (cos.as_chunks(), sin.as_chunks());
    let (x, x_tail) = x.as_chunks_mut();
    for ((x, cos), sin) in x.iter_mut().zip(cos).zip(sin) {
        let v = lanes.load(x);
        let crossed = lanes.mul(lanes.swap_pairs(v), lanes.load(sin));
        lanes.store(lanes.fma(v, lanes.load(cos), crossed), x);
    }
    if !x_tail.is_empty() {
        let v = load_part(lanes, x_tail);
        let crossed = lanes.mul(lanes.swap_pairs(v), load_part(lanes, sin_tail));
        store_part(
            lanes,
            lanes.fma(v, load_part(lanes, cos_tail), crossed),
            x_tail,
        );
    }
}

/// `cos` and `sin` hold every angle once.
#[inline(always)]
fn rotate_halves<L: Lanes>(lanes: L, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    let chunks = first.chunks_mut(LANES).zip(second.chunks_mut(LANES));
    for ((a, b), (cos, sin)) in chunks.zip(cos.chunks(LANES).zip(sin.chunks(LANES))) {
        let (va, vb) = (load_part(lanes, a), load_part(lanes, b));
        let (cos, sin) = (load_part(lanes, cos), load_part(lanes, sin));
        let minus_sin = lanes.sub(lanes.splat(0.0), sin);
        store_part(lanes, lanes.fma(va, cos, lanes.mul(vb, minus_sin)), a);
        store_part(lanes, lanes.fma(vb, cos, lanes.mul(va, sin)), b);
    }
}
