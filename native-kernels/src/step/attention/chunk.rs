//! What one chunk of attention does.

use super::{Attention, FEW_ROWS, Item, What};
use crate::bind::{DecodeKernel, PrefillKernel};
use crate::cpu::generic::attention::{self as kernel, Into, SEGMENT, partial_len};
use crate::cpu::generic::elementwise::{RmsNorm, Rope};
use crate::cpu::generic::kv_write::{Half, WriteCells};
use crate::cpu::generic::tile_attention::{PackRun, TileAttention};
use crate::cpu::isa::{LaneIsa, TileIsa};
use crate::kv_cache::{KvElement, WithElement};
use crate::step::rows::{Norm, resized};
use crate::step::{Buffer, Part, Running, Scratch, Sequence};
use crate::tensor::{Rows, RowsMut};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows whose keys are turned together.
const WRITE_ROWS: usize = 64;

/// One chunk of a phase, for whatever the cache consists of.
pub(super) struct Run<'a, 'b> {
    pub attention: &'a Attention,
    pub running: &'a Running<'b>,
    pub part: Part,
    /// Rows of a chunk.
    pub size: usize,
    pub chunk: usize,
    pub scratch: &'a mut Scratch,
}

impl WithElement for Run<'_, '_> {
    type Output = ();

    fn with<E: KvElement>(mut self) {
        let sequences = self.running.step.sequences;
        if self.part == Part::WriteCache {
            let kv_heads = self.attention.num_kv_heads;
            let (n, half) = (self.chunk / 2, self.chunk % 2);
            let mut long = sequences.iter().filter(|s| s.query_len > FEW_ROWS);
            let s = long
                .nth(n / kv_heads)
                .expect("the chunks are those of its sequences");
            match half {
                0 => self.write_keys::<E>(s, n % kv_heads, 0..s.query_len),
                _ => self.write_values::<E>(s, n % kv_heads, 0..s.query_len),
            }
            return;
        }
        if let (Part::PackTiles, PrefillKernel::Tiles(isa)) =
            (self.part, self.running.bound.attention_prefill)
        {
            return self.pack::<E>(isa);
        }
        let Item {
            sequence,
            kv_head,
            what,
        } = self.attention.item(sequences, self.size, self.chunk);
        let s = &sequences[sequence];
        match what {
            What::Rows(rows) => {
                if let PrefillKernel::Tiles(isa) = self.running.bound.attention_prefill {
                    return self.attend_in_tiles(isa, sequence, kv_head, rows);
                }
                let segments = self.attention.segments(s, &rows);
                self.attend::<E>(s, kv_head, rows, segments, None);
            }
            What::Segment { segment, of } => {
                let new = s.position()..s.context_len;
                let keys = segment * SEGMENT..(segment + 1) * SEGMENT;
                let mine = new.start.max(keys.start)..new.end.min(keys.end);
                if !mine.is_empty() {
                    let rows = mine.start - s.position()..mine.end - s.position();
                    self.write_keys::<E>(s, kv_head, rows.clone());
                    self.write_values::<E>(s, kv_head, rows);
                }
                let rows = 0..s.query_len;
                if of.len() == 1 {
                    self.attend::<E>(s, kv_head, rows, of, None);
                } else {
                    let piece = segment - of.start;
                    let record = (piece * self.attention.num_kv_heads + kv_head) * s.query_len;
                    let heads = self.attention.num_heads / self.attention.num_kv_heads;
                    let first = self.attention.first_record(sequences, sequence);
                    let record = first + record * heads;
                    self.attend::<E>(s, kv_head, rows, segment..segment + 1, Some(record));
                }
            }
        }
    }
}

impl Run<'_, '_> {
    fn lanes(&self) -> LaneIsa {
        self.running.bound.elementwise
    }

