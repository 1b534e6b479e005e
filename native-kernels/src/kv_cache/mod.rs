//! The paged KV cache: memory for keys and values in blocks, and what a block looks like inside.
//!
//! ```text
//! cache:  [block][layer]
//! layer:  [kv head][tile of 16 tokens][keys, values]
//! keys:   [head_dim][16]                              a lane is a token: scores need no sum across lanes
//! values: [16][padded head_dim]                       a lane is a dimension of the output
//! ```
//! Blocks are outermost, so a cache that is little used is little touched. Keys and values of a tile are read one after the
//! other and lie so: memory gives long runs faster. The padding of values (head sizes that are no
//! multiple of 16) stays zero. A tile of bytes is followed by the scales of its tokens, `f32 [16]`.

mod element;

pub(crate) use element::{KvElement, WithElement, with_element};

use crate::cpu::vector::LANES;
use crate::memory::Region;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::{fmt, io};

/// Element type of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// `f32`.
    F32,
    /// `f16`.
    F16,
    /// `bf16`.
    BF16,
    /// 8 bits, with an `f32` scale for the keys and one for the values of each token and head.
    Q8,
}

impl KvDtype {
    /// Every element type.
    pub const ALL: [KvDtype; 4] = [KvDtype::F32, KvDtype::F16, KvDtype::BF16, KvDtype::Q8];

    /// The name that facts and plans use.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::F16 => "f16",
            KvDtype::BF16 => "bf16",
            KvDtype::Q8 => "q8",
        }
    }

    /// The element type called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes that the keys of one token and head take, or its values; without padding.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        (head_dim + self.scale_rows()) * self.bytes()
    }

    /// Bytes of one element, scales left aside.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::BF16 => 2,
            KvDtype::Q8 => 1,
        }
    }
}

/// Shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers of the model.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub num_kv_heads: usize,
    /// Width of a head: a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Tokens of a block: a multiple of 16.
    pub block_size: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Type of its elements.
    pub dtype: KvDtype,
}

impl KvLayout {
    /// Bytes that one block takes, over all layers, keys and values.
    ///
    /// **Panics** if the product does not fit in a `usize`.
    pub fn block_bytes(&self) -> usize {
        let elements = self
            .layers
            .checked_mul(self.layer_elements())
            .and_then(|n| n.checked_mul(self.dtype.bytes()));
        elements.expect("a block fits in the address space")
    }

    /// Elements of one layer of a block.
    fn layer_elements(&self) -> usize {
        self.num_kv_heads * (self.block_size / LANES) * self.tile()
    }

    /// Elements of the keys and values of sixteen tokens and one head.
    fn tile(&self) -> usize {
        self.key_tile() + self.value_tile()
    }

    /// Elements of the keys of sixteen tokens and one head, with their scales.
    fn key_tile(&self) -> usize {
        (self.head_dim + self.dtype.scale_rows()) * LANES
    }

    /// Elements of the values of sixteen tokens and one head, with their scales.
    fn value_tile(&self) -> usize {
        (self.head_dim.next_multiple_of(LANES) + self.dtype.scale_rows()) * LANES
    }

    fn check(&self) -> Result<(), KvCacheError> {
        let positive = [
            self.layers,
            self.num_kv_heads,
            self.block_size,
            self.num_blocks,
        ];
        let valid = positive.iter().all(|&n| n > 0)
            && self.block_size.is_multiple_of(LANES)
            && self.head_dim.is_multiple_of(8)
            && (8..=256).contains(&self.head_dim);
        if valid {
            Ok(())
        } else {
            Err(KvCacheError::Layout(*self))
        }
    }
}

