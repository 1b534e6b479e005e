//! Matrix products: error bounds, batch invariance, and the same bits on every instruction set.

use crate::support::{Besides, Random, bits, formats, multiply, products, runnable};
use plinth_kernels::{Format, KernelSet, MANY_ROWS, Matrix, Selection, Workers, reference};
use std::ops::Range;
use std::sync::Arc;

/// Half the distance from 1 to the next `f32`: the relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

struct Case {
    format: Format,
    m: usize,
    n: usize,
    k: usize,
    x: Vec<f32>,
    bytes: Vec<u8>,
}

impl Case {
    fn new(format: Format, m: usize, n: usize, k: usize, random: &mut Random) -> Self {
        Self {
            format,
            m,
            n,
            k,
            x: random.floats(m * k),
            bytes: random.weights(format, n, k),
        }
    }

    fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.n * self.k];
        self.format.dequantize(&self.bytes, &mut weights);
        weights
    }

    fn pack(&self, set: &KernelSet, workers: &Workers) -> Arc<Matrix> {
        let w = set.pack(workers, self.format, self.n, self.k, &self.bytes);
        Arc::new(w.unwrap())
    }

    fn run(&self, set: &KernelSet, workers: &Workers) -> Vec<f32> {
        self.run_rows(set, workers, 0..self.m)
    }

    fn run_rows(&self, set: &KernelSet, workers: &Workers, rows: Range<usize>) -> Vec<f32> {
        let x = &self.x[rows.start * self.k..rows.end * self.k];
        let w = self.pack(set, workers);
        multiply(set, workers, (x, rows.len()), &w, &Besides::default())
    }

    /// Every output in double precision, and the sum of magnitudes that it is made of.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let weights = self.weights();
        if self.k == 0 {
            return (vec![0.0; self.m * self.n], vec![0.0; self.m * self.n]);
        }
        let magnitudes = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x.abs()).collect() };
        (
            reference::matmul(&self.x, &weights, self.k),
            reference::matmul(&magnitudes(&self.x), &magnitudes(&weights), self.k),
        )
    }
}

/// Odd numbers of outputs and rows, and inputs of one and several blocks.
fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
    let block = format.block_len();
    let mut shapes = vec![
        (1, 1, block),
        (2, 16, 2 * block),
        (3, 17, block),
        (7, 70, 3 * block),
        (12, 18, block),
        (19, 33, 2 * block),
        (40, 49, block),
    ];
    if format.is_float() {
        shapes.extend([(1, 5, 0), (1, 130, 7), (9, 40, 67), (16, 16, 16)]);
    }
    shapes
}

#[test]
fn float_kernels_stay_within_the_rounding_of_a_chain() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    for (kernel, set) in products(&["float", "dequant"]) {
        for format in formats(&kernel) {
            for (m, n, k) in shapes(format) {
                let case = Case::new(format, m, n, k, &mut random);
                let out = case.run(&set, &workers);
                let (expected, size) = case.expected();
                for (i, out) in out.iter().enumerate() {
                    // k fused multiply-adds, each rounded once (Higham, "Accuracy and Stability", section 3.1).
                    let bound = (k + 1) as f64 * ROUNDING * size[i];
                    let error = (f64::from(*out) - expected[i]).abs();
                    assert!(
                        error <= bound,
                        "{} {format} {m}x{n}x{k} at {i}: {error} > {bound}",
                        kernel.id
                    );
                }
            }
        }
    }
}

/// With activations that 8 bits hold exactly, only the float steps are left to be rounded.
#[test]
fn int8_kernels_are_exact_but_for_rounding() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(2);
    for (kernel, set) in products(&["int8"]) {
        for format in formats(&kernel) {
            for (m, n, k) in shapes(format) {
                let mut case = Case::new(format, m, n, k, &mut random);
                for block in case.x.chunks_exact_mut(32) {
                    block.fill_with(|| (random.below(255) as f32 - 127.0) / 64.0);
                    block[random.below(32)] = 127.0 / 64.0;
                }
                let out = case.run(&set, &workers);
                let weights = case.weights();
                let (expected, _) = case.expected();
                for (i, out) in out.iter().enumerate() {
                    let x = &case.x[i / n * k..][..k];
                    let w = &weights[i % n * k..][..k];
                    let largest = w.iter().fold(0.0f32, |a, w| a.max(w.abs()));
                    let sum: f32 = x.iter().map(|x| x.abs()).sum();
                    // Five roundings for 32 inputs (16 in Q2_K, Q3_K and Q6_K), of terms up to four times the largest weight (the
                    // offset of the integers is at most that far off).
                    let steps = (5 * k / 16 + 1) as f64;
                    let bound = steps * ROUNDING * f64::from(4.0 * largest * sum);
                    let error = (f64::from(*out) - expected[i]).abs();
                    assert!(
                        error <= bound,
                        "{} {format} {m}x{n}x{k} at {i}: {out}, expected {}: {error} > {bound}",
                        kernel.id,
                        expected[i]
                    );
                }
            }
        }
    }
}

