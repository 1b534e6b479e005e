//! Tensors as every file format has them, and the ones that a Llama-family model needs.
//!
//! Names are those of GGUF; other formats are translated when they are read.

use crate::config::ModelConfig;
use crate::error::{Checked, Problem};
use crate::int4::Grouped;
use plinth_kernels::Format;
use std::collections::HashMap;

/// One tensor of a model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its elements are stored.
    pub format: Format,
    /// Outputs of a matrix; 1 for a vector.
    pub rows: usize,
    /// Inputs of a matrix, which lie side by side; the length of a vector.
    pub cols: usize,
    pub(crate) place: Place,
    /// The rest of a tensor whose parts lie apart.
    pub(crate) grouped: Option<Grouped>,
}

impl TensorInfo {
    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.places().map(|place| place.bytes).sum()
    }

    /// Where its bytes lie.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let parts = self
            .grouped
            .iter()
            .flat_map(|grouped| [grouped.zeros, grouped.scales]);
        std::iter::once(self.place).chain(parts)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// Where bytes of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which file of the model.
    pub file: usize,
    /// From its beginning.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// The tensors of a model, in the order of the file, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tensors {
    list: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Tensors {
    pub fn new(list: Vec<TensorInfo>) -> Checked<Self> {
        let mut by_name = HashMap::with_capacity(list.len());
        for (n, info) in list.iter().enumerate() {
            if by_name.insert(info.name.clone(), n).is_some() {
                return Err(Problem::field(
                    format!("tensor '{}'", info.name),
                    "it twice",
                    "each name once",
                ));
            }
        }
        let mut places: Vec<_> = list
            .iter()
            .flat_map(|info| info.places().map(|place| (place, &info.name)))
            .collect();
        places.sort_by_key(|(place, _)| (place.file, place.offset));
        for pair in places.windows(2) {
            let ((first, first_name), (second, second_name)) = (pair[0], pair[1]);
            if first.file == second.file && first.offset + first.bytes > second.offset {
                let found = format!("bytes {} on, which '{first_name}' holds too", second.offset);
                return Err(Problem::field(
                    format!("tensor '{second_name}'"),
                    found,
                    "bytes of its own",
                ));
            }
        }
        Ok(Self { list, by_name })
    }

    pub fn list(&self) -> &[TensorInfo] {
        &self.list
    }

    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&n| &self.list[n])
    }

    /// Every tensor that the model needs is there, in the right shape, and no other that would be ignored.
    pub fn check(&self, config: &ModelConfig) -> Checked<()> {
        let mut expected = 0;
        for needed in needed(config) {
            match self.get(&needed.name) {
                Some(info) => {
                    expected += 1;
                    needed.check(info)?;
                }
                None if needed.optional => {}
                None => {
                    let field = format!("tensor '{}'", needed.name);
                    let problem = Problem::field(field, "none", needed.shape());
                    return Err(problem.fix("the file is incomplete: fetch it again"));
                }
            }
        }
        if expected == self.list.len() {
            return Ok(());
        }
        let known: std::collections::HashSet<_> =
            needed(config).map(|needed| needed.name).collect();
        let Some(extra) = self.list.iter().find(|info| !known.contains(&info.name)) else {
            return Ok(());
        };
        let expected = format!(
            "only tensors of a {} model with {} layers",
            config.architecture, config.num_layers
        );
        let problem = Problem::field(
            format!("tensor '{}'", extra.name),
            "it in the file",
            expected,
        );
        Err(problem
            .fix("the model is of an architecture that is not supported, though it says otherwise"))
    }
}

/// A tensor that a model has or may have.
struct Needed {
    name: String,
    rows: usize,
    cols: usize,
    optional: bool,
}

impl Needed {
    fn shape(&self) -> String {
        match self.rows {
            1 => format!("{} elements", self.cols),
            rows => format!("{rows} rows of {} elements", self.cols),
        }
    }

    fn check(&self, info: &TensorInfo) -> Checked<()> {
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

/// What a Llama-family model is made of.
fn needed(config: &ModelConfig) -> impl Iterator<Item = Needed> + '_ {
    let matrix = |name: &str, rows, cols| Needed {
        name: name.to_owned(),
        rows,
        cols,
        optional: false,
    };
    let optional = |needed: Needed| Needed {
        optional: true,
        ..needed
    };
    let ModelConfig {
        hidden_size: hidden,
        vocab_size: vocab,
        ..
    } = *config;
    let ends = [
        matrix("token_embd.weight", vocab, hidden),
        matrix("output_norm.weight", 1, hidden),
        optional(matrix("output.weight", vocab, hidden)),
        optional(matrix("rope_freqs.weight", 1, config.rope.dims / 2)),
    ];
    let layers = (0..config.num_layers).flat_map(move |layer| layer_tensors(config, layer));
    ends.into_iter().chain(layers)
}

fn layer_tensors(config: &ModelConfig, layer: usize) -> Vec<Needed> {
    let queries = config.num_heads * config.head_dim;
    let keys = config.num_kv_heads * config.head_dim;
    let ModelConfig {
        hidden_size: hidden,
        intermediate_size: inner,
        ..
    } = *config;
    let matrices = [
        ("attn_q", queries, hidden),
        ("attn_k", keys, hidden),
        ("attn_v", keys, hidden),
        ("attn_output", hidden, queries),
        ("ffn_gate", inner, hidden),
        ("ffn_up", inner, hidden),
        ("ffn_down", hidden, inner),
    ];
    let needed = |part: &str, kind: &str, rows, cols, optional| Needed {
        name: format!("blk.{layer}.{part}.{kind}"),
        rows,
        cols,
        optional,
    };
    let mut tensors = vec![
        needed("attn_norm", "weight", 1, hidden, false),
        needed("ffn_norm", "weight", 1, hidden, false),
    ];
    for (part, rows, cols) in matrices {
        tensors.push(needed(part, "weight", rows, cols, false));
        tensors.push(needed(part, "bias", 1, rows, true));
    }
    tensors
}
