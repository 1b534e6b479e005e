//! Attention over the paged cache: against the reference, in any chunks and company, on every instruction set.

use crate::support::{Random, bits, fill, normed, read, runnable};
use plinth_kernels::{
    Attention, Buffer, Format, KernelSet, KvCache, KvDtype, KvLayout, Norm, Program, RopeLayout,
    RopeTable, Selection, Sequence, Step, Workers, catalog, reference,
};
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
            let (k, v) = (rounded(k, shape.dtype), rounded(v, shape.dtype));
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
                let expected =
                    reference::attention(query, &keys, &values, shape.scale(), shape.cap);
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

/// In tiles everything is rounded to `bf16`: queries and keys, each by at most 2^-8, which in a score of `d` products of
/// random signs comes to `sqrt(d)` such errors of at most `4 / sqrt(d)`, six standard deviations of them taken; and the
/// weights and values, which average out over the keys but count whole for few.
fn tile_bound(shape: &Shape, keys: usize) -> f64 {
    let score = 6.0 * 4.0 / 512.0;
    let averaged = 2.0 * score / (keys as f64).sqrt().min(4.0) + 2.0 / 256.0;
    bound(shape, keys) + 2.0 * averaged
}

fn rounded(x: &[f32], dtype: KvDtype) -> Vec<f32> {
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
    ]
}

/// For contexts of several segments (512 keys): windows that end within, reach across and are longer than one.
fn long_shapes() -> Vec<Shape> {
    vec![
        shape((4, 2, 16), 16, KvDtype::F32, None, None),
        shape((2, 1, 8), 32, KvDtype::F16, Some(300), None),
        shape((3, 1, 24), 16, KvDtype::BF16, Some(600), Some(1.5)),
        shape((1, 1, 8), 48, KvDtype::F32, Some(512), None),
    ]
}

#[test]
fn attention_is_the_softmax_over_the_keys_a_query_sees() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    for (kernel, set) in runnable("attention") {
        let short = shapes().into_iter().map(|shape| (shape, [1, 16, 17, 50]));
        let long = long_shapes()
            .into_iter()
            .map(|shape| (shape, [700, 512, 1100, 513]));
        for (shape, lengths) in short.chain(long) {
            let case = Case::new(shape, &lengths, &mut random);
            let worst = case.worst(&case.run(&set, &workers, &case.whole()));
            assert!(
                worst <= 1.0,
                "{} {shape:?}: {worst} of the bound",
                kernel.id
            );
        }
    }
}

/// Runs of many queries in tiles: whole, in chunks with a rest that is answered without tiles, beside decoding sequences.
#[test]
fn attention_in_tiles_is_as_exact_as_its_numbers() {
    let (alone, three) = (Workers::new(1, &[]).unwrap(), Workers::new(3, &[]).unwrap());
    let mut random = Random::new(9);
    let tiles = catalog()
        .into_iter()
        .filter(|kernel| kernel.op == "attention" && !kernel.traits.iter().any(|t| t == "decode"));
    for kernel in tiles {
        let selection = Selection {
            attention_prefill: kernel.id.clone(),
            ..Selection::best()
        };
        let Ok(set) = KernelSet::bind(&selection) else {
            continue;
        };
        for shape in shapes().into_iter().chain(long_shapes()) {
            let lengths = if shape.head_dim < 32 {
                [17, 600]
            } else {
                [33, 290]
            };
            let case = Case::new(shape, &lengths, &mut random);
            let mixed = vec![
                vec![(0, lengths[0] - 1), (1, lengths[1] - 40)],
                vec![(0, 1), (1, 40)],
            ];
            for (workers, steps) in [
                (&three, case.whole()),
                (&alone, case.chunks(50)),
                (&three, mixed),
            ] {
                let outs = case.run(&set, workers, &steps);
                let worst = case.worst_of(&outs, tile_bound);
                assert!(
                    worst <= 1.0,
                    "{} {shape:?}: {worst} of the bound",
                    kernel.id
                );
            }
        }
    }
}

