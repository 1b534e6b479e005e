//! Attention: new keys and values into the cache, then every query over the keys that its sequence has there.
//!
//! A sequence with few new rows is cut by KV head and by segments of keys, so that one long context keeps all workers
//! busy; each chunk writes the new keys and values of its own segment first, and results over several segments are merged
//! in a phase of their own. A sequence with many new rows (a prompt) is cut by KV head and runs of rows, after a phase in
//! which its keys and values were written.

mod chunk;

use super::rows::{Norm, Push};
use super::shared::SharedSlice;
use super::{Buffer, Lowering, Op, Part, Phase, Program, Running, Scratch, Sequence, assert_width};
use crate::cpu::generic::attention::{Merge, SEGMENT, partial_len};
use crate::cpu::generic::tile_attention::{self, TileLayout};
use crate::cpu::generic::tile_matmul::TileWords;
use crate::kv_cache::{KvDtype, KvLayout, with_element};
use crate::rope::RopeTable;
use chunk::Run;
use std::ops::Range;
use std::sync::Arc;

/// Causal softmax attention of one layer over the paged cache.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Layer of the cache.
    pub layer: usize,
    /// `[rows, num_heads * head_dim]`.
    pub query: Buffer,
    /// `[rows, num_kv_heads * head_dim]`.
    pub key: Buffer,
    /// `[rows, num_kv_heads * head_dim]`.
    pub value: Buffer,
    /// `[rows, num_heads * head_dim]`.
    pub out: Buffer,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Keys that a query sees at most, itself included; `None`: all.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A score of each query head that no key has: it takes its share of the softmax and adds no value. Neither scaled nor
    /// capped.
    pub sinks: Option<Vec<f32>>,
    /// Applied to every query head before it is turned.
    pub query_norm: Option<Norm>,
    /// Applied to every key head before it is turned.
    pub key_norm: Option<Norm>,
    /// Turns queries and keys by the angles of their positions.
    pub rope: Option<Arc<RopeTable>>,
}

/// New rows up to which a sequence is cut by segments of keys.
pub(super) const FEW_ROWS: usize = 16;

/// New rows of a longer run that one chunk answers: enough to share the loads of keys, few enough to spread.
const QUERY_BLOCK: usize = 16;

/// The same where tiles are multiplied.
const TILE_QUERY_BLOCK: usize = 32;

/// One chunk of attention.
struct Item {
    sequence: usize,
    kv_head: usize,
    what: What,
}

enum What {
    /// All rows of the sequence over one segment, or over all if there is only one to look at.
    Segment { segment: usize, of: Range<usize> },
    /// Some rows of the sequence over all segments.
    Rows(Range<usize>),
}

