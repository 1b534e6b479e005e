//! Norms, activation functions and soft caps against the reference, over odd widths and on every instruction set.
//!
//! Rotation is within attention and tested there, and by itself in the crate.

use crate::linear::gated;
use crate::support::{Random, bits, fill, normed, read, run, runnable};
use plinth_kernels::{
    Activation, Format, KernelSet, Linear, Norm, Output, Program, Selection, Weights, Workers,
    reference,
};
use std::sync::Arc;

const WIDTHS: [usize; 7] = [1, 8, 15, 16, 17, 64, 577];

fn assert_close(found: f32, expected: f64, bound: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(
        error <= bound,
        "{what}: {found}, expected {expected}: {error} > {bound}"
    );
}

#[test]
fn rms_norm_divides_by_the_root_of_the_mean_square() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    for (kernel, set) in runnable("elementwise") {
        for n in WIDTHS {
            let m = 1 + n % 5;
            let x = random.floats(m * n);
            let norm = Norm {
                weight: random.floats(n),
                eps: 1e-5,
            };
            let out = normed(&set, &workers, (&x, m), &norm);
            for (x, out) in x.chunks_exact(n).zip(out.chunks_exact(n)) {
                let expected = reference::rms_norm(x, &norm.weight, norm.eps);
                for (out, expected) in out.iter().zip(expected) {
                    // The sum of n / 16 squares a lane and a tree of four, half of that after the root, then five steps.
                    let steps = (n / 32 + 8) as f64;
                    let bound = steps * 6e-8 * expected.abs() + 1e-30;
                    assert_close(*out, expected, bound, &kernel.id);
                }
            }
        }
    }
}

#[test]
fn a_norm_is_added_to_what_is_there() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(5);
    for (kernel, set) in runnable("elementwise") {
        for n in WIDTHS {
            let m = 2 + n % 70;
            let (x, before) = (random.floats(m * n), random.floats(m * n));
            let norm = Norm {
                weight: random.floats(n),
                eps: 1e-6,
            };
            let mut program = Program::new();
            let (from, to) = (program.buffer(n), program.buffer(n));
            fill(&mut program, from, m, &x);
            fill(&mut program, to, m, &before);
            program.add_normed(from, norm.clone(), to);
            run(&mut program, &set, &workers, m);
            let alone = normed(&set, &workers, (&x, m), &norm);
            for (i, out) in read(&program, to, m).iter().enumerate() {
                assert_eq!(*out, before[i] + alone[i], "{}", kernel.id);
            }
        }
    }
}

/// `activation(gate) * up`: a gated product with a matrix that picks each half of a row as it is.
fn gate(
    set: &KernelSet,
    workers: &Workers,
    (gate, up): (&[f32], &[f32]),
    (m, n): (usize, usize),
    activation: Activation,
) -> Vec<f32> {
    let picks = |first: usize| {
        let mut ones = vec![0.0; n * 2 * n];
        (0..n).for_each(|i| ones[i * 2 * n + first + i] = 1.0);
        let mut bytes = vec![0; 4 * ones.len()];
        Format::F32.quantize(&ones, &mut bytes);
        let matrix = set.pack(workers, Format::F32, n, 2 * n, &bytes).unwrap();
        Weights {
            matrix: Arc::new(matrix),
            bias: None,
        }
    };
    let halves = gate.chunks_exact(n).zip(up.chunks_exact(n));
    let x: Vec<f32> = halves.flat_map(|(a, b)| [a, b].concat()).collect();
    let mut program = Program::new();
    let (from, to) = (program.buffer(2 * n), program.buffer(n));
    fill(&mut program, from, m, &x);
    program.linear(Linear {
        from,
        norm: None,
        outputs: vec![Output::Gated {
            gate: picks(0),
            up: picks(n),
            activation,
            to,
        }],
    });
    run(&mut program, set, workers, m);
    read(&program, to, m)
}

#[test]
fn gates_open_as_far_as_their_activation_says() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(2);
    for (kernel, set) in runnable("elementwise") {
        for activation in Activation::ALL {
            for n in WIDTHS {
                let m = 1 + n % 3;
                let mut gates: Vec<f32> = random.floats(m * n).iter().map(|x| x * 20.0).collect();
                gates[0] = -200.0;
                gates[m * n / 2] = 1e-3;
                gates[m * n - 1] *= 10.0;
                let mut ups = random.floats(m * n);
                ups[m * n / 3] = 9.0;
                ups[m * n / 4] = -8.0;
                let out = gate(&set, &workers, (&gates, &ups), (m, n), activation);
                for (i, out) in out.iter().enumerate() {
                    let (expected, bound) = gated(activation, gates[i], ups[i]);
                    assert_close(*out, expected, bound, &kernel.id);
                }
            }
        }
    }
}

fn capped(set: &KernelSet, workers: &Workers, (x, m): (&[f32], usize), cap: f32) -> Vec<f32> {
    let mut program = Program::new();
    let buffer = program.buffer(x.len() / m);
    fill(&mut program, buffer, m, x);
    program.soft_cap(buffer, cap);
    run(&mut program, set, workers, m);
    read(&program, buffer, m)
}

#[test]
fn soft_caps_bend_what_is_large() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(3);
    for (kernel, set) in runnable("elementwise") {
        for (n, cap) in [(1, 30.0), (15, 5.0), (17, 30.0), (577, 50.0), (4099, 30.0)] {
            for m in [1, 3, 7] {
                let mut x: Vec<f32> = random.floats(m * n).iter().map(|x| x * 100.0).collect();
                x[m * n - 1] = f32::INFINITY;
                let out = capped(&set, &workers, (&x, m), cap);
                for (x, out) in x.iter().zip(out) {
                    let expected = reference::soft_cap(f64::from(*x), cap);
                    // The tangent is off by 2e-7 and by the two roundings of its argument `t` (`t` times the slope there
                    // is at most 0.45), and the product is rounded.
                    let bound = f64::from(cap) * (2e-7 + 0.45 * 1.2e-7 + 6e-8);
                    assert_close(out, expected, bound, &kernel.id);
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(4);
    let (m, n) = (5, 83);
    let (x, y) = (random.floats(m * n), random.floats(m * n));
    let norm = Norm {
        weight: random.floats(n),
        eps: 1e-6,
    };
    let run = |set: &KernelSet| {
        [
            normed(set, &workers, (&x, m), &norm),
            Activation::ALL
                .map(|activation| gate(set, &workers, (&x, &y), (m, n), activation))
                .concat(),
            capped(set, &workers, (&x, m), 0.7),
        ]
        .concat()
    };
    let best = KernelSet::bind(&Selection::best()).unwrap();
    let expected = bits(&run(&best));
    for (kernel, set) in runnable("elementwise") {
        assert_eq!(bits(&run(&set)), expected, "{}", kernel.id);
    }
}
