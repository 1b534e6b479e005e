//! Work on disjoint parts of an output by several threads.

use crate::workers::Workers;
use std::sync::Mutex;

/// Calls `f(first, piece)` for runs of `size` panels of `panel` bytes that a packed matrix consists of, `first` being the
/// number of the run's first panel. Each run is written on the node whose workers will read it ([`Nodes::panels`]), and
/// whole: memory that nobody has touched lies where it is written first.
///
/// That is all that binds it. The alternative, to bind each part of the memory by a call, does less: it needs a part that
/// ends with a page, makes a mapping of each part (a mixture of experts has tens of thousands, and a system allows
/// 65,530), so that no huge page reaches over two, overrules whoever has said how the process shall use its nodes, and is
/// refused where the process may not use one. The first touch asks for nothing: where a node is full or forbidden, the
/// system takes another. A huge page that two nodes share lies where the first of them touched it; so a matrix shorter
/// than that is on one node as a whole.
///
/// [`Nodes::panels`]: crate::workers::Nodes::panels
pub(crate) fn for_panels(
    workers: &Workers,
    slice: &mut [u8],
    (panel, size): (usize, usize),
    f: impl Fn(usize, &mut [u8]) + Sync,
) {
    let panels = slice.len() / panel;
    if panels <= size || workers.len() == 1 {
        return f(0, slice);
    }
    let nodes = workers.nodes();
    let (mut runs, mut ends) = (Vec::new(), Vec::new());
    let mut rest = slice;
    for node in 0..nodes.len() {
        let share = nodes.panels(panels, node);
        let (mine, others) = rest.split_at_mut(share.len() * panel);
        rest = others;
        let firsts = share.step_by(size);
        let pieces = firsts.zip(mine.chunks_mut(size * panel));
        runs.extend(pieces.map(|run| Mutex::new(Some(run))));
        ends.push(u32::try_from(runs.len()).expect("memory has fewer than 2^30 runs"));
    }
    workers.run_at_home(&ends, &|chunk, _| {
        let run = runs[chunk].lock().expect("locked once").take();
        let (first, piece) = run.expect("every chunk runs once");
        f(first, piece);
    });
}

/// Calls `f(offset, piece)` for pieces of `size` bytes that panels consist of; the last may be shorter. Each is written on
/// the node that has as large a part of all pieces before it as [`for_panels`] has of all panels: the two differ by less
/// than a piece, and so by less than the huge page that is on one node as a whole anyway.
pub(crate) fn for_near_pieces(
    workers: &Workers,
    slice: &mut [u8],
    size: usize,
    f: impl Fn(usize, &mut [u8]) + Sync,
) {
    let pieces: Vec<_> = slice
        .chunks_mut(size)
        .map(|piece| Mutex::new(Some(piece)))
        .collect();
    let nodes = workers.nodes();
    let end = |node| nodes.share(pieces.len(), node).end;
    let end = |node| u32::try_from(end(node)).expect("memory has fewer than 2^30 pieces");
    let ends: Vec<u32> = (0..nodes.len()).map(end).collect();
    workers.run_at_home(&ends, &|chunk, _| {
        let piece = pieces[chunk].lock().expect("locked once").take();
        f(chunk * size, piece.expect("every chunk runs once"));
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
