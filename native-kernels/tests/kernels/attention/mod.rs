//! Attention over the paged cache: sequences in blocks, steps that advance them, and what the reference makes of them.

mod results;
mod sinks;

use crate::support::{Random, fill, read};
use plinth_kernels::{
    Attention, Buffer, Format, KernelSet, KvCache, KvDtype, KvLayout, Norm, Program, RopeTable,
    Selection, Sequence, Step, Workers, catalog, reference,
};
use plinth_platform::facts::Kernel;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
    pub dtype: KvDtype,
    pub window: Option<usize>,
    pub cap: Option<f32>,
    /// Sinks of the heads, in turn.
    pub sinks: Option<[f32; 5]>,
}

/// What happens to heads before attention.
#[derive(Clone, Default)]
struct Heads {
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    rope: Option<Arc<RopeTable>>,
}

/// Some sequences with their queries, keys and values, `[tokens][heads or kv heads * head_dim]` each.
struct Case {
    shape: Shape,
    heads: Heads,
    sequences: Vec<[Vec<f32>; 3]>,
}

const LAYERS: usize = 2;
const LAYER: usize = 1;

/// A program that attends.
pub struct Operation {
    program: Program,
    buffers: [Buffer; 4],
}

impl Operation {
    pub fn new(shape: &Shape, layer: usize) -> Self {
        Self::with_heads(shape, layer, &Heads::default())
    }

    fn with_heads(shape: &Shape, layer: usize, heads: &Heads) -> Self {
        let mut program = Program::new();
        let (q, kv) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        let buffers @ [query, key, value, out] = [q, kv, kv, q].map(|width| program.buffer(width));
        program.attention(Attention {
            layer,
            query,
            key,
            value,
            out,
            num_heads: shape.heads,
            num_kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: shape.scale(),
            window: shape.window,
            soft_cap: shape.cap,
            sinks: (0..shape.heads).map(|head| shape.sink(head)).collect(),
            query_norm: heads.query_norm.clone(),
            key_norm: heads.key_norm.clone(),
            rope: heads.rope.clone(),
        });
        Self { program, buffers }
    }

    /// Runs a step with these queries, keys and values; rows of no sequence come out as `UNTOUCHED`.
    pub fn run(
        &mut self,
        (set, workers): (&KernelSet, &Workers),
        cache: &mut KvCache,
        sequences: &[Sequence<'_>],
        inputs: [&[f32]; 3],
    ) -> Vec<f32> {
        let rows = inputs[0].len() / self.program.width(self.buffers[0]);
        for (buffer, input) in self.buffers.into_iter().zip(inputs) {
            fill(&mut self.program, buffer, rows, input);
        }
        let untouched = vec![UNTOUCHED; inputs[0].len()];
        fill(&mut self.program, self.buffers[3], rows, &untouched);
        let step = Step {
            tokens: &vec![0; rows],
            sequences,
            wanted: &[],
        };
        self.program.run(set, workers, &step, cache, &mut |_, _| {});
        read(&self.program, self.buffers[3], rows)
    }
}

const UNTOUCHED: f32 = 5.0;

/// What was in a block before must not matter, even if it is not a number: every block of every layer belonged to a
/// sequence of keys and values that are none.
fn poison(set: &KernelSet, workers: &Workers, cache: &mut KvCache) {
    let layout = *cache.layout();
    let shape = Shape {
        heads: layout.num_kv_heads,
        kv_heads: layout.num_kv_heads,
        head_dim: layout.head_dim,
        block_size: layout.block_size,
        dtype: layout.dtype,
        window: Some(1),
        cap: None,
        sinks: None,
    };
    let tables: Vec<[u32; 1]> = (0..layout.num_blocks as u32).map(|block| [block]).collect();
    let owners: Vec<Sequence<'_>> = tables
        .iter()
        .enumerate()
        .map(|(i, table)| Sequence {
            query_start: i * layout.block_size,
            query_len: layout.block_size,
            context_len: layout.block_size,
            block_table: table,
        })
        .collect();
    let rows = layout.num_blocks * layout.block_size;
    let nan = vec![f32::NAN; rows * layout.num_kv_heads * layout.head_dim];
    for layer in 0..layout.layers {
        let mut operation = Operation::new(&shape, layer);
        let out = operation.run((set, workers), cache, &owners, [&nan; 3]);
        assert!(out.iter().all(|x| x.is_nan()));
    }
}

impl Shape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn sink(&self, head: usize) -> Option<f32> {
        self.sinks.map(|sinks| sinks[head % sinks.len()])
    }

