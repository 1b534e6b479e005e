//! Work on disjoint parts of an output by several threads.

use crate::workers::Workers;
use std::sync::Mutex;

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
