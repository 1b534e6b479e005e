//! Rounds keys and values to the element type of the cache and puts them where attention reads them.

use crate::cpu::vector::{LANES, LaneKernel, Lanes, load_part};
use crate::kv_cache::{KvCells, KvElement};
use crate::tensor::Rows;
use std::marker::PhantomData;

/// What of a block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

/// Writes keys or values of one KV head at successive positions of a sequence. Whoever runs it is the only one at work on
/// that half of the tiles of these positions.
pub(crate) struct WriteCells<'a, E> {
    pub half: Half,
    pub cells: &'a KvCells<'a>,
    pub layer: usize,
    pub kv_head: usize,
    /// Blocks of the sequence, by position.
    pub block_table: &'a [u32],
    /// Position of the first row.
    pub position: usize,
    /// `[tokens][head_dim]`
    pub rows: Rows<'a>,
    pub element: PhantomData<E>,
}

impl<E: KvElement> LaneKernel for WriteCells<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let layout = self.cells.layout();
        let width = layout.head_dim.next_multiple_of(LANES);
        for row in 0..self.rows.rows() {
            let (block, offset) = split(self.position + row, layout.block_size);
            let (tile, lane) = (offset / LANES, offset % LANES);
            let block = self.block_table[block];
            let row = self.rows.row(row);
            let tile = match self.half {
                Half::Keys => self.cells.key_tile(self.layer, block, self.kv_head, tile),
                Half::Values => self.cells.value_tile(self.layer, block, self.kv_head, tile),
            };
            // SAFETY: nobody else is at work on this half of the tile.
            let tile: &mut [[E; LANES]] = unsafe { &mut *tile };
            let (rows, scales) = tile.split_at_mut(tile.len() - E::SCALE_ROWS);
            let scale = E::scale(lanes, row);
            if let Some(scales) = E::scales_mut(scales) {
                scales[lane] = scale;
            }
            // A scale below the normal range has no finite inverse, and its elements are as good as zero.
            let factor = lanes.splat(match scale < f32::MIN_POSITIVE {
                true => 0.0,
                false => 1.0 / scale,
            });
            match self.half {
                Half::Keys => write_column(lanes, (row, factor), rows, lane),
                Half::Values => {
                    let rows = &mut rows[lane * width / LANES..][..width / LANES];
                    for (from, to) in row.chunks(LANES).zip(rows) {
                        E::store(lanes, scaled::<L, E>(lanes, from, factor), to);
                    }
                }
            }
        }
    }
}

fn split(position: usize, block_size: usize) -> (usize, usize) {
    (position / block_size, position % block_size)
}

/// Up to sixteen elements, ready to be rounded.
#[inline(always)]
fn scaled<L: Lanes, E: KvElement>(lanes: L, from: &[f32], factor: L::F32) -> L::F32 {
    match E::SCALE_ROWS {
        0 => load_part(lanes, from),
        _ => lanes.mul(load_part(lanes, from), factor),
    }
}

/// Writes a key into lane `lane` of a tile, `[head_dim][16]`.
#[inline(always)]
fn write_column<L: Lanes, E: KvElement>(
    lanes: L,
    (key, factor): (&[f32], L::F32),
    tile: &mut [[E; LANES]],
    lane: usize,
) {
    for (from, to) in key.chunks(LANES).zip(tile.chunks_mut(LANES)) {
        let mut rounded = to[0];
        E::store(lanes, scaled::<L, E>(lanes, from, factor), &mut rounded);
        for (to, rounded) in to.iter_mut().zip(rounded) {
            to[lane] = rounded;
        }
    }
}