impl Attention {
    pub(super) fn check(&self, program: &Program) {
        let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} heads share {kv_heads} kv heads"
        );
        for (what, buffer, heads) in [
            ("query", self.query, heads),
            ("key", self.key, kv_heads),
            ("value", self.value, kv_heads),
            ("out", self.out, heads),
        ] {
            assert_width(what, program.width(buffer), heads * self.head_dim);
        }
        for norm in self.query_norm.iter().chain(&self.key_norm) {
            assert_width("norm of heads", norm.weight.len(), self.head_dim);
        }
        if let Some(sinks) = &self.sinks {
            assert!(
                sinks.len() == heads,
                "{} sinks of {heads} heads",
                sinks.len()
            );
        }
        if let Some(rope) = &self.rope {
            assert!(rope.rotary_dims() <= self.head_dim, "turns within a head");
        }
        assert!(self.window != Some(0), "a window of no keys");
        assert!(
            ![self.query, self.key, self.value].contains(&self.out),
            "results go to another buffer"
        );
    }

    fn check_cache(&self, layout: &KvLayout) {
        assert!(
            (self.num_kv_heads, self.head_dim) == (layout.num_kv_heads, layout.head_dim)
                && self.layer < layout.layers,
            "layer {} of {} kv heads of {} in {layout:?}",
            self.layer,
            self.num_kv_heads,
            self.head_dim
        );
    }

    /// Sinks of the heads that share a KV head.
    fn sinks_of(&self, kv_head: usize) -> Option<&[f32]> {
        let heads = self.num_heads / self.num_kv_heads;
        let sinks = self.sinks.as_ref()?;
        Some(&sinks[kv_head * heads..][..heads])
    }

    /// Segments that rows of a sequence see; `rows` are counted within it.
    fn segments(&self, s: &Sequence<'_>, rows: &Range<usize>) -> Range<usize> {
        let first = s.position() + rows.start + 1;
        let first = self.window.map_or(0, |window| first.saturating_sub(window));
        first / SEGMENT..(s.position() + rows.end).div_ceil(SEGMENT)
    }

    /// Pieces that one KV head of a sequence is cut into; `block` rows of a long one.
    fn pieces(&self, s: &Sequence<'_>, block: usize) -> usize {
        match s.query_len {
            0 => 0,
            1..=FEW_ROWS => self.segments(s, &(0..s.query_len)).len(),
            rows => rows.div_ceil(block),
        }
    }

    /// Runs of keys that a sequence sees, as tiles have them.
    fn runs(&self, s: &Sequence<'_>) -> Range<usize> {
        const RUN: usize = tile_attention::RUN;
        let first = s.position() + 1;
        let first = self.window.map_or(0, |window| first.saturating_sub(window));
        first / RUN..s.context_len.div_ceil(RUN)
    }

    /// Tiles of a long sequence and one KV head.
    fn tiles(&self, s: &Sequence<'_>) -> (TileLayout, usize) {
        let layout = TileLayout {
            head_dim: self.head_dim,
            runs: self.runs(s).len(),
        };
        (layout, layout.runs * layout.run_tiles())
    }

    /// Records of partial sums that the results of a sequence go through; none if it is not cut by segments.
    fn records(&self, s: &Sequence<'_>) -> usize {
        match self.pieces(s, QUERY_BLOCK) {
            pieces if s.query_len <= FEW_ROWS && pieces > 1 => {
                pieces * s.query_len * self.num_heads
            }
            _ => 0,
        }
    }

    pub(super) fn phases(&self, lowering: &Lowering<'_>, push: &mut Push<'_>) {
        self.check_cache(&lowering.layout);
        let dtype = lowering.layout.dtype;
        assert!(
            !lowering.pairs || dtype == KvDtype::BF16,
            "attention in pairs of bf16 over a cache of {}",
            dtype.name()
        );
        let sequences = lowering.sequences;
        let long = sequences.iter().filter(|s| s.query_len > FEW_ROWS).count();
        push(Part::WriteCache, 2 * long * self.num_kv_heads, 1);
        let mut block = QUERY_BLOCK;
        if lowering.tiles {
            block = TILE_QUERY_BLOCK;
            let long = sequences.iter().filter(|s| s.query_len > FEW_ROWS);
            let runs: usize = long.map(|s| self.runs(s).len()).sum();
            push(Part::PackTiles, runs * self.num_kv_heads, 1);
        }
        let pieces: usize = sequences.iter().map(|s| self.pieces(s, block)).sum();
        push(Part::Attend, pieces * self.num_kv_heads, block);
        let cut = |s: &&Sequence<'_>| self.records(s) > 0;
        let rows: usize = sequences.iter().filter(cut).map(|s| s.query_len).sum();
        push(Part::Merge, rows * self.num_heads, 1);
    }

    pub(super) fn run(
        &self,
        running: &Running<'_>,
        phase: &Phase,
        chunk: usize,
        scratch: &mut Scratch,
    ) {
        let dtype = running.cells.layout().dtype;
        match phase.part {
            Part::Merge => self.merge(running, chunk),
            part => with_element(
                dtype,
                Run {
                    attention: self,
                    running,
                    part,
                    size: phase.size,
                    chunk,
                    scratch,
                },
            ),
        }
    }

    /// The chunk's share of a phase of attention. Late rows of a prompt see more keys and come first, so that no long
    /// chunk is left for the end.
    fn item(&self, sequences: &[Sequence<'_>], block: usize, mut chunk: usize) -> Item {
        for (i, s) in sequences.iter().enumerate() {
            let pieces = self.pieces(s, block);
            if chunk >= pieces * self.num_kv_heads {
                chunk -= pieces * self.num_kv_heads;
                continue;
            }
            let (piece, kv_head) = (chunk / self.num_kv_heads, chunk % self.num_kv_heads);
            let what = if s.query_len <= FEW_ROWS {
                let of = self.segments(s, &(0..s.query_len));
                What::Segment {
                    segment: of.start + piece,
                    of,
                }
            } else {
                let first = (pieces - 1 - piece) * block;
                What::Rows(first..s.query_len.min(first + block))
            };
            return Item {
                sequence: i,
                kv_head,
                what,
            };
        }
        unreachable!("the chunks of a phase are those of its sequences")
    }

    /// First record of a sequence.
    fn first_record(&self, sequences: &[Sequence<'_>], sequence: usize) -> usize {
        sequences[..sequence].iter().map(|s| self.records(s)).sum()
    }

    /// Merges one row and head.
    fn merge(&self, running: &Running<'_>, chunk: usize) {
        let sequences = running.step.sequences;
        let (mut row, head) = (chunk / self.num_heads, chunk % self.num_heads);
        let mut cut = sequences
            .iter()
            .enumerate()
            .filter(|(_, s)| self.records(s) > 0);
        let (i, s) = loop {
            let (i, s) = cut.next().expect("the chunks are those of its sequences");
            match row < s.query_len {
                true => break (i, s),
                false => row -= s.query_len,
            }
        };
        let len = partial_len(self.head_dim);
        let first = self.first_record(sequences, i);
        let heads = self.num_heads / self.num_kv_heads;
        let partials: Vec<&[f32]> = (0..self.pieces(s, QUERY_BLOCK))
            .map(|piece| {
                // As `attend` numbers them: `[segment][kv head][row][head]`.
                let record = (piece * self.num_kv_heads + head / heads) * s.query_len + row;
                let record = first + record * heads + head % heads;
                // SAFETY: written in the phase before, and by nobody in this one.
                unsafe { running.partial.read(record * len..(record + 1) * len) }
            })
            .collect();
        let row = s.query_start + row;
        let cols = head * self.head_dim..(head + 1) * self.head_dim;
        // SAFETY: each chunk has a row and head of its own.
        let mut out = unsafe { running.part(self.out, row..row + 1, cols) };
        running.bound.attention_decode.lanes().run(Merge {
            partials: &partials,
            sink: self.sinks.as_ref().map(|sinks| sinks[head]),
            out: out.row_mut(0),
        });
    }
}

/// Memory of attention, from one phase to a later one: partial sums over segments, and keys and values in tiles.
#[derive(Default)]
pub(super) struct Room {
    partials: Vec<f32>,
    tiles: Vec<TileWords>,
}

impl Room {
    /// Makes room for whatever the operations need.
    pub fn reserve(&mut self, ops: &[&Op], lowering: &Lowering<'_>) {
        for op in ops {
            if let Op::Attention(attention) = op {
                let records = attention.first_record(lowering.sequences, lowering.sequences.len());
                let len = records * partial_len(attention.head_dim);
                if self.partials.len() < len {
                    self.partials.resize(len, 0.0);
                }
                let long = lowering.sequences.iter().filter(|s| s.query_len > FEW_ROWS);
                let tiles: usize = long.map(|s| attention.tiles(s).1).sum();
                let len = tiles * attention.num_kv_heads;
                if lowering.tiles && self.tiles.len() < len {
                    self.tiles.resize(len, TileWords::ZERO);
                }
            }
        }
    }

    pub fn shared(&mut self) -> (SharedSlice<'_, f32>, SharedSlice<'_, TileWords>) {
        (
            SharedSlice::new(&mut self.partials),
            SharedSlice::new(&mut self.tiles),
        )
    }
}
