//! The weights of a model, packed.

use super::ModelError;
use plinth_formats::{ModelFile, TensorInfo};
use plinth_kernels::{KernelSet, Matrix, Workers};

/// Everything that is learnt.
pub(super) struct Weights {
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    /// Absent where the embedding serves.
    head: Option<Matrix>,
}

/// One layer.
pub(super) struct Layer {
    pub attention_norm: Vec<f32>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub feed_forward_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// A matrix and what is added to its product.
pub(super) struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vec<f32>>,
}

impl Weights {
    pub fn load(
        file: &ModelFile,
        kernels: &KernelSet,
        workers: &Workers,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, ModelError> {
        let total = file.tensors().iter().map(TensorInfo::bytes).sum();
        let mut loader = Loader {
            file,
            kernels,
            workers,
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

    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub fn bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(|layer| {
            let Layer {
                query,
                key,
                value,
                output,
                gate,
                up,
                down,
                ..
            } = layer;
            [query, key, value, output, gate, up, down]
        });
        let matrices = linears
            .map(|linear| &linear.matrix)
            .chain([&self.embedding])
            .chain(&self.head);
        matrices.map(Matrix::bytes).sum()
    }
}

struct Loader<'a> {
    file: &'a ModelFile,
    kernels: &'a KernelSet,
    workers: &'a Workers,
    /// Of the tensor that is being packed. Its room is used again, so that the file is never in memory as a whole.
    buffer: Vec<u8>,
    done: u64,
    total: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Loader<'_> {
    fn layer(&mut self, n: usize) -> Result<Layer, ModelError> {
        let mut linear = |part: &str| self.linear(&format!("blk.{n}.{part}"));
        let (query, key, value) = (linear("attn_q")?, linear("attn_k")?, linear("attn_v")?);
        let output = linear("attn_output")?;
        let (gate, up, down) = (linear("ffn_gate")?, linear("ffn_up")?, linear("ffn_down")?);
        let attention_norm = self.vector(&format!("blk.{n}.attn_norm.weight"))?;
        let feed_forward_norm = self.vector(&format!("blk.{n}.ffn_norm.weight"))?;
        Ok(Layer {
            attention_norm,
            query,
            key,
            value,
            output,
            feed_forward_norm,
            gate,
            up,
            down,
        })
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

    fn matrix(&mut self, name: &str) -> Result<Matrix, ModelError> {
        let info = self.file.read(name, &mut self.buffer)?;
        let packed = self.kernels.pack(
            self.workers,
            info.format,
            info.rows,
            info.cols,
            &self.buffer,
        );
        let packed = packed.map_err(|error| ModelError::Pack {
            tensor: name.to_owned(),
            error,
        })?;
        self.advance(info);
        Ok(packed)
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
