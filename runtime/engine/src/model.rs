//! A decoder: weights packed for the kernels, and the forward pass over a batch.

mod decoder;
mod rope;
mod weights;

use crate::batch::{Batch, Wanted};
use decoder::Decoder;
use plinth_formats::{FormatError, ModelConfig, ModelFile, Packed};
use plinth_kernels::{KernelSet, KvCache, PackError, Record, Step, Workers};
use weights::Weights;

/// A model that is ready to run.
pub struct Model {
    config: ModelConfig,
    kernels: KernelSet,
    workers: Workers,
    decoder: Decoder,
    max_batched_tokens: usize,
    max_model_len: usize,
}

/// How a model is loaded.
pub struct Loading<'a> {
    /// The longest sequence that will be asked of it.
    pub max_model_len: usize,
    /// The largest step that will be asked of it.
    pub max_batched_tokens: usize,
    /// What was packed before, or is to be written down.
    pub packed: Packed<'a>,
    /// Told the bytes loaded so far and in all.
    pub progress: &'a dyn Fn(u64, u64),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file's fault.
    #[error(transparent)]
    File(#[from] FormatError),
    /// The fault of the file with its packed weights: without that it can be loaded.
    #[error(transparent)]
    Packed(FormatError),
    /// The plan's or the machine's fault.
    #[error("tensor '{tensor}': {error}")]
    Pack {
        /// Which could not be packed.
        tensor: String,
        /// Why.
        error: PackError,
    },
}

/// Called for each chunk of rows whose logits are wanted: the rows, `[rows, vocabulary]` logits that may be changed, and
/// what to work on them with.
pub(crate) type OnLogits<'a> = dyn FnMut(&[Wanted], &mut [f32], &Units<'_>) + 'a;

/// What computes, idle between two phases.
pub(crate) struct Units<'a> {
    pub kernels: &'a KernelSet,
    pub workers: &'a Workers,
}

impl Model {
    /// Reads and packs every weight, or takes those that were packed before.
    ///
    /// # Errors
    /// A file cannot be read; a format has no kernel; no memory.
    pub fn load(
        file: &ModelFile,
        kernels: KernelSet,
        workers: Workers,
        loading: Loading<'_>,
    ) -> Result<Self, ModelError> {
        let Loading {
            max_model_len,
            max_batched_tokens,
            packed,
            progress,
        } = loading;
        let config = file.config().clone();
        let weights = Weights::load(file, (&kernels, &workers), packed, progress)?;
        let decoder = Decoder::new(&config, weights, max_model_len);
        Ok(Self {
            config,
            kernels,
            workers,
            decoder,
            max_batched_tokens,
            max_model_len,
        })
    }

    /// What it is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.program.weight_bytes()
    }

    /// Keeps the calling thread on the CPUs of the first worker's NUMA node, if the workers are of several. Where the
    /// system refuses it goes on as before: it costs speed only.
    pub(crate) fn stay_near_memory(&self) {
        let _ = self.workers.stay_on_node();
    }

    pub(crate) fn record(&mut self) {
        self.decoder.program.record();
    }

    pub(crate) fn take_record(&mut self) -> Option<Record> {
        self.decoder.program.take_record()
    }

    pub(crate) fn max_batched_tokens(&self) -> usize {
        self.max_batched_tokens
    }

    /// Rows of a step up to which a row's result does not depend on how many there are.
    pub(crate) fn few_rows(&self) -> usize {
        self.kernels.few_rows()
    }

    pub(crate) fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Computes a batch: writes its keys and values into the cache and hands out the logits that it wants.
    pub(crate) fn forward(
        &mut self,
        batch: &Batch,
        cache: &mut KvCache,
        on_logits: &mut OnLogits<'_>,
    ) {
        let rows: Vec<usize> = batch.wanted.iter().map(|wanted| wanted.row).collect();
        let step = Step {
            tokens: &batch.tokens,
            sequences: &batch.sequences(),
            wanted: &rows,
        };
        let Decoder { program, logits } = &mut self.decoder;
        program.run(
            &self.kernels,
            &self.workers,
            &step,
            cache,
            &mut |program, range| {
                let wanted = &batch.wanted[range];
                let rows = program.write(*logits, wanted.len());
                let units = Units {
                    kernels: &self.kernels,
                    workers: &self.workers,
                };
                on_logits(wanted, rows, &units);
            },
        );
    }
}
