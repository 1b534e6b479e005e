//! What a step must be like: sequences, their blocks and positions that do not go together are refused, and what may
//! share blocks does.

use crate::attention::{Operation, Shape};
use crate::support::{Random, bits, panic_of, read};
use plinth_kernels::{
    Activation, Attention, Format, KernelSet, KvDtype, Linear, Norm, Output, Program, RopeLayout,
    RopeTable, Selection, Sequence, Step, Weights, Workers,
};
use std::sync::Arc;

const SHAPE: Shape = Shape {
    heads: 2,
    kv_heads: 1,
    head_dim: 8,
    block_size: 16,
    dtype: KvDtype::F32,
    window: None,
    cap: None,
    sinks: None,
};

fn sequence(
    query_start: usize,
    query_len: usize,
    context_len: usize,
    block_table: &[u32],
) -> Sequence<'_> {
    Sequence {
        query_start,
        query_len,
        context_len,
        block_table,
    }
}

/// Runs a step of four rows over a cache of six blocks.
fn run(sequences: &[Sequence<'_>]) -> Vec<f32> {
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    let inputs = [2, 1, 1].map(|heads| random.floats(4 * heads * 8));
    let [q, k, v] = &inputs;
    let mut operation = Operation::new(&SHAPE, 0);
    operation.run((&set, &workers), &mut SHAPE.cache(6), sequences, [q, k, v])
}

#[test]
fn sequences_that_do_not_go_together_are_refused() {
    let refused = |sequences: &[Sequence<'_>]| panic_of(|| drop(run(sequences)));
    for (what, expected) in [
        // Written twice: by two sequences, by one at two places.
        (
            refused(&[sequence(0, 1, 1, &[2]), sequence(1, 1, 1, &[2])]),
            "block Some([2, 2]) is written twice",
        ),
        (
            refused(&[sequence(0, 4, 18, &[3, 3])]),
            "block Some([3, 3]) is written twice",
        ),
        // Read here and written there, in either order, and in one sequence.
        (
            refused(&[sequence(0, 1, 17, &[1, 2]), sequence(1, 1, 3, &[1])]),
            "sequence 0 reads block Some(1), which is written in this step",
        ),
        (
            refused(&[sequence(0, 1, 3, &[1]), sequence(1, 1, 17, &[1, 2])]),
            "sequence 1 reads block Some(1), which is written in this step",
        ),
        (
            refused(&[sequence(0, 1, 17, &[2, 2])]),
            "sequence 0 reads block Some(2), which is written in this step",
        ),
        // Tables that are too short or beyond the cache.
        (
            refused(&[sequence(0, 1, 17, &[0])]),
            "sequence 0: 1 blocks of 2",
        ),
        (
            refused(&[sequence(0, 1, 1, &[0]), sequence(1, 1, 17, &[1, 6])]),
            "sequence 1: block Some(6) of 6",
        ),
        // Rows that are not there or taken.
        (
            refused(&[sequence(3, 2, 2, &[0])]),
            "sequence 0: 2 rows from 3 on, after 0 and within 4",
        ),
        (
            refused(&[sequence(1, usize::MAX, usize::MAX, &[0])]),
            "rows from 1 on, after 0 and within 4",
        ),
        (
            refused(&[sequence(0, 2, 2, &[0]), sequence(1, 1, 1, &[1])]),
            "sequence 1: 1 rows from 1 on, after 2 and within 4",
        ),
        (
            refused(&[sequence(0, 3, 2, &[0])]),
            "sequence 0: 3 queries in a context of 2",
        ),
    ] {
        assert!(what.contains(expected), "{what:?}, expected {expected:?}");
    }
}

/// A prefix may be shared as long as nobody writes it.
#[test]
fn full_blocks_may_be_read_by_several() {
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let workers = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(2);
    let mut operation = Operation::new(&SHAPE, 0);
    let mut cache = SHAPE.cache(6);
    let mut step = |sequences: &[Sequence<'_>], inputs: [&[f32]; 3]| {
        operation.run((&set, &workers), &mut cache, sequences, inputs)
    };
    let prefix = [2, 1, 1].map(|heads| random.floats(32 * heads * 8));
    step(
        &[sequence(0, 32, 32, &[4, 1])],
        [&prefix[0], &prefix[1], &prefix[2]],
    );
    // The same token after the same prefix, in blocks of their own and as the only one.
    let one = [2, 1, 1].map(|heads| random.floats(heads * 8));
    let two = one.clone().map(|x| [x.clone(), x].concat());
    let both = step(
        &[
            sequence(0, 1, 33, &[4, 1, 0]),
            sequence(1, 1, 33, &[4, 1, 5]),
        ],
        [&two[0], &two[1], &two[2]],
    );
    let alone = step(
        &[sequence(0, 1, 33, &[4, 1, 3])],
        [&one[0], &one[1], &one[2]],
    );
    let (first, second) = both.split_at(16);
    assert_eq!(bits(first), bits(&alone));
    assert_eq!(bits(second), bits(&alone));
}

/// A layer and a head over a prompt beside a decoding sequence: the bits do not depend on who does what.
#[test]
fn a_layer_gives_the_same_bits_whoever_works() {
    // Several panels of sixteen, so that nodes have parts of every matrix.
    const WIDTH: usize = 128;
    const TOKENS: usize = 72;
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let logits_of = |workers: &Workers| {
        let mut random = Random::new(4);
        let mut program = Program::new();
        let mut pack = |rows: usize| Weights {
            matrix: Arc::new({
                let bytes = random.weights(Format::Q8_0, rows, WIDTH);
                set.pack(workers, Format::Q8_0, rows, WIDTH, &bytes)
                    .unwrap()
            }),
            bias: None,
        };
        let [x, q, a, gated] = [WIDTH; 4].map(|width| program.buffer(width));
        let [k, v] = [WIDTH / 2; 2].map(|width| program.buffer(width));
        let last = program.wanted_buffer(WIDTH);
        let logits = program.wanted_buffer(TOKENS);
        let norm = || {
            Some(Norm {
                weight: vec![1.0; WIDTH],
                eps: 1e-5,
            })
        };
        let table = pack(TOKENS);
        program.embed(table.matrix.clone(), 1.0, x);
        let outputs =
            [(q, WIDTH), (k, WIDTH / 2), (v, WIDTH / 2)].map(|(to, width)| Output::Store {
                weights: pack(width),
                to,
            });
        program.linear(Linear {
            from: x,
            norm: norm(),
            outputs: outputs.into(),
        });
        program.attention(Attention {
            layer: 0,
            query: q,
            key: k,
            value: v,
            out: a,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: WIDTH / 4,
            scale: 0.3,
            window: None,
            soft_cap: None,
            sinks: None,
            query_norm: None,
            key_norm: None,
            rope: None,
        });
        let outputs = |output| vec![output];
        for (from, norm, outputs) in [
            (
                a,
                None,
                outputs(Output::Add {
                    weights: pack(WIDTH),
                    to: x,
                }),
            ),
            (
                x,
                norm(),
                outputs(Output::Gated {
                    gate: pack(WIDTH),
                    up: pack(WIDTH),
                    activation: Activation::Silu,
                    to: gated,
                }),
            ),
            (
                gated,
                None,
                outputs(Output::Add {
                    weights: pack(WIDTH),
                    to: x,
                }),
            ),
        ] {
            program.linear(Linear {
                from,
                norm,
                outputs,
            });
        }
        program.gather(x, last);
        program.linear(Linear {
            from: last,
            norm: norm(),
            outputs: outputs(Output::Store {
                weights: table,
                to: logits,
            }),
        });
        let shape = Shape {
            heads: 4,
            kv_heads: 2,
            head_dim: WIDTH / 4,
            ..SHAPE
        };
        let mut cache = shape.cache(4);
        let mut out = Vec::new();
        let mut step = |tokens: &[u32], sequences: &[Sequence<'_>], wanted: &[usize]| {
            let step = Step {
                tokens,
                sequences,
                wanted,
            };
            program.run(&set, workers, &step, &mut cache, &mut |program, rows| {
                out.extend(bits(&read(program, logits, rows.len())));
            });
        };
        step(&[1, 2], &[sequence(0, 2, 2, &[3])], &[1]);
        let tokens: Vec<u32> = (0..19).map(|i| i % TOKENS as u32).collect();
        let prompt = sequence(1, 18, 18, &[0, 2]);
        step(&tokens, &[sequence(0, 1, 3, &[3]), prompt], &[0, 18]);
        out
    };
    let alone = logits_of(&Workers::new(1, &[]).unwrap());
    assert_eq!(alone.len(), 3 * TOKENS);
    assert_eq!(logits_of(&Workers::new(3, &[]).unwrap()), alone);
    for nodes in [&[0, 0, 1, 1][..], &[0, 0, 0, 1], &[2, 0, 7]] {
        let workers = Workers::by_node(nodes.len(), &[], nodes).unwrap();
        assert_eq!(logits_of(&workers), alone, "{nodes:?}");
    }
}

/// A sequence without rows in the step has no part in it.
#[test]
fn a_sequence_may_sit_a_step_out() {
    let with = run(&[
        sequence(0, 2, 2, &[0]),
        sequence(2, 0, 20, &[1, 2]),
        sequence(2, 2, 2, &[3]),
    ]);
    let without = run(&[sequence(0, 2, 2, &[0]), sequence(2, 2, 2, &[3])]);
    assert_eq!(bits(&with), bits(&without));
}

/// An operation over one row at `position`, changed by `change`.
fn attend(position: usize, change: impl FnOnce(&mut Attention)) {
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let workers = Workers::new(1, &[]).unwrap();
    let mut program = Program::new();
    let [query, key, value, out] = [16, 8, 8, 16].map(|width| program.buffer(width));
    let mut attention = Attention {
        layer: 0,
        query,
        key,
        value,
        out,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 8,
        scale: 1.0,
        window: None,
        soft_cap: None,
        sinks: None,
        query_norm: None,
        key_norm: None,
        rope: None,
    };
    change(&mut attention);
    program.attention(attention);
    let step = Step {
        tokens: &[0],
        sequences: &[sequence(0, 1, position + 1, &[0, 1])],
        wanted: &[],
    };
    program.run(&set, &workers, &step, &mut SHAPE.cache(2), &mut |_, _| {});
}

#[test]
fn attention_that_does_not_fit_is_refused() {
    fn refused(change: impl FnOnce(&mut Attention)) -> String {
        panic_of(|| attend(3, change))
    }
    for (what, expected) in [
        (refused(|a| a.num_kv_heads = 3), "2 heads share 3 kv heads"),
        (refused(|a| a.num_kv_heads = 0), "2 heads share 0 kv heads"),
        (
            refused(|a| a.head_dim = 16),
            "query: rows of 16, expected 32",
        ),
        (refused(|a| a.window = Some(0)), "a window of no keys"),
        (refused(|a| a.out = a.query), "results go to another buffer"),
        (refused(|a| a.layer = 2), "layer 2 of 1 kv heads of 8"),
        (
            refused(|a| a.sinks = Some(vec![0.0; 3])),
            "3 sinks of 2 heads",
        ),
        (
            refused(|a| {
                a.key_norm = Some(Norm {
                    weight: vec![1.0; 16],
                    eps: 1e-6,
                });
            }),
            "norm of heads: rows of 16, expected 8",
        ),
    ] {
        assert!(what.contains(expected), "{what:?}, expected {expected:?}");
    }
}

#[test]
fn a_position_beyond_the_angles_is_refused() {
    let table = |layout| Arc::new(RopeTable::new(8, 8, &[0.5; 4], layout, 20));
    for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
        attend(19, |a| a.rope = Some(table(layout)));
        panic_of(|| attend(20, |a| a.rope = Some(table(layout))));
    }
}
