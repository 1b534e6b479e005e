//! Attention over the paged cache: against the reference, in any chunks and company, on every instruction set.

use crate::support::{Random, bits, runnable};
use plinth_kernels::{
    AttentionBatch, AttentionSequence, Format, KernelSet, KvCache, KvDtype, KvLayout, Rows,
    RowsMut, Slot, Workers, reference,
};

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    dtype: KvDtype,
    window: Option<u32>,
}

/// Some sequences with their queries, keys and values, `[tokens][heads or kv heads * head_dim]` each.
struct Case {
    shape: Shape,
    sequences: Vec<[Vec<f32>; 3]>,
}

const LAYER: usize = 1;

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

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }

    /// Runs steps: each names, for some sequences in order, how many tokens they advance. Returns each sequence's output.
    fn run(
        &self,
        set: &KernelSet,
        workers: &Workers,
        steps: &[Vec<(usize, usize)>],
    ) -> Vec<Vec<f32>> {
        let shape = self.shape;
        let (tables, num_blocks) = self.block_tables();
        let mut cache = KvCache::new(KvLayout {
            layers: 2,
            num_kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            block_size: shape.block_size,
            num_blocks,
            dtype: shape.dtype,
        })
        .unwrap();
        self.poison(set, workers, &mut cache);
        let mut done = vec![0; self.sequences.len()];
        let mut outs = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let [mut q, mut k, mut v] = [const { Vec::new() }; 3];
            let (mut slots, mut sequences) = (Vec::new(), Vec::new());
            for &(s, count) in step {
                let tokens = done[s]..done[s] + count;
                sequences.push(AttentionSequence {
                    query_start: slots.len(),
                    query_len: count,
                    context_len: tokens.end,
                    block_table: &tables[s],
                });
                for (to, from, heads) in [
                    (&mut q, &self.sequences[s][0], shape.heads),
                    (&mut k, &self.sequences[s][1], shape.kv_heads),
                    (&mut v, &self.sequences[s][2], shape.kv_heads),
                ] {
                    let width = heads * shape.head_dim;
                    to.extend(&from[tokens.start * width..tokens.end * width]);
                }
                slots.extend(tokens.map(|t| Slot {
                    block: tables[s][t / shape.block_size],
                    offset: (t % shape.block_size) as u32,
                }));
                done[s] += count;
            }
            let rows = slots.len();
            let kv_width = shape.kv_heads * shape.head_dim;
            let (k, v) = (Rows::new(&k, rows, kv_width), Rows::new(&v, rows, kv_width));
            set.kv_write(workers, &mut cache, LAYER, k, v, &slots);
            let width = shape.heads * shape.head_dim;
            let mut out = vec![f32::NAN; rows * width];
            let batch = AttentionBatch {
                sequences: &sequences,
                num_heads: shape.heads,
                num_kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                scale: self.scale(),
                window: shape.window,
            };
            let view = RowsMut::new(&mut out, rows, width);
            let q = Rows::new(&q, rows, width);
            set.attention(workers, &cache, LAYER, q, &batch, view);
            for (i, &(s, _)) in step.iter().enumerate() {
                let (start, len) = (sequences[i].query_start, sequences[i].query_len);
                outs[s].extend(&out[start * width..(start + len) * width]);
            }
        }
        outs
    }

    /// What was in a block before must not matter, even if it is not a number.
    fn poison(&self, set: &KernelSet, workers: &Workers, cache: &mut KvCache) {
        let layout = *cache.layout();
        let slots: Vec<Slot> = (0..layout.num_blocks as u32)
            .flat_map(|block| {
                (0..layout.block_size as u32).map(move |offset| Slot { block, offset })
            })
            .collect();
        let width = layout.num_kv_heads * layout.head_dim;
        let nan = vec![f32::NAN; slots.len() * width];
        let nan = Rows::new(&nan, slots.len(), width);
        set.kv_write(workers, cache, LAYER, nan, nan, &slots);
    }

    fn whole(&self) -> Vec<Vec<(usize, usize)>> {
        let all = (0..self.sequences.len()).map(|s| (s, self.len(s)));
        vec![all.collect()]
    }

    /// Largest error over what the bound allows.
    fn worst(&self, outs: &[Vec<f32>]) -> f64 {
        let shape = self.shape;
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let mut worst = 0.0f64;
        for (s, out) in outs.iter().enumerate() {
            let [q, k, v] = &self.sequences[s];
            let (k, v) = (rounded(k, shape.dtype), rounded(v, shape.dtype));
            for (i, out) in out.chunks_exact(d).enumerate() {
                let (token, head) = (i / shape.heads, i % shape.heads);
                let first = shape
                    .window
                    .map_or(0, |w| (token + 1).saturating_sub(w as usize));
                let of_head = |x: &[f32]| -> Vec<f32> {
                    (first..=token)
                        .flat_map(|t| &x[(t * shape.kv_heads + head / group) * d..][..d])
                        .copied()
                        .collect()
                };
                let (keys, values) = (of_head(&k), of_head(&v));
                let query = &q[i * d..][..d];
                let expected = reference::attention(query, &keys, &values, self.scale());
                for (out, expected) in out.iter().zip(expected) {
                    let error = (f64::from(*out) - expected).abs();
                    worst = worst.max(error / bound(d, token + 1 - first));
                }
            }
        }
        worst
    }
}

