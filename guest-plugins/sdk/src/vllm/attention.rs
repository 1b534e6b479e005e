//! The selection protocol of vLLM's attention backends: every candidate is held against every check, in an order that
//! belongs to the platform (`v1/attention/backend.py:271-334`, `platforms/cuda.py:229-373`).

use crate::prelude::{
    AttentionQuery, Capability, Choice, Decision, Facts, Kernel, Refusal, Rejected, info,
    takes_block, takes_head, unmet, warn,
};

/// Which checks a backend passes, one a field, in vLLM's order.
///
/// The catalogue says what a backend can do at best. What it cannot do on this device, its platform takes back.
#[derive(Clone, Debug)]
pub struct Fits {
    /// Width of a head.
    pub head_size: bool,
    /// Activation dtype.
    pub dtype: bool,
    /// KV-cache dtype.
    pub kv_dtype: bool,
    /// Tokens in a block, where the user fixed them.
    pub block_size: bool,
    /// Attention in both directions over the tokens of an image.
    pub mm_prefix: bool,
    /// Is for latent attention just if the layer is.
    pub mla: bool,
    /// Attention sinks.
    pub sinks: bool,
    /// Is for sparse attention just if the layer is.
    pub sparse: bool,
    /// Scales of a quantised cache by head.
    pub per_head_scales: bool,
    /// The device.
    pub capability: bool,
    /// Decoder, encoder, or between both.
    pub layer_type: bool,
    /// A decoder that looks ahead.
    pub non_causal: bool,
    /// Results that do not depend on what else is in the batch.
    pub batch_invariant: bool,
    /// What does not go together, in words.
    pub combination: Option<String>,
    /// A trait that vLLM 0.22.1 has no check for: whether it can be served is not known.
    pub unknown: Option<String>,
}

/// Traits that there is a check for, or that every backend serves.
const KNOWN: [&str; 12] = [
    "batch-invariant",
    "encoder",
    "encoder-decoder",
    "encoder-only",
    "index-topk",
    "mm-prefix",
    "non-causal",
    "per-head-scales",
    "sinks",
    "sliding-window",
    "soft-cap",
    "sparse",
];

/// The first trait of a query that nobody knows, in words.
pub fn unknown(query: &AttentionQuery) -> Option<String> {
    let known = |name: &&String| KNOWN.contains(&name.as_str());
    let first = query.traits.iter().find(|name| !known(name))?;
    Some(format!("the trait '{first}' is not known"))
}

/// Does the query ask for this?
pub fn asks_for(query: &AttentionQuery, name: &str) -> bool {
    query.traits.iter().any(|asked| asked == name)
}

/// Is the cache kept in fewer than 16 bits (`utils/torch_utils.py:76-81`)?
pub fn is_quantised(kv_dtype: &str) -> bool {
    kv_dtype.starts_with("fp8") || kv_dtype.ends_with("per_token_head") || kv_dtype == "nvfp4"
}

/// Kinds of attention layer, as the traits of a query and as vLLM names them.
const LAYER_TYPES: [(&str, &str); 3] = [
    ("encoder", "encoder"),
    ("encoder-only", "encoder_only"),
    ("encoder-decoder", "encoder_decoder"),
];

impl Fits {
    /// What the catalogue says.
    pub fn of(
        facts: &Facts,
        kernel: &Kernel,
        query: &AttentionQuery,
        capability: Option<Capability>,
    ) -> Self {
        let can = |name: &str| kernel.traits.iter().any(|known| known == name);
        let takes = |name: &str| !asks_for(query, name) || can(name);
        let devices = [query.device];
        let missing = unmet(&kernel.requires, facts, &devices, capability);
        let by_device = |word: &&&str| word.starts_with("sm_") || word.starts_with("gfx:");
        Self {
            head_size: takes_head(kernel, query.head_size),
            dtype: kernel.dtypes.contains(&query.dtype),
            kv_dtype: kernel.kv_dtypes.contains(&query.kv_dtype),
            block_size: query
                .block_size
                .is_none_or(|size| takes_block(kernel, size)),
            mm_prefix: takes("mm-prefix"),
            mla: (query.layer_kind == "mla") == can("mla"),
            sinks: takes("sinks"),
            sparse: asks_for(query, "sparse") == can("sparse"),
            per_head_scales: takes("per-head-scales"),
            capability: !missing.iter().any(|word| by_device(&word)),
            layer_type: LAYER_TYPES.iter().all(|(name, _)| takes(name)),
            non_causal: takes("non-causal"),
            batch_invariant: takes("batch-invariant"),
            combination: None,
            unknown: unknown(query),
        }
    }

