//! Speed of the kernels at the shapes of a real model.
//!
//! `cargo bench -p plinth-kernels -- [FILTER] [--threads N]` prints one line for each kernel of the catalogue that this
//! CPU can run, format and shape whose text contains FILTER: median of the timed runs, spread between the tenth and the
//! ninetieth percentile, and the rate that limits it (bytes of packed weights or of the cache read, or operations).
//! Without `--bench` (as `cargo test` starts it) everything runs once at a small size.

use plinth_kernels::{
    AttentionBatch, AttentionSequence, Format, KernelSet, KvCache, KvDtype, KvLayout, Rows,
    RowsMut, Selection, Slot, Workers, catalog,
};
use plinth_platform::facts::Kernel;
use std::hint::black_box;
use std::time::{Duration, Instant};

struct Options {
    filter: String,
    threads: usize,
    /// Really measure; else everything runs once.
    measure: bool,
}

fn main() {
    let mut options = Options {
        filter: String::new(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        measure: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => options.measure = true,
            "--threads" => {
                let threads = args.next().and_then(|n| n.parse().ok());
                options.threads = threads.expect("--threads is followed by a number");
            }
            // What the test runner says to its own harness is not meant for this one.
            other if other.starts_with('-') => {}
            filter => options.filter = filter.to_owned(),
        }
    }
    let workers = Workers::new(options.threads, &[]).expect("threads can be started");
    println!("{} threads", workers.len());
    copy(&options);
    matmul(&options, &workers);
    decode_step(&options, &workers);
    attention(&options, &workers);
}

