//! The weights of a model, packed.

use super::ModelError;
use plinth_formats::{ModelFile, Packed, PackedError, TensorInfo};
use plinth_kernels::{Expert, KernelSet, Matrix, Weights as Linear, Workers};
use std::sync::Arc;

/// Everything that is learnt.
pub(super) struct Weights {
    pub embedding: Arc<Matrix>,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    /// Absent where the embedding serves.
    pub head: Option<Arc<Matrix>>,
}

/// One layer.
pub(super) struct Layer {
    pub attention_norm: Vec<f32>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub query_norm: Option<Vec<f32>>,
    pub key_norm: Option<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    pub output: Linear,
    pub post_attention_norm: Option<Vec<f32>>,
    pub feed_forward_norm: Vec<f32>,
    pub feed_forward: FeedForward,
    pub post_feed_forward_norm: Option<Vec<f32>>,
}

/// The second part of a layer.
pub(super) enum FeedForward {
    Dense(Expert),
    Mixture {
        router: Linear,
        experts: Vec<Expert>,
    },
}

impl Weights {
    pub fn load(
        file: &ModelFile,
        (kernels, workers): (&KernelSet, &Workers),
        packed: Packed<'_>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, ModelError> {
        let total = file.tensors().iter().map(TensorInfo::bytes).sum();
        let mut loader = Loader {
            file,
            kernels,
            workers,
            packed,
            buffer: Vec::new(),
            done: 0,
            total,
            progress,
        };
        let embedding = loader.matrix("token_embd.weight")?;
        let head = match file.has_tied_head() {
            true => None,
            false => Some(loader.matrix("output.weight")?),
        };
        let layers = (0..file.config().num_layers)
            .map(|n| loader.layer(n))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            norm: loader.vector("output_norm.weight")?,
            head,
        })
    }
}

struct Loader<'a> {
    file: &'a ModelFile,
    kernels: &'a KernelSet,
    workers: &'a Workers,
    packed: Packed<'a>,
    /// Of the tensor that is being packed. Its room is used again, so that the file is never in memory as a whole.
    buffer: Vec<u8>,
    done: u64,
    total: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Loader<'_> {
    fn layer(&mut self, n: usize) -> Result<Layer, ModelError> {
        let config = self.file.config();
        let (qk_norm, post_norms) = (config.qk_norm, config.post_norms);
        let name = |part: &str| format!("blk.{n}.{part}");
        let norm = |part: &str| name(&format!("{part}.weight"));
        // In the order in which files have them, so that reading goes straight on.
        Ok(Layer {
            attention_norm: self.vector(&norm("attn_norm"))?,
            query: self.linear(&name("attn_q"))?,
            key: self.linear(&name("attn_k"))?,
            value: self.linear(&name("attn_v"))?,
            query_norm: self.vector_if(qk_norm, &norm("attn_q_norm"))?,
            key_norm: self.vector_if(qk_norm, &norm("attn_k_norm"))?,
            sinks: self.vector_if(config.attention_sinks, &norm("attn_sinks"))?,
            output: self.linear(&name("attn_output"))?,
            post_attention_norm: self.vector_if(post_norms, &norm("post_attention_norm"))?,
            feed_forward_norm: self.vector(&norm("ffn_norm"))?,
            feed_forward: self.feed_forward(n)?,
            post_feed_forward_norm: self.vector_if(post_norms, &norm("post_ffw_norm"))?,
        })
    }

    fn feed_forward(&mut self, n: usize) -> Result<FeedForward, ModelError> {
        let Some(experts) = self.file.config().experts else {
            return Ok(FeedForward::Dense(self.expert(n, "")?));
        };
        Ok(FeedForward::Mixture {
            router: self.linear(&format!("blk.{n}.ffn_gate_inp"))?,
            experts: (0..experts.count)
                .map(|expert| self.expert(n, &format!(".{expert}")))
                .collect::<Result<_, _>>()?,
        })
    }

    fn expert(&mut self, n: usize, suffix: &str) -> Result<Expert, ModelError> {
        let mut linear = |part: &str| self.linear(&format!("blk.{n}.{part}{suffix}"));
        Ok(Expert {
            gate: linear("ffn_gate")?,
            up: linear("ffn_up")?,
            down: linear("ffn_down")?,
        })
    }

    fn vector_if(&mut self, wanted: bool, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        wanted.then(|| self.vector(name)).transpose()
    }

    fn linear(&mut self, stem: &str) -> Result<Linear, ModelError> {
        let bias = format!("{stem}.bias");
        Ok(Linear {
            matrix: self.matrix(&format!("{stem}.weight"))?,
            bias: self
                .file
                .tensor(&bias)
                .map(|_| self.vector(&bias))
                .transpose()?,
        })
    }

    fn matrix(&mut self, name: &str) -> Result<Arc<Matrix>, ModelError> {
        let no_pack = |error| ModelError::Pack {
            tensor: name.to_owned(),
            error,
        };
        if let (Packed::Read(packed), Some(info)) = (&self.packed, self.file.tensor(name)) {
            let matrix = packed.matrix(self.kernels, self.workers, info);
            let matrix = matrix.map_err(|error| match error {
                PackedError::File(error) => ModelError::Packed(error),
                PackedError::Pack(error) => no_pack(error),
            })?;
            self.advance(info);
            return Ok(Arc::new(matrix));
        }
        let info = self.file.read(name, &mut self.buffer)?;
        let packed = self.kernels.pack(
            self.workers,
            info.format,
            info.rows,
            info.cols,
            &self.buffer,
        );
        let packed = packed.map_err(no_pack)?;
        if let Packed::Write(writer) = &mut self.packed {
            writer.add(name, &packed);
        }
        self.advance(info);
        Ok(Arc::new(packed))
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let values = self.file.read_f32(name)?;
        if let Some(info) = self.file.tensor(name) {
            self.advance(info);
        }
        Ok(values)
    }

    fn advance(&mut self, info: &TensorInfo) {
        self.done += info.bytes();
        (self.progress)(self.done, self.total);
    }
}
