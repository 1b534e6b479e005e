//! Which tensors of a model are one tensor of a GGUF file: the counterpart of `tensors::parts`.

use crate::tensors::TensorInfo;

/// A tensor of the file, and what it is put together from, in order.
pub(super) struct Target<'a> {
    pub name: String,
    pub sources: Vec<&'a TensorInfo>,
    /// Each source is a matrix of its own, or a row of its own if they are vectors.
    stacked: bool,
}

impl Target<'_> {
    /// As many matrices of equal size lie one behind the other in it.
    pub fn matrices(&self) -> usize {
        match self.stacked && self.sources[0].rows > 1 {
            true => self.sources.len(),
            false => 1,
        }
    }

    /// Rows of all its matrices; 1 for a vector.
    pub fn rows(&self) -> usize {
        match self.is_vector() {
            true => 1,
            false => self.sources.iter().map(|source| source.rows).sum(),
        }
    }

    pub fn cols(&self) -> usize {
        match self.is_vector() {
            true => self.sources.iter().map(|source| source.cols).sum(),
            false => self.sources[0].cols,
        }
    }

    fn is_vector(&self) -> bool {
        !self.stacked && self.sources.iter().all(|source| source.rows == 1)
    }
}

/// The tensors of a file for a model of this architecture, each where the first of its sources stands.
pub(super) fn targets<'a>(tensors: &'a [TensorInfo], architecture: &str) -> Vec<Target<'a>> {
    let mut targets: Vec<(Target<'a>, Vec<usize>)> = Vec::new();
    for info in tensors {
        let Some(Place {
            name,
            order,
            stacked,
        }) = place(&info.name, architecture)
        else {
            let target = Target {
                name: info.name.clone(),
                sources: vec![info],
                stacked: false,
            };
            targets.push((target, vec![0]));
            continue;
        };
        let known = targets.iter_mut().find(|(target, _)| target.name == name);
        let (target, orders) = match known {
            Some(known) => known,
            None => {
                let target = Target {
                    name,
                    sources: Vec::new(),
                    stacked,
                };
                targets.push((target, Vec::new()));
                targets.last_mut().expect("it was pushed")
            }
        };
        let at = orders.partition_point(|&known| known < order);
        orders.insert(at, order);
        target.sources.insert(at, info);
    }
    targets.into_iter().map(|(target, _)| target).collect()
}

/// Where a tensor goes that is a part of another.
struct Place {
    name: String,
    order: usize,
    /// Behind the others, as a matrix of its own.
    stacked: bool,
}

fn place(name: &str, architecture: &str) -> Option<Place> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    if let Some((expert, kind)) = kind.split_once('.') {
        return Some(Place {
            name: format!("blk.{layer}.{part}_exps.{kind}"),
            order: expert.parse().ok()?,
            stacked: true,
        });
    }
    let (fused, order) = match (architecture, part) {
        ("phi3", "attn_q") => ("attn_qkv", 0),
        ("phi3", "attn_k") => ("attn_qkv", 1),
        ("phi3", "attn_v") => ("attn_qkv", 2),
        ("phi3", "ffn_gate") => ("ffn_up", 0),
        ("phi3", "ffn_up") => ("ffn_up", 1),
        // The norm before the feed-forward part, named after what it follows.
        ("gpt-oss", "ffn_norm") => ("post_attention_norm", 0),
        _ => return None,
    };
    Some(Place {
        name: format!("blk.{layer}.{fused}.{kind}"),
        order,
        stacked: false,
    })
}
