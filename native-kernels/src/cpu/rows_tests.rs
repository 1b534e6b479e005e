//! Turns against the reference: attention hides what it turns, so they are tested by themselves.

use super::emulated_tiles::tests::Random;
use super::generic::elementwise::Rope;
use super::isa::LaneIsa;
use crate::reference;
use crate::rope::{RopeLayout, RopeTable};
use crate::tensor::RowsMut;

#[test]
fn every_head_is_turned_by_its_position() {
    let mut random = Random(1);
    for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
        for (head_dim, dims) in [(64, 64), (8, 8), (80, 80), (96, 24), (128, 128), (40, 34)] {
            let heads = 3;
            let frequencies: Vec<f32> = (0..dims / 2)
                .map(|i| 10_000f32.powf(-(2.0 * i as f32) / dims as f32))
                .collect();
            for magnitude in [1.0, 1.25] {
                let table = RopeTable::new(head_dim, dims, &frequencies, layout, 100);
                let table = table.magnified(magnitude);
                let positions = [0, 99, 7, 7];
                let x = random.floats(4 * heads * head_dim);
                let mut first: Option<Vec<f32>> = None;
                for isa in LaneIsa::all() {
                    let mut out = x.clone();
                    isa.run(Rope {
                        x: RowsMut::new(&mut out, 4, heads * head_dim),
                        head_dim,
                        table: &table,
                        positions: &positions,
                    });
                    let found = x.chunks_exact(head_dim).zip(out.chunks_exact(head_dim));
                    for (i, (x, out)) in found.enumerate() {
                        let position = positions[i / heads];
                        let turned = reference::rope(&x[..dims], &frequencies, layout, position);
                        for (out, turned) in out.iter().zip(turned) {
                            let error = f64::from(*out) - turned * f64::from(magnitude);
                            // Cosine and sine rounded once or, magnified, twice; two products and a sum: six roundings.
                            let bound = 6.0 * 6e-8 * f64::from(magnitude);
                            assert!(error.abs() <= bound, "{isa:?} {layout:?}: {error}");
                        }
                        assert_eq!(out[dims..], x[dims..]);
                    }
                    // And the same bits, for which the numbers stand as none is a zero or no number.
                    let first = first.get_or_insert_with(|| out.clone());
                    assert_eq!(&out, first, "{isa:?} {layout:?}");
                }
            }
        }
    }
}