/// Median and spread of a few hundred milliseconds of runs.
fn time(options: &Options, mut run: impl FnMut()) -> [Duration; 3] {
    run();
    let mut times = Vec::new();
    let begin = Instant::now();
    while options.measure && begin.elapsed() < Duration::from_millis(400) && times.len() < 2000 {
        let start = Instant::now();
        run();
        times.push(start.elapsed());
    }
    if times.is_empty() {
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    [at(50), at(10), at(90)]
}

fn report(name: &str, [median, low, high]: [Duration; 3], bytes: usize, operations: usize) {
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let rate = |n: usize| n as f64 / median.as_secs_f64() / 1e9;
    println!(
        "{name:<58} {:>10.1} us [{:.1}, {:.1}]  {:>6.1} GB/s  {:>7.1} Gop/s",
        us(median),
        us(low),
        us(high),
        rate(bytes),
        rate(operations)
    );
}

/// What memory can do, to compare with.
fn copy(options: &Options) {
    let name = "copy 64 MiB, one thread (bytes read and written)";
    if !name.contains(&options.filter) {
        return;
    }
    let size = if options.measure { 64 << 20 } else { 1 << 10 };
    let (from, mut to) = (vec![1u8; size], vec![0u8; size]);
    let times = time(options, || {
        black_box(&mut to).copy_from_slice(black_box(&from))
    });
    report(name, times, 2 * size, 0);
}

fn bound(kernel: &Kernel) -> Option<KernelSet> {
    let mut selection = Selection::best();
    match kernel.op.as_str() {
        "matmul" => {
            let formats = kernel.formats.iter();
            selection.matmul = formats.map(|f| (f.clone(), kernel.id.clone())).collect();
        }
        "attention" => {
            selection.attention_decode = kernel.id.clone();
            selection.attention_prefill = kernel.id.clone();
        }
        _ => selection.elementwise = kernel.id.clone(),
    }
    KernelSet::bind(&selection).ok()
}

/// Bytes that are valid blocks of any format, without scales that are not numbers.
fn weights(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let len = format.row_bytes(cols).expect("whole blocks") * rows;
    (0..len).map(|i| (i * 31 % 59) as u8).collect()
}

fn matmul(options: &Options, workers: &Workers) {
    let shapes: &[(usize, usize)] = if options.measure {
        &[
            (576, 576),
            (1536, 576),
            (576, 1536),
            (49152, 576),
            (2048, 2048),
        ]
    } else {
        &[(32, 256)]
    };
    let batches: &[usize] = if options.measure {
        &[1, 2, 4, 8, 512]
    } else {
        &[1, 9]
    };
    for kernel in catalog().iter().filter(|kernel| kernel.op == "matmul") {
        let Some(set) = bound(kernel) else { continue };
        for format in Format::ALL {
            for &(n, k) in shapes {
                for &m in batches {
                    let name = format!("{} {format} {m}x{n}x{k}", kernel.id);
                    let fits = kernel.formats.iter().any(|f| f == format.name())
                        && k % format.block_len() == 0
                        && !(options.measure && m > 8 && n > 4096);
                    if !fits || !name.contains(&options.filter) {
                        continue;
                    }
                    let w = set
                        .pack(workers, format, n, k, &weights(format, n, k))
                        .expect("it fits");
                    let x: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
                    let mut out = vec![0.0; m * n];
                    let times = time(options, || {
                        let x = Rows::new(&x, m, k);
                        set.matmul(workers, x, &w, None, RowsMut::new(&mut out, m, n));
                    });
                    report(&name, times, w.bytes(), 2 * m * n * k);
                }
            }
        }
    }
}

/// All matrix products of one step of SmolLM2-135M: 30 layers and the head.
fn decode_step(options: &Options, workers: &Workers) {
    let layers = if options.measure { 30 } else { 1 };
    for kernel in catalog()
        .iter()
        .filter(|kernel| kernel.id.ends_with("int8"))
    {
        let Some(set) = bound(kernel) else { continue };
        for m in [1, 2, 4, 8, 32] {
            let name = format!("{} step of 135M q4_1 with q8_0 head, {m} tokens", kernel.id);
            if !name.contains(&options.filter) {
                continue;
            }
            let pack = |format, n, k| {
                set.pack(workers, format, n, k, &weights(format, n, k))
                    .expect("it fits")
            };
            let matrices: Vec<_> = (0..layers)
                .flat_map(|_| [(960, 576), (576, 576), (3072, 576), (576, 1536)])
                .map(|(n, k)| pack(Format::Q4_1, n, k))
                .chain([pack(
                    Format::Q8_0,
                    if options.measure { 49152 } else { 64 },
                    576,
                )])
                .collect();
            let x: Vec<f32> = (0..m * 1536).map(|i| (i as f32).sin()).collect();
            let mut out = vec![0.0; m * 49152];
            let times = time(options, || {
                for w in &matrices {
                    let x = Rows::new(&x[..m * w.cols()], m, w.cols());
                    let out = RowsMut::new(&mut out[..m * w.rows()], m, w.rows());
                    set.matmul(workers, x, w, None, out);
                }
            });
            let elements: usize = matrices.iter().map(|w| w.rows() * w.cols()).sum();
            let bytes = matrices.iter().map(|w| w.bytes()).sum();
            report(&name, times, bytes, 2 * m * elements);
        }
    }
}

fn attention(options: &Options, workers: &Workers) {
    let contexts: &[(usize, usize)] = if options.measure {
        &[(1, 512), (1, 4096), (512, 512)]
    } else {
        &[(1, 17), (17, 17)]
    };
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    for kernel in catalog().iter().filter(|kernel| kernel.op == "attention") {
        let Some(set) = bound(kernel) else { continue };
        for dtype in KvDtype::ALL {
            for &(queries, context) in contexts {
                let name = format!(
                    "{} {} {queries} queries, {context} keys, {heads}/{kv_heads} heads of {head_dim}",
                    kernel.id,
                    dtype.name()
                );
                if !name.contains(&options.filter) {
                    continue;
                }
                let blocks: Vec<u32> = (0..context.div_ceil(16) as u32).collect();
                let layout = KvLayout {
                    layers: 1,
                    num_kv_heads: kv_heads,
                    head_dim,
                    block_size: 16,
                    num_blocks: blocks.len(),
                    dtype,
                };
                let mut cache = KvCache::new(layout).expect("there is memory");
                let kv: Vec<f32> = (0..context * kv_heads * head_dim)
                    .map(|i| (i as f32).cos())
                    .collect();
                let kv = Rows::new(&kv, context, kv_heads * head_dim);
                let slots: Vec<Slot> = (0..context as u32)
                    .map(|t| Slot {
                        block: t / 16,
                        offset: t % 16,
                    })
                    .collect();
                set.kv_write(workers, &mut cache, 0, kv, kv, &slots);
                let q: Vec<f32> = (0..queries * heads * head_dim)
                    .map(|i| (i as f32).sin())
                    .collect();
                let mut out = vec![0.0; q.len()];
                let batch = AttentionBatch {
                    sequences: &[AttentionSequence {
                        query_start: 0,
                        query_len: queries,
                        context_len: context,
                        block_table: &blocks,
                    }],
                    num_heads: heads,
                    num_kv_heads: kv_heads,
                    head_dim,
                    scale: 0.125,
                    window: None,
                };
                let times = time(options, || {
                    let q = Rows::new(&q, queries, heads * head_dim);
                    let out = RowsMut::new(&mut out, queries, heads * head_dim);
                    set.attention(workers, &cache, 0, q, &batch, out);
                });
                let pairs = queries * context - queries * (queries - 1) / 2;
                report(
                    &name,
                    times,
                    blocks.len() * layout.block_bytes(),
                    4 * pairs * heads * head_dim,
                );
            }
        }
    }
}
