//! Random numbers that are the same on every run, kernels by catalogue entry, and programs of one operation.

use plinth_kernels::{
    BindError, Buffer, Format, KernelSet, KvCache, KvDtype, KvLayout, Linear, MANY_ROWS, Matrix,
    Norm, Output, Program, Selection, Step, Weights, Workers, catalog,
};
use plinth_platform::facts::Kernel;
use std::sync::Arc;

/// A small generator (Marsaglia's xorshift64*), so that a failure repeats.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    /// Between -1 and 1.
    pub fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.signed()).collect()
    }

    /// Random blocks of a format with scales of a sane size.
    pub fn weights(&mut self, format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let scales: &[usize] = match format {
            Format::F32 | Format::F16 | Format::BF16 => {
                let mut bytes = vec![0; format.row_bytes(cols).unwrap() * rows];
                format.quantize(&self.floats(rows * cols), &mut bytes);
                return bytes;
            }
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Iq4Nl | Format::Iq4Xs | Format::Int4 => &[0],
            Format::Mxfp4 => &[],
        };
        let mut bytes: Vec<u8> = (0..format.row_bytes(cols).unwrap() * rows)
            .map(|_| self.next() as u8)
            .collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            if format == Format::Mxfp4 {
                // A power of two from 2^-12 to 2^3.
                block[0] = 115 + block[0] % 16;
            }
            for &at in scales {
                let mut scale = [0; 2];
                Format::F16.quantize(&[self.signed() / 16.0], &mut scale);
                block[at..at + 2].copy_from_slice(&scale);
            }
        }
        bytes
    }
}

/// The best kernels of this CPU but for this one, which serves few rows and many; one that is for many rows only serves
/// those.
pub fn bind(kernel: &Kernel) -> Result<KernelSet, BindError> {
    let mut selection = Selection::best();
    match kernel.op.as_str() {
        "attention" => {
            selection.attention_prefill = kernel.id.clone();
            selection.attention_decode = kernel.id.clone();
        }
        "elementwise" => selection.elementwise = kernel.id.clone(),
        _ if kernel.traits.iter().any(|t| t == "only:many-rows") => {
            selection.matmul_many = with_id(kernel);
            let from = |format: &String| (format.clone(), MANY_ROWS);
            selection.many_from = kernel.formats.iter().map(from).collect();
        }
        _ => {
            selection.matmul = with_id(kernel);
            selection.matmul_many = Vec::new();
        }
    }
    KernelSet::bind(&selection)
}

fn with_id(kernel: &Kernel) -> Vec<(String, String)> {
    let formats = kernel.formats.iter();
    formats
        .map(|format| (format.clone(), kernel.id.clone()))
        .collect()
}

/// All kernels of an operation that this CPU can run, bound.
pub fn runnable(op: &str) -> Vec<(Kernel, KernelSet)> {
    let kernels = catalog().into_iter().filter(|kernel| kernel.op == op);
    kernels
        .filter_map(|kernel| bind(&kernel).ok().map(|set| (kernel, set)))
        .collect()
}

/// The kernels for matrix products of these kinds (the ends of their ids) that this CPU can run, bound.
pub fn products(kinds: &[&str]) -> Vec<(Kernel, KernelSet)> {
    let mut products = runnable("matmul");
    products.retain(|(kernel, _)| kinds.iter().any(|kind| kernel.id.ends_with(kind)));
    products
}

/// The formats that a kernel multiplies.
pub fn formats(kernel: &Kernel) -> Vec<Format> {
    let formats = kernel.formats.iter();
    formats.map(|f| Format::from_name(f).unwrap()).collect()
}

/// The bits of floats, so that equal means equal.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// As small as a cache can be, for programs that do not look at it.
pub fn no_cache() -> KvCache {
    let layout = KvLayout {
        layers: 1,
        num_kv_heads: 1,
        head_dim: 8,
        block_size: 16,
        num_blocks: 1,
        dtype: KvDtype::F32,
    };
    KvCache::new(layout).unwrap()
}

/// Writes the first rows of a buffer.
pub fn fill(program: &mut Program, buffer: Buffer, rows: usize, values: &[f32]) {
    program.write(buffer, rows).copy_from_slice(values);
}

/// The first rows of a buffer.
pub fn read(program: &Program, buffer: Buffer, rows: usize) -> Vec<f32> {
    program.read(buffer, rows).to_vec()
}

/// Runs a step of `rows` rows of no sequence, of which none is wanted.
pub fn run(program: &mut Program, set: &KernelSet, workers: &Workers, rows: usize) {
    let step = Step {
        tokens: &vec![0; rows],
        sequences: &[],
        wanted: &[],
    };
    program.run(set, workers, &step, &mut no_cache(), &mut |_, _| {
        panic!("no row is wanted")
    });
}

/// What a product is besides one: nothing, unless said.
#[derive(Default)]
pub struct Besides<'a> {
    pub norm: Option<Norm>,
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`: the product is added to this.
    pub add_to: Option<&'a [f32]>,
}

/// `x · wᵀ` as a program of one operation; `x` are `m` rows.
pub fn multiply(
    set: &KernelSet,
    workers: &Workers,
    (x, m): (&[f32], usize),
    w: &Arc<Matrix>,
    besides: &Besides<'_>,
) -> Vec<f32> {
    let mut program = Program::new();
    let (from, to) = (program.buffer(w.cols()), program.buffer(w.rows()));
    fill(&mut program, from, m, x);
    let nan = vec![f32::NAN; m * w.rows()];
    fill(&mut program, to, m, besides.add_to.unwrap_or(&nan));
    let weights = Weights {
        matrix: w.clone(),
        bias: besides.bias.map(<[f32]>::to_vec),
    };
    let output = match besides.add_to {
        Some(_) => Output::Add { weights, to },
        None => Output::Store { weights, to },
    };
    program.linear(Linear {
        from,
        norm: besides.norm.clone(),
        outputs: vec![output],
    });
    run(&mut program, set, workers, m);
    read(&program, to, m)
}

/// The norm of `m` rows, as a program that adds it to zero.
pub fn normed(
    set: &KernelSet,
    workers: &Workers,
    (x, m): (&[f32], usize),
    norm: &Norm,
) -> Vec<f32> {
    let mut program = Program::new();
    let width = norm.weight.len();
    let (from, to) = (program.buffer(width), program.buffer(width));
    fill(&mut program, from, m, x);
    program.add_normed(from, norm.clone(), to);
    run(&mut program, set, workers, m);
    read(&program, to, m)
}

/// What `f` panics with.
pub fn panic_of(f: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_err();
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}
