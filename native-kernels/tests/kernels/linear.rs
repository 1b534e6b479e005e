//! Products as a program has them: several of the same activations, gated ones, behind a norm, for the wanted rows only.

use crate::support::{
    Besides, Random, bits, fill, multiply, no_cache, normed, panic_of, products, read, run,
    runnable,
};
use plinth_kernels::{
    Activation, Buffer, Format, KernelSet, LOGIT_ROWS, Linear, Matrix, Norm, Output, Program,
    Selection, Step, Weights, Workers, reference,
};
use std::sync::Arc;

/// Rows of every way to prepare and multiply: alone, for each worker, with and without kernels for many, for everybody.
const ROWS: [usize; 7] = [1, 5, 12, 16, 17, 40, 70];

/// Kernels that differ in what they read: floats, bytes or tiles, narrow groups of rows or wide ones.
fn sets() -> Vec<(String, KernelSet)> {
    let best = Selection::best();
    let few = Selection {
        matmul_many: Vec::new(),
        ..best.clone()
    };
    // Every other format for many rows, so that one operation reads several forms.
    let mut mixed = best.clone();
    let mut keep = false;
    mixed.matmul_many.retain(|_| {
        keep = !keep;
        keep
    });
    let named = [("best", best), ("few", few), ("mixed", mixed)];
    let mut sets: Vec<_> = named
        .map(|(name, selection)| (name.to_owned(), KernelSet::bind(&selection).unwrap()))
        .into();
    sets.extend(
        products(&["portable.matmul.dequant", "portable.matmul.int8"])
            .into_iter()
            .map(|(kernel, set)| (kernel.id, set)),
    );
    sets
}

fn pack(
    set: &KernelSet,
    workers: &Workers,
    format: Format,
    (n, k): (usize, usize),
    random: &mut Random,
) -> Arc<Matrix> {
    let bytes = random.weights(format, n, k);
    Arc::new(set.pack(workers, format, n, k, &bytes).unwrap())
}

fn plain(matrix: &Arc<Matrix>) -> Weights {
    Weights {
        matrix: matrix.clone(),
        bias: None,
    }
}

#[test]
fn products_of_the_same_activations_are_those_that_each_has_alone() {
    let workers = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(1);
    for (name, set) in sets() {
        let formats: Vec<Format> = Format::ALL
            .into_iter()
            .filter(|format| set.pack(&workers, *format, 0, 256, &[]).is_ok())
            .collect();
        for (i, m) in ROWS.into_iter().enumerate() {
            let k = 256;
            let chosen: Vec<_> = [(0, 70), (3, 17), (5, 33), (7, 16)]
                .map(|(j, n)| (formats[(i + j) % formats.len()], n))
                .into();
            let matrices: Vec<Arc<Matrix>> = chosen
                .iter()
                .map(|&(format, n)| pack(&set, &workers, format, (n, k), &mut random))
                .collect();
            let x = random.floats(m * k);
            let mut program = Program::new();
            let from = program.buffer(k);
            fill(&mut program, from, m, &x);
            let to: Vec<_> = matrices.iter().map(|w| program.buffer(w.rows())).collect();
            let bias = random.floats(matrices[1].rows());
            let outputs = matrices.iter().zip(&to).enumerate().map(|(i, (w, &to))| {
                let bias = (i == 1).then(|| bias.clone());
                let matrix = w.clone();
                Output::Store {
                    weights: Weights { matrix, bias },
                    to,
                }
            });
            program.linear(Linear {
                from,
                norm: None,
                outputs: outputs.collect(),
            });
            run(&mut program, &set, &workers, m);
            for (i, (w, &to)) in matrices.iter().zip(&to).enumerate() {
                let besides = Besides {
                    bias: (i == 1).then_some(&bias),
                    ..Besides::default()
                };
                let alone = multiply(&set, &workers, (&x, m), w, &besides);
                let found = read(&program, to, m);
                assert_eq!(
                    bits(&found),
                    bits(&alone),
                    "{name} {chosen:?} {m} rows: {i}"
                );
            }
        }
    }
}

