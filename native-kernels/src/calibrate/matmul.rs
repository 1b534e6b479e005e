//! Costs of the catalogue's matrix products, by kernel, format, shape and rows, run as a model's are: as a program.

use super::timing::median_of;
use super::{MatmulCost, Options};
use crate::cpu::isa::missing_features;
use crate::{
    Format, KernelSet, KvCache, KvDtype, KvLayout, Linear, Output, Program, Selection, Step,
    Weights, Workers, catalog,
};
use std::io;
use std::sync::Arc;

/// One kernel on one matrix.
pub struct Product {
    kernel: String,
    /// Is the kernel meant for many rows only?
    only_many: bool,
    format: Format,
    outputs: usize,
    inputs: usize,
}

/// All that this CPU can run and the shapes allow.
pub fn products(options: &Options) -> Vec<Product> {
    let mut products = Vec::new();
    for kernel in catalog() {
        if kernel.op != "matmul" || !missing_features(&kernel).is_empty() {
            continue;
        }
        let formats = kernel
            .formats
            .iter()
            .filter_map(|name| Format::from_name(name));
        for format in formats {
            let whole = |&&(_, inputs): &&(usize, usize)| format.row_bytes(inputs).is_some();
            let of_shape = |&(outputs, inputs): &(usize, usize)| Product {
                kernel: kernel.id.clone(),
                only_many: kernel.traits.iter().any(|t| t == "only:many-rows"),
                format,
                outputs,
                inputs,
            };
            products.extend(options.shapes.iter().filter(whole).map(of_shape));
        }
    }
    products
}

impl Product {
    /// Its costs for every number of rows, in rising order, until one is expected to take too long.
    ///
    /// # Errors
    /// There is no memory for the matrix.
    pub fn costs(&self, workers: &Workers, options: &Options) -> io::Result<Vec<MatmulCost>> {
        let Self {
            format,
            outputs,
            inputs,
            ..
        } = *self;
        let kernels = KernelSet::bind(&self.selection());
        let kernels = kernels.expect("the CPU has what the kernel needs");
        let bytes = weights(format, outputs, inputs);
        let matrix = kernels.pack(workers, format, outputs, inputs, &bytes);
        let matrix = Arc::new(matrix.map_err(io::Error::other)?);
        let mut program = Program::new();
        let (from, to) = (program.buffer(inputs), program.buffer(outputs));
        program.linear(Linear {
            from,
            norm: None,
            outputs: vec![Output::Store {
                weights: Weights {
                    matrix: matrix.clone(),
                    bias: None,
                },
                to,
            }],
        });
        let mut cache = no_cache()?;
        let mut costs: Vec<MatmulCost> = Vec::new();
        for &tokens in &options.tokens {
            let expected = costs.last().map_or(0.0, |last| {
                last.us / 1e6 * tokens as f64 / f64::from(last.tokens)
            });
            if expected > options.longest_run.as_secs_f64() {
                break;
            }
            let elements = program.write(from, tokens).iter_mut().enumerate();
            elements.for_each(|(i, x)| *x = (i as f32).sin());
            let step = Step {
                tokens: &vec![0; tokens],
                sequences: &[],
                wanted: &[],
            };
            let seconds = median_of(options.cost_time, || {
                program.run(&kernels, workers, &step, &mut cache, &mut |_, _| {});
            });
            costs.push(MatmulCost {
                kernel: self.kernel.clone(),
                format: format.name().to_owned(),
                outputs: outputs as u32,
                inputs: inputs as u32,
                weight_bytes: matrix.bytes() as u64,
                tokens: tokens as u32,
                us: seconds * 1e6,
            });
        }
        Ok(costs)
    }

    /// The kernel for any number of rows, be it meant for many only.
    fn selection(&self) -> Selection {
        let format = self.format.name().to_owned();
        let by_format = vec![(format.clone(), self.kernel.clone())];
        match self.only_many {
            true => Selection {
                matmul_many: by_format,
                many_from: vec![(format, 1)],
                ..Selection::best()
            },
            false => Selection {
                matmul: by_format,
                matmul_many: Vec::new(),
                ..Selection::best()
            },
        }
    }
}

/// The smallest cache there can be: a step wants one, and products do not look at it.
fn no_cache() -> io::Result<KvCache> {
    let layout = KvLayout {
        layers: 1,
        num_kv_heads: 1,
        head_dim: 8,
        block_size: 16,
        num_blocks: 1,
        dtype: KvDtype::F16,
    };
    KvCache::new(layout).map_err(io::Error::other)
}

/// Weights of ordinary size: arithmetic on numbers near zero (subnormal ones) is many times as slow.
fn weights(format: Format, outputs: usize, inputs: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(inputs).expect("rows are whole blocks");
    let mut bytes = vec![0; row_bytes * outputs];
    if format.is_float() {
        let row: Vec<f32> = (0..inputs).map(|i| (i as f32).cos()).collect();
        let rows = bytes.chunks_exact_mut(row_bytes);
        rows.for_each(|to| format.quantize(&row, to));
    } else {
        // Any bytes are blocks. Those under 59 are scales between 0 and 1 where a scale is a float.
        let fill = |(i, byte): (usize, &mut u8)| *byte = (i * 31 % 59) as u8;
        bytes.iter_mut().enumerate().for_each(fill);
        if format == Format::Mxfp4 {
            // Here it is an exponent, of which 127 is that of 1.
            let blocks = bytes.chunks_exact_mut(format.block_bytes());
            blocks.for_each(|block| block[0] = 120);
        }
    }
    bytes
}
