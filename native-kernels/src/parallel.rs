//! Work on disjoint parts of an output by several threads.

use crate::tensor::RowsMut;
use crate::workers::Workers;
use std::ops::Range;
use std::sync::Mutex;

/// Calls `f(columns, part)` for the output's columns in runs of `width`, each with all rows.
pub(crate) fn for_columns(
    workers: &Workers,
    out: RowsMut<'_>,
    width: usize,
    f: impl Fn(Range<usize>, RowsMut<'_>) + Sync,
) {
    let cols = out.cols();
    workers.run(cols.div_ceil(width), &|chunk, _| {
        let columns = chunk * width..cols.min((chunk + 1) * width);
        // SAFETY: every chunk runs once and has columns of its own; `out` is not used but for parts.
        let part = unsafe { out.part(0..out.rows(), columns.clone()) };
        f(columns, part);
    });
}

/// Calls `f(rows, part)` for the output's rows in runs of `height`.
pub(crate) fn for_rows(
    workers: &Workers,
    out: RowsMut<'_>,
    height: usize,
    f: impl Fn(Range<usize>, RowsMut<'_>) + Sync,
) {
    let count = out.rows();
    workers.run(count.div_ceil(height), &|chunk, _| {
        let rows = chunk * height..count.min((chunk + 1) * height);
        // SAFETY: every chunk runs once and has rows of its own; `out` is not used but for parts.
        let part = unsafe { out.part(rows.clone(), 0..out.cols()) };
        f(rows, part);
    });
}

/// Calls `f(index, piece)` for the pieces of `len` elements that a slice consists of; the last may be shorter.
pub(crate) fn for_pieces<T: Send>(
    workers: &Workers,
    slice: &mut [T],
    len: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if slice.len() <= len || workers.len() == 1 {
        return slice
            .chunks_mut(len)
            .enumerate()
            .for_each(|(i, piece)| f(i, piece));
    }
    let pieces: Vec<_> = slice
        .chunks_mut(len)
        .map(|piece| Mutex::new(Some(piece)))
        .collect();
    workers.run(pieces.len(), &|chunk, _| {
        let piece = pieces[chunk].lock().expect("locked once").take();
        f(chunk, piece.expect("every chunk runs once"));
    });
}

/// Rows for one chunk when `rows` of `cost` bytes each are spread over the workers: a few chunks for each worker, each
/// worth dispatching.
pub(crate) fn rows_per_chunk(workers: &Workers, rows: usize, cost: usize) -> usize {
    /// Work over fewer bytes ends before another thread has seen it. Measured: 0.3 µs for a dispatch, 10 bytes and more
    /// a nanosecond.
    const WORTH: usize = 16 << 10;
    let spread = rows.div_ceil(4 * workers.len());
    spread.max(WORTH / cost.max(1)).max(1)
}
