//! Attention against the reference, in any chunks and company, on every instruction set.

use super::{
    Case, Heads, Operation, Shape, UNTOUCHED, long_shapes, pairs_kernels, shape, shapes,
    tile_bound, tile_kernels,
};
use crate::support::{Random, bits, normed, runnable};
use plinth_kernels::{
    KernelSet, KvDtype, Norm, RopeLayout, RopeTable, Selection, Sequence, Workers, reference,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

#[test]
fn attention_is_the_softmax_over_the_keys_a_query_sees() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    for (kernel, set) in runnable("attention") {
        let short = shapes().into_iter().map(|shape| (shape, [1, 16, 17, 50]));
        let long = long_shapes()
            .into_iter()
            .map(|shape| (shape, [700, 512, 1100, 513]));
        for (shape, lengths) in short.chain(long) {
            let case = Case::new(shape, &lengths, &mut random);
            let worst = case.worst(&case.run(&set, &workers, &case.whole()));
            assert!(
                worst <= 1.0,
                "{} {shape:?}: {worst} of the bound",
                kernel.id
            );
        }
    }
}

/// Runs of many queries in tiles: whole, in chunks with a rest that is answered without tiles, beside decoding sequences.
#[test]
fn attention_in_tiles_is_as_exact_as_its_numbers() {
    let (alone, three) = (Workers::new(1, &[]).unwrap(), Workers::new(3, &[]).unwrap());
    let mut random = Random::new(9);
    for (id, set) in tile_kernels() {
        for shape in shapes().into_iter().chain(long_shapes()) {
            let lengths = if shape.head_dim < 32 {
                [17, 600]
            } else {
                [33, 290]
            };
            let case = Case::new(shape, &lengths, &mut random);
            let mixed = vec![
                vec![(0, lengths[0] - 1), (1, lengths[1] - 40)],
                vec![(0, 1), (1, 40)],
            ];
            for (workers, steps) in [
                (&three, case.whole()),
                (&alone, case.chunks(50)),
                (&three, mixed),
            ] {
                let outs = case.run(&set, workers, &steps);
                let worst = case.worst_of(&outs, tile_bound);
                assert!(worst <= 1.0, "{} {shape:?}: {worst} of the bound", id);
            }
        }
    }
}

/// Steps of few rows in pairs: alone and in company, in chunks of any size, within the bound and with the same bits.
#[test]
fn attention_in_pairs_is_as_exact_as_its_numbers_and_always_the_same() {
    let (alone, three) = (Workers::new(1, &[]).unwrap(), Workers::new(3, &[]).unwrap());
    let mut random = Random::new(13);
    let of_bf16 = |shape: &Shape| shape.dtype == KvDtype::BF16;
    for (id, set) in pairs_kernels() {
        println!("{id}: measured");
        for shape in shapes().into_iter().chain(long_shapes()).filter(of_bf16) {
            let case = Case::new(shape, &[35, 1100], &mut random);
            let mixed: Vec<_> = (0..7)
                .map(|_| vec![(0, 5), (1, 13)])
                .chain((0..1009).map(|_| vec![(1, 1)]))
                .collect();
            let mut expected = None;
            for (workers, steps) in [
                (&alone, case.chunks(16)),
                (&three, case.chunks(16)),
                (&three, case.chunks(7)),
                (&three, mixed),
            ] {
                let outs = case.run(&set, workers, &steps);
                let worst = case.worst_of(&outs, tile_bound);
                assert!(worst <= 1.0, "{id} {shape:?}: {worst} of the bound");
                let outs: Vec<_> = outs.iter().map(|out| bits(out)).collect();
                let expected = expected.get_or_insert_with(|| outs.clone());
                assert!(outs == *expected, "{id} {shape:?}: other bits");
            }
        }
    }
}

#[test]
fn pairs_of_bf16_are_not_read_out_of_another_cache() {
    let workers = Workers::new(1, &[]).unwrap();
    let shape = shape((1, 1, 8), 16, KvDtype::F16, None, None);
    let case = Case::new(shape, &[3], &mut Random::new(14));
    for (id, set) in pairs_kernels() {
        let run = AssertUnwindSafe(|| case.run(&set, &workers, &case.whole()));
        let refused = catch_unwind(run).expect_err("it refuses");
        let said = refused.downcast_ref::<String>().expect("it says why");
        assert!(said.contains("over a cache of f16"), "{id}: {said}");
    }
}

