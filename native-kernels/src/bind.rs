//! From the ids of a plan to kernels that this CPU can run. An id that cannot be had is an error with its reasons.

use crate::catalog::catalog;
use crate::cpu::isa::{
    Int8Isa, LaneIsa, PairsIsa, SpanIsa, Streaming, TileIsa, missing_features, streaming,
};
use crate::{Format, KvDtype};
use plinth_platform::facts::Kernel;

/// Which kernel serves which purpose, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Attention over a chunk of a prompt.
    pub attention_prefill: String,
    /// Attention of one new token a sequence.
    pub attention_decode: String,
    /// Weight format and the matrix multiplication for it, one entry for every format of the model.
    pub matmul: Vec<(String, String)>,
    /// As `matmul`, for steps of many rows; formats without an entry are multiplied as for few.
    pub matmul_many: Vec<(String, String)>,
    /// Rows of a step from which on the entry of `matmul_many` serves, by weight format; for formats without an entry what
    /// suits the kernel, [`MANY_ROWS`] and more.
    pub many_from: Vec<(String, usize)>,
    /// Everything that goes over rows: norms, rotation, activation functions.
    pub elementwise: String,
}

/// The fewest rows of a step for which [`Selection::matmul_many`] serves where nothing was measured.
///
/// Measured on a Xeon with AMX: widening a panel for the tiles costs as much as multiplying 32 rows with it; below 12
/// rows the integer kernels, which read each panel once for eight rows, are ahead.
pub const MANY_ROWS: usize = 12;

impl Selection {
    /// The best kernels that this CPU can run, by rank, for every format and any cache. What the floor of a runtime would choose; for
    /// tests and benchmarks.
    pub fn best() -> Self {
        let usable: Vec<Kernel> = catalog()
            .into_iter()
            .filter(|kernel| missing_features(kernel).is_empty())
            .collect();
        let best = |op: &str, format: Option<Format>, what: &str| {
            let serves = |kernel: &&Kernel| {
                let named = |names: &[String], name| names.iter().any(|n| n == name);
                // One for any cache: which there will be is not known here.
                let any_cache = KvDtype::ALL
                    .iter()
                    .all(|dtype| named(&kernel.kv_dtypes, dtype.name()));
                kernel.op == op
                    && (op != "attention" || any_cache)
                    && format.is_none_or(|f| named(&kernel.formats, f.name()))
                    && (op == "elementwise" || named(&kernel.traits, what))
            };
            let best = usable
                .iter()
                .filter(serves)
                .max_by_key(|kernel| kernel.rank);
            let best = best.expect("there is a portable kernel for everything");
            best.id.clone()
        };
        let matmul = |what| {
            let best = |f: &Format| (f.name().to_owned(), best("matmul", Some(*f), what));
            Format::ALL.iter().map(best).collect()
        };
        Self {
            attention_prefill: best("attention", None, "prefill"),
            attention_decode: best("attention", None, "decode"),
            matmul: matmul("decode"),
            matmul_many: matmul("prefill"),
            many_from: Vec::new(),
            elementwise: best("elementwise", None, ""),
        }
    }
}

/// Why a kernel cannot be bound. All of them are faults of who made the selection, except the last, which may be the
/// machine's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The catalogue has no such kernel.
    #[error("{purpose}: no kernel {id:?} in this build; it has {known:?}")]
    Unknown {
        /// What it was to do.
        purpose: String,
        /// The id asked for.
        id: String,
        /// Ids of this operation.
        known: Vec<String>,
    },
    /// A weight format of another name.
    #[error("matmul: no weight format {name:?}; expected one of {known:?}")]
    UnknownFormat {
        /// The name given.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// The kernel does something else.
    #[error("{purpose}: kernel {id:?} {does}")]
    Unsuitable {
        /// What it was to do.
        purpose: String,
        /// The id asked for.
        id: String,
        /// What it does instead.
        does: String,
    },
    /// The CPU lacks something.
    #[error("{purpose}: kernel {id:?} needs {missing:?}, which this CPU does not have")]
    Missing {
        /// What it was to do.
        purpose: String,
        /// The id asked for.
        id: String,
        /// Features as Linux names them.
        missing: Vec<String>,
    },
}