#[test]
fn int8_kernels_lose_at_most_half_a_step_of_the_activations() {
    let workers = Workers::new(1, &[]).unwrap();
    let mut random = Random::new(3);
    for (kernel, set) in products(&["int8"]) {
        for format in formats(&kernel) {
            let (m, n, k) = (3, 20, 512);
            let case = Case::new(format, m, n, k, &mut random);
            let out = case.run(&set, &workers);
            let weights = case.weights();
            let (expected, _) = case.expected();
            for (i, out) in out.iter().enumerate() {
                let x = case.x[i / n * k..][..k].chunks_exact(32);
                let w = weights[i % n * k..][..k].chunks_exact(32);
                let bound: f32 = x
                    .zip(w)
                    .map(|(x, w)| {
                        let step = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                        step * 0.501 * w.iter().map(|w| w.abs()).sum::<f32>()
                    })
                    .sum();
                let error = (f64::from(*out) - expected[i]).abs();
                assert!(
                    error <= f64::from(bound) * 1.01,
                    "{} {format} at {i}: {error} > {bound}",
                    kernel.id
                );
            }
        }
    }
}

/// A row's bits do not depend on its batch, the number of workers or the instruction set.
#[test]
fn every_row_has_the_same_bits_in_any_batch_on_any_instruction_set() {
    let alone = Workers::new(1, &[]).unwrap();
    let three = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(4);
    for format in Format::ALL {
        let (m, n, k) = (37, 150, 2 * format.block_len().max(24));
        let case = Case::new(format, m, n, k, &mut random);
        for kind in ["float", "dequant", "int8"] {
            let mut first: Option<Vec<u32>> = None;
            for (kernel, set) in products(&[kind]) {
                if !formats(&kernel).contains(&format) {
                    continue;
                }
                let whole = bits(&case.run(&set, &three));
                let expected = first.get_or_insert_with(|| whole.clone());
                assert_eq!(&whole, expected, "{} {format}", kernel.id);
                let mut row = 0;
                while row < m {
                    let rows = row..m.min(row + 1 + random.below(20));
                    let part = bits(&case.run_rows(&set, &alone, rows.clone()));
                    let expected = &whole[rows.start * n..rows.end * n];
                    assert_eq!(part, expected, "{} {format} rows {rows:?}", kernel.id);
                    row = rows.end;
                }
            }
        }
    }
}

/// Activations to `bf16`, and weights that are not: `2^-8` for either. Then `k` sums, each of which rounds or cuts.
#[test]
fn bf16_kernels_stay_within_the_rounding_of_their_operands() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(8);
    for (kernel, set) in products(&["bf16"]) {
        for format in formats(&kernel) {
            let product = if format == Format::BF16 {
                1.0 / 256.0
            } else {
                2f64.powf(-6.99)
            };
            let block = format.block_len();
            let mut shapes = vec![
                (12, 1, block),
                (13, 17, block),
                (16, 33, 2 * block),
                (17, 70, 3 * block),
                (33, 31, block),
                (48, 65, 2 * block),
                (70, 49, block),
            ];
            if format.is_float() {
                shapes.extend([
                    (12, 5, 0),
                    (12, 130, 7),
                    (31, 40, 67),
                    (64, 16, 96),
                    (15, 35, 33),
                ]);
            }
            for (m, n, k) in shapes {
                let case = Case::new(format, m, n, k, &mut random);
                let out = case.run(&set, &workers);
                let (expected, size) = case.expected();
                for (i, out) in out.iter().enumerate() {
                    let bound = (product + 2.0 * k as f64 * ROUNDING) * size[i];
                    let error = (f64::from(*out) - expected[i]).abs();
                    assert!(
                        error <= bound,
                        "{} {format} {m}x{n}x{k} at {i}: {error} > {bound}",
                        kernel.id
                    );
                }
            }
        }
    }
}

/// Half a step for each weight and each activation, where both are brought to 8 bits. A step of the
/// weights is 1/255 of what the scales of their blocks allow, taken here for at most twice what the weights need.
#[test]
fn span_kernels_stay_within_half_a_step_of_their_operands() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(11);
    for (kernel, set) in products(&["int8-span"]) {
        for format in formats(&kernel) {
            let block = format.block_len();
            for (m, n, k) in [(12, 17, block), (33, 50, 2 * block), (70, 35, 3 * block)] {
                let case = Case::new(format, m, n, k, &mut random);
                let out = case.run(&set, &workers);
                let weights = case.weights();
                let (expected, _) = case.expected();
                for (i, out) in out.iter().enumerate() {
                    let x = case.x[i / n * k..][..k].chunks(256);
                    let w = weights[i % n * k..][..k].chunks(256);
                    let bound: f32 = x
                        .zip(w)
                        .map(|(x, w)| {
                            let largest = |x: &[f32]| x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                            let (x_step, w_step) = (largest(x) / 127.0, 4.0 * largest(w) / 255.0);
                            let size = |x: &[f32]| x.iter().map(|x| x.abs()).sum::<f32>();
                            let steps = x.len() as f32 * x_step * w_step;
                            0.501 * (size(x) * w_step + size(w) * x_step + 0.5 * steps)
                        })
                        .sum();
                    let error = (f64::from(*out) - expected[i]).abs();
                    assert!(
                        error <= f64::from(bound) * 1.01,
                        "{} {format} {m}x{n}x{k} at {i}: {error} > {bound}",
                        kernel.id
                    );
                }
            }
        }
    }
}