    /// Heads of some rows out of a buffer, normalised and turned, `[rows][cols]` in the scratch.
    fn heads(
        &mut self,
        buffer: Buffer,
        s: &Sequence<'_>,
        rows: &Range<usize>,
        cols: Range<usize>,
        norm: Option<&Norm>,
    ) {
        // SAFETY: no phase of attention writes queries, keys or values.
        let from = unsafe { self.running.read(buffer) };
        let rows_of_step = s.query_start + rows.start..s.query_start + rows.end;
        let from = from.slice(rows_of_step).columns(cols.clone());
        let (count, width, head_dim) = (rows.len(), cols.len(), self.attention.head_dim);
        let lanes = self.lanes();
        let Scratch {
            rows: to,
            more,
            positions,
            ..
        } = &mut *self.scratch;
        let to = resized(to, count * width);
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            to.copy_from_slice(from.row(row));
        }
        if let Some(norm) = norm {
            let normed = resized(more, count * width);
            let heads = count * width / head_dim;
            lanes.run(RmsNorm {
                x: Rows::new(to, heads, head_dim),
                weight: &norm.weight,
                eps: norm.eps,
                out: RowsMut::new(normed, heads, head_dim),
            });
            to.copy_from_slice(normed);
        }
        if let Some(table) = &self.attention.rope {
            positions.clear();
            positions.extend(rows.clone().map(|row| (s.position() + row) as u32));
            lanes.run(Rope {
                x: RowsMut::new(to, count, width),
                head_dim,
                table,
                positions,
            });
        }
    }

    /// First tile of a long sequence and KV head.
    fn first_tile(&self, sequence: usize, kv_head: usize) -> usize {
        let attention = self.attention;
        let before = self.running.step.sequences[..sequence].iter();
        let long = before.filter(|s| s.query_len > FEW_ROWS);
        let tiles: usize = long.map(|s| attention.tiles(s).1).sum();
        let s = &self.running.step.sequences[sequence];
        tiles * attention.num_kv_heads + kv_head * attention.tiles(s).1
    }

    /// Brings one run of keys and values of a long sequence into tiles.
    fn pack<E: KvElement>(&mut self, isa: TileIsa) {
        let attention = self.attention;
        let mut chunk = self.chunk;
        let mut sequences = self.running.step.sequences.iter().enumerate();
        let (i, s, runs) = loop {
            let (i, s) = sequences
                .next()
                .expect("the chunks are those of its sequences");
            if s.query_len <= FEW_ROWS {
                continue;
            }
            let runs = attention.runs(s);
            match chunk < runs.len() * attention.num_kv_heads {
                true => break (i, s, runs),
                false => chunk -= runs.len() * attention.num_kv_heads,
            }
        };
        let (kv_head, run) = (chunk / runs.len(), chunk % runs.len());
        let (layout, _) = attention.tiles(s);
        let first = self.first_tile(i, kv_head) + run * layout.run_tiles();
        isa.widen(PackRun {
            // SAFETY: nobody writes the cache in this phase.
            layer: unsafe { self.running.cells.layer::<E>(attention.layer) },
            kv_head,
            block_table: s.block_table,
            run: runs.start + run,
            context_len: s.context_len,
            // SAFETY: each chunk has a run of its own.
            to: unsafe { self.running.tiles.part(first..first + layout.run_tiles()) },
        });
    }

    /// Attention of some rows of a long sequence and the heads of one KV head, in tiles.
    fn attend_in_tiles(
        &mut self,
        isa: TileIsa,
        sequence: usize,
        kv_head: usize,
        rows: Range<usize>,
    ) {
        let attention = self.attention;
        let s = &self.running.step.sequences[sequence];
        let heads = attention.num_heads / attention.num_kv_heads;
        let width = heads * attention.head_dim;
        let cols = kv_head * width..(kv_head + 1) * width;
        let norm = attention.query_norm.as_ref();
        self.heads(attention.query, s, &rows, cols.clone(), norm);
        let (layout, tiles) = attention.tiles(s);
        let first = self.first_tile(sequence, kv_head);
        let of_step = s.query_start + rows.start..s.query_start + rows.end;
        let Scratch {
            rows: q,
            attention: room,
            ..
        } = &mut *self.scratch;
        isa.run(TileAttention {
            // SAFETY: written in the phase before, and by nobody in this one.
            packed: unsafe { self.running.tiles.read(first..first + tiles) },
            layout,
            first_run: attention.runs(s).start,
            position: s.position() + rows.start,
            heads,
            scale: attention.scale,
            window: attention.window,
            soft_cap: attention.soft_cap,
            sinks: attention.sinks_of(kv_head),
            q: Rows::new(&q[..rows.len() * width], rows.len(), width),
            scratch: room,
            // SAFETY: the chunks are different pairs of rows and KV head, so their parts have no common element.
            out: unsafe { self.running.part(attention.out, of_step, cols) },
        });
    }

    fn write_keys<E: KvElement>(&mut self, s: &Sequence<'_>, kv_head: usize, rows: Range<usize>) {
        let head_dim = self.attention.head_dim;
        for first in rows.clone().step_by(WRITE_ROWS) {
            let rows = first..rows.end.min(first + WRITE_ROWS);
            let cols = kv_head * head_dim..(kv_head + 1) * head_dim;
            let norm = self.attention.key_norm.as_ref();
            self.heads(self.attention.key, s, &rows, cols, norm);
            self.lanes().run(WriteCells::<E> {
                half: Half::Keys,
                cells: &self.running.cells,
                layer: self.attention.layer,
                kv_head,
                block_table: s.block_table,
                position: s.position() + rows.start,
                rows: Rows::new(
                    &self.scratch.rows[..rows.len() * head_dim],
                    rows.len(),
                    head_dim,
                ),
                element: PhantomData,
            });
        }
    }

    fn write_values<E: KvElement>(&mut self, s: &Sequence<'_>, kv_head: usize, rows: Range<usize>) {
        let head_dim = self.attention.head_dim;
        // SAFETY: no phase of attention writes queries, keys or values.
        let values = unsafe { self.running.read(self.attention.value) };
        let rows_of_step = s.query_start + rows.start..s.query_start + rows.end;
        let cols = kv_head * head_dim..(kv_head + 1) * head_dim;
        self.lanes().run(WriteCells::<E> {
            half: Half::Values,
            cells: &self.running.cells,
            layer: self.attention.layer,
            kv_head,
            block_table: s.block_table,
            position: s.position() + rows.start,
            rows: values.slice(rows_of_step).columns(cols),
            element: PhantomData,
        });
    }

    /// Attention of some rows of a sequence and the heads of one KV head: results to their buffer, or partial sums from
    /// `record` on.
    fn attend<E: KvElement>(
        &mut self,
        s: &Sequence<'_>,
        kv_head: usize,
        rows: Range<usize>,
        segments: Range<usize>,
        record: Option<usize>,
    ) {
        let attention = self.attention;
        let heads = attention.num_heads / attention.num_kv_heads;
        let width = heads * attention.head_dim;
        let cols = kv_head * width..(kv_head + 1) * width;
        let norm = attention.query_norm.as_ref();
        self.heads(attention.query, s, &rows, cols.clone(), norm);
        let len = partial_len(attention.head_dim);
        let records = record.map(|first| first * len..(first + rows.len() * heads) * len);
        let into = match records {
            // SAFETY: each chunk has records of its own.
            Some(range) => Into::Partial(unsafe { self.running.partial.part(range) }),
            None => {
                let rows = s.query_start + rows.start..s.query_start + rows.end;
                // SAFETY: the chunks are different pairs of rows and KV head, so their parts have no common element.
                Into::Out(unsafe { self.running.part(attention.out, rows, cols) })
            }
        };
        let bound = self.running.bound;
        let query = Query {
            attention,
            running: self.running,
            block_table: s.block_table,
            kv_head,
            position: s.position() + rows.start,
            q: Rows::new(&self.scratch.rows[..rows.len() * width], rows.len(), width),
            segments,
            into,
        };
        match (bound.attention_prefill, bound.attention_decode) {
            (PrefillKernel::Lanes(isa), _) if s.query_len > FEW_ROWS => isa.run(query.over::<E>()),
            (_, DecodeKernel::Lanes(isa)) => isa.run(query.over::<E>()),
            (_, DecodeKernel::Pairs(isa)) => isa.run(query.over::<bf16>()),
        }
    }
}

/// Some rows of a sequence and the heads of one KV head.
struct Query<'a, 'b> {
    attention: &'a Attention,
    running: &'a Running<'b>,
    block_table: &'a [u32],
    kv_head: usize,
    position: usize,
    q: Rows<'a>,
    segments: Range<usize>,
    into: Into<'a>,
}

impl<'a> Query<'a, '_> {
    /// As a kernel takes it, in a cache of `E`.
    fn over<E: KvElement>(self) -> kernel::Attention<'a, E> {
        let attention = self.attention;
        kernel::Attention {
            // SAFETY: what the chunk reads was written in the phase before or by itself.
            layer: unsafe { self.running.cells.layer::<E>(attention.layer) },
            kv_head: self.kv_head,
            block_table: self.block_table,
            position: self.position,
            heads: attention.num_heads / attention.num_kv_heads,
            scale: attention.scale,
            window: attention.window,
            soft_cap: attention.soft_cap,
            sinks: attention.sinks_of(self.kv_head),
            q: self.q,
            segments: self.segments,
            into: self.into,
        }
    }
}
