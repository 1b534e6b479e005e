//! What the sandbox costs: calls, instances, loads. Medians of many; `cargo bench -p plinth-host`.
//!
//! The clock and the interruption checks of guests are on, as in service.

#[path = "../tests/all/guests.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod guests;

use plinth_host::{Host, HostOptions};
use plinth_platform::policy::Platform;
use plinth_platform::resolve::{Wishes, resolve};
use std::time::{Duration, Instant};

/// Prints the median and the 99th percentile of `times` runs of `work`, in batches of `batch`.
fn measure<T>(what: &str, times: usize, batch: u32, mut work: impl FnMut() -> T) {
    let mut taken: Vec<Duration> = (0..times)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..batch {
                std::hint::black_box(work());
            }
            started.elapsed() / batch
        })
        .collect();
    taken.sort();
    let (median, late) = (taken[times / 2], taken[times * 99 / 100]);
    println!("{what:<58} {median:>12.2?} median {late:>12.2?} p99");
}

fn main() {
    let component = guests::component("cpu");
    let host = guests::host();
    let load = || host.load_bytes("cpu", &component).expect("it loads");
    let (facts, mut guest) = (guests::facts(), load());

    measure(
        "a call with a small answer (batch-defaults)",
        1000,
        100,
        || guest.batch_defaults(&facts, "llm", 1),
    );
    measure(
        "a call with all facts of a machine (probe)",
        1000,
        10,
        || guest.probe(&facts),
    );
    let query = guests::attention();
    measure(
        "a question about facts that it knows (select-attention)",
        1000,
        10,
        || guest.select_attention(&facts, &query),
    );
    measure("an instance", 1000, 10, || guest.restart());
    measure(
        "a load from the cache (read, MAC verified, linked)",
        100,
        1,
        load,
    );
    let uncached = Host::new(&HostOptions::default()).expect("WebAssembly runs here");
    measure("a load without a cache (compiled)", 5, 1, || {
        uncached.load_bytes("cpu", &component).is_ok()
    });
    let (mut registry, model) = (guests::registry(), guests::model());
    measure("a plan (two guests, loaded)", 100, 1, || {
        resolve(&mut registry, &facts, &model, &Wishes::default()).is_ok()
    });

    let mut hostile = guests::hostile();
    for attack in ["loop", "loop-of-logs", "grow", "recurse", "long-answer"] {
        let facts = guests::facts_with_attack(attack);
        measure(&format!("an attack, ended: {attack}"), 20, 1, || {
            hostile.probe(&facts).is_err()
        });
    }
}
