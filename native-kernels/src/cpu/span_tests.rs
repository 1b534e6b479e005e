//! Products in spans: within the error that is stated, and on every unit the same bits.

use super::emulated::EmulatedVnni;
use super::emulated_tiles::tests::Random;
use super::generic::elementwise::Activation;
use super::generic::float_matmul::Finish;
use super::generic::span_matmul::{
    ByDpbusd, QuantizeSpans, RowSpan, SPAN, SpanKernel, Spans, TILE_INPUTS, WeightSpan,
};
use super::generic::tile_matmul::{ROW_TILE, TileKind, TileMatmul, TileOutput, TileScratch};
use super::isa::{LaneIsa, SpanIsa};
use super::portable::Portable;
use super::vector::LANES;
use crate::matrix::Matrix;
use crate::tensor::{Rows, RowsMut};
use crate::{Format, reference};

/// What multiplies spans.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SpanUnit {
    /// The instruction `dpbusd` in plain Rust.
    Emulated,
    Real(SpanIsa),
}

impl SpanUnit {
    /// The emulated one, and those of this CPU.
    pub fn all() -> Vec<Self> {
        let real = ["avx512-vnni", "amx-int8"].into_iter();
        let real = real.filter_map(SpanIsa::detect).map(SpanUnit::Real);
        let all: Vec<_> = [SpanUnit::Emulated].into_iter().chain(real).collect();
        println!("products in spans on {all:?}");
        all
    }

    pub fn run<K: SpanKernel>(self, kernel: K) {
        match self {
            SpanUnit::Emulated => kernel.run(ByDpbusd(EmulatedVnni)),
            SpanUnit::Real(isa) => isa.run(kernel),
        }
    }

    /// What brings numbers into spans.
    pub fn lanes(self) -> LaneIsa {
        match self {
            SpanUnit::Emulated => LaneIsa::Portable(Portable),
            SpanUnit::Real(isa) => isa.lanes(),
        }
    }
}

/// Quantised formats.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| !format.is_float())
}

/// Rows, outputs and inputs: tiles that are not full, spans that are not, and several.
fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
    let block = format.block_len();
    let mut shapes = vec![(1, 1, block), (17, 33, 2 * block), (33, 70, block)];
    if block == 32 {
        shapes.extend([(16, 16, 64), (50, 40, 96), (5, 35, 576), (18, 17, 288)]);
    }
    shapes
}

fn weight_spans(lanes: LaneIsa, matrix: &Matrix, panel: usize) -> Vec<WeightSpan> {
    let mut spans = vec![Spans::NO_WEIGHTS; matrix.cols().div_ceil(SPAN)];
    matrix.write_spans(lanes, panel, &mut spans);
    spans
}

fn row_spans(lanes: LaneIsa, x: &[f32], m: usize, k: usize) -> Vec<RowSpan> {
    let (x, steps) = (Rows::new(x, m, k), k.div_ceil(SPAN));
    let mut spans = vec![RowSpan::ZERO; m.div_ceil(ROW_TILE) * steps];
    for first in (0..m).step_by(ROW_TILE) {
        lanes.run(QuantizeSpans {
            x: x.slice(first..m.min(first + ROW_TILE)),
            to: &mut spans[first / ROW_TILE * steps..][..steps],
        });
    }
    spans
}

/// The product, or with a second matrix the gated one.
fn multiply(
    unit: SpanUnit,
    (x, m): (&[f32], usize),
    w: &Matrix,
    up: Option<&Matrix>,
    bias: &[f32],
) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows()];
    let first = |panel: usize, to: &mut [WeightSpan]| w.write_spans(unit.lanes(), panel, to);
    let second = |panel: usize, to: &mut [WeightSpan]| {
        up.unwrap_or(w).write_spans(unit.lanes(), panel, to);
    };
    unit.run(TileMatmul {
        output: match up {
            None => TileOutput::Product(
                &first,
                Finish {
                    bias: Some(bias),
                    add: false,
                },
            ),
            Some(_) => TileOutput::Gated {
                gate: &first,
                up: &second,
                bias: [None, Some(bias)],
                activation: Activation::Silu,
            },
        },
        panels: 0..w.panels(),
        k: w.cols(),
        x: &row_spans(unit.lanes(), x, m, w.cols()),
        scratch: &mut TileScratch::default(),
        out: RowsMut::new(&mut out, m, w.rows()),
    });
    out
}

/// Where input `k` of output `lane` lies.
fn weight(span: &WeightSpan, lane: usize, k: usize) -> f32 {
    let byte = span.q.as_flattened()[k / 4][4 * lane + k % 4];
    span.least[lane] + span.scale[lane] * f32::from(byte)
}

/// What weights whose step is below the normal range are within.
const BELOW: f32 = 255.0 * f32::MIN_POSITIVE;