/// How a format is multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MatmulKernel {
    /// Float panels, or quantised ones widened.
    Float(LaneIsa),
    /// Activations as signed bytes.
    Int8(Int8Isa),
    /// Everything as tiles of `bf16`.
    Tiles(TileIsa),
    /// Everything as tiles of bytes.
    Spans(SpanIsa),
}

type ByFormat = [Option<MatmulKernel>; Format::ALL.len()];

/// How a run of many queries is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PrefillKernel {
    /// As one query is.
    Lanes(LaneIsa),
    /// Everything as tiles of `bf16`. Short runs are answered as one query is.
    Tiles(TileIsa),
}

/// How few queries are answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DecodeKernel {
    /// Number by number.
    Lanes(LaneIsa),
    /// In pairs of `bf16`, which is what the cache consists of.
    Pairs(PairsIsa),
}

impl DecodeKernel {
    /// The float lanes that go with it.
    pub fn lanes(self) -> LaneIsa {
        match self {
            DecodeKernel::Lanes(isa) => isa,
            DecodeKernel::Pairs(isa) => isa.lanes(),
        }
    }
}

/// A kernel for every purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub attention_prefill: PrefillKernel,
    pub attention_decode: DecodeKernel,
    /// By position in `Format::ALL`.
    matmul: ByFormat,
    /// For steps of many rows.
    matmul_many: ByFormat,
    /// From how many rows on, by position in `Format::ALL`.
    many_from: [usize; Format::ALL.len()],
    pub elementwise: LaneIsa,
    /// How matrix products read weights.
    pub streaming: Streaming,
}

impl Bound {
    pub fn new(selection: &Selection) -> Result<Self, BindError> {
        let catalog = catalog();
        let by_format = |choices: &[(String, String)]| -> Result<ByFormat, BindError> {
            let mut kernels = [None; Format::ALL.len()];
            for (name, id) in choices {
                let (index, format) = format_named(name)?;
                kernels[index] = Some(matmul_kernel(&catalog, format, id)?);
            }
            Ok(kernels)
        };
        let matmul_many = by_format(&selection.matmul_many)?;
        let mut many_from = matmul_many.map(|kernel| kernel.map_or(MANY_ROWS, many_rows));
        for (name, rows) in &selection.many_from {
            many_from[format_named(name)?.0] = *rows;
        }
        Ok(Self {
            attention_prefill: prefill_kernel(&catalog, &selection.attention_prefill)?,
            attention_decode: decode_kernel(&catalog, &selection.attention_decode)?,
            matmul: by_format(&selection.matmul)?,
            matmul_many,
            many_from,
            elementwise: {
                let id = &selection.elementwise;
                lane_isa(find(&catalog, "elementwise", "elementwise", id)?)
            },
            streaming: streaming(),
        })
    }
}

impl Bound {
    /// Is there a kernel for this format?
    pub fn multiplies(&self, format: Format) -> bool {
        self.matmul[format as usize].is_some()
    }

    /// Rows up to which every product runs on the kernel of few rows, so that a row's result does not depend on how many
    /// there are.
    pub fn few_rows(&self) -> usize {
        let many = self.matmul_many.iter().zip(self.many_from);
        let from = many.filter_map(|(kernel, from)| kernel.is_some().then_some(from));
        from.min().map_or(usize::MAX, |from| from.saturating_sub(1))
    }

    /// The kernel for this format and a step of `rows` rows.
    ///
    /// **Panics** if there is none.
    pub fn matmul_of(&self, format: Format, rows: usize) -> MatmulKernel {
        let few = self.matmul[format as usize];
        let many = self.matmul_many[format as usize];
        let many = many.filter(|_| rows >= self.many_from[format as usize]);
        many.or(few)
            .expect("no matrix of a format without a kernel is packed")
    }
}

/// Rows from which on a kernel for many serves where nothing was measured.
fn many_rows(kernel: MatmulKernel) -> usize {
    match kernel {
        MatmulKernel::Spans(isa) => isa.many_rows(),
        _ => MANY_ROWS,
    }
}