    pub fn cache(&self, num_blocks: usize) -> KvCache {
        let layout = KvLayout {
            layers: LAYERS,
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            block_size: self.block_size,
            num_blocks,
            dtype: self.dtype,
        };
        KvCache::new(layout).unwrap()
    }
}

impl Case {
    fn new(shape: Shape, lengths: &[usize], random: &mut Random) -> Self {
        let (q, kv) = (shape.heads, shape.kv_heads);
        let sequences = lengths.iter().map(|len| {
            [q, kv, kv].map(|heads| {
                let floats = random.floats(len * heads * shape.head_dim);
                floats.iter().map(|x| x * 2.0).collect()
            })
        });
        Self {
            shape,
            heads: Heads::default(),
            sequences: sequences.collect(),
        }
    }

    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence][0].len() / (self.shape.heads * self.shape.head_dim)
    }

    /// Blocks of each sequence, scattered over a cache.
    fn block_tables(&self) -> (Vec<Vec<u32>>, usize) {
        let mut next = 0;
        let tables: Vec<Vec<u32>> = (0..self.sequences.len())
            .map(|s| {
                let blocks = self.len(s).div_ceil(self.shape.block_size) as u32;
                next += blocks;
                (next - blocks..next).rev().map(|b| 2 * b + 1).collect()
            })
            .collect();
        (tables, 2 * next as usize + 2)
    }

    /// Runs steps: each names, for some sequences in order, how many tokens they advance. Returns each sequence's output.
    fn run(
        &self,
        set: &KernelSet,
        workers: &Workers,
        steps: &[Vec<(usize, usize)>],
    ) -> Vec<Vec<f32>> {
        let shape = &self.shape;
        let (tables, num_blocks) = self.block_tables();
        let mut cache = shape.cache(num_blocks);
        poison(set, workers, &mut cache);
        let mut operation = Operation::with_heads(shape, LAYER, &self.heads);
        let mut done = vec![0; self.sequences.len()];
        let mut outs = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let mut inputs = [const { Vec::new() }; 3];
            let (mut rows, mut sequences) = (0, Vec::new());
            for &(s, count) in step {
                let tokens = done[s]..done[s] + count;
                sequences.push(Sequence {
                    query_start: rows,
                    query_len: count,
                    context_len: tokens.end,
                    block_table: &tables[s],
                });
                for (to, from) in inputs.iter_mut().zip(&self.sequences[s]) {
                    let width = from.len() / self.len(s);
                    to.extend(&from[tokens.start * width..tokens.end * width]);
                }
                rows += count;
                done[s] += count;
            }
            let [q, k, v] = &inputs;
            let out = operation.run((set, workers), &mut cache, &sequences, [q, k, v]);
            let width = shape.heads * shape.head_dim;
            for (sequence, &(s, _)) in sequences.iter().zip(step) {
                let (start, len) = (sequence.query_start, sequence.query_len);
                outs[s].extend(&out[start * width..(start + len) * width]);
            }
        }
        outs
    }

    /// All sequences in one step.
    fn whole(&self) -> Vec<Vec<(usize, usize)>> {
        let all = (0..self.sequences.len()).map(|s| (s, self.len(s)));
        vec![all.collect()]
    }

    /// One sequence after the other, each in chunks.
    fn chunks(&self, size: usize) -> Vec<Vec<(usize, usize)>> {
        let mut steps = Vec::new();
        for s in 0..self.sequences.len() {
            for start in (0..self.len(s)).step_by(size) {
                steps.push(vec![(s, size.min(self.len(s) - start))]);
            }
        }
        steps
    }

    /// Largest error over what the bound allows. Of long sequences only some of the tokens are looked at.
    fn worst(&self, outs: &[Vec<f32>]) -> f64 {
        self.worst_of(outs, bound)
    }

    fn worst_of(&self, outs: &[Vec<f32>], bound: fn(&Shape, usize) -> f64) -> f64 {
        let shape = self.shape;
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let mut worst = 0.0f64;
        for (s, out) in outs.iter().enumerate() {
            let [q, k, v] = &self.sequences[s];
            let (k, v) = (rounded(k, shape.dtype, d), rounded(v, shape.dtype, d));
            let step = if self.len(s) > 200 { 13 } else { 1 };
            for (i, out) in out.chunks_exact(d).enumerate().step_by(step) {
                let (token, head) = (i / shape.heads, i % shape.heads);
                let first = shape.window.map_or(0, |w| (token + 1).saturating_sub(w));
                let of_head = |x: &[f32]| -> Vec<f32> {
                    (first..=token)
                        .flat_map(|t| &x[(t * shape.kv_heads + head / group) * d..][..d])
                        .copied()
                        .collect()
                };
                let (keys, values) = (of_head(&k), of_head(&v));
                let query = &q[i * d..][..d];
                let by = reference::Scores {
                    scale: shape.scale(),
                    cap: shape.cap,
                    sink: shape.sink(head),
                };
                let expected = reference::attention(query, &keys, &values, by);
                let bound = bound(&shape, token + 1 - first);
                for (out, expected) in out.iter().zip(expected) {
                    let error = (f64::from(*out) - expected).abs();
                    assert!(!error.is_nan(), "{shape:?}: token {token} is not a number");
                    worst = worst.max(error / bound);
                }
            }
        }
        worst
    }
}

