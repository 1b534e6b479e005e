//! What samplers ask of logits against plain loops, on every instruction set: odd lengths, ties, infinities, and what is
//! not a number.

use crate::support::{Random, runnable};
use plinth_kernels::{KernelSet, Largest};

const LENGTHS: [usize; 10] = [1, 2, 15, 16, 17, 31, 64, 300, 4097, 49_153];

/// What the engine did before: the first of the largest; nothing, if something is not a number.
fn largest(x: &[f32]) -> Option<Largest> {
    let mut best: Option<Largest> = None;
    for (index, &value) in x.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if best.is_none_or(|best| value > best.value) {
            best = Some(Largest { index, value });
        }
    }
    best
}

#[test]
fn the_largest_is_the_first_of_equals() {
    let mut random = Random::new(1);
    for (kernel, set) in runnable("elementwise") {
        let check = |x: &[f32], what: &str| {
            let (found, want) = (set.largest(x), largest(x));
            let bits = |l: Option<Largest>| l.map(|l| (l.index, l.value.to_bits()));
            assert_eq!(bits(found), bits(want), "{} {} {what}", kernel.id, x.len());
        };
        check(&[], "nothing");
        for n in LENGTHS {
            // Few different values: many ties.
            let x: Vec<f32> = random.floats(n).iter().map(|x| (x * 4.0).round()).collect();
            check(&x, "ties");
            check(&random.floats(n), "any");
            check(&vec![-3.5; n], "all equal");
            check(&vec![f32::NEG_INFINITY; n], "minus infinity");
            for place in [0, n / 3, n - 1] {
                for strange in [
                    f32::INFINITY,
                    f32::NEG_INFINITY,
                    f32::NAN,
                    -f32::NAN,
                    -0.0,
                    0.0,
                    f32::MAX,
                    f32::from_bits(1),
                ] {
                    let mut y = x.clone();
                    y[place] = strange;
                    check(&y, "one strange");
                    let mut y = vec![-1e30; n];
                    y[place] = strange;
                    check(&y, "one other");
                    let mut y = vec![f32::NEG_INFINITY; n];
                    y[place] = strange;
                    check(&y, "one above minus infinity");
                    let mut y = vec![-0.0; n];
                    y[place] = strange;
                    check(&y, "one and zeros");
                }
            }
        }
    }
}

#[test]
fn exponentials_are_summed_within_the_stated_error() {
    let mut random = Random::new(2);
    let mut bits: Option<Vec<u64>> = None;
    let rows: Vec<Vec<f32>> = LENGTHS
        .into_iter()
        .flat_map(|n| [1.0, 10.0].map(|size| (n, size)))
        .map(|(n, size)| {
            let mut x: Vec<f32> = random.floats(n).iter().map(|x| x * size).collect();
            x[n / 2] = f32::NEG_INFINITY;
            x[0] = size;
            x
        })
        .collect();
    for (kernel, set) in runnable("elementwise") {
        let mut found = Vec::new();
        for x in &rows {
            let largest = x[0];
            for rate in [1.0, 0.25, 1.25] {
                let below = largest - 3.0;
                let all = f32::NEG_INFINITY..f32::INFINITY;
                for values in [all, f32::NEG_INFINITY..below, below..largest] {
                    let sum = set.sum_exp(x, (largest, rate), values.clone());
                    let exact: f64 = x
                        .iter()
                        .filter(|x| values.contains(*x))
                        .map(|x| (f64::from(x - largest) * f64::from(rate)).exp())
                        .sum();
                    // Exponents are down to -25.
                    let bound = (1.4e-6 + 25.0 * 1.8e-7) * exact;
                    assert!(
                        (sum - exact).abs() <= bound,
                        "{} {}: {sum}, {exact}",
                        kernel.id,
                        x.len()
                    );
                    found.push(sum.to_bits());
                }
            }
        }
        let bits = bits.get_or_insert_with(|| found.clone());
        assert_eq!(&found, bits, "{}", kernel.id);
    }
}

#[test]
fn numbers_within_are_found_in_order() {
    let mut random = Random::new(3);
    let check = |set: &KernelSet, x: &[f32], values: std::ops::Range<f32>| {
        let within = |x: f32| values.contains(&x) && x > f32::NEG_INFINITY;
        let want: Vec<u32> = (0..)
            .zip(x)
            .filter(|(_, x)| within(**x))
            .map(|(i, _)| i)
            .collect();
        assert_eq!(set.find_within(x, values), want);
    };
    for (_, set) in runnable("elementwise") {
        for n in LENGTHS {
            let mut x: Vec<f32> = random.floats(n).iter().map(|x| (x * 9.0).round()).collect();
            x[n / 2] = f32::NEG_INFINITY;
            x[n - 1] = f32::NAN;
            x[n / 3] = f32::INFINITY;
            for start in [f32::NEG_INFINITY, -100.0, -0.0, 0.0, 5.0, 8.0, 100.0] {
                check(&set, &x, start..f32::INFINITY);
                check(&set, &x, start..7.0);
            }
        }
    }
}
