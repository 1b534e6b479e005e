//! Matrix products: error bounds, batch invariance, and the same bits on every instruction set.

use crate::support::{Random, bits, runnable};
use plinth_kernels::{Format, KernelSet, Rows, RowsMut, Workers, reference};
use plinth_platform::facts::Kernel;

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

    fn run(&self, kernels: &KernelSet, workers: &Workers) -> Vec<f32> {
        self.run_rows(kernels, workers, 0..self.m)
    }

    fn run_rows(
        &self,
        kernels: &KernelSet,
        workers: &Workers,
        rows: std::ops::Range<usize>,
    ) -> Vec<f32> {
        let w = kernels
            .pack(workers, self.format, self.n, self.k, &self.bytes)
            .unwrap();
        let x = Rows::new(&self.x, self.m, self.k).slice(rows.clone());
        let mut out = vec![f32::NAN; rows.len() * self.n];
        let view = RowsMut::new(&mut out, rows.len(), self.n);
        kernels.matmul(workers, x, &w, None, view);
        out
    }
}

fn formats(kernel: &Kernel) -> Vec<Format> {
    let formats = kernel.formats.iter();
    formats.map(|f| Format::from_name(f).unwrap()).collect()
}

/// Odd numbers of outputs and rows, and inputs of one and several blocks.
fn shapes(format: Format) -> Vec<(usize, usize, usize)> {
    let block = format.block_len();
    let mut shapes = vec![
        (1, 1, block),
        (2, 16, 2 * block),
        (3, 17, block),
        (7, 70, 3 * block),
        (19, 33, 2 * block),
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
    for (kernel, set) in runnable("matmul") {
        if kernel.id.ends_with("int8") {
            continue;
        }
        for format in formats(&kernel) {
            for (m, n, k) in shapes(format) {
                let case = Case::new(format, m, n, k, &mut random);
                let out = case.run(&set, &workers);
                let weights = case.weights();
                if k == 0 {
                    assert_eq!(out, vec![0.0; m * n]);
                    continue;
                }
                let expected = reference::matmul(&case.x, &weights, k);
                let size = reference::matmul(&magnitudes(&case.x), &magnitudes(&weights), k);
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
    for (kernel, set) in runnable("matmul") {
        if !kernel.id.ends_with("int8") {
            continue;
        }
        for format in formats(&kernel) {
            for (m, n, k) in shapes(format) {
                let mut case = Case::new(format, m, n, k, &mut random);
                for block in case.x.chunks_exact_mut(32) {
                    block.fill_with(|| (random.below(255) as f32 - 127.0) / 64.0);
                    block[random.below(32)] = 127.0 / 64.0;
                }
                let out = case.run(&set, &workers);
                let weights = case.weights();
                let expected = reference::matmul(&case.x, &weights, k);
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
    for (kernel, set) in runnable("matmul") {
        if !kernel.id.ends_with("int8") {
            continue;
        }
        for format in formats(&kernel) {
            let (m, n, k) = (3, 20, 512);
            let case = Case::new(format, m, n, k, &mut random);
            let out = case.run(&set, &workers);
            let weights = case.weights();
            let expected = reference::matmul(&case.x, &weights, k);
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
        let (m, n, k) = (21, 150, 2 * format.block_len().max(24));
        let case = Case::new(format, m, n, k, &mut random);
        for kind in ["float", "dequant", "int8"] {
            let mut first: Option<Vec<u32>> = None;
            for (kernel, set) in runnable("matmul") {
                if !kernel.id.ends_with(kind) || !formats(&kernel).contains(&format) {
                    continue;
                }
                let whole = bits(&case.run(&set, &three));
                let expected = first.get_or_insert_with(|| whole.clone());
                assert_eq!(&whole, expected, "{} {format}", kernel.id);
                let mut row = 0;
                while row < m {
                    let rows = row..m.min(row + 1 + random.below(6));
                    let part = bits(&case.run_rows(&set, &alone, rows.clone()));
                    let expected = &whole[rows.start * n..rows.end * n];
                    assert_eq!(part, expected, "{} {format} rows {rows:?}", kernel.id);
                    row = rows.end;
                }
            }
        }
    }
}

#[test]
fn bias_and_residual_are_added_once() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(5);
    for (kernel, set) in runnable("matmul") {
        for format in formats(&kernel) {
            let (m, n, k) = (3, 37, format.block_len().max(9));
            let case = Case::new(format, m, n, k, &mut random);
            let plain = case.run(&set, &workers);
            let (bias, before) = (random.floats(n), random.floats(m * n));
            let w = set.pack(&workers, format, n, k, &case.bytes).unwrap();
            let x = Rows::new(&case.x, m, k);
            let mut out = before.clone();
            set.matmul_add(&workers, x, &w, Some(&bias), RowsMut::new(&mut out, m, n));
            for (i, out) in out.iter().enumerate() {
                assert_eq!(*out, before[i] + (plain[i] + bias[i % n]), "{}", kernel.id);
            }
        }
    }
}

#[test]
fn strided_views_are_read_and_written_within_their_columns() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(6);
    let (m, n, k) = (5, 18, 32);
    for (kernel, set) in runnable("matmul") {
        let format = formats(&kernel)[0];
        let case = Case::new(format, m, n, k, &mut random);
        let dense = case.run(&set, &workers);
        let w = set.pack(&workers, format, n, k, &case.bytes).unwrap();
        let (x_stride, out_stride) = (k + 3, n + 7);
        let mut x = vec![f32::NAN; m * x_stride];
        for row in 0..m {
            x[row * x_stride..][..k].copy_from_slice(&case.x[row * k..][..k]);
        }
        let mut out = vec![7.0; m * out_stride];
        let view = RowsMut::with_stride(&mut out, m, n, out_stride);
        let x = Rows::with_stride(&x, m, k, x_stride);
        set.matmul(&workers, x, &w, None, view);
        for row in out.chunks_exact(out_stride).zip(dense.chunks_exact(n)) {
            assert_eq!(bits(&row.0[..n]), bits(row.1), "{}", kernel.id);
            assert_eq!(row.0[n..], [7.0; 7]);
        }
    }
}

#[test]
fn an_embedded_row_is_the_dequantised_row() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(7);
    let (_, set) = runnable("elementwise").remove(0);
    for format in Format::ALL {
        let (n, k) = (37, 2 * format.block_len());
        let case = Case::new(format, 0, n, k, &mut random);
        let weights = case.weights();
        let Ok(w) = set.pack(&workers, format, n, k, &case.bytes) else {
            panic!("{format} has a kernel");
        };
        let tokens = [36, 0, 16, 15, 0];
        let mut out = vec![0.0; tokens.len() * k];
        set.embed(&w, &tokens, RowsMut::new(&mut out, tokens.len(), k));
        for (row, token) in out.chunks_exact(k).zip(tokens) {
            let expected = &weights[token as usize * k..][..k];
            assert_eq!(bits(row), bits(expected), "{format} token {token}");
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
    let empty = set.pack(&workers, Format::Q4_1, 0, 32, &[]).unwrap();
    set.matmul(
        &workers,
        Rows::new(&[0.0; 32], 1, 32),
        &empty,
        None,
        RowsMut::new(&mut [], 1, 0),
    );
}

fn magnitudes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}