fn decode_kernel(catalog: &[Kernel], id: &str) -> Result<DecodeKernel, BindError> {
    const PURPOSE: &str = "attention (decode)";
    let kernel = find(catalog, PURPOSE, "attention", id)?;
    let serves = kernel.traits.iter().any(|name| name == "decode");
    if !serves {
        return Err(unsuitable(PURPOSE, id, "answers runs of many rows only"));
    }
    Ok(match id.ends_with(PAIRS) {
        true => PairsIsa::detect(tier(kernel))
            .map(DecodeKernel::Pairs)
            .expect("as `lane_isa` expects"),
        false => DecodeKernel::Lanes(lane_isa(kernel)),
    })
}

/// What ids of attention in pairs end in.
const PAIRS: &str = ".pairs";

fn unsuitable(purpose: &str, id: &str, does: &str) -> BindError {
    BindError::Unsuitable {
        purpose: purpose.to_owned(),
        id: id.to_owned(),
        does: does.to_owned(),
    }
}

fn prefill_kernel(catalog: &[Kernel], id: &str) -> Result<PrefillKernel, BindError> {
    const PURPOSE: &str = "attention (prefill)";
    let kernel = find(catalog, PURPOSE, "attention", id)?;
    if id.ends_with(PAIRS) {
        return Err(unsuitable(PURPOSE, id, "answers few rows only"));
    }
    Ok(match TileIsa::detect(tier(kernel)) {
        Some(isa) => PrefillKernel::Tiles(isa),
        None => PrefillKernel::Lanes(lane_isa(kernel)),
    })
}

fn matmul_kernel(catalog: &[Kernel], format: Format, id: &str) -> Result<MatmulKernel, BindError> {
    let purpose = format!("matmul of {format}");
    let kernel = find(catalog, &purpose, "matmul", id)?;
    if !kernel.formats.iter().any(|f| f == format.name()) {
        let does = format!("multiplies {:?} only", kernel.formats);
        return Err(unsuitable(&purpose, id, &does));
    }
    let detected = match id.rsplit('.').next() {
        Some("int8") => Int8Isa::detect(tier(kernel)).map(MatmulKernel::Int8),
        Some("int8-span") => SpanIsa::detect(tier(kernel)).map(MatmulKernel::Spans),
        Some("bf16") => TileIsa::detect(tier(kernel)).map(MatmulKernel::Tiles),
        _ => LaneIsa::detect(tier(kernel)).map(MatmulKernel::Float),
    };
    Ok(detected.expect("the catalogue names what an instruction set needs"))
}

fn format_named(name: &str) -> Result<(usize, Format), BindError> {
    let found = Format::ALL
        .into_iter()
        .enumerate()
        .find(|(_, format)| Format::from_name(name) == Some(*format));
    found.ok_or_else(|| BindError::UnknownFormat {
        name: name.to_owned(),
        known: Format::ALL.map(Format::name).into(),
    })
}

/// The entry of a kernel that is there, does `op` and can run here.
fn find<'a>(
    catalog: &'a [Kernel],
    purpose: &str,
    op: &str,
    id: &str,
) -> Result<&'a Kernel, BindError> {
    let (purpose, id) = (purpose.to_owned(), id.to_owned());
    let Some(kernel) = catalog.iter().find(|kernel| kernel.id == id) else {
        let of_op = catalog.iter().filter(|kernel| kernel.op == op);
        let known = of_op.map(|kernel| kernel.id.clone()).collect();
        return Err(BindError::Unknown { purpose, id, known });
    };
    if kernel.op != op {
        let does = format!("does {:?}", kernel.op);
        return Err(BindError::Unsuitable { purpose, id, does });
    }
    let missing = missing_features(kernel);
    if missing.is_empty() {
        Ok(kernel)
    } else {
        Err(BindError::Missing {
            purpose,
            id,
            missing,
        })
    }
}

/// The middle of the id names the instruction set.
fn tier(kernel: &Kernel) -> &str {
    kernel.id.split('.').nth(1).unwrap_or_default()
}