/// Alone, in chunks of any size, in any company, on every instruction set: the same bits.
fn check_every_way(
    case: &Case,
    sizes: &[usize],
    mixed: &[Vec<(usize, usize)>],
    kernels: &[(String, KernelSet)],
) {
    let alone = Workers::new(1, &[]).unwrap();
    let three = Workers::new(3, &[]).unwrap();
    let shape = &case.shape;
    let mut expected: Option<Vec<Vec<u32>>> = None;
    for (id, set) in kernels {
        let mut check = |workers: &Workers, steps: &[Vec<(usize, usize)>], what: &str| {
            let outs = case.run(set, workers, steps);
            let outs: Vec<_> = outs.iter().map(|out| bits(out)).collect();
            let expected = expected.get_or_insert_with(|| outs.clone());
            assert!(&outs == expected, "{id} {shape:?}: {what}");
        };
        check(&three, &case.whole(), "all at once");
        for &size in sizes {
            let what = format!("alone, in chunks of {size}");
            check(&alone, &case.chunks(size), &what);
        }
        check(&three, mixed, "decode beside prefill");
    }
}

fn attention_kernels() -> Vec<(String, KernelSet)> {
    let kernels = runnable("attention").into_iter();
    kernels.map(|(kernel, set)| (kernel.id, set)).collect()
}

#[test]
fn neither_chunks_nor_company_change_a_bit() {
    let mut random = Random::new(2);
    let kernels = attention_kernels();
    for shape in shapes() {
        let case = Case::new(shape, &[40, 3, 77], &mut random);
        let mixed = [
            vec![(0, 39), (2, 5)],
            vec![(0, 1), (1, 2), (2, 30)],
            vec![(1, 1), (2, 41)],
            vec![(2, 1)],
        ];
        check_every_way(&case, &[1, 7, 16, 17], &mixed, &kernels);
    }
}

#[test]
fn neither_chunks_nor_company_change_a_bit_of_a_long_context() {
    let mut random = Random::new(3);
    let kernels = attention_kernels();
    for shape in long_shapes() {
        let case = Case::new(shape, &[700, 20, 1100], &mut random);
        let mixed = [
            vec![(0, 511), (2, 1000)],
            vec![(0, 1), (1, 19), (2, 16)],
            vec![(0, 16), (1, 1), (2, 17)],
            vec![(0, 172), (2, 3)],
            vec![(2, 64)],
        ];
        check_every_way(&case, &[1, 13, 16, 100, 600], &mixed, &kernels);
    }
}

/// Norms of heads within attention have the bits of norms before it.
#[test]
fn heads_are_normalised_as_rows_are() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(4);
    for (kernel, set) in runnable("elementwise") {
        for dims in [(4, 2, 16), (3, 1, 24), (2, 2, 128)] {
            let shape = shape(dims, 16, KvDtype::F16, None, None);
            let mut case = Case::new(shape, &[3, 90, 530], &mut random);
            let mut norm = || Norm {
                weight: random.floats(shape.head_dim),
                eps: 1e-6,
            };
            let (query_norm, key_norm) = (norm(), norm());
            let steps = case.chunks(100);
            case.heads = Heads {
                query_norm: Some(query_norm.clone()),
                key_norm: Some(key_norm.clone()),
                rope: None,
            };
            let within = case.run(&set, &workers, &steps);
            case.heads = Heads::default();
            for [q, k, _] in &mut case.sequences {
                for (heads, norm) in [(q, &query_norm), (k, &key_norm)] {
                    let rows = heads.len() / shape.head_dim;
                    *heads = normed(&set, &workers, (heads, rows), norm);
                }
            }
            let before = case.run(&set, &workers, &steps);
            for (within, before) in within.iter().zip(&before) {
                assert_eq!(bits(within), bits(before), "{} {shape:?}", kernel.id);
            }
        }
    }
}