/// Queries, keys and values are below 2, so a score is below `4 sqrt(d)` and its error below `d` roundings of that; a cap
/// adds the 2e-7 of its tangent and two roundings, all times the cap; a weight is off by as much relatively, plus 1.5e-7
/// of the power; the sums over keys add a rounding each; and all of it counts twice, above and below the fraction bar,
/// on values below 2.
fn bound(shape: &Shape, keys: usize) -> f64 {
    let d = shape.head_dim as f64;
    let cap = f64::from(shape.cap.unwrap_or(0.0));
    let score = 6e-8 * (d + 4.0) * 4.0 * d.sqrt() + cap * 3.2e-7;
    2.0 * 2.0 * (score + 1.5e-7 + 6e-8 * (keys as f64 + 20.0))
}

/// Kernels for runs of many queries alone, by id, each beside the best of this CPU for everything else.
fn tile_kernels() -> Vec<(String, KernelSet)> {
    only_for("prefill")
}

/// Kernels for few queries alone, by id, each beside the best of this CPU for everything else.
fn pairs_kernels() -> Vec<(String, KernelSet)> {
    only_for("decode")
}

fn only_for(phase: &str) -> Vec<(String, KernelSet)> {
    let other = if phase == "decode" {
        "prefill"
    } else {
        "decode"
    };
    let only = |kernel: &Kernel| !kernel.traits.iter().any(|t| t == other);
    let kernels = catalog()
        .into_iter()
        .filter(|kernel| kernel.op == "attention");
    kernels
        .filter(only)
        .filter_map(|kernel| {
            let mut selection = Selection::best();
            match phase {
                "decode" => selection.attention_decode = kernel.id.clone(),
                _ => selection.attention_prefill = kernel.id.clone(),
            }
            let set = KernelSet::bind(&selection).ok()?;
            Some((kernel.id, set))
        })
        .collect()
}

