//! Tensor names of Hugging Face files and of GGUF, both ways.

/// Pairs of (Hugging Face, GGUF) outside the layers.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// Pairs of (Hugging Face, GGUF) inside a layer. Where GGUF has one name for two of Hugging Face's, the first is written.
const INNER: [(&str, &str); 16] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    // Phi 3: gate and up in one, under the name that GGUF has for it too.
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Triples of (Hugging Face, GGUF, kind) inside a layer whose name there ends without a kind. The kinds `blocks` and
/// `scales` are no names of GGUF: what they become is in `super::gpt_oss`.
const BARE: [(&str, &str, &str); 9] = [
    ("self_attn.sinks", "attn_sinks", "weight"),
    ("mlp.experts.gate_up_proj", "ffn_gate_up_exps", "weight"),
    ("mlp.experts.gate_up_proj_bias", "ffn_gate_up_exps", "bias"),
    (
        "mlp.experts.gate_up_proj_blocks",
        "ffn_gate_up_exps",
        "blocks",
    ),
    (
        "mlp.experts.gate_up_proj_scales",
        "ffn_gate_up_exps",
        "scales",
    ),
    ("mlp.experts.down_proj", "ffn_down_exps", "weight"),
    ("mlp.experts.down_proj_bias", "ffn_down_exps", "bias"),
    ("mlp.experts.down_proj_blocks", "ffn_down_exps", "blocks"),
    ("mlp.experts.down_proj_scales", "ffn_down_exps", "scales"),
];

/// Norms in a layer without norms after attention and feed-forward part: the one before the feed-forward part is named
/// after what it follows.
const NORMS: [(&str, &str); 1] = [("post_attention_layernorm", "ffn_norm")];

/// Norms in a layer that has them.
const POST_NORMS: [(&str, &str); 2] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
];

/// Pairs of (Hugging Face, GGUF) inside an expert: those of Qwen, then those of Mixtral.
const EXPERT: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
    ("w1", "ffn_gate"),
    ("w3", "ffn_up"),
    ("w2", "ffn_down"),
];

fn inner(post_norms: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let norms: &[_] = if post_norms { &POST_NORMS } else { &NORMS };
    INNER.iter().chain(norms).copied()
}

/// The GGUF name of a tensor, if a model has one of that name. `post_norms` as in `ModelConfig`.
pub(crate) fn to_gguf(name: &str, post_norms: bool) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((_, gguf)) = OUTER.iter().find(|(hf, _)| *hf == stem) {
        return Some(format!("{gguf}.{kind}"));
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    if let Some((_, gguf, kind)) = BARE.iter().find(|(hf, ..)| *hf == part) {
        return Some(format!("blk.{layer}.{gguf}.{kind}"));
    }
    let (part, _) = part.rsplit_once('.')?;
    if let Some((expert, part)) = expert(part) {
        return Some(format!("blk.{layer}.{part}.{expert}.{kind}"));
    }
    let (_, gguf) = inner(post_norms).find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// Number and part of `mlp.experts.7.up_proj`.
fn expert(part: &str) -> Option<(usize, &'static str)> {
    let rest = part
        .strip_prefix("mlp.experts.")
        .or_else(|| part.strip_prefix("block_sparse_moe.experts."))?;
    let (number, part) = rest.split_once('.')?;
    let (_, gguf) = EXPERT.iter().find(|(hf, _)| *hf == part)?;
    Some((number.parse().ok()?, gguf))
}

/// The Hugging Face name of a tensor of a Llama, if it has one there.
pub(crate) fn from_gguf(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((hf, _)) = OUTER.iter().find(|(_, gguf)| *gguf == stem) {
        return Some(format!("{hf}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let (hf, _) = inner(false).find(|(_, gguf)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{hf}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        for (hf, gguf) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            (
                "model.layers.11.self_attn.q_proj.bias",
                "blk.11.attn_q.bias",
            ),
            (
                "model.layers.0.post_attention_layernorm.weight",
                "blk.0.ffn_norm.weight",
            ),
        ] {
            assert_eq!(to_gguf(hf, false).as_deref(), Some(gguf));
            assert_eq!(from_gguf(gguf).as_deref(), Some(hf));
        }
        assert_eq!(to_gguf("model.layers.x.mlp.up_proj.weight", false), None);
        assert_eq!(to_gguf("model.layers.0.self_attn.holes", false), None);
        assert_eq!(from_gguf("rope_freqs.weight"), None);
    }

    #[test]
    fn norms_are_named_after_where_they_stand_and_experts_by_number() {
        for (hf, post_norms, gguf) in [
            (
                "model.layers.1.post_attention_layernorm.weight",
                true,
                "blk.1.post_attention_norm.weight",
            ),
            (
                "model.layers.1.pre_feedforward_layernorm.weight",
                true,
                "blk.1.ffn_norm.weight",
            ),
            (
                "model.layers.2.block_sparse_moe.experts.7.w3.weight",
                false,
                "blk.2.ffn_up.7.weight",
            ),
            (
                "model.layers.2.mlp.experts.11.down_proj.weight",
                false,
                "blk.2.ffn_down.11.weight",
            ),
            (
                "model.layers.2.mlp.experts.gate_up_proj",
                false,
                "blk.2.ffn_gate_up_exps.weight",
            ),
            (
                "model.layers.3.mlp.experts.down_proj_scales",
                false,
                "blk.3.ffn_down_exps.scales",
            ),
            (
                "model.layers.3.self_attn.sinks",
                false,
                "blk.3.attn_sinks.weight",
            ),
        ] {
            assert_eq!(to_gguf(hf, post_norms).as_deref(), Some(gguf));
        }
        assert_eq!(
            to_gguf("model.layers.1.pre_feedforward_layernorm.weight", false),
            None
        );
    }
}
