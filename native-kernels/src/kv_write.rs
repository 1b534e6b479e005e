//! Writing new keys and values into the blocks of the cache.

use crate::cpu::generic::kv_write::WriteHead;
use crate::cpu::isa::LaneIsa;
use crate::cpu::panel::FloatElement;
use crate::kv_cache::{KvCache, Slot, WithElement, with_element};
use crate::tensor::Rows;
use crate::workers::Workers;

/// Writes row `i` of `k` and `v` to `slots[i]` of a layer. The caller has checked shapes and slots.
pub(crate) fn write(
    isa: LaneIsa,
    workers: &Workers,
    cache: &mut KvCache,
    layer: usize,
    (k, v): (Rows<'_>, Rows<'_>),
    slots: &[Slot],
) {
    let dtype = cache.layout().dtype;
    let write = Write {
        isa,
        workers,
        cache,
        layer,
        k,
        v,
        slots,
    };
    with_element(dtype, write);
}

struct Write<'a> {
    isa: LaneIsa,
    workers: &'a Workers,
    cache: &'a mut KvCache,
    layer: usize,
    k: Rows<'a>,
    v: Rows<'a>,
    slots: &'a [Slot],
}

impl WithElement for Write<'_> {
    type Output = ();

    fn with<E: FloatElement>(self) {
        let layout = *self.cache.layout();
        // Tokens are written one after the other: two may have the same slot, and a core alone saturates the cache lines.
        let _ = self.workers;
        let elements = self.cache.elements_mut::<E>();
        for kv_head in 0..layout.num_kv_heads {
            let columns = kv_head * layout.head_dim..(kv_head + 1) * layout.head_dim;
            self.isa.run(WriteHead {
                elements: &mut *elements,
                layout,
                layer: self.layer,
                kv_head,
                k: self.k.columns(columns.clone()),
                v: self.v.columns(columns),
                slots: self.slots,
            });
        }
    }
}
