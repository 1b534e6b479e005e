//! Every kernel of the catalogue that this CPU can run, through the public interface, against `reference`.

mod attention;
mod elementwise;
mod linear;
mod logits;
mod matmul;
mod nodes;
mod steps;
mod support;

use std::io::Write;

/// A skipped check is reported, not green: written past the test harness, which would swallow it.
#[test]
fn the_instruction_sets_that_really_run_are_reported() {
    let (run, skipped): (Vec<_>, Vec<_>) = plinth_kernels::catalog()
        .into_iter()
        .partition(|kernel| support::bind(kernel).is_ok());
    let ids = |kernels: Vec<plinth_platform::facts::Kernel>| {
        let ids = kernels.into_iter().map(|kernel| kernel.id);
        ids.collect::<Vec<_>>().join(" ")
    };
    let report = format!(
        "kernels that ran on this cpu: {}\nkernels that did not: {}\n",
        ids(run),
        ids(skipped)
    );
    std::io::stderr().write_all(report.as_bytes()).unwrap();
}