/// Queries and keys turned in attention: as turned before it in double precision, but for the rounding of angles.
#[test]
fn heads_are_turned_by_their_positions() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(5);
    for (kernel, set) in runnable("elementwise") {
        for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
            for (dims, turning) in [((4, 2, 16), 16), ((3, 1, 24), 10), ((2, 1, 64), 64)] {
                let shape = shape(dims, 16, KvDtype::F32, None, None);
                let d = shape.head_dim;
                let frequencies: Vec<f32> = (0..turning / 2)
                    .map(|i| 10_000f32.powf(-(2.0 * i as f32) / turning as f32))
                    .collect();
                let table = RopeTable::new(d, turning, &frequencies, layout, 530);
                let mut case = Case::new(shape, &[3, 90, 530], &mut random);
                case.heads.rope = Some(Arc::new(table));
                let outs = case.run(&set, &workers, &case.chunks(100));
                for [q, k, _] in &mut case.sequences {
                    for (x, heads) in [(q, shape.heads), (k, shape.kv_heads)] {
                        for (i, head) in x.chunks_exact_mut(d).enumerate() {
                            let position = (i / heads) as u32;
                            let head = &mut head[..turning];
                            let turned = reference::rope(head, &frequencies, layout, position);
                            head.iter_mut().zip(turned).for_each(|(x, t)| *x = t as f32);
                        }
                    }
                }
                // Turned by 45 degrees, elements are up to sqrt(2) as large, so scores twice; four more roundings of each
                // query and key are few beside the `d + 4` of the bound.
                let worst = case.worst(&outs);
                assert!(worst <= 2.0, "{} {shape:?}: {worst}", kernel.id);
            }
        }
    }
}

/// Norm, then turn: the order matters if the weights of the norm differ.
#[test]
fn heads_are_normalised_before_they_are_turned() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(6);
    let set = KernelSet::bind(&Selection::best()).unwrap();
    let shape = shape((4, 2, 16), 16, KvDtype::F16, Some(40), None);
    let frequencies = random.floats(8);
    let table = RopeTable::new(16, 16, &frequencies, RopeLayout::HalfSplit, 100);
    let norm = Norm {
        weight: random.floats(16),
        eps: 1e-6,
    };
    let mut case = Case::new(shape, &[100, 7], &mut random);
    case.heads.rope = Some(Arc::new(table));
    case.heads.query_norm = Some(norm.clone());
    case.heads.key_norm = Some(norm.clone());
    let within = case.run(&set, &workers, &case.whole());
    case.heads.query_norm = None;
    case.heads.key_norm = None;
    for [q, k, _] in &mut case.sequences {
        for heads in [q, k] {
            *heads = normed(&set, &workers, (heads, heads.len() / 16), &norm);
        }
    }
    let before = case.run(&set, &workers, &case.whole());
    for (within, before) in within.iter().zip(&before) {
        assert_eq!(bits(within), bits(before));
    }
}

/// Positions, norms and turns are a row's own, so chunks and company do not matter to them either.
#[test]
fn norms_and_turns_do_not_depend_on_chunks() {
    let mut random = Random::new(7);
    let shape = shape((4, 2, 24), 16, KvDtype::BF16, None, None);
    let mut case = Case::new(shape, &[100, 3, 77], &mut random);
    let frequencies = random.floats(9);
    let table = RopeTable::new(24, 18, &frequencies, RopeLayout::Interleaved, 100);
    let mut norm = || {
        Some(Norm {
            weight: random.floats(24),
            eps: 1e-6,
        })
    };
    case.heads = Heads {
        query_norm: norm(),
        key_norm: norm(),
        rope: Some(Arc::new(table)),
    };
    let mixed = [
        vec![(0, 99), (2, 5)],
        vec![(0, 1), (1, 2), (2, 30)],
        vec![(1, 1), (2, 42)],
    ];
    let kernels = runnable("elementwise").into_iter();
    let kernels: Vec<_> = kernels.map(|(kernel, set)| (kernel.id, set)).collect();
    check_every_way(&case, &[1, 7, 65], &mixed, &kernels);
}

#[test]
fn a_row_of_no_sequence_is_left_alone() {
    let workers = Workers::new(2, &[]).unwrap();
    let (_, set) = runnable("attention").remove(0);
    let shape = shape((1, 1, 8), 16, KvDtype::F32, None, None);
    let sequences = [Sequence {
        query_start: 1,
        query_len: 1,
        context_len: 1,
        block_table: &[0],
    }];
    let (q, v) = (vec![1.0; 3 * 8], vec![0.25; 3 * 8]);
    let out = Operation::new(&shape, 0).run(
        (&set, &workers),
        &mut shape.cache(1),
        &sequences,
        [&q, &q, &v],
    );
    assert_eq!(out[..8], [UNTOUCHED; 8]);
    assert_eq!(out[8..16], [0.25; 8]);
    assert_eq!(out[16..], [UNTOUCHED; 8]);
}