/// In tiles everything is rounded to `bf16`: queries and keys, each by at most 2^-8, which in a score of `d` products of
/// random signs comes to `sqrt(d)` such errors of at most `4 / sqrt(d)`, six standard deviations of them taken; and the
/// weights and values, which average out over the keys but count whole for few.
fn tile_bound(shape: &Shape, keys: usize) -> f64 {
    let score = 6.0 * 4.0 / 512.0;
    let averaged = 2.0 * score / (keys as f64).sqrt().min(4.0) + 2.0 / 256.0;
    bound(shape, keys) + 2.0 * averaged
}

/// What the cache keeps of heads of `head_dim`.
fn rounded(x: &[f32], dtype: KvDtype, head_dim: usize) -> Vec<f32> {
    if dtype == KvDtype::Q8 {
        let of_head = |head: &[f32]| -> Vec<f32> {
            let scale = head.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            let factor = if scale < f32::MIN_POSITIVE {
                0.0
            } else {
                1.0 / scale
            };
            let byte = |x: &f32| (x * factor).round_ties_even();
            head.iter().map(|x| byte(x) * scale).collect()
        };
        return x.chunks(head_dim).flat_map(of_head).collect();
    }
    let format = Format::from_name(dtype.name()).unwrap();
    let mut bytes = vec![0; format.row_bytes(x.len()).unwrap()];
    format.quantize(x, &mut bytes);
    let mut out = vec![0.0; x.len()];
    format.dequantize(&bytes, &mut out);
    out
}

fn shape(
    (heads, kv_heads, head_dim): (usize, usize, usize),
    block_size: usize,
    dtype: KvDtype,
    window: Option<usize>,
    cap: Option<f32>,
) -> Shape {
    Shape {
        heads,
        kv_heads,
        head_dim,
        block_size,
        dtype,
        window,
        cap,
        sinks: None,
    }
}

/// The same with sinks from far below the scores to well above most of them.
fn sunk(shape: Shape) -> Shape {
    Shape {
        sinks: Some([1.5, -3.0, 5.25, 0.0, -40.0]),
        ..shape
    }
}

fn shapes() -> Vec<Shape> {
    vec![
        shape((9, 3, 64), 16, KvDtype::F16, None, None),
        shape((4, 4, 8), 16, KvDtype::F32, None, Some(2.0)),
        shape((7, 1, 24), 32, KvDtype::BF16, None, None),
        shape((8, 1, 80), 48, KvDtype::F32, Some(20), None),
        shape((4, 2, 128), 16, KvDtype::BF16, Some(1), Some(50.0)),
        shape((5, 1, 256), 16, KvDtype::F16, Some(33), None),
        shape((16, 1, 40), 32, KvDtype::F32, None, None),
        shape((9, 3, 64), 16, KvDtype::Q8, None, None),
        shape((6, 2, 24), 48, KvDtype::Q8, Some(20), Some(2.0)),
        sunk(shape((8, 1, 64), 16, KvDtype::F16, Some(13), None)),
        sunk(shape((5, 1, 8), 16, KvDtype::F32, None, Some(2.0))),
        sunk(shape((6, 2, 40), 48, KvDtype::BF16, None, None)),
        sunk(shape((9, 3, 24), 32, KvDtype::Q8, None, None)),
    ]
}

/// For contexts of several segments (512 keys): windows that end within, reach across and are longer than one.
fn long_shapes() -> Vec<Shape> {
    vec![
        shape((4, 2, 16), 16, KvDtype::F32, None, None),
        shape((2, 1, 8), 32, KvDtype::F16, Some(300), None),
        shape((3, 1, 24), 16, KvDtype::BF16, Some(600), Some(1.5)),
        shape((1, 1, 8), 48, KvDtype::F32, Some(512), None),
        shape((3, 1, 40), 16, KvDtype::Q8, None, None),
        sunk(shape((4, 2, 16), 16, KvDtype::F16, Some(600), None)),
        sunk(shape((3, 1, 8), 48, KvDtype::Q8, None, None)),
    ]
}
