//! What goes over rows without a matrix: norms, gates, sums, caps and turns.

use super::{EDGES, Edge, Guarded, Same, lane_isas};
use crate::cpu::emulated_tiles::tests::Random;
use crate::cpu::generic::elementwise::{Activation, Add, Cap, Gated, RmsNorm, Rope};
use crate::cpu::isa::LaneIsa;
use crate::rope::{RopeLayout, RopeTable};
use crate::tensor::{Rows, RowsMut};

/// Runs over every edge and instruction set.
fn everywhere(what: &str, run: impl Fn(LaneIsa, Edge) -> Vec<f32>) {
    let mut same = Same(None);
    for edge in EDGES {
        for isa in lane_isas() {
            same.check(&run(isa, edge), &format!("{what} {edge:?} {isa:?}"));
        }
    }
}

/// Rows, elements of one, and elements between two.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    let widths = [1, 8, 15, 16, 17, 33, 64, 577];
    widths
        .into_iter()
        .flat_map(|n| [(1, n, 0), (3, n, 0), (2, n, 5)])
}

fn len((m, n, gap): (usize, usize, usize)) -> usize {
    (m * (n + gap)).saturating_sub(gap)
}

fn rows(x: &[f32], (m, n, gap): (usize, usize, usize)) -> Rows<'_> {
    Rows::with_stride(x, m, n, n + gap)
}

fn rows_mut(x: &mut [f32], (m, n, gap): (usize, usize, usize)) -> RowsMut<'_> {
    RowsMut::with_stride(x, m, n, n + gap)
}

#[test]
fn norms_stay_within_their_memory() {
    let mut random = Random(1);
    for shape in shapes() {
        let (x, weight) = (random.floats(len(shape)), random.floats(shape.1));
        everywhere(&format!("norm {shape:?}"), |isa, edge| {
            let (x, weight) = (Guarded::new(&x, edge), Guarded::new(&weight, edge));
            let mut out = Guarded::new(&x, edge);
            isa.run(RmsNorm {
                x: rows(&x, shape),
                weight: &weight,
                eps: 1e-6,
                out: rows_mut(&mut out, shape),
            });
            out.to_vec()
        });
    }
}

#[test]
fn gates_and_sums_stay_within_their_memory() {
    let mut random = Random(2);
    for shape in shapes() {
        let (a, b) = (random.floats(len(shape)), random.floats(len(shape)));
        for activation in Activation::ALL {
            everywhere(&format!("{activation:?} {shape:?}"), |isa, edge| {
                let (a, b) = (Guarded::new(&a, edge), Guarded::new(&b, edge));
                let mut out = Guarded::new(&b, edge);
                isa.run(Gated {
                    gate: rows(&a, shape),
                    up: rows(&b, shape),
                    activation,
                    out: rows_mut(&mut out, shape),
                });
                out.to_vec()
            });
        }
        everywhere(&format!("sum {shape:?}"), |isa, edge| {
            let (a, mut to) = (Guarded::new(&a, edge), Guarded::new(&b, edge));
            isa.run(Add {
                x: rows(&a, shape),
                to: rows_mut(&mut to, shape),
            });
            to.to_vec()
        });
        everywhere(&format!("cap {shape:?}"), |isa, edge| {
            let mut x = Guarded::new(&a, edge);
            isa.run(Cap {
                x: rows_mut(&mut x, shape),
                cap: 0.5,
            });
            x.to_vec()
        });
    }
}

#[test]
fn turns_stay_within_their_memory() {
    let mut random = Random(3);
    for (head_dim, dims) in [(64, 64), (8, 8), (80, 80), (24, 10), (40, 34), (2, 2)] {
        for (heads, gap) in [(1, 0), (3, 5)] {
            let shape = (4, heads * head_dim, gap);
            let x = random.floats(len(shape));
            for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
                let frequencies = random.floats(dims / 2);
                let table = RopeTable::new(head_dim, dims, &frequencies, layout, 10);
                everywhere(&format!("{layout:?} {shape:?}"), |isa, edge| {
                    let positions = Guarded::new(&[0, 9, 3, 3], edge);
                    let mut x = Guarded::new(&x, edge);
                    isa.run(Rope {
                        x: rows_mut(&mut x, shape),
                        head_dim,
                        table: &table,
                        positions: &positions,
                    });
                    x.to_vec()
                });
            }
        }
    }
}
