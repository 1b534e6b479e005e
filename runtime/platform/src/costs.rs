//! From how many rows on one kernel is faster than another, out of measured costs.

use crate::facts::MatmulCost;
use std::collections::BTreeMap;

/// What the costs of two kernels of one format say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The kernel for many rows is the faster from this number of rows on.
    From {
        /// At least 1.
        rows: u32,
        /// The figures.
        why: String,
    },
    /// It is not, at the most rows that were measured.
    Never {
        /// The figures.
        why: String,
    },
}

/// Costs of few and of many, by outputs and inputs.
type ByShape = BTreeMap<(u32, u32), (f64, f64)>;

/// Compares the kernels `few` and `many`; `None` where no product was measured with both.
///
/// Shapes that were measured with both, at every number of rows, are added up. Between two numbers of rows that were measured the costs are taken
/// for straight lines.
pub(crate) fn compare(
    costs: &[MatmulCost],
    format: &str,
    few: &str,
    many: &str,
) -> Option<Verdict> {
    let of = |kernel: &str| -> BTreeMap<(u32, u32, u32), f64> {
        let of_kernel = costs
            .iter()
            .filter(|cost| cost.kernel == kernel && cost.format == format);
        of_kernel
            .map(|cost| ((cost.tokens, cost.outputs, cost.inputs), cost.us))
            .collect()
    };
    let of_many = of(many);
    // By number of rows and shape: the cost of few and that of many.
    let mut both: BTreeMap<u32, ByShape> = BTreeMap::new();
    for ((rows, outputs, inputs), us) in of(few) {
        if let Some(other) = of_many.get(&(rows, outputs, inputs)) {
            let shapes = both.entry(rows).or_default();
            shapes.insert((outputs, inputs), (us, *other));
        }
    }
    // A shape that took too long to be measured at many rows is left out at few as well: sums over other shapes do not
    // compare.
    let shapes: Vec<(u32, u32)> = both.first_key_value()?.1.keys().copied().collect();
    let everywhere = |shape: &&(u32, u32)| both.values().all(|found| found.contains_key(*shape));
    let shapes: Vec<_> = shapes.iter().filter(everywhere).collect();
    if shapes.is_empty() {
        return None;
    }
    let sum_of = |found: &ByShape| {
        shapes.iter().fold((0.0, 0.0), |sum, shape| {
            let (few, many) = found[*shape];
            (sum.0 + few, sum.1 + many)
        })
    };
    let sums: BTreeMap<u32, (f64, f64)> = (both.iter())
        .map(|(rows, found)| (*rows, sum_of(found)))
        .collect();
    let &last = sums.last_key_value()?.0;
    let figures = |rows: u32| {
        let (few, many) = sums[&rows];
        format!("{many:.0} µs against {few:.0} µs at {rows} rows")
    };
    let slower = sums.iter().rev().find(|(_, (few, many))| many > few);
    let Some((&before, (few, many))) = slower else {
        let &first = sums.first_key_value()?.0;
        let why = figures(first);
        return Some(Verdict::From { rows: first, why });
    };
    if before == last {
        let why = figures(last);
        return Some(Verdict::Never { why });
    }
    let (&after, (few_after, many_after)) = sums.range(before + 1..).next()?;
    let (lead, lag) = (few_after - many_after, many - few);
    let rows = f64::from(after - before) * lag / (lag + lead);
    Some(Verdict::From {
        rows: before + (rows.ceil() as u32).clamp(1, after - before),
        why: format!("{}, {}", figures(before), figures(after)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(few: &[(u32, f64)], many: &[(u32, f64)]) -> Vec<MatmulCost> {
        let cost = |kernel: &str, &(tokens, us): &(u32, f64)| MatmulCost {
            kernel: kernel.to_owned(),
            format: "q4_1".to_owned(),
            outputs: 64,
            inputs: 32,
            weight_bytes: 1280,
            tokens,
            us,
        };
        let few = few.iter().map(|at| cost("few", at));
        few.chain(many.iter().map(|at| cost("many", at))).collect()
    }

    fn verdict(few: &[(u32, f64)], many: &[(u32, f64)]) -> Option<Verdict> {
        compare(&costs(few, many), "q4_1", "few", "many")
    }

    fn from(few: &[(u32, f64)], many: &[(u32, f64)]) -> u32 {
        match verdict(few, many) {
            Some(Verdict::From { rows, .. }) => rows,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_cross_where_they_do() {
        // At 8 rows it is 20 behind, at 16 rows 60 ahead: a quarter of the way.
        assert_eq!(
            from(&[(8, 80.0), (16, 160.0)], &[(8, 100.0), (16, 100.0)]),
            10
        );
        // Just ahead at the second: there, and not before.
        assert_eq!(
            from(&[(8, 80.0), (16, 100.0)], &[(8, 100.0), (16, 100.0)]),
            16
        );
        assert_eq!(from(&[(1, 5.0), (8, 80.0)], &[(1, 4.0), (8, 10.0)]), 1);
    }

    #[test]
    fn what_comes_after_the_last_defeat_counts() {
        let few = [(1, 10.0), (8, 10.0), (32, 40.0)];
        assert_eq!(from(&few, &[(1, 5.0), (8, 20.0), (32, 30.0)]), 20);
    }

    #[test]
    fn a_shape_that_is_not_measured_everywhere_counts_nowhere() {
        let mut costs = costs(&[(8, 10.0), (16, 20.0)], &[(8, 20.0), (16, 10.0)]);
        let alone = compare(&costs, "q4_1", "few", "many");
        for (kernel, us) in [("few", 1000.0), ("many", 1.0)] {
            costs.push(MatmulCost {
                kernel: kernel.to_owned(),
                outputs: 4096,
                us,
                ..costs[0].clone()
            });
        }
        assert_eq!(compare(&costs, "q4_1", "few", "many"), alone);
    }

    #[test]
    fn a_kernel_that_is_never_faster_is_told() {
        let never = verdict(&[(8, 1.0), (32, 4.0)], &[(8, 2.0), (32, 5.0)]);
        let why = "5 µs against 4 µs at 32 rows".to_owned();
        assert_eq!(never, Some(Verdict::Never { why }));
    }

    #[test]
    fn without_products_of_both_there_is_nothing_to_say() {
        assert_eq!(verdict(&[(8, 1.0)], &[]), None);
        assert_eq!(verdict(&[(8, 1.0)], &[(16, 1.0)]), None);
        let both = costs(&[(8, 1.0)], &[(8, 1.0)]);
        assert_eq!(compare(&both, "q8_0", "few", "many"), None);
    }
}
