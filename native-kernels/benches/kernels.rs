//! Speed of the kernels at the shapes of a real model.
//!
//! `cargo bench -p plinth-kernels -- [FILTER] [--threads N]` prints one line for each kernel of the catalogue that this
//! CPU can run, format and shape whose text contains FILTER: median of the timed runs, spread between the tenth and the
//! ninetieth percentile, and the rate that limits it (bytes of packed weights or of the cache read, or operations).
//! Without `--bench` (as `cargo test` starts it) everything runs once at a small size, and nothing is printed.

use plinth_kernels::{
    Attention, Buffer, Format, KernelSet, KvCache, KvDtype, KvLayout, Linear, MANY_ROWS, Matrix,
    Output, Program, Selection, Sequence, Step, Weights, Workers, catalog,
};
use plinth_platform::facts::Kernel;
use std::hint::black_box;
use std::sync::Arc;
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
    if options.measure {
        println!("{} threads", workers.len());
    }
    copy(&options);
    matmul(&options, &workers);
    decode_step(&options, &workers);
    attention(&options, &workers);
    logits(&options);
}

/// Median and spread of a few hundred milliseconds of runs: printed with the rates, in bytes and operations of a run.
fn report(
    options: &Options,
    name: &str,
    (bytes, operations): (usize, usize),
    mut run: impl FnMut(),
) {
    run();
    if !options.measure {
        return;
    }
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.is_empty() || begin.elapsed() < Duration::from_millis(400) && times.len() < 2000 {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let median = at(50);
    let rate = |n: usize| n as f64 / median / 1e9;
    println!(
        "{name:<58} {:>10.1} us [{:.1}, {:.1}]  {:>6.1} GB/s  {:>7.1} Gop/s",
        median * 1e6,
        at(10) * 1e6,
        at(90) * 1e6,
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
    report(options, name, (2 * size, 0), || {
        black_box(&mut to).copy_from_slice(black_box(&from))
    });
}

/// What a sampler asks of a row of logits, on one thread, beside the plain loops that give the same.
fn logits(options: &Options) {
    let vocabularies: &[usize] = match options.measure {
        true => &[49_152, 262_144],
        false => &[100],
    };
    for &n in vocabularies {
        let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 12.0).collect();
        let ask = |name: &str, run: &dyn Fn() -> f64| {
            let name = format!("{name} of {n} logits");
            if name.contains(&options.filter) {
                report(options, &name, (4 * n, n), || {
                    black_box(run());
                });
            }
        };
        ask("plain largest", &|| {
            let mut best = (0, f32::NEG_INFINITY);
            let mut broken = false;
            for (id, &x) in black_box(&x).iter().enumerate() {
                broken |= x.is_nan();
                if x > best.1 {
                    best = (id, x);
                }
            }
            if broken { 0.0 } else { best.0 as f64 }
        });
        ask("plain sum of exponentials", &|| {
            let sum = |x: &[f32]| x.iter().map(|x| f64::from((x - 12.0).exp())).sum();
            sum(black_box(&x))
        });
        ask("plain sort", &|| {
            let mut all: Vec<(u32, f32)> = (0..).zip(black_box(&x).iter().copied()).collect();
            all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            f64::from(all[0].1)
        });
        for kernel in catalog().iter().filter(|kernel| kernel.op == "elementwise") {
            let Some(set) = bound(kernel) else { continue };
            let id = &kernel.id;
            let all = f32::NEG_INFINITY..f32::INFINITY;
            ask(&format!("{id} largest"), &|| {
                set.largest(black_box(&x)).map_or(0.0, |l| l.index as f64)
            });
            ask(&format!("{id} sum of exponentials"), &|| {
                set.sum_exp(black_box(&x), (12.0, 1.0), all.clone())
            });
            // About one in a hundred.
            ask(&format!("{id} find the largest hundredth"), &|| {
                set.find_within(black_box(&x), 11.995..f32::INFINITY).len() as f64
            });
        }
    }
}

/// For many rows only?
fn only_many(kernel: &Kernel) -> bool {
    kernel.traits.iter().any(|t| t == "only:many-rows")
}

/// The best kernels of this CPU but for this one, for any number of rows or, if it is for many only, for those.
fn bound(kernel: &Kernel) -> Option<KernelSet> {
    let mut selection = Selection::best();
    let formats = kernel.formats.iter();
    let by_format = formats.map(|f| (f.clone(), kernel.id.clone())).collect();
    match kernel.op.as_str() {
        "matmul" if only_many(kernel) => selection.matmul_many = by_format,
        "matmul" => {
            selection.matmul = by_format;
            selection.matmul_many = Vec::new();
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
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 59) as u8).collect();
    if format == Format::Mxfp4 {
        // The exponent of the scale: others would make products that are subnormal numbers, which are slow.
        let blocks = bytes.chunks_exact_mut(format.block_bytes());
        blocks.for_each(|block| block[0] = 120);
    }
    bytes
}

fn pack(set: &KernelSet, workers: &Workers, format: Format, (n, k): (usize, usize)) -> Arc<Matrix> {
    let matrix = set.pack(workers, format, n, k, &weights(format, n, k));
    Arc::new(matrix.expect("it fits"))
}

/// Products, each of a buffer of its width, with some rows of numbers in it.
fn products(matrices: &[Arc<Matrix>], m: usize) -> Program {
    let mut program = Program::new();
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut of_width = |program: &mut Program, width| {
        let found = buffers.iter().find(|b| program.width(**b) == width);
        found.copied().unwrap_or_else(|| {
            let buffer = program.buffer(width);
            fill(program, buffer, m, f32::sin);
            buffers.push(buffer);
            buffer
        })
    };
    for matrix in matrices {
        let from = of_width(&mut program, matrix.cols());
        let to = program.buffer(matrix.rows());
        let weights = Weights {
            matrix: matrix.clone(),
            bias: None,
        };
        program.linear(Linear {
            from,
            norm: None,
            outputs: vec![Output::Store { weights, to }],
        });
    }
    program
}

/// Fills the first rows of a buffer with a function of 0, 1, 2, ...
fn fill(program: &mut Program, buffer: Buffer, rows: usize, f: fn(f32) -> f32) {
    let to = program.write(buffer, rows).iter_mut().enumerate();
    to.for_each(|(i, x)| *x = f(i as f32));
}

/// Runs one step of some rows.
fn step(
    program: &mut Program,
    (set, workers): (&KernelSet, &Workers),
    cache: &mut KvCache,
    rows: &[u32],
    sequences: &[Sequence<'_>],
) {
    let step = Step {
        tokens: rows,
        sequences,
        wanted: &[],
    };
    program.run(set, workers, &step, cache, &mut |_, _| {});
}

/// Runs products for as many tokens as there are rows.
fn report_products(
    (options, workers): (&Options, &Workers),
    name: &str,
    set: &KernelSet,
    matrices: &[Arc<Matrix>],
    m: usize,
) {
    let mut program = products(matrices, m);
    let mut cache = cache(1, 8, KvDtype::F32, 1);
    let rows = vec![0; m];
    let elements: usize = matrices.iter().map(|w| w.rows() * w.cols()).sum();
    let bytes = matrices.iter().map(|w| w.bytes()).sum();
    report(options, name, (bytes, 2 * m * elements), || {
        step(&mut program, (set, workers), &mut cache, &rows, &[]);
    });
}

fn cache(num_kv_heads: usize, head_dim: usize, dtype: KvDtype, num_blocks: usize) -> KvCache {
    let layout = KvLayout {
        layers: 1,
        num_kv_heads,
        head_dim,
        block_size: 16,
        num_blocks,
        dtype,
    };
    KvCache::new(layout).expect("there is memory")
}

fn matmul(options: &Options, workers: &Workers) {
    let shapes: &[(usize, usize)] = if options.measure {
        &[
            (576, 576),
            (1536, 576),
            (576, 1536),
            (49152, 576),
            (65536, 1024),
            (2048, 2048),
        ]
    } else {
        &[(32, 256)]
    };
    let batches: &[usize] = if options.measure {
        &[1, 2, 4, 8, 16, 64, 512]
    } else {
        &[1, 9, 17]
    };
    for kernel in catalog().iter().filter(|kernel| kernel.op == "matmul") {
        let Some(set) = bound(kernel) else { continue };
        let least = if only_many(kernel) { MANY_ROWS } else { 1 };
        for format in Format::ALL {
            for &(n, k) in shapes {
                for &m in batches {
                    let name = format!("{} {format} {m}x{n}x{k}", kernel.id);
                    let fits = kernel.formats.iter().any(|f| f == format.name())
                        && k % format.block_len() == 0
                        && m >= least
                        && !(options.measure && m > 8 && n > 4096);
                    if fits && name.contains(&options.filter) {
                        let w = [pack(&set, workers, format, (n, k))];
                        report_products((options, workers), &name, &set, &w, m);
                    }
                }
            }
        }
    }
}

/// All matrix products of one step of SmolLM2-135M, 30 layers and the head: by the integer kernels and, for many rows, by
/// the best there are.
fn decode_step(options: &Options, workers: &Workers) {
    let (layers, vocabulary) = if options.measure {
        (30, 49152)
    } else {
        (1, 64)
    };
    let int8 = catalog().into_iter().filter(|k| k.id.ends_with("int8"));
    let sets = int8.filter_map(|kernel| bound(&kernel).map(|set| (kernel.id, set)));
    let best = KernelSet::bind(&Selection::best()).expect("the best of this CPU binds");
    for (id, set) in sets.chain([("the best".to_owned(), best)]) {
        for m in [1, 2, 4, 8, 32, 128] {
            let name = format!("{id} step of 135M q4_1 with q8_0 head, {m} tokens");
            if !name.contains(&options.filter) {
                continue;
            }
            let matrices: Vec<_> = (0..layers)
                .flat_map(|_| [(960, 576), (576, 576), (3072, 576), (576, 1536)])
                .map(|shape| pack(&set, workers, Format::Q4_1, shape))
                .chain([pack(&set, workers, Format::Q8_0, (vocabulary, 576))])
                .collect();
            report_products((options, workers), &name, &set, &matrices, m);
        }
    }
}

/// Attention of a step, new keys and values written.
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
                let mut cache = cache(kv_heads, head_dim, dtype, blocks.len());
                let cache_bytes = blocks.len() * KvCache::block_bytes(cache.layout());
                let mut program = attention_program(heads, kv_heads, head_dim, context);
                let mut attend = |query_len: usize| {
                    let sequence = Sequence {
                        query_start: 0,
                        query_len,
                        context_len: context,
                        block_table: &blocks,
                    };
                    let rows = vec![0; query_len];
                    let kernels = (&set, workers);
                    step(&mut program, kernels, &mut cache, &rows, &[sequence]);
                };
                attend(context);
                let pairs = queries * context - queries * (queries - 1) / 2;
                let operations = 4 * pairs * heads * head_dim;
                report(options, &name, (cache_bytes, operations), || {
                    attend(queries)
                });
            }
        }
    }
}

/// Attention of up to `rows` rows of numbers.
fn attention_program(
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    rows: usize,
) -> Program {
    let mut program = Program::new();
    let (q, kv) = (num_heads * head_dim, num_kv_heads * head_dim);
    let [query, key, value, out] = [q, kv, kv, q].map(|width| program.buffer(width));
    fill(&mut program, query, rows, f32::sin);
    fill(&mut program, key, rows, f32::cos);
    fill(&mut program, value, rows, f32::cos);
    program.attention(Attention {
        layer: 0,
        query,
        key,
        value,
        out,
        num_heads,
        num_kv_heads,
        head_dim,
        scale: 0.125,
        window: None,
        soft_cap: None,
        sinks: None,
        query_norm: None,
        key_norm: None,
        rope: None,
    });
    program
}