fn lane_isa(kernel: &Kernel) -> LaneIsa {
    LaneIsa::detect(tier(kernel)).expect("the catalogue names what an instruction set needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_this_cpu_binds() {
        let bound = Bound::new(&Selection::best()).unwrap();
        assert!(Format::ALL.iter().all(|format| bound.multiplies(*format)));
    }

    #[test]
    fn every_kernel_binds_or_says_what_is_missing() {
        for kernel in catalog().iter().filter(|kernel| kernel.op == "elementwise") {
            let selection = Selection {
                elementwise: kernel.id.clone(),
                ..Selection::best()
            };
            match Bound::new(&selection) {
                Ok(_) => assert!(missing_features(kernel).is_empty()),
                Err(BindError::Missing { missing, .. }) => {
                    assert_eq!(missing, missing_features(kernel));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// What it prints (`--show-output`) is what the other tests ran on.
    #[test]
    fn an_instruction_set_is_found_where_its_features_are() {
        let catalog = catalog();
        let mut found = std::collections::BTreeSet::new();
        for kernel in &catalog {
            let name = tier(kernel);
            let detected = LaneIsa::detect(name).is_some()
                || Int8Isa::detect(name).is_some()
                || TileIsa::detect(name).is_some()
                || PairsIsa::detect(name).is_some()
                || SpanIsa::detect(name).is_some();
            assert_eq!(
                detected,
                missing_features(kernel).is_empty(),
                "{}",
                kernel.id
            );
            if detected {
                found.insert(name);
            }
        }
        println!("instruction sets of this CPU: {found:?}");
    }

    #[test]
    fn few_rows_end_before_the_first_kernel_for_many() {
        let id = "cpu.portable.matmul.dequant".to_owned();
        let mut selection = Selection {
            matmul_many: Vec::new(),
            ..Selection::best()
        };
        let few_rows = |selection: &Selection| Bound::new(selection).unwrap().few_rows();
        assert_eq!(few_rows(&selection), usize::MAX);
        selection.matmul_many = vec![("q4_1".to_owned(), id.clone()), ("q8_0".to_owned(), id)];
        assert_eq!(few_rows(&selection), MANY_ROWS - 1);
        selection.many_from = vec![("q8_0".to_owned(), 5), ("q4_0".to_owned(), 2)];
        assert_eq!(few_rows(&selection), 4);
        selection.many_from = vec![("q8_0".to_owned(), 30), ("q4_1".to_owned(), 20)];
        assert_eq!(few_rows(&selection), 19);
    }

    fn refused(change: impl Fn(&mut Selection)) -> String {
        let mut selection = Selection::best();
        change(&mut selection);
        Bound::new(&selection).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_a_reason() {
        let unknown = refused(|s| s.elementwise = "cpu.mmx.elementwise".into());
        assert!(unknown.starts_with("elementwise: no kernel \"cpu.mmx.elementwise\""));
        assert!(unknown.contains("cpu.portable.elementwise"));
        let other = refused(|s| s.attention_decode = "cpu.portable.elementwise".into());
        assert_eq!(
            other,
            "attention (decode): kernel \"cpu.portable.elementwise\" does \"elementwise\""
        );
        #[cfg(target_arch = "x86_64")]
        for (change, reason) in [
            (
                refused(|s| s.attention_decode = "cpu.avx512-bf16.attention".into()),
                "answers runs of many rows only",
            ),
            (
                refused(|s| s.attention_prefill = "cpu.avx512-bf16.attention.pairs".into()),
                "answers few rows only",
            ),
        ] {
            let reasons = [reason, "which this CPU does not have"];
            assert!(
                reasons.iter().any(|reason| change.contains(reason)),
                "{change}"
            );
        }
        let float = ("q4_1".into(), "cpu.portable.matmul.float".into());
        let format = refused(|s| s.matmul.push(float.clone()));
        assert!(format.contains("multiplies [\"f32\", \"f16\", \"bf16\"] only"));
        let name = refused(|s| s.matmul.push(("iq2_xs".into(), String::new())));
        assert!(name.contains("no weight format \"iq2_xs\""));
    }
}