/// The activation of one product times another, within the roundings of the activation.
#[test]
fn gated_products_go_through_the_activation() {
    let workers = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(2);
    for (name, set) in sets() {
        for activation in Activation::ALL {
            for m in ROWS {
                let (n, k) = (75, 64);
                let gate = pack(&set, &workers, Format::Q4_1, (n, k), &mut random);
                let up = pack(&set, &workers, Format::Q8_0, (n, k), &mut random);
                let bias = random.floats(n);
                let x: Vec<f32> = random.floats(m * k).iter().map(|x| x * 4.0).collect();
                let mut program = Program::new();
                let (from, to) = (program.buffer(k), program.buffer(n));
                fill(&mut program, from, m, &x);
                program.linear(Linear {
                    from,
                    norm: None,
                    outputs: vec![Output::Gated {
                        gate: Weights {
                            matrix: gate.clone(),
                            bias: Some(bias.clone()),
                        },
                        up: plain(&up),
                        activation,
                        to,
                    }],
                });
                run(&mut program, &set, &workers, m);
                let biased = Besides {
                    bias: Some(&bias),
                    ..Besides::default()
                };
                let gates = multiply(&set, &workers, (&x, m), &gate, &biased);
                let ups = multiply(&set, &workers, (&x, m), &up, &Besides::default());
                for (i, out) in read(&program, to, m).iter().enumerate() {
                    let (gate, up) = (gates[i], ups[i]);
                    let (expected, bound) = gated(activation, gate, up);
                    let error = (f64::from(*out) - expected).abs();
                    assert!(
                        error <= bound,
                        "{name} {activation:?} {m} rows at {i}: {out}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// What a gated product is, and how far off it may be.
pub fn gated(activation: Activation, gate: f32, up: f32) -> (f64, f64) {
    let (size, factor) = (f64::from(gate.abs()), f64::from(up.abs()));
    match activation {
        Activation::Silu => {
            let expected = reference::silu_mul(gate, up);
            // The power carries the rounding of its argument (|gate| * 6e-8) and 1.5e-7 of its own; four steps more.
            (expected, expected.abs() * (6e-8 * size + 4e-7) + 1e-30)
        }
        Activation::GeluTanh => {
            // Half the gate times a tangent that is off by 2e-7 and by the four roundings of its argument `t` (`t` times
            // the slope there is at most 0.45), then three roundings of at most the gate.
            let bound = size * (0.5 * (2e-7 + 0.45 * 2.4e-7) + 1.8e-7) * factor;
            (reference::gelu_tanh_mul(gate, up), bound + 1e-30)
        }
        Activation::ClampedSwiglu => {
            let expected = reference::clamped_swiglu(gate, up);
            // As the first, with the rounding of 1.702 and of its product; the sum `up + 1` is rounded at the size of one.
            let relative = 6e-8 * 3.0 * 1.702 * size + 4e-7;
            (
                expected,
                expected.abs() * relative + 1.2e-7 * size.min(7.0) + 1e-30,
            )
        }
    }
}

/// Within the operation the same bits as in one of its own.
#[test]
fn a_norm_before_a_product_is_the_norm() {
    let workers = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(3);
    for (name, set) in sets() {
        for m in ROWS {
            let (n, k) = (50, 96);
            let w = pack(&set, &workers, Format::Q8_0, (n, k), &mut random);
            let x = random.floats(m * k);
            let norm = Norm {
                weight: random.floats(k),
                eps: 1e-5,
            };
            let besides = Besides {
                norm: Some(norm.clone()),
                ..Besides::default()
            };
            let together = multiply(&set, &workers, (&x, m), &w, &besides);
            let x = normed(&set, &workers, (&x, m), &norm);
            let apart = multiply(&set, &workers, (&x, m), &w, &Besides::default());
            assert_eq!(bits(&together), bits(&apart), "{name} {m} rows");
        }
    }
}

/// A head over the wanted rows: which those are, how many, and in how many parts they come.
struct Head {
    program: Program,
    from: Buffer,
    to: Buffer,
}

impl Head {
    fn new(w: &Arc<Matrix>) -> Self {
        let mut program = Program::new();
        let from = program.buffer(w.cols());
        let wanted = program.wanted_buffer(w.cols());
        let to = program.wanted_buffer(w.rows());
        program.gather(from, wanted);
        program.linear(Linear {
            from: wanted,
            norm: None,
            outputs: vec![Output::Store {
                weights: plain(w),
                to,
            }],
        });
        Self { program, from, to }
    }

    /// The parts that `wanted` came in and all of its rows.
    fn run(
        &mut self,
        (set, workers): (&KernelSet, &Workers),
        rows: usize,
        wanted: &[usize],
    ) -> (Vec<usize>, Vec<f32>) {
        let step = Step {
            tokens: &vec![0; rows],
            sequences: &[],
            wanted,
        };
        let (mut parts, mut out, to) = (Vec::new(), Vec::new(), self.to);
        let mut next = 0;
        let mut on_wanted = |program: &mut Program, range: std::ops::Range<usize>| {
            assert_eq!(range.start, next);
            next = range.end;
            parts.push(range.len());
            out.extend(read(program, to, range.len()));
        };
        let mut cache = no_cache();
        self.program
            .run(set, workers, &step, &mut cache, &mut on_wanted);
        (parts, out)
    }
}

#[test]
fn wanted_rows_come_in_their_order_and_in_parts() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(4);
    let few = Selection {
        matmul_many: Vec::new(),
        ..Selection::best()
    };
    let set = KernelSet::bind(&few).unwrap();
    let (rows, n, k) = (80, 33, 64);
    let w = pack(&set, &workers, Format::Q4_1, (n, k), &mut random);
    let x = random.floats(rows * k);
    let all = multiply(&set, &workers, (&x, rows), &w, &Besides::default());
    let mut head = Head::new(&w);
    fill(&mut head.program, head.from, rows, &x);
    let parts = LOGIT_ROWS;
    for (wanted, expected_parts) in [
        (vec![79], vec![1]),
        ((0..32).collect(), vec![32]),
        ((0..33).collect(), vec![parts, 1]),
        ((5..75).rev().collect(), vec![parts, parts, 6]),
        (vec![3; 40], vec![parts, 8]),
        (vec![], vec![]),
    ] {
        let wanted: Vec<usize> = wanted;
        let (parts, out) = head.run((&set, &workers), rows, &wanted);
        assert_eq!(parts, expected_parts, "{wanted:?}");
        for (out, &row) in out.chunks_exact(n).zip(&wanted) {
            assert_eq!(bits(out), bits(&all[row * n..][..n]), "row {row}");
        }
    }
}

#[test]
fn a_step_without_rows_is_no_work() {
    let workers = Workers::new(2, &[]).unwrap();
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let w = pack(&set, &workers, Format::F32, (4, 8), &mut Random::new(5));
    let (parts, out) = Head::new(&w).run((&set, &workers), 0, &[]);
    assert!(parts.is_empty() && out.is_empty());
}

/// Each worker prepares the activations of few rows for itself, once an operation: not those of another step.
#[test]
fn activations_of_an_earlier_step_are_not_taken_for_those_of_this_one() {
    let workers = Workers::new(1, &[]).unwrap();
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let mut random = Random::new(6);
    let k = 64;
    // Operations before and after the product, so that steps of different kinds have many numbers of phases.
    for (before, after) in (0..4).flat_map(|before| (0..4).map(move |after| (before, after))) {
        let w = pack(&set, &workers, Format::F32, (k, k), &mut random);
        let mut program = Program::new();
        let (from, to, other) = (program.buffer(k), program.buffer(k), program.buffer(k));
        let (wanted, logits) = (program.wanted_buffer(k), program.wanted_buffer(k));
        let norm = Norm {
            weight: vec![1.0; k],
            eps: 1.0,
        };
        let linear = |from, to| Linear {
            from,
            norm: None,
            outputs: vec![Output::Store {
                weights: plain(&w),
                to,
            }],
        };
        (0..before).for_each(|_| program.add_normed(from, norm.clone(), other));
        program.linear(linear(from, to));
        (0..after).for_each(|_| program.add_normed(from, norm.clone(), other));
        program.gather(to, wanted);
        program.linear(linear(wanted, logits));
        for (rows, wanted) in [(20, 1), (1, 0), (1, 1), (20, 20), (2, 0), (20, 0), (3, 1)] {
            let x = random.floats(rows * k);
            fill(&mut program, from, rows, &x);
            let step = Step {
                tokens: &vec![0; rows],
                sequences: &[],
                wanted: &(0..wanted).collect::<Vec<_>>(),
            };
            program.run(&set, &workers, &step, &mut no_cache(), &mut |_, _| {});
            let expected = multiply(&set, &workers, (&x, rows), &w, &Besides::default());
            assert_eq!(
                bits(&read(&program, to, rows)),
                bits(&expected),
                "{before} operations before and {after} after, {rows} rows, {wanted} wanted"
            );
        }
    }
}

#[test]
fn an_embedded_row_is_the_dequantised_row_times_the_scale() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(7);
    let (_, set) = runnable("elementwise").remove(0);
    for format in Format::ALL {
        let (n, k) = (37, 2 * format.block_len());
        let bytes = random.weights(format, n, k);
        let mut weights = vec![0.0; n * k];
        format.dequantize(&bytes, &mut weights);
        let table = Arc::new(set.pack(&workers, format, n, k, &bytes).unwrap());
        for scale in [1.0, 2.5] {
            let mut program = Program::new();
            let to = program.buffer(k);
            program.embed(table.clone(), scale, to);
            let tokens = [36, 0, 16, 15, 0];
            let step = Step {
                tokens: &tokens,
                sequences: &[],
                wanted: &[],
            };
            program.run(&set, &workers, &step, &mut no_cache(), &mut |_, _| {});
            let out = read(&program, to, tokens.len());
            for (row, token) in out.chunks_exact(k).zip(tokens) {
                let expected: Vec<f32> = weights[token as usize * k..][..k]
                    .iter()
                    .map(|w| w * scale)
                    .collect();
                assert_eq!(bits(row), bits(&expected), "{format} token {token}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let workers = Workers::new(1, &[]).unwrap();
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let w = pack(&set, &workers, Format::F32, (4, 8), &mut Random::new(8));
    let refused = |from: usize, to: usize, norm: Option<usize>, bias: Option<usize>| {
        let mut program = Program::new();
        let (from, to) = (program.buffer(from), program.buffer(to));
        let norm = norm.map(|width| Norm {
            weight: vec![1.0; width],
            eps: 1.0,
        });
        let weights = Weights {
            matrix: w.clone(),
            bias: bias.map(|len| vec![0.0; len]),
        };
        panic_of(|| {
            program.linear(Linear {
                from,
                norm,
                outputs: vec![Output::Store { weights, to }],
            });
        })
    };
    assert_eq!(
        refused(9, 4, None, None),
        "inputs of w: rows of 8, expected 9"
    );
    assert_eq!(
        refused(8, 5, None, None),
        "outputs of w: rows of 4, expected 5"
    );
    assert_eq!(refused(8, 4, Some(7), None), "norm: rows of 7, expected 8");
    assert_eq!(refused(8, 4, None, Some(3)), "bias: rows of 3, expected 4");
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let set = KernelSet::bind(&Selection::best()).unwrap();
    for threads in [1, 2] {
        let workers = Workers::new(threads, &[]).unwrap();
        let table = pack(&set, &workers, Format::F32, (5, 8), &mut Random::new(9));
        let mut program = Program::new();
        let to = program.buffer(8);
        program.embed(table, 1.0, to);
        let mut embed = |tokens: &[u32]| {
            let step = Step {
                tokens,
                sequences: &[],
                wanted: &[],
            };
            program.run(&set, &workers, &step, &mut no_cache(), &mut |_, _| {});
        };
        embed(&[4, 0]);
        assert_eq!(panic_of(|| embed(&[0, 5])), "row 5 of 5");
        // And the next step is as good as any.
        embed(&[4, 0]);
    }
}

#[test]
fn a_wanted_row_that_is_not_there_is_refused() {
    let workers = Workers::new(1, &[]).unwrap();
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let w = pack(&set, &workers, Format::F32, (4, 8), &mut Random::new(10));
    let refused = panic_of(|| {
        Head::new(&w).run((&set, &workers), 3, &[2, 3]);
    });
    assert_eq!(refused, "wanted row Some(3) of 3");
}
