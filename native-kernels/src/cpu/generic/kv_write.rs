//! Rounds keys and values to the element type of the cache and puts them where attention reads them.

use crate::cpu::panel::FloatElement;
use crate::cpu::vector::{LANES, LaneKernel, Lanes, load_part};
use crate::kv_cache::{KvLayout, Slot, key_tile, value_tile};
use crate::tensor::Rows;

/// Writes one KV head of some tokens.
pub(crate) struct WriteHead<'a, E> {
    /// All elements of the cache.
    pub elements: &'a mut [E],
    pub layout: KvLayout,
    pub layer: usize,
    pub kv_head: usize,
    /// `[tokens][head_dim]`
    pub k: Rows<'a>,
    /// `[tokens][head_dim]`
    pub v: Rows<'a>,
    pub slots: &'a [Slot],
}

impl<E: FloatElement> LaneKernel for WriteHead<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let head_dim = self.layout.head_dim;
        let width = head_dim.next_multiple_of(LANES);
        for (token, slot) in self.slots.iter().enumerate() {
            let (tile, lane) = (slot.offset as usize / LANES, slot.offset as usize % LANES);
            let keys = key_tile(&self.layout, slot.block, self.layer, self.kv_head, tile);
            let keys = &mut self.elements[keys..][..head_dim * LANES];
            write_column(lanes, self.k.row(token), keys, lane);
            let values = value_tile(&self.layout, slot.block, self.layer, self.kv_head, tile);
            let values = &mut self.elements[values + lane * width..][..width];
            let values = values.as_chunks_mut().0;
            for (from, to) in self.v.row(token).chunks(LANES).zip(values) {
                E::store(lanes, load_part(lanes, from), to);
            }
        }
    }
}

/// Writes a key into lane `lane` of a tile, `[head_dim][16]`.
#[inline(always)]
fn write_column<L: Lanes, E: FloatElement>(lanes: L, key: &[f32], tile: &mut [E], lane: usize) {
    let tile = tile.as_chunks_mut::<LANES>().0;
    for (from, to) in key.chunks(LANES).zip(tile.chunks_mut(LANES)) {
        let mut rounded = to[0];
        E::store(lanes, load_part(lanes, from), &mut rounded);
        for (to, rounded) in to.iter_mut().zip(rounded) {
            to[lane] = rounded;
        }
    }
}
