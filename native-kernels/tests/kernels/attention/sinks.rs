//! Sinks of heads: at their ends, and in any shape.

use super::{Case, Shape, shape, tile_bound, tile_kernels};
use crate::support::{Random, bits, runnable};
use plinth_kernels::{KernelSet, KvDtype, Workers};
use proptest::prelude::*;

/// Kernels of either kind: those for any queries, and those for many.
fn every_kernel() -> Vec<(String, KernelSet, bool)> {
    let lanes = runnable("attention").into_iter();
    let lanes = lanes.map(|(kernel, set)| (kernel.id, set, false));
    let tiles = tile_kernels().into_iter().map(|(id, set)| (id, set, true));
    lanes.chain(tiles).collect()
}

#[test]
fn a_sink_far_below_changes_no_bit_and_one_far_above_leaves_nothing() {
    let workers = Workers::new(2, &[]).unwrap();
    for (id, set, _) in every_kernel() {
        let mut random = Random::new(11);
        for dtype in KvDtype::ALL {
            let plain = shape((4, 2, 24), 16, dtype, None, None);
            let mut case = Case::new(plain, &[3, 40, 600], &mut random);
            let mut outs = |sinks: Option<[f32; 5]>| {
                case.shape.sinks = sinks;
                case.run(&set, &workers, &case.chunks(40))
            };
            let without = outs(None);
            for none in [-1e4, f32::MIN, f32::NEG_INFINITY] {
                for (with, without) in outs(Some([none; 5])).iter().zip(&without) {
                    assert_eq!(bits(with), bits(without), "{id} {dtype:?} {none}");
                }
            }
            for all in [1e4, f32::MAX, f32::INFINITY] {
                let least = outs(Some([all; 5])).concat();
                assert!(
                    least.iter().all(|x| x.abs() < 1e-30),
                    "{id} {dtype:?} {all}"
                );
            }
        }
    }
}

/// Heads in one group of queries have sinks of their own.
#[test]
fn a_sink_concerns_its_own_head() {
    let workers = Workers::new(2, &[]).unwrap();
    let d = 16;
    for (id, set, _) in every_kernel() {
        let plain = shape((5, 1, d), 16, KvDtype::F32, None, None);
        let mut case = Case::new(plain, &[50, 1100], &mut Random::new(12));
        let without = case.run(&set, &workers, &case.whole());
        let none = f32::NEG_INFINITY;
        case.shape.sinks = Some([none, none, 2.0, none, none]);
        let with = case.run(&set, &workers, &case.whole());
        for (with, without) in with.iter().zip(&without) {
            let heads = with.chunks_exact(d).zip(without.chunks_exact(d));
            for (i, (with, without)) in heads.enumerate() {
                assert_eq!(bits(with) == bits(without), i % 5 != 2, "{id} head {i}");
            }
        }
    }
}

fn any_shape() -> impl Strategy<Value = (Shape, Vec<usize>)> {
    let heads = (1..=3usize, 1..=9usize);
    let cache = (1..=9usize, 1..=3usize, 0..KvDtype::ALL.len());
    let seen = (
        proptest::option::of(1..=600usize),
        proptest::option::of(0.5..40f32),
        proptest::array::uniform5(-12f32..12.0),
    );
    let lengths = prop_oneof![
        proptest::collection::vec(1..=70usize, 1..=3),
        proptest::collection::vec(480..=560usize, 1..=1),
    ];
    (heads, cache, seen, lengths).prop_map(
        |((kv_heads, of_each), (eighths, tiles, dtype), (window, cap, sinks), lengths)| {
            let shape = Shape {
                heads: kv_heads * of_each,
                kv_heads,
                head_dim: 8 * eighths,
                block_size: 16 * tiles,
                dtype: KvDtype::ALL[dtype],
                window,
                cap,
                sinks: Some(sinks),
            };
            (shape, lengths)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Within the bound of the reference, and without tiles the same bits in chunks of any size.
    #[test]
    fn sinks_take_their_share_in_any_shape(
        (shape, lengths) in any_shape(),
        chunk in 1..=64usize,
        seed in any::<u32>(),
    ) {
        let workers = Workers::new(2, &[]).unwrap();
        let case = Case::new(shape, &lengths, &mut Random::new(u64::from(seed)));
        let mut expected = None;
        for (id, set, tiles) in every_kernel() {
            let whole = case.run(&set, &workers, &case.whole());
            if tiles {
                let worst = case.worst_of(&whole, tile_bound);
                prop_assert!(worst <= 1.0, "{id}: {worst} of the bound");
                continue;
            }
            let worst = case.worst(&whole);
            prop_assert!(worst <= 1.0, "{id}: {worst} of the bound");
            let whole = bits(&whole.concat());
            let chunks = case.run(&set, &workers, &case.chunks(chunk)).concat();
            prop_assert_eq!(&bits(&chunks), &whole, "{} in chunks of {}", id, chunk);
            prop_assert_eq!(&whole, expected.get_or_insert_with(|| whole.clone()), "{}", id);
        }
    }
}
