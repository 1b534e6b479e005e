//! Every operation in its plainest form, in double precision: what the kernels are tested against.

use crate::rope::RopeLayout;

/// `out[m][n] = sum over k of x[m][k] * w[n][k]`; rows of `k`.
pub fn matmul(x: &[f32], w: &[f32], k: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        products.sum()
    };
    x.chunks_exact(k)
        .flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w)))
        .collect()
}

/// `x / sqrt(mean(x^2) + eps) * weight` of one row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let root = (squares / x.len() as f64 + f64::from(eps)).sqrt();
    let row = x.iter().zip(weight);
    row.map(|(x, w)| f64::from(*x) / root * f64::from(*w))
        .collect()
}

/// `gate * sigmoid(gate) * up`.
pub fn silu_mul(gate: f32, up: f32) -> f64 {
    let gate = f64::from(gate);
    gate / (1.0 + (-gate).exp()) * f64::from(up)
}

/// `gate / 2 * (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) * up`.
pub fn gelu_tanh_mul(gate: f32, up: f32) -> f64 {
    let gate = f64::from(gate);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
    gate / 2.0 * (1.0 + inner.tanh()) * f64::from(up)
}

/// `g * sigmoid(1.702 g) * (u + 1)` with the gate at most 7 and the other factor from -7 to 7.
pub fn clamped_swiglu(gate: f32, up: f32) -> f64 {
    let (gate, up) = (f64::from(gate.min(7.0)), f64::from(up.clamp(-7.0, 7.0)));
    gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
}

/// `cap * tanh(x / cap)`.
pub fn soft_cap(x: f64, cap: f32) -> f64 {
    let cap = f64::from(cap);
    cap * (x / cap).tanh()
}

/// One head turned by the angles `position * frequencies[i]`.
pub fn rope(x: &[f32], frequencies: &[f32], layout: RopeLayout, position: u32) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (a, b) = match layout {
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            RopeLayout::HalfSplit => (i, i + frequencies.len()),
        };
        let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
        (out[a], out[b]) = (out[a] * cos - out[b] * sin, out[b] * cos + out[a] * sin);
    }
    out
}

/// What scores are made from, besides queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// Factor of each.
    pub scale: f32,
    /// They are capped softly at this.
    pub cap: Option<f32>,
    /// One more, of a key without a value.
    pub sink: Option<f32>,
}

/// Softmax attention of one query over some keys; `keys` and `values` are rows of the query's length.
pub fn attention(query: &[f32], keys: &[f32], values: &[f32], by: Scores) -> Vec<f64> {
    let scores: Vec<f64> = matmul(query, keys, query.len());
    let scores = scores.iter().map(|s| {
        let score = s * f64::from(by.scale);
        by.cap.map_or(score, |cap| soft_cap(score, cap))
    });
    let sink = by.sink.map_or(f64::NEG_INFINITY, f64::from);
    let largest = scores.clone().fold(sink, f64::max);
    let weights: Vec<f64> = scores.map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum::<f64>() + (sink - largest).exp();
    let mut out = vec![0.0; query.len()];
    for (weight, value) in weights.iter().zip(values.chunks_exact(query.len())) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / total * f64::from(*value);
        }
    }
    out
}
