//! How long something takes: the fastest of several runs, or the median of as many as there is time for.

use std::time::{Duration, Instant};

/// Seconds of one run.
pub fn seconds(run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    begin.elapsed().as_secs_f64()
}

/// Seconds of the fastest of `runs`, after one that is not counted.
pub fn fastest(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    let all = (0..runs.max(1)).map(|_| seconds(&mut run));
    all.fold(f64::INFINITY, f64::min)
}

/// The middle of some seconds.
///
/// **Panics** if there are none.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Median of as many runs as fit into `time`, at least one and at most 1,000, after one that is not counted.
pub fn median_of(time: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut times = vec![seconds(&mut run)];
    while begin.elapsed() < time && times.len() < 1000 {
        times.push(seconds(&mut run));
    }
    median(times)
}

/// Repetitions of a piece of work that take about two milliseconds, found by doubling.
pub fn repetitions(mut run: impl FnMut(usize)) -> usize {
    let mut repetitions = 16;
    while seconds(|| run(repetitions)) < 1e-3 && repetitions < 1 << 30 {
        repetitions *= 2;
    }
    repetitions * 2
}
