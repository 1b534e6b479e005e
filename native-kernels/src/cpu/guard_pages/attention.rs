//! Attention over a cache that ends at a page that may not be touched, and the writing of it.

use super::{EDGES, Edge, Guarded, Same, lane_isas, page_bytes};
use crate::cpu::emulated_tiles::tests::Random;
use crate::cpu::emulated_tiles::{EmulatedPairs, Unit};
use crate::cpu::generic::attention::{Attention, Into, Merge, PairsKernel, SEGMENT, partial_len};
use crate::cpu::generic::kv_write::{Half, WriteCells};
use crate::cpu::generic::tile_attention::{
    AttentionScratch, PackRun, RUN, TileAttention, TileLayout,
};
use crate::cpu::generic::tile_matmul::TileWords;
use crate::cpu::isa::{LaneIsa, PairsIsa};
use crate::cpu::vector::LANES;
use crate::kv_cache::{KvCache, KvCells, KvDtype, KvElement, KvLayout, WithElement, with_element};
use crate::tensor::{Rows, RowsMut};
use half::bf16;
use std::marker::PhantomData;

const LAYER: usize = 1;
const KV_HEAD: usize = 1;

/// A sequence in the last blocks of a cache, the first of which is the last.
#[derive(Clone, Copy, Debug)]
struct Shape {
    head_dim: usize,
    /// Query heads that share the KV head.
    heads: usize,
    block_size: usize,
    context_len: usize,
    queries: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: bool,
    dtype: KvDtype,
}

impl Shape {
    fn layout(&self) -> KvLayout {
        KvLayout {
            layers: LAYER + 1,
            num_kv_heads: KV_HEAD + 1,
            head_dim: self.head_dim,
            block_size: self.block_size,
            // Any block is a multiple of 256 bytes, so these are whole pages of any usual size.
            num_blocks: self
                .context_len
                .div_ceil(self.block_size)
                .next_multiple_of(page_bytes() / 256),
            dtype: self.dtype,
        }
    }

    fn block_table(&self, edge: Edge) -> Guarded<u32> {
        let last = self.layout().num_blocks as u32;
        let blocks = self.context_len.div_ceil(self.block_size) as u32;
        let table: Vec<u32> = (last - blocks..last).rev().collect();
        Guarded::new(&table, edge)
    }

    fn position(&self) -> usize {
        self.context_len - self.queries
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Forbids the page after the last tile of the cache.
fn guard_end<E: KvElement>(cells: &KvCells<'_>) {
    let layout = cells.layout();
    let tile = layout.block_size / LANES - 1;
    let block = layout.num_blocks as u32 - 1;
    let last = cells.value_tile::<E>(layout.layers - 1, block, layout.num_kv_heads - 1, tile);
    let bytes = last.len() * size_of::<[E; LANES]>();
    let end = last.cast::<u8>().wrapping_add(bytes);
    assert!(end.addr().is_multiple_of(page_bytes()), "whole pages");
    // SAFETY: a region is followed by memory of its own mapping up to a huge page, which nobody uses; it goes as a whole.
    let done = unsafe { libc::mprotect(end.cast(), page_bytes(), libc::PROT_NONE) };
    assert_eq!(done, 0, "a page can be forbidden");
}

/// What attention makes of some numbers, everything guarded.
struct Case<'a> {
    shape: Shape,
    edge: Edge,
    lanes: LaneIsa,
    /// `[context][head_dim]`.
    keys: &'a [f32],
    values: &'a [f32],
    /// `[queries][heads * head_dim]`.
    q: &'a [f32],
    /// `[heads]`, used if the shape says so.
    sinks: &'a [f32],
}

/// What multiplies pairs.
#[derive(Clone, Copy, Debug)]
enum Pairs {
    Emulated,
    Real(PairsIsa),
}

impl Pairs {
    /// The emulated unit and, if this CPU has it, the real one.
    fn all() -> impl Iterator<Item = Self> {
        let real = PairsIsa::detect("avx512-bf16").map(Pairs::Real);
        [Pairs::Emulated].into_iter().chain(real)
    }