/// Why a cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KvCacheError {
    /// The configuration's fault.
    #[error(
        "no KV cache of this shape: {0:?}; head_dim must be a multiple of 8 up to 256, block_size one of 16, and \
         nothing zero"
    )]
    Layout(KvLayout),
    /// The machine's fault.
    #[error("cannot reserve {blocks} KV blocks of {block_bytes} bytes: {source}; use fewer blocks")]
    Memory {
        /// Blocks asked for.
        blocks: usize,
        /// Bytes of each.
        block_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// Keys and values of all layers in blocks. Untouched blocks cost no memory.
pub struct KvCache {
    layout: KvLayout,
    region: Region,
}

impl KvCache {
    /// An empty cache.
    pub fn new(layout: KvLayout) -> Result<Self, KvCacheError> {
        layout.check()?;
        let block_bytes = layout.block_bytes();
        let memory = |source| KvCacheError::Memory {
            blocks: layout.num_blocks,
            block_bytes,
            source,
        };
        let bytes = layout
            .num_blocks
            .checked_mul(block_bytes)
            .ok_or_else(|| memory(io::ErrorKind::OutOfMemory.into()))?;
        let region = Region::zeroed(bytes).map_err(memory)?;
        Ok(Self { layout, region })
    }

    /// Bytes of one block of such a cache.
    pub fn block_bytes(layout: &KvLayout) -> usize {
        layout.block_bytes()
    }

    /// The shape of this cache.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }
}

/// The elements of a cache that several workers write and read, in parts.
pub(crate) struct KvCells<'a> {
    start: NonNull<u8>,
    len: usize,
    layout: KvLayout,
    lifetime: PhantomData<&'a mut KvCache>,
}

// SAFETY: stands for an exclusive borrow of numbers; every access is by an unsafe function whose caller promises that
// there is no race.
unsafe impl Sync for KvCells<'_> {}

impl<'a> KvCells<'a> {
    pub fn new(cache: &'a mut KvCache) -> Self {
        Self {
            layout: cache.layout,
            len: cache.region.len(),
            start: NonNull::from(&mut *cache.region).cast(),
            lifetime: PhantomData,
        }
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The elements of a layer, to read.
    ///
    /// # Safety
    /// While what is returned lives, nobody writes a tile that is read through it.
    pub unsafe fn layer<E: KvElement>(&self, layer: usize) -> KvLayer<'_, E> {
        assert!(
            layer < self.layout.layers,
            "layer {layer} of {}",
            self.layout.layers
        );
        KvLayer {
            cells: self,
            layer,
            element: PhantomData,
        }
    }

    /// Keys of sixteen tokens: `[head_dim][16]`, and the rows of their scales.
    ///
    /// **Panics** if there is no such tile.
    #[inline(always)]
    pub fn key_tile<E: KvElement>(
        &self,
        layer: usize,
        block: u32,
        kv_head: usize,
        tile: usize,
    ) -> *mut [[E; LANES]] {
        let first = key_tile(&self.layout, block, layer, kv_head, tile);
        self.vectors(first, self.layout.head_dim + E::SCALE_ROWS)
    }

    /// Values of sixteen tokens: `[16][padded head_dim / 16]` vectors, and the rows of their scales.
    ///
    /// **Panics** if there is no such tile.
    #[inline(always)]
    pub fn value_tile<E: KvElement>(
        &self,
        layer: usize,
        block: u32,
        kv_head: usize,
        tile: usize,
    ) -> *mut [[E; LANES]] {
        let first = value_tile(&self.layout, block, layer, kv_head, tile);
        let rows = self.layout.head_dim.next_multiple_of(LANES);
        self.vectors(first, rows + E::SCALE_ROWS)
    }

    /// `count` vectors from element `first` on: a pointer to memory of the cache, aligned for `E`.
    #[inline(always)]
    fn vectors<E: KvElement>(&self, first: usize, count: usize) -> *mut [[E; LANES]] {
        let bytes = size_of::<[E; LANES]>();
        let (from, len) = (first * size_of::<E>(), count * bytes);
        assert!(
            from <= self.len && len <= self.len - from,
            "{len} bytes from {from} on in a cache of {}",
            self.len
        );
        // SAFETY: within the cache, as was just checked.
        let start = unsafe { self.start.add(from) };
        std::ptr::slice_from_raw_parts_mut(start.as_ptr().cast(), count)
    }
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache")
            .field("layout", &self.layout)
            .finish()
    }
}

/// Keys and values of one layer. Who made it promised that nobody writes the tiles that are read.
pub(crate) struct KvLayer<'a, E> {
    cells: &'a KvCells<'a>,
    layer: usize,
    element: PhantomData<E>,
}