#[test]
fn weights_are_within_half_a_step() {
    let mut random = Random(1);
    for format in formats() {
        for (_, n, k) in shapes(format) {
            let (matrix, weights) = random.matrix(format, n, k);
            for lanes in LaneIsa::all() {
                for output in 0..n {
                    let spans = weight_spans(lanes, &matrix, output / LANES);
                    let row = &weights[output * k..][..k];
                    for (span, row) in spans.iter().zip(row.chunks(SPAN)) {
                        let lane = output % LANES;
                        let step = span.scale[lane];
                        let size = row.iter().fold(0.0f32, |a, w| a.max(w.abs()));
                        for (k, w) in row.iter().enumerate() {
                            let error = (weight(span, lane, k) - w).abs();
                            assert!(
                                error <= 0.501 * step + 1e-6 * size + BELOW,
                                "{} {format}: {w} by {error}, step {step}",
                                lanes.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Where blocks use all of their integers, as those do that were made of numbers, little of the range is lost.
#[test]
fn steps_are_no_longer_than_the_weights_need() {
    let mut random = Random(2);
    for format in [Format::Q4_0, Format::Q4_1, Format::Q8_0] {
        let (n, k) = (16, 512);
        let floats = random.floats(n * k);
        let mut bytes = vec![0; format.row_bytes(n * k).unwrap()];
        format.quantize(&floats, &mut bytes);
        let matrix = super::emulated_tiles::tests::pack(format, n, k, &bytes);
        let spans = weight_spans(LaneIsa::Portable(Portable), &matrix, 0);
        for (lane, row) in floats.chunks_exact(k).enumerate() {
            for (span, row) in spans.iter().zip(row.chunks(SPAN)) {
                let largest = row.iter().fold(0.0f32, |a, x| a.max(*x));
                let least = row.iter().fold(0.0f32, |a, x| a.min(*x));
                let step = (largest - least) / 255.0;
                let found = span.scale[lane];
                assert!(found <= 1.1 * step, "{format}: {found} for {step}");
            }
        }
    }
}

#[test]
fn activations_are_within_half_a_step() {
    let (m, k) = (18, 544);
    let x: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    for lanes in LaneIsa::all() {
        let spans = row_spans(lanes, &x, m, k);
        for row in 0..m {
            let of_tile = &spans[row / ROW_TILE * 3..][..3];
            let r = row % ROW_TILE;
            for (span, x) in of_tile.iter().zip(x[row * k..][..k].chunks(SPAN)) {
                let mut whole = 0.0;
                for (t, x) in x.chunks(TILE_INPUTS).enumerate() {
                    let (scale, mut sum) = (span.scale[t][r], 0.0);
                    for (x, q) in x.iter().zip(span.q[t][r]) {
                        assert!((scale * f32::from(q) - x).abs() <= 0.5001 * scale);
                        sum += f32::from(q);
                    }
                    whole += scale * sum;
                }
                assert_eq!(span.sum[r], whole);
            }
        }
        // Rows that are not there, and the half of a tile that is not.
        assert!(spans[3].q[0][2..].iter().all(|row| *row == [0; 64]));
        assert_eq!(spans[2].q[0][0][32..], [0; 32]);
    }
}

#[test]
fn rows_of_nothing_and_of_extremes_quantise() {
    for x in [0.0, 1e-42, f32::MAX, f32::INFINITY, f32::NAN] {
        for lanes in LaneIsa::all() {
            let spans = row_spans(lanes, &[x; 64], 1, 64);
            assert!(x != 0.0 || (spans[0].scale[0][0], spans[0].sum[0]) == (0.0, 0.0));
        }
    }
}

/// Each weight and each activation is off by half a step at most.
#[test]
fn products_are_within_the_stated_error() {
    let mut random = Random(3);
    for format in formats() {
        for (m, n, k) in shapes(format) {
            let x = random.floats(m * k);
            let (matrix, weights) = random.matrix(format, n, k);
            let bias = random.floats(n);
            let expected = reference::matmul(&x, &weights, k);
            let out = multiply(SpanUnit::Emulated, (&x, m), &matrix, None, &bias);
            for (i, out) in out.iter().enumerate() {
                let (row, output) = (i / n, i % n);
                let spans = weight_spans(LaneIsa::Portable(Portable), &matrix, output / LANES);
                let mut bound = 0.0;
                for (s, span) in spans.iter().enumerate() {
                    let range = s * SPAN..k.min((s + 1) * SPAN);
                    let x = &x[row * k..][range.clone()];
                    let w = &weights[output * k..][range];
                    let w_step = 0.501 * span.scale[output % LANES];
                    for (x, w) in x.chunks(TILE_INPUTS).zip(w.chunks(TILE_INPUTS)) {
                        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                        let x_step = 0.501 / 127.0 * largest;
                        for (x, w) in x.iter().zip(w) {
                            bound += x.abs() * w_step + (w.abs() + w_step) * x_step;
                            bound += 1e-5 * x.abs() * w.abs();
                        }
                    }
                }
                let error = (f64::from(*out) - expected[i] - f64::from(bias[output])).abs();
                assert!(
                    error <= f64::from(bound) + 1e-6,
                    "{format} {m}x{n}x{k} at {i}: {error} > {bound}"
                );
            }
        }
    }
}

#[test]
fn every_unit_gives_the_same_bits() {
    let mut random = Random(4);
    for format in formats() {
        for (m, n, k) in shapes(format) {
            let x = random.floats(m * k);
            let (w, _) = random.matrix(format, n, k);
            let (up, _) = random.matrix(format, n, k);
            let bias = random.floats(n);
            for up in [None, Some(&up)] {
                let bits = |unit| -> Vec<u32> {
                    let out = multiply(unit, (&x, m), &w, up, &bias);
                    out.iter().map(|x| x.to_bits()).collect()
                };
                let expected = bits(SpanUnit::Emulated);
                for unit in SpanUnit::all() {
                    assert!(bits(unit) == expected, "{unit:?}: {format} {m}x{n}x{k}");
                }
            }
        }
    }
}