    /// Every reason against it, in vLLM's words.
    pub fn reasons(&self, query: &AttentionQuery) -> Vec<String> {
        let either = |wanted: bool, with: &str, without: &str| {
            if wanted { with } else { without }.to_owned()
        };
        let mla = query.layer_kind == "mla";
        let layer_type = LAYER_TYPES.iter().find(|(name, _)| asks_for(query, name));
        let checks = [
            (self.head_size, "head_size not supported".to_owned()),
            (self.dtype, "dtype not supported".to_owned()),
            (self.kv_dtype, "kv_cache_dtype not supported".to_owned()),
            (self.block_size, "block_size not supported".to_owned()),
            (
                self.mm_prefix,
                "partial multimodal token full attention not supported".to_owned(),
            ),
            (
                self.mla,
                either(mla, "MLA not supported", "non-MLA not supported"),
            ),
            (self.sinks, "attention sinks not supported".to_owned()),
            (
                self.sparse,
                either(
                    asks_for(query, "sparse"),
                    "sparse not supported",
                    "non-sparse not supported",
                ),
            ),
            (
                self.per_head_scales,
                "per-head quant scales not supported".to_owned(),
            ),
            (
                self.capability,
                "compute capability not supported".to_owned(),
            ),
            (
                self.layer_type,
                format!(
                    "attention type {} not supported",
                    layer_type.map_or("decoder", |(_, name)| name)
                ),
            ),
            (
                self.non_causal,
                "non-causal attention not supported".to_owned(),
            ),
            (
                self.batch_invariant,
                "batch invariance not supported".to_owned(),
            ),
        ];
        let failed = checks.into_iter().filter(|(holds, _)| !holds);
        failed
            .map(|(_, reason)| reason)
            .chain(self.combination.clone())
            .chain(self.unknown.clone())
            .collect()
    }
}

/// Selects by vLLM's protocol: the backend that was asked for or an error, else the first of `priorities` that passes
/// all checks. `judge` gives the reasons against a backend.
pub fn select(
    platform: &str,
    facts: &Facts,
    query: &AttentionQuery,
    priorities: &[&str],
    judge: impl Fn(&Kernel) -> Vec<String>,
) -> Decision {
    let against = |id: &str| match facts.kernels.iter().find(|kernel| kernel.id == id) {
        Some(kernel) => judge(kernel),
        // Not of this build.
        None => vec!["ImportError".to_owned()],
    };
    let (mut ranking, mut rejected) = (Vec::new(), Vec::new());
    for &id in priorities {
        match against(id) {
            reasons if reasons.is_empty() => ranking.push(id.to_owned()),
            reasons => rejected.push(Rejected {
                id: id.to_owned(),
                reasons,
            }),
        }
    }
    if let Some(wanted) = &query.requested {
        let reasons = against(wanted);
        if !reasons.is_empty() {
            let quoted: Vec<_> = reasons.iter().map(|reason| format!("'{reason}'")).collect();
            let message = format!(
                "Selected backend {wanted} is not valid for this configuration. Reason: [{}]",
                quoted.join(", ")
            );
            return Decision::Refused(Refusal {
                message,
                ranking,
                rejected,
            });
        }
        // It may be one that the platform would not have thought of.
        if !ranking.contains(wanted) {
            ranking.push(wanted.clone());
        }
        return Decision::Chosen(Choice {
            selected: wanted.clone(),
            ranking,
            rejected,
            notes: vec![info("requested", "it was asked for")],
        });
    }
    let Some(selected) = ranking.first().cloned() else {
        let block = query
            .block_size
            .map_or("None".to_owned(), |n| n.to_string());
        let message = format!(
            "No valid attention backend found for {platform} with AttentionSelectorConfig(head_size={}, dtype={}, \
             kv_cache_dtype={}, block_size={block})",
            query.head_size, query.dtype, query.kv_dtype
        );
        return Decision::Refused(Refusal {
            message,
            ranking,
            rejected,
        });
    };
    let place = priorities.iter().position(|id| *id == selected);
    let why = format!(
        "the first of vLLM's order for {platform} that passes every check ({} of {})",
        place.map_or(0, |n| n + 1),
        priorities.len()
    );
    let mut notes = vec![info("order", why)];
    notes.extend(precluded(query, &selected, &rejected, priorities));
    Decision::Chosen(Choice {
        selected,
        ranking,
        rejected,
        notes,
    })
}

/// A warning where nothing but the user's block size ruled out better backends (`platforms/cuda.py:342-364`).
fn precluded(
    query: &AttentionQuery,
    selected: &str,
    rejected: &[Rejected],
    priorities: &[&str],
) -> Option<crate::prelude::Diagnostic> {
    let size = query.block_size?;
    let better = priorities.iter().take_while(|id| **id != selected);
    let by_block = |id: &&&str| {
        let of_id = rejected.iter().find(|rejected| rejected.id == **id);
        of_id.is_some_and(|rejected| rejected.reasons == ["block_size not supported"])
    };
    let lost: Vec<_> = better.filter(by_block).copied().collect();
    let names = lost.join(", ");
    let message = format!(
        "--block-size {size} precluded higher-priority backend(s) {names}. Using {selected} instead, which may result in \
         reduced performance. Consider removing --block-size to auto-select the optimal block size."
    );
    let fix = Some("leave --block-size out".to_owned());
    (!lost.is_empty()).then(|| warn("block-size", message, fix))
}
