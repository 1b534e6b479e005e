//! Norms, activation functions and rotation against the reference, over odd widths and on every instruction set.

use crate::support::{Random, bits, runnable};
use plinth_kernels::{
    KernelSet, RopeLayout, RopeTable, Rows, RowsMut, Selection, Workers, reference,
};

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
            let (x, weight) = (random.floats(m * n), random.floats(n));
            let mut out = vec![f32::NAN; m * n];
            let view = RowsMut::new(&mut out, m, n);
            set.rms_norm(&workers, Rows::new(&x, m, n), &weight, 1e-5, view);
            for (x, out) in x.chunks_exact(n).zip(out.chunks_exact(n)) {
                let expected = reference::rms_norm(x, &weight, 1e-5);
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
fn silu_mul_gates() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(2);
    for (kernel, set) in runnable("elementwise") {
        for n in WIDTHS {
            let m = 1 + n % 3;
            let mut gate: Vec<f32> = random.floats(m * n).iter().map(|x| x * 20.0).collect();
            gate[0] = -200.0;
            let up = random.floats(m * n);
            let mut out = vec![f32::NAN; m * n];
            let (g, u) = (Rows::new(&gate, m, n), Rows::new(&up, m, n));
            set.silu_mul(&workers, g, u, RowsMut::new(&mut out, m, n));
            for (i, out) in out.iter().enumerate() {
                let expected = reference::silu_mul(gate[i], up[i]);
                // The power carries the rounding of its argument (|gate| * 6e-8) and 1.5e-7 of its own; four steps more.
                let bound = expected.abs() * (6e-8 * f64::from(gate[i].abs()) + 4e-7) + 1e-30;
                assert_close(*out, expected, bound, &kernel.id);
            }
        }
    }
}

#[test]
fn rope_turns_every_head_by_its_position() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(3);
    for (kernel, set) in runnable("elementwise") {
        for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
            for (head_dim, dims) in [(64, 64), (8, 8), (80, 80), (96, 24), (128, 128), (40, 34)] {
                let heads = 3;
                let frequencies: Vec<f32> = (0..dims / 2)
                    .map(|i| 10_000f32.powf(-(2.0 * i as f32) / dims as f32))
                    .collect();
                let table = RopeTable::new(head_dim, dims, &frequencies, layout, 100);
                let positions = [0, 99, 7, 7];
                let x = random.floats(4 * heads * head_dim);
                let mut out = x.clone();
                let view = RowsMut::new(&mut out, 4, heads * head_dim);
                set.rope(&workers, view, head_dim, &table, &positions);
                for (i, (x, out)) in x
                    .chunks_exact(head_dim)
                    .zip(out.chunks_exact(head_dim))
                    .enumerate()
                {
                    let position = positions[i / heads];
                    let turned = reference::rope(&x[..dims], &frequencies, layout, position);
                    for (out, expected) in out.iter().zip(turned) {
                        // Cosine and sine rounded once, two products: four roundings of at most 1.
                        assert_close(*out, expected, 4.0 * 6e-8, &kernel.id);
                    }
                    assert_eq!(bits(&out[dims..]), bits(&x[dims..]));
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
    let frequencies = random.floats(20);
    let run = |set: &KernelSet| {
        let (a, b) = (Rows::new(&x, m, n), Rows::new(&y, m, n));
        let mut outs = vec![vec![0.0; m * n]; 2];
        set.rms_norm(&workers, a, &y[..n], 1e-6, RowsMut::new(&mut outs[0], m, n));
        set.silu_mul(&workers, a, b, RowsMut::new(&mut outs[1], m, n));
        for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
            let table = RopeTable::new(n, 40, &frequencies, layout, 10);
            let mut turned = x.clone();
            let view = RowsMut::new(&mut turned, m, n);
            set.rope(&workers, view, n, &table, &[1, 2, 3, 9, 0]);
            outs.push(turned);
        }
        outs.concat()
    };
    let best = KernelSet::bind(&Selection::best()).unwrap();
    let expected = bits(&run(&best));
    for (kernel, set) in runnable("elementwise") {
        assert_eq!(bits(&run(&set)), expected, "{}", kernel.id);
    }
}

#[test]
fn no_rows_are_no_work() {
    let workers = Workers::new(2, &[]).unwrap();
    let (_, set) = runnable("elementwise").remove(0);
    let none = Rows::new(&[], 0, 8);
    set.rms_norm(&workers, none, &[1.0; 8], 1e-5, RowsMut::new(&mut [], 0, 8));
    set.silu_mul(&workers, none, none, RowsMut::new(&mut [], 0, 8));
}