/// Not the bits of the kernel for few rows, but among many the same in any company.
#[test]
fn a_row_among_many_has_the_same_bits_in_any_batch_of_many() {
    let alone = Workers::new(1, &[]).unwrap();
    let three = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(9);
    for (kernel, set) in products(&["bf16", "int8-span"]) {
        for format in formats(&kernel) {
            let (m, n, k) = (70, 150, 2 * format.block_len().max(24));
            let case = Case::new(format, m, n, k, &mut random);
            let whole = bits(&case.run(&set, &three));
            for _ in 0..6 {
                let rows = MANY_ROWS + random.below(m - MANY_ROWS);
                let first = random.below(m - rows + 1);
                let part = bits(&case.run_rows(&set, &alone, first..first + rows));
                let expected = &whole[first * n..(first + rows) * n];
                assert_eq!(part, expected, "{} {format} {rows} from {first}", kernel.id);
            }
        }
    }
}

#[test]
fn many_rows_begin_where_they_are_said_to() {
    let workers = Workers::new(1, &[]).unwrap();
    let mut random = Random::new(10);
    for (kernel, set) in products(&["bf16", "int8-span"]) {
        let format = formats(&kernel)[0];
        let case = Case::new(format, MANY_ROWS, 40, 96, &mut random);
        let many = case.run(&set, &workers);
        let few_only = Selection {
            matmul_many: Vec::new(),
            ..Selection::best()
        };
        let few_only = case.run(&KernelSet::bind(&few_only).unwrap(), &workers);
        assert_ne!(
            bits(&many),
            bits(&few_only),
            "{}: it does not run",
            kernel.id
        );
        let n = (MANY_ROWS - 1) * case.n;
        let fewer = case.run_rows(&set, &workers, 0..MANY_ROWS - 1);
        assert_eq!(bits(&fewer), bits(&few_only[..n]));
    }
}

#[test]
fn bias_and_residual_are_added_once() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(5);
    for (kernel, set) in runnable("matmul") {
        for format in formats(&kernel) {
            for m in [3, 21] {
                let (n, k) = (37, format.block_len().max(9));
                let case = Case::new(format, m, n, k, &mut random);
                let plain = case.run(&set, &workers);
                let (bias, before) = (random.floats(n), random.floats(m * n));
                let w = case.pack(&set, &workers);
                let run = |besides| multiply(&set, &workers, (&case.x, m), &w, &besides);
                let biased = run(Besides {
                    bias: Some(&bias),
                    ..Besides::default()
                });
                let added = run(Besides {
                    bias: Some(&bias),
                    add_to: Some(&before),
                    ..Besides::default()
                });
                for i in 0..m * n {
                    let sum = plain[i] + bias[i % n];
                    assert_eq!(biased[i], sum, "{} {format}", kernel.id);
                    assert_eq!(added[i], before[i] + sum, "{} {format}", kernel.id);
                }
            }
        }
    }
}

#[test]
fn a_matrix_of_the_wrong_size_is_refused() {
    let workers = Workers::new(1, &[]).unwrap();
    let (_, set) = runnable("elementwise").remove(0);
    let refused = |rows, cols, len| {
        let bytes = vec![0; len];
        let result = set.pack(&workers, Format::Q4_1, rows, cols, &bytes);
        result.unwrap_err().to_string()
    };
    assert_eq!(
        refused(2, 32, 39),
        "2 rows of 32 q4_1 elements are Some(40) bytes, found 39"
    );
    assert!(refused(2, 33, 40).contains("None bytes"));
    assert!(refused(usize::MAX, 64, 40).contains("None bytes"));
}

#[test]
fn a_matrix_without_outputs_makes_none() {
    let workers = Workers::new(2, &[]).unwrap();
    let (_, set) = runnable("elementwise").remove(0);
    let empty = Arc::new(set.pack(&workers, Format::Q4_1, 0, 32, &[]).unwrap());
    for m in [1, 12, 40] {
        let x = vec![1.0; m * 32];
        let out = multiply(&set, &workers, (&x, m), &empty, &Besides::default());
        assert!(out.is_empty());
    }
}

#[test]
fn a_format_without_a_kernel_is_refused() {
    let workers = Workers::new(1, &[]).unwrap();
    let mut selection = Selection::best();
    selection.matmul.retain(|(format, _)| format != "q4_1");
    let set = KernelSet::bind(&selection).unwrap();
    let refused = set.pack(&workers, Format::Q4_1, 1, 32, &[0; 20]);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "no matmul kernel was chosen for q4_1; the plan must name one for every format of the model"
    );
}