    fn run<K: PairsKernel>(self, kernel: K) {
        match self {
            Pairs::Emulated => kernel.run(EmulatedPairs),
            Pairs::Real(isa) => isa.run(kernel),
        }
    }
}

/// Runs attention on some unit.
type Run<'a, E> = &'a dyn Fn(Attention<'_, E>);

/// What lanes and pairs make of it, each whole and merged from segments, and what every tile unit does.
struct Outs {
    lanes: [Vec<f32>; 2],
    /// By [`Pairs::all`]; nothing where the cache does not consist of `bf16`.
    pairs: Vec<[Vec<f32>; 2]>,
    /// By [`Unit::alike`].
    tiles: [Vec<Vec<f32>>; 2],
}

impl WithElement for &Case<'_> {
    type Output = Outs;

    fn with<E: KvElement>(self) -> Outs {
        let mut cache = KvCache::new(self.shape.layout()).unwrap();
        let cells = KvCells::new(&mut cache);
        guard_end::<E>(&cells);
        let block_table = self.shape.block_table(self.edge);
        self.write::<E>(&cells, &block_table);
        let pairs = Pairs::all().filter(|_| self.shape.dtype == KvDtype::BF16);
        Outs {
            lanes: self.both::<E>(&cells, &block_table, &|it| self.lanes.run(it)),
            pairs: pairs
                .map(|pairs| self.both::<bf16>(&cells, &block_table, &|it| pairs.run(it)))
                .collect(),
            tiles: Unit::alike().map(|units| {
                let units = units.into_iter();
                let tiles = units.map(|unit| self.tiles::<E>(unit, &cells, &block_table));
                tiles.collect()
            }),
        }
    }
}

impl Case<'_> {
    /// In two runs, so that the second begins within a tile, over what is not a number.
    fn write<E: KvElement>(&self, cells: &KvCells<'_>, block_table: &[u32]) {
        let (d, context) = (self.shape.head_dim, self.shape.context_len);
        let all = block_table.len() * self.shape.block_size;
        let nan = vec![f32::NAN; all * d];
        for (run, [keys, values]) in [
            (0..all, [&nan[..]; 2]),
            (0..context / 2, [self.keys, self.values]),
            (context / 2..context, [self.keys, self.values]),
        ] {
            for (half, from) in [(Half::Keys, keys), (Half::Values, values)] {
                let rows = Guarded::new(&from[run.start * d..run.end * d], self.edge);
                self.lanes.run(WriteCells::<E> {
                    half,
                    cells,
                    layer: LAYER,
                    kv_head: KV_HEAD,
                    block_table,
                    position: run.start,
                    rows: Rows::new(&rows, run.len(), d),
                    element: PhantomData,
                });
            }
        }
    }

    fn guarded_sinks(&self) -> Option<Guarded<f32>> {
        let sinks = self.shape.sinks.then_some(self.sinks);
        sinks.map(|sinks| Guarded::new(sinks, self.edge))
    }

    fn attend<E: KvElement>(
        &self,
        cells: &KvCells<'_>,
        block_table: &[u32],
        segments: std::ops::Range<usize>,
        into: Into<'_>,
        run: Run<'_, E>,
    ) {
        let shape = self.shape;
        let q = Guarded::new(self.q, self.edge);
        let sinks = self.guarded_sinks();
        run(Attention {
            // SAFETY: nobody writes the cache meanwhile.
            layer: unsafe { cells.layer::<E>(LAYER) },
            kv_head: KV_HEAD,
            block_table,
            position: shape.position(),
            heads: shape.heads,
            scale: 0.3,
            window: shape.window,
            soft_cap: shape.soft_cap,
            sinks: sinks.as_deref(),
            q: Rows::new(&q, shape.queries, shape.width()),
            segments,
            into,
        });
    }

    /// Whole, and merged from segments.
    fn both<E: KvElement>(
        &self,
        cells: &KvCells<'_>,
        block_table: &[u32],
        run: Run<'_, E>,
    ) -> [Vec<f32>; 2] {
        [
            self.whole(cells, block_table, run),
            self.merged(cells, block_table, run),
        ]
    }

    fn whole<E: KvElement>(
        &self,
        cells: &KvCells<'_>,
        block_table: &[u32],
        run: Run<'_, E>,
    ) -> Vec<f32> {
        let shape = self.shape;
        let mut out = Guarded::new(&vec![f32::NAN; self.q.len()], self.edge);
        let into = Into::Out(RowsMut::new(&mut out, shape.queries, shape.width()));
        let segments = 0..shape.context_len.div_ceil(SEGMENT);
        self.attend(cells, block_table, segments, into, run);
        out.to_vec()
    }

    fn merged<E: KvElement>(
        &self,
        cells: &KvCells<'_>,
        block_table: &[u32],
        run: Run<'_, E>,
    ) -> Vec<f32> {
        let shape = self.shape;
        let (len, records) = (partial_len(shape.head_dim), shape.queries * shape.heads);
        let segments = 0..shape.context_len.div_ceil(SEGMENT);
        let partials: Vec<Guarded<f32>> = segments
            .map(|segment| {
                let mut partial = Guarded::new(&vec![f32::NAN; records * len], self.edge);
                let into = Into::Partial(&mut partial);
                self.attend(cells, block_table, segment..segment + 1, into, run);
                partial
            })
            .collect();
        let merged = (0..records).flat_map(|record| {
            let of_record =
                |p: &Guarded<f32>| Guarded::new(&p[record * len..(record + 1) * len], self.edge);
            let partials: Vec<Guarded<f32>> = partials.iter().map(of_record).collect();
            let partials: Vec<&[f32]> = partials.iter().map(|p| &p[..]).collect();
            let mut out = Guarded::new(&vec![f32::NAN; shape.head_dim], self.edge);
            self.lanes.run(Merge {
                partials: &partials,
                sink: shape.sinks.then(|| self.sinks[record % shape.heads]),
                out: &mut out,
            });
            out.to_vec()
        });
        merged.collect()
    }

