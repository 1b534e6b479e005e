//! Rounds keys and values to the element type of the cache and puts them where attention reads them.

use crate::cpu::panel::FloatElement;
use crate::cpu::vector::{LANES, LaneKernel, Lanes, load_part};
use crate::kv_cache::KvCells;
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

impl<E: FloatElement> LaneKernel for WriteCells<'_, E> {
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
            match self.half {
                Half::Keys => {
                    // SAFETY: nobody else is at work on the keys of the tile.
                    let keys = unsafe {
                        let tile = self
                            .cells
                            .key_tile::<E>(self.layer, block, self.kv_head, tile);
                        &mut *tile
                    };
                    write_column(lanes, row, keys, lane);
                }
                Half::Values => {
                    // SAFETY: nobody else is at work on the values of the tile.
                    let values = unsafe {
                        let tile =
                            self.cells
                                .value_tile::<E>(self.layer, block, self.kv_head, tile);
                        &mut *tile
                    };
                    let values = &mut values[lane * width / LANES..][..width / LANES];
                    for (from, to) in row.chunks(LANES).zip(values) {
                        E::store(lanes, load_part(lanes, from), to);
                    }
                }
            }
        }
    }
}

fn split(position: usize, block_size: usize) -> (usize, usize) {
    (position / block_size, position % block_size)
}

/// Writes a key into lane `lane` of a tile, `[head_dim][16]`.
#[inline(always)]
fn write_column<L: Lanes, E: FloatElement>(
    lanes: L,
    key: &[f32],
    tile: &mut [[E; LANES]],
    lane: usize,
) {
    for (from, to) in key.chunks(LANES).zip(tile.chunks_mut(LANES)) {
        let mut rounded = to[0];
        E::store(lanes, load_part(lanes, from), &mut rounded);
        for (to, rounded) in to.iter_mut().zip(rounded) {
            to[lane] = rounded;
        }
    }
}