/// Alone, in chunks of any size, in any company, on every instruction set: the same bits.
fn check_every_way(
    case: &Case,
    sizes: &[usize],
    mixed: &[Vec<(usize, usize)>],
    kernels: &[(String, KernelSet)],
) {
    let alone = Workers::new(1, &[]).unwrap();
    let three = Workers::new(3, &[]).unwrap();
    let shape = &case.shape;
    let mut expected: Option<Vec<Vec<u32>>> = None;
    for (id, set) in kernels {
        let mut check = |workers: &Workers, steps: &[Vec<(usize, usize)>], what: &str| {
            let outs = case.run(set, workers, steps);
            let outs: Vec<_> = outs.iter().map(|out| bits(out)).collect();
            let expected = expected.get_or_insert_with(|| outs.clone());
            assert!(&outs == expected, "{id} {shape:?}: {what}");
        };
        check(&three, &case.whole(), "all at once");
        for &size in sizes {
            let what = format!("alone, in chunks of {size}");
            check(&alone, &case.chunks(size), &what);
        }
        check(&three, mixed, "decode beside prefill");
    }
}

fn attention_kernels() -> Vec<(String, KernelSet)> {
    let kernels = runnable("attention").into_iter();
    kernels.map(|(kernel, set)| (kernel.id, set)).collect()
}

#[test]
fn neither_chunks_nor_company_change_a_bit() {
    let mut random = Random::new(2);
    let kernels = attention_kernels();
    for shape in shapes() {
        let case = Case::new(shape, &[40, 3, 77], &mut random);
        let mixed = [
            vec![(0, 39), (2, 5)],
            vec![(0, 1), (1, 2), (2, 30)],
            vec![(1, 1), (2, 41)],
            vec![(2, 1)],
        ];
        check_every_way(&case, &[1, 7, 16, 17], &mixed, &kernels);
    }
}

#[test]
fn neither_chunks_nor_company_change_a_bit_of_a_long_context() {
    let mut random = Random::new(3);
    let kernels = attention_kernels();
    for shape in long_shapes() {
        let case = Case::new(shape, &[700, 20, 1100], &mut random);
        let mixed = [
            vec![(0, 511), (2, 1000)],
            vec![(0, 1), (1, 19), (2, 16)],
            vec![(0, 16), (1, 1), (2, 17)],
            vec![(0, 172), (2, 3)],
            vec![(2, 64)],
        ];
        check_every_way(&case, &[1, 13, 16, 100, 600], &mixed, &kernels);
    }
}

/// Norms of heads within attention have the bits of norms before it.
#[test]
fn heads_are_normalised_as_rows_are() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(4);
    for (kernel, set) in runnable("elementwise") {
        for dims in [(4, 2, 16), (3, 1, 24), (2, 2, 128)] {
            let shape = shape(dims, 16, KvDtype::F16, None, None);
            let mut case = Case::new(shape, &[3, 90, 530], &mut random);
            let mut norm = || Norm {
                weight: random.floats(shape.head_dim),
                eps: 1e-6,
            };
            let (query_norm, key_norm) = (norm(), norm());
            let steps = case.chunks(100);
            case.heads = Heads {
                query_norm: Some(query_norm.clone()),
                key_norm: Some(key_norm.clone()),
                rope: None,
            };
            let within = case.run(&set, &workers, &steps);
            case.heads = Heads::default();
            for [q, k, _] in &mut case.sequences {
                for (heads, norm) in [(q, &query_norm), (k, &key_norm)] {
                    let rows = heads.len() / shape.head_dim;
                    *heads = normed(&set, &workers, (heads, rows), norm);
                }
            }
            let before = case.run(&set, &workers, &steps);
            for (within, before) in within.iter().zip(&before) {
                assert_eq!(bits(within), bits(before), "{} {shape:?}", kernel.id);
            }
        }
    }
}

/// Queries and keys turned in attention: as turned before it in double precision, but for the rounding of angles.
#[test]
fn heads_are_turned_by_their_positions() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(5);
    for (kernel, set) in runnable("elementwise") {
        for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
            for (dims, turning) in [((4, 2, 16), 16), ((3, 1, 24), 10), ((2, 1, 64), 64)] {
                let shape = shape(dims, 16, KvDtype::F32, None, None);
                let d = shape.head_dim;
                let frequencies: Vec<f32> = (0..turning / 2)
                    .map(|i| 10_000f32.powf(-(2.0 * i as f32) / turning as f32))
                    .collect();
                let table = RopeTable::new(d, turning, &frequencies, layout, 530);
                let mut case = Case::new(shape, &[3, 90, 530], &mut random);
                case.heads.rope = Some(Arc::new(table));
                let outs = case.run(&set, &workers, &case.chunks(100));
                for [q, k, _] in &mut case.sequences {
                    for (x, heads) in [(q, shape.heads), (k, shape.kv_heads)] {
                        for (i, head) in x.chunks_exact_mut(d).enumerate() {
                            let position = (i / heads) as u32;
                            let head = &mut head[..turning];
                            let turned = reference::rope(head, &frequencies, layout, position);
                            head.iter_mut().zip(turned).for_each(|(x, t)| *x = t as f32);
                        }
                    }
                }
                // Turned by 45 degrees, elements are up to sqrt(2) as large, so scores twice; four more roundings of each
                // query and key are few beside the `d + 4` of the bound.
                let worst = case.worst(&outs);
                assert!(worst <= 2.0, "{} {shape:?}: {worst}", kernel.id);
            }
        }
    }
}