/// Queries, keys and values are below 2, so a score is below `4 sqrt(d)` and its error below `d` roundings of that; a
/// weight is off by as much relatively, plus 1.5e-7 of the power; the sums over keys add a rounding each; and all of it
/// counts twice, above and below the fraction bar, on values below 2.
fn bound(head_dim: usize, keys: usize) -> f64 {
    let d = head_dim as f64;
    let score = 6e-8 * (d + 4.0) * 4.0 * d.sqrt();
    2.0 * 2.0 * (score + 1.5e-7 + 6e-8 * (keys as f64 + 20.0))
}

fn rounded(x: &[f32], dtype: KvDtype) -> Vec<f32> {
    let format = Format::from_name(dtype.name()).unwrap();
    let mut bytes = vec![0; format.row_bytes(x.len()).unwrap()];
    format.quantize(x, &mut bytes);
    let mut out = vec![0.0; x.len()];
    format.dequantize(&bytes, &mut out);
    out
}

fn shapes() -> Vec<Shape> {
    let shape = |heads, kv_heads, head_dim, block_size, dtype, window| Shape {
        heads,
        kv_heads,
        head_dim,
        block_size,
        dtype,
        window,
    };
    vec![
        shape(9, 3, 64, 16, KvDtype::F16, None),
        shape(4, 4, 8, 16, KvDtype::F32, None),
        shape(7, 1, 24, 32, KvDtype::BF16, None),
        shape(8, 1, 80, 48, KvDtype::F32, Some(20)),
        shape(4, 2, 128, 16, KvDtype::BF16, Some(1)),
        shape(5, 1, 256, 16, KvDtype::F16, Some(33)),
        shape(16, 1, 40, 32, KvDtype::F32, None),
    ]
}

#[test]
fn attention_is_the_softmax_over_the_keys_a_query_sees() {
    let workers = Workers::new(2, &[]).unwrap();
    let mut random = Random::new(1);
    for (kernel, set) in runnable("attention") {
        for shape in shapes() {
            let case = Case::new(shape, &[1, 16, 17, 50], &mut random);
            let worst = case.worst(&case.run(&set, &workers, &case.whole()));
            assert!(
                worst <= 1.0,
                "{} {shape:?}: {worst} of the bound",
                kernel.id
            );
        }
    }
}

/// Alone, in chunks of any size, in any company, on every instruction set: the same bits.
#[test]
fn neither_chunks_nor_company_change_a_bit() {
    let alone = Workers::new(1, &[]).unwrap();
    let three = Workers::new(3, &[]).unwrap();
    let mut random = Random::new(2);
    for shape in shapes() {
        let case = Case::new(shape, &[40, 3, 77], &mut random);
        let mut expected: Option<Vec<Vec<u32>>> = None;
        for (kernel, set) in runnable("attention") {
            let mut check = |workers: &Workers, steps: &[Vec<(usize, usize)>], what: &str| {
                let outs = case.run(&set, workers, steps);
                let outs: Vec<_> = outs.iter().map(|out| bits(out)).collect();
                let expected = expected.get_or_insert_with(|| outs.clone());
                assert!(&outs == expected, "{} {shape:?}: {what}", kernel.id);
            };
            check(&three, &case.whole(), "all at once");
            for size in [1, 7, 16] {
                let mut steps = Vec::new();
                for s in 0..3 {
                    for start in (0..case.len(s)).step_by(size) {
                        steps.push(vec![(s, size.min(case.len(s) - start))]);
                    }
                }
                check(&alone, &steps, &format!("alone, in chunks of {size}"));
            }
            let mixed = [
                vec![(0, 39), (2, 5)],
                vec![(0, 1), (1, 2), (2, 30)],
                vec![(1, 1), (2, 41)],
                vec![(2, 1)],
            ];
            check(&three, &mixed, "decode beside prefill");
        }
    }
}

#[test]
fn a_row_of_no_sequence_is_left_alone() {
    let workers = Workers::new(2, &[]).unwrap();
    let (_, set) = runnable("attention").remove(0);
    let cache = KvCache::new(KvLayout {
        layers: 1,
        num_kv_heads: 1,
        head_dim: 8,
        block_size: 16,
        num_blocks: 1,
        dtype: KvDtype::F32,
    })
    .unwrap();
    let mut out = vec![5.0; 3 * 8];
    let sequences = [AttentionSequence {
        query_start: 1,
        query_len: 1,
        context_len: 1,
        block_table: &[0],
    }];
    let batch = AttentionBatch {
        sequences: &sequences,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 8,
        scale: 1.0,
        window: None,
    };
    let q = vec![1.0; 3 * 8];
    let view = RowsMut::new(&mut out, 3, 8);
    set.attention(&workers, &cache, 0, Rows::new(&q, 3, 8), &batch, view);
    assert_eq!(out[..8], [5.0; 8]);
    assert_eq!(out[8..16], [0.0; 8]);
    assert_eq!(out[16..], [5.0; 8]);
}
