//! Tensors as every file format has them, by one set of names.
//!
//! Names are those of GGUF; other formats are translated when they are read. What a file holds as one tensor and a model
//! uses as several (fused projections, the matrices of all experts) is handed out as several, each a range of the file;
//! the matrices of expert E are `blk.N.ffn_gate.E.weight` and so on. A norm's weight is what is multiplied by.

mod needed;
mod parts;

pub(crate) use needed::needed_shapes;

use crate::config::ModelConfig;
use crate::error::{Checked, Problem};
use crate::int4::Grouped;
use crate::interleaved::Interleaved;
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
    /// As many matrices of equal size lie one behind the other. More than one only until they are told apart.
    pub(crate) matrices: usize,
    /// The file has each element in this format and less 1; it is handed out as f32 with the 1 added.
    pub(crate) less_one: Option<Format>,
    pub(crate) place: Place,
    /// The rest of a tensor whose parts lie apart.
    pub(crate) grouped: Option<Grouped>,
    /// How it lies in its place, if not row by row.
    pub(crate) interleaved: Option<Interleaved>,
}

impl TensorInfo {
    pub(crate) fn new(
        name: String,
        format: Format,
        rows: usize,
        cols: usize,
        place: Place,
    ) -> Self {
        Self {
            name,
            format,
            rows,
            cols,
            matrices: 1,
            less_one: None,
            place,
            grouped: None,
            interleaved: None,
        }
    }

    /// The same with 1 added to every element when it is read.
    pub(crate) fn plus_one(self) -> Self {
        Self {
            format: Format::F32,
            less_one: Some(self.format),
            ..self
        }
    }

    /// Makes what was read from the file into what is handed out.
    pub(crate) fn add_one(&self, bytes: &mut Vec<u8>) {
        let Some(stored) = self.less_one else {
            return;
        };
        let mut values = vec![0.0; self.elements()];
        stored.dequantize(bytes, &mut values);
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| (value + 1.0).to_le_bytes()));
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        if self.interleaved.is_some() {
            // Its place may hold another tensor too.
            let row = self.format.row_bytes(self.cols).unwrap_or_default();
            return (row * self.rows) as u64;
        }
        self.places().map(|place| place.bytes).sum()
    }

    /// Where its bytes lie.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let parts = self
            .grouped
            .iter()
            .flat_map(|grouped| [grouped.zeros, grouped.scales]);
        let scales = match self.interleaved {
            Some(Interleaved::Mxfp4 { scales, .. }) => Some(scales),
            _ => None,
        };
        std::iter::once(self.place).chain(parts).chain(scales)
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
    /// Those of a file, as a model of this configuration uses them.
    pub fn new(list: Vec<TensorInfo>, config: &ModelConfig) -> Checked<Self> {
        let list = parts::of(list, config)?;
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
            .flat_map(|info| info.places().map(move |place| (place, info)))
            .collect();
        places.sort_by_key(|(place, _)| (place.file, place.offset));
        for pair in places.windows(2) {
            let ((first, first_info), (second, second_info)) = (pair[0], pair[1]);
            let (first_name, second_name) = (&first_info.name, &second_info.name);
            if first == second && first_info.interleaved.is_some() {
                // Taken apart from one tensor of the file.
                continue;
            }
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
        for needed in needed::needed(config) {
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
            needed::needed(config).map(|needed| needed.name).collect();
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