/// Norm, then turn: the order matters if the weights of the norm differ.
#[test]
fn heads_are_normalised_before_they_are_turned() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(6);
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let shape = shape((4, 2, 16), 16, KvDtype::F16, Some(40), None);
    let frequencies = random.floats(8);
    let table = RopeTable::new(16, 16, &frequencies, RopeLayout::HalfSplit, 100);
    let norm = Norm {
        weight: random.floats(16),
        eps: 1e-6,
    };
    let mut case = Case::new(shape, &[100, 7], &mut random);
    case.heads.rope = Some(Arc::new(table));
    case.heads.query_norm = Some(norm.clone());
    case.heads.key_norm = Some(norm.clone());
    let within = case.run(&set, &workers, &case.whole());
    case.heads.query_norm = None;
    case.heads.key_norm = None;
    for [q, k, _] in &mut case.sequences {
        for heads in [q, k] {
            *heads = normed(&set, &workers, (heads, heads.len() / 16), &norm);
        }
    }
    let before = case.run(&set, &workers, &case.whole());
    for (within, before) in within.iter().zip(&before) {
        assert_eq!(bits(within), bits(before));
    }
}

/// Positions, norms and turns are a row's own, so chunks and company do not matter to them either.
#[test]
fn norms_and_turns_do_not_depend_on_chunks() {
    let mut random = Random::new(7);
    let shape = shape((4, 2, 24), 16, KvDtype::BF16, None, None);
    let mut case = Case::new(shape, &[100, 3, 77], &mut random);
    let frequencies = random.floats(9);
    let table = RopeTable::new(24, 18, &frequencies, RopeLayout::Interleaved, 100);
    let mut norm = || {
        Some(Norm {
            weight: random.floats(24),
            eps: 1e-6,
        })
    };
    case.heads = Heads {
        query_norm: norm(),
        key_norm: norm(),
        rope: Some(Arc::new(table)),
    };
    let mixed = [
        vec![(0, 99), (2, 5)],
        vec![(0, 1), (1, 2), (2, 30)],
        vec![(1, 1), (2, 42)],
    ];
    let kernels = runnable("elementwise").into_iter();
    let kernels: Vec<_> = kernels.map(|(kernel, set)| (kernel.id, set)).collect();
    check_every_way(&case, &[1, 7, 65], &mixed, &kernels);
}

#[test]
fn a_row_of_no_sequence_is_left_alone() {
    let workers = Workers::new(2, &[]).unwrap();
    let (_, set) = runnable("attention").remove(0);
    let shape = shape((1, 1, 8), 16, KvDtype::F32, None, None);
    let sequences = [Sequence {
        query_start: 1,
        query_len: 1,
        context_len: 1,
        block_table: &[0],
    }];
    let (q, v) = (vec![1.0; 3 * 8], vec![0.25; 3 * 8]);
    let out = Operation::new(&shape, 0).run(
        (&set, &workers),
        &mut shape.cache(1),
        &sequences,
        [&q, &q, &v],
    );
    assert_eq!(out[..8], [UNTOUCHED; 8]);
    assert_eq!(out[8..16], [0.25; 8]);
    assert_eq!(out[16..], [UNTOUCHED; 8]);
}

/// A token whose keys or values are all zero has no scale to divide by.
#[test]
fn zeros_and_the_least_of_numbers_are_kept_in_eight_bits() {
    let workers = Workers::new(1, &[]).unwrap();
    let mut random = Random::new(10);
    let shape = shape((2, 1, 24), 16, KvDtype::Q8, None, None);
    for (kernel, set) in runnable("attention") {
        for value in [0.0, f32::MIN_POSITIVE, 1e-40, -1e-44] {
            let mut case = Case::new(shape, &[20], &mut random);
            let [_, keys, values] = &mut case.sequences[0];
            for x in [keys, values] {
                x[5 * 24..6 * 24].fill(value);
                x[19 * 24..].fill(value);
            }
            let worst = case.worst(&case.run(&set, &workers, &case.chunks(7)));
            assert!(worst <= 1.0, "{} {value}: {worst} of the bound", kernel.id);
        }
    }
}