/// Keys or values of sixteen tokens and one head.
#[derive(Clone, Copy)]
pub(crate) struct KvTile<'a, E> {
    /// As [`KvLayer::keys`] and [`KvLayer::values`] say.
    pub rows: &'a [[E; LANES]],
    /// What the elements of each token are to be multiplied by.
    pub scales: Option<&'a [f32; LANES]>,
}

impl<'a, E: KvElement> KvTile<'a, E> {
    /// No tokens.
    pub const NONE: Self = Self {
        rows: &[],
        scales: None,
    };

    #[inline(always)]
    fn new(tile: &'a [[E; LANES]]) -> Self {
        let (rows, scales) = tile.split_at(tile.len() - E::SCALE_ROWS);
        Self {
            rows,
            scales: E::scales(scales),
        }
    }
}

impl<'a, E: KvElement> KvLayer<'a, E> {
    pub fn head_dim(&self) -> usize {
        self.cells.layout.head_dim
    }

    pub fn tiles_per_block(&self) -> usize {
        self.cells.layout.block_size / LANES
    }

    /// Keys of sixteen tokens: `[head_dim][16]`.
    #[inline(always)]
    pub fn keys(&self, block: u32, kv_head: usize, tile: usize) -> KvTile<'a, E> {
        // SAFETY: any bytes of the cache are values of `E`, and nobody writes these (see the type).
        KvTile::new(unsafe { &*self.cells.key_tile(self.layer, block, kv_head, tile) })
    }

    /// Values of sixteen tokens: `[16][padded head_dim / 16]` vectors.
    #[inline(always)]
    pub fn values(&self, block: u32, kv_head: usize, tile: usize) -> KvTile<'a, E> {
        // SAFETY: as above.
        KvTile::new(unsafe { &*self.cells.value_tile(self.layer, block, kv_head, tile) })
    }
}

/// First element of the keys of a tile.
#[inline(always)]
pub(crate) fn key_tile(
    layout: &KvLayout,
    block: u32,
    layer: usize,
    kv_head: usize,
    tile: usize,
) -> usize {
    let tiles = layout.block_size / LANES;
    (block as usize * layout.layers + layer) * layout.layer_elements()
        + (kv_head * tiles + tile) * layout.tile()
}

/// First element of the values of a tile.
#[inline(always)]
pub(crate) fn value_tile(
    layout: &KvLayout,
    block: u32,
    layer: usize,
    kv_head: usize,
    tile: usize,
) -> usize {
    key_tile(layout, block, layer, kv_head, tile) + layout.key_tile()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dtype: KvDtype) -> KvLayout {
        KvLayout {
            layers: 3,
            num_kv_heads: 2,
            head_dim: 24,
            block_size: 32,
            num_blocks: 5,
            dtype,
        }
    }

    #[test]
    fn tiles_fill_the_cache_without_overlap() {
        for dtype in KvDtype::ALL {
            let layout = layout(dtype);
            let scales = match dtype {
                KvDtype::Q8 => 16 * size_of::<f32>(),
                _ => 0,
            };
            let mut ranges = Vec::new();
            for block in 0..5 {
                for layer in 0..3 {
                    for head in 0..2 {
                        for tile in 0..2 {
                            let keys = key_tile(&layout, block, layer, head, tile);
                            let values = value_tile(&layout, block, layer, head, tile);
                            ranges.push((keys, keys + 16 * 24 + scales));
                            ranges.push((values, values + 16 * 32 + scales));
                        }
                    }
                }
            }
            ranges.sort();
            assert_eq!(ranges[0].0, 0);
            assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0));
            let elements = ranges.last().unwrap().1;
            assert_eq!(elements * dtype.bytes(), 5 * layout.block_bytes());
        }
    }

    #[test]
    fn impossible_caches_are_refused() {
        let wrong = |change: fn(&mut KvLayout)| {
            let mut layout = layout(KvDtype::F16);
            change(&mut layout);
            KvCache::new(layout).unwrap_err().to_string()
        };
        assert!(wrong(|l| l.block_size = 24).contains("block_size: 24"));
        assert!(wrong(|l| l.head_dim = 12).contains("head_dim: 12"));
        assert!(wrong(|l| l.layers = 0).contains("layers: 0"));
        assert!(wrong(|l| l.num_blocks = usize::MAX / 2).contains("use fewer blocks"));
    }
}
