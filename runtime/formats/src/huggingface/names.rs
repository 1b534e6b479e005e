//! Tensor names of Hugging Face files and of GGUF, both ways.

/// Pairs of (Hugging Face, GGUF) outside the layers.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// Pairs of (Hugging Face, GGUF) inside a layer.
const INNER: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF name of a tensor, if a Llama-family model has one of that name.
pub(crate) fn to_gguf(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((_, gguf)) = OUTER.iter().find(|(hf, _)| *hf == stem) {
        return Some(format!("{gguf}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, gguf) = INNER.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// The Hugging Face name of a tensor, if it has one there.
pub(crate) fn from_gguf(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((hf, _)) = OUTER.iter().find(|(_, gguf)| *gguf == stem) {
        return Some(format!("{hf}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let (hf, _) = INNER.iter().find(|(_, gguf)| *gguf == part)?;
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
            assert_eq!(to_gguf(hf).as_deref(), Some(gguf));
            assert_eq!(from_gguf(gguf).as_deref(), Some(hf));
        }
        assert_eq!(to_gguf("model.layers.x.mlp.up_proj.weight"), None);
        assert_eq!(to_gguf("model.layers.0.self_attn.q_norm.weight"), None);
        assert_eq!(from_gguf("rope_freqs.weight"), None);
    }
}
