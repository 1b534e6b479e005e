//! Random numbers that are the same on every run, and kernels by catalogue entry.

use plinth_kernels::{BindError, Format, KernelSet, Selection, catalog};
use plinth_platform::facts::Kernel;

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

/// The best kernels of this CPU but for this one.
pub fn bind(kernel: &Kernel) -> Result<KernelSet, BindError> {
    let mut selection = Selection::best();
    match kernel.op.as_str() {
        "attention" => {
            selection.attention_prefill = kernel.id.clone();
            selection.attention_decode = kernel.id.clone();
        }
        "elementwise" => selection.elementwise = kernel.id.clone(),
        _ => selection.matmul = with_id(kernel),
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

/// The bits of floats, so that equal means equal.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