    fn tiles<E: KvElement>(
        &self,
        unit: Unit,
        cells: &KvCells<'_>,
        block_table: &[u32],
    ) -> Vec<f32> {
        let shape = self.shape;
        let layout = TileLayout {
            head_dim: shape.head_dim,
            runs: shape.context_len.div_ceil(RUN),
        };
        let tiles = layout.run_tiles();
        let mut packed = Vec::new();
        for run in 0..layout.runs {
            let mut to = Guarded::new(&vec![TileWords::ZERO; tiles], self.edge);
            unit.widen(PackRun {
                // SAFETY: nobody writes the cache meanwhile.
                layer: unsafe { cells.layer::<E>(LAYER) },
                kv_head: KV_HEAD,
                block_table,
                run,
                context_len: shape.context_len,
                to: &mut to,
            });
            packed.extend_from_slice(&to);
        }
        let (packed, q) = (
            Guarded::new(&packed, self.edge),
            Guarded::new(self.q, self.edge),
        );
        let sinks = self.guarded_sinks();
        let mut out = Guarded::new(&vec![f32::NAN; self.q.len()], self.edge);
        unit.run(TileAttention {
            packed: &packed,
            layout,
            first_run: 0,
            position: shape.position(),
            heads: shape.heads,
            scale: 0.3,
            window: shape.window,
            soft_cap: shape.soft_cap,
            sinks: sinks.as_deref(),
            q: Rows::new(&q, shape.queries, shape.width()),
            scratch: &mut AttentionScratch::default(),
            out: RowsMut::new(&mut out, shape.queries, shape.width()),
        });
        out.to_vec()
    }
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for dtype in KvDtype::ALL {
        for (head_dim, heads, block_size, context_len, queries, window) in [
            (8, 1, 16, 1, 1, None),
            (8, 3, 48, 48, 48, None),
            (24, 7, 16, 77, 5, Some(20)),
            (40, 2, 32, 256, 19, None),
            (64, 9, 16, 530, 3, Some(530)),
            (80, 1, 16, 700, 40, Some(300)),
            (256, 5, 16, 33, 2, None),
        ] {
            shapes.push(Shape {
                head_dim,
                heads,
                block_size,
                context_len,
                queries,
                window,
                soft_cap: (heads == 3 || heads == 9).then_some(2.0),
                sinks: heads != 2 && heads != 3,
                dtype,
            });
        }
    }
    shapes
}

/// Of two ways that round differently. Queries, keys and values are below 1, and rounded to `bf16` a score of `d` products
/// is off by less than `0.3 sqrt(d) 2^-8` in all likelihood, which is `0.02` for the widest heads; a weight is off by
/// that and as much for their sum, and weights and values add `2^-8` each.
fn assert_near(rounded: &[f32], lanes: &[f32], what: &str) {
    for (rounded, lanes) in rounded.iter().zip(lanes) {
        assert!(
            (rounded - lanes).abs() < 0.05,
            "{what}: {rounded} and {lanes}"
        );
    }
}

#[test]
fn attention_stays_within_its_memory() {
    let mut random = Random(1);
    for shape in shapes() {
        let d = shape.head_dim;
        let keys = random.floats(shape.context_len * d);
        let values = random.floats(shape.context_len * d);
        let q = random.floats(shape.queries * shape.width());
        let sinks = random.floats(shape.heads);
        let mut lanes_agree = Same(None);
        let mut pairs_agree = Same(None);
        let mut tiles_agree = [Same(None), Same(None)];
        for edge in EDGES {
            for lanes in lane_isas() {
                let case = Case {
                    shape,
                    edge,
                    lanes,
                    keys: &keys,
                    values: &values,
                    q: &q,
                    sinks: &sinks,
                };
                let outs = with_element(shape.dtype, &case);
                let what = format!("{shape:?} {edge:?} {lanes:?}");
                let [whole, merged] = &outs.lanes;
                lanes_agree.check(whole, &what);
                lanes_agree.check(merged, &what);
                for out in outs.pairs.as_flattened() {
                    pairs_agree.check(out, &what);
                    assert_near(out, whole, &what);
                }
                for (agree, outs_of) in tiles_agree.iter_mut().zip(&outs.tiles) {
                    for out in outs_of {
                        agree.check(out, &what);
                        assert_near(out, whole, &what);
                    }
                }
            }
        }
    }
}
