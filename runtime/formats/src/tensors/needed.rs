//! The tensors that a model needs.

use super::TensorInfo;
use crate::config::ModelConfig;
use crate::error::{Checked, Problem};

/// A tensor that a model has or may have.
pub(super) struct Needed {
    pub name: String,
    rows: usize,
    cols: usize,
    pub optional: bool,
}

impl Needed {
    pub fn shape(&self) -> String {
        match self.rows {
            1 => format!("{} elements", self.cols),
            rows => format!("{rows} rows of {} elements", self.cols),
        }
    }

    pub fn check(&self, info: &TensorInfo) -> Checked<()> {
        if (info.rows, info.cols) == (self.rows, self.cols) {
            return Ok(());
        }
        let found = format!("{} rows of {} elements", info.rows, info.cols);
        Err(Problem::field(
            format!("tensor '{}'", self.name),
            found,
            self.shape(),
        ))
    }
}

/// The shape of one tensor.
pub(crate) struct Shape {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
}

/// Names and shapes of all tensors that a model has or may have.
pub(crate) fn needed_shapes(config: &ModelConfig) -> Vec<Shape> {
    needed(config)
        .map(
            |Needed {
                 name, rows, cols, ..
             }| Shape { name, rows, cols },
        )
        .collect()
}

/// What a model is made of.
pub(super) fn needed(config: &ModelConfig) -> impl Iterator<Item = Needed> + '_ {
    let matrix = |name: &str, rows, cols, optional| Needed {
        name: name.to_owned(),
        rows,
        cols,
        optional,
    };
    let ModelConfig {
        hidden_size: hidden,
        vocab_size: vocab,
        ..
    } = *config;
    let pairs = config.rope.dims / 2;
    let ends = [
        matrix("token_embd.weight", vocab, hidden, false),
        matrix("output_norm.weight", 1, hidden, false),
        matrix("output.weight", vocab, hidden, true),
        // A part of the configuration already.
        matrix("rope_freqs.weight", 1, pairs, true),
        matrix("rope_factors_short.weight", 1, pairs, true),
        matrix("rope_factors_long.weight", 1, pairs, true),
    ];
    let layers = (0..config.num_layers).flat_map(move |layer| layer_tensors(config, layer));
    ends.into_iter().chain(layers)
}

fn layer_tensors(config: &ModelConfig, layer: usize) -> Vec<Needed> {
    let mut tensors = Vec::new();
    for (part, width) in vectors(config) {
        tensors.push(Needed {
            name: format!("blk.{layer}.{part}.weight"),
            rows: 1,
            cols: width,
            optional: false,
        });
    }
    for (part, rows, cols) in matrices(config) {
        let needed = |kind: &str, rows, cols, optional| Needed {
            name: format!("blk.{layer}.{part}.{kind}"),
            rows,
            cols,
            optional,
        };
        tensors.push(needed("weight", rows, cols, false));
        match config.experts {
            Some(experts) if part.starts_with("ffn_") => {
                if experts.biases {
                    tensors.push(needed("bias", 1, rows, false));
                }
            }
            _ => tensors.push(needed("bias", 1, rows, true)),
        }
    }
    tensors
}

/// The norms and sinks of a layer, with their width.
fn vectors(config: &ModelConfig) -> Vec<(&'static str, usize)> {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let mut vectors = vec![("attn_norm", hidden), ("ffn_norm", hidden)];
    if config.qk_norm {
        vectors.extend([("attn_q_norm", head), ("attn_k_norm", head)]);
    }
    if config.post_norms {
        vectors.extend([("post_attention_norm", hidden), ("post_ffw_norm", hidden)]);
    }
    if config.attention_sinks {
        vectors.push(("attn_sinks", config.num_heads));
    }
    vectors
}

/// The matrices of a layer, with their rows and columns.
fn matrices(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let queries = config.num_heads * config.head_dim;
    let keys = config.num_kv_heads * config.head_dim;
    let hidden = config.hidden_size;
    let mut matrices = vec![
        ("attn_q".to_owned(), queries, hidden),
        ("attn_k".to_owned(), keys, hidden),
        ("attn_v".to_owned(), keys, hidden),
        ("attn_output".to_owned(), hidden, queries),
    ];
    let mut feed_forward = |expert: &str, inner| {
        matrices.extend([
            (format!("ffn_gate{expert}"), inner, hidden),
            (format!("ffn_up{expert}"), inner, hidden),
            (format!("ffn_down{expert}"), hidden, inner),
        ]);
    };
    match config.experts {
        None => feed_forward("", config.intermediate_size),
        Some(experts) => {
            (0..experts.count)
                .for_each(|expert| feed_forward(&format!(".{expert}"), experts.intermediate_size));
            matrices.push(("ffn_gate_inp".to_owned(), experts.count, hidden));
        }
    }
    matrices
}
