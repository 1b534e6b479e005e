//! Configurations that contradict their tensors or themselves.

use super::with_tokenizer;
use plinth_formats::open;

/// Opens a copy of a folder whose configuration has one text replaced, and expects an error that says `message`.
fn refused(family: &str, from: &str, to: &str, message: &str) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let copy = with_tokenizer(family, work.path());
    let path = copy.join("config.json");
    let text = std::fs::read_to_string(&path).expect("read");
    assert!(text.contains(from), "{family} has no {from}");
    std::fs::write(path, text.replace(from, to)).expect("write");
    let error = open(&copy).expect_err("it contradicts itself").to_string();
    assert!(error.contains(message), "expected '{message}' in: {error}");
}

#[test]
fn configurations_that_contradict_their_tensors_or_themselves_are_refused() {
    let count = "\"num_experts_per_tok\": 2";
    refused(
        "mixtral",
        count,
        "\"num_experts_per_tok\": 5",
        "experts used a token: found 5",
    );
    let experts = "\"num_local_experts\": 4";
    refused(
        "mixtral",
        experts,
        "\"num_local_experts\": 5",
        "blk.0.ffn_gate.4.weight",
    );
    refused(
        "mixtral",
        experts,
        "\"num_local_experts\": 3",
        "ffn_gate_inp.weight': found 4 rows",
    );
    let sparse = "\"decoder_sparse_step\": 1";
    refused(
        "qwen3_moe",
        sparse,
        "\"decoder_sparse_step\": 2",
        "decoder_sparse_step: found 2",
    );
    refused(
        "gemma3",
        "\"full_attention\",",
        "",
        "kinds of attention: found 6",
    );
    refused(
        "gemma3",
        "\"full_attention\"",
        "\"linear_attention\"",
        "layer_types",
    );
    refused(
        "gemma3",
        "\"sliding_window\": 8",
        "\"sliding_window\": null",
        "sliding_window: found nothing",
    );
    refused(
        "gemma2",
        "\"attn_logit_softcapping\": 2.0",
        "\"attn_logit_softcapping\": -2.0",
        "attention soft cap",
    );
    refused(
        "phi3",
        "\"num_key_value_heads\": 2",
        "\"num_key_value_heads\": 4",
        "attn_qkv",
    );
    refused(
        "phi3",
        "\"intermediate_size\": 48",
        "\"intermediate_size\": 40",
        "ffn_up.weight': found 96 rows",
    );
    refused(
        "phi3_longrope",
        "      4.0\n",
        "      4.0, 5.0\n",
        "rotary factors: found 7",
    );
    refused(
        "phi3_longrope",
        "\"longrope\"",
        "\"dynamic\"",
        "rope_type: found 'dynamic'",
    );
    refused(
        "gpt_oss",
        "\"swiglu_limit\": 7.0",
        "\"swiglu_limit\": 8.0",
        "swiglu_limit: found 8, expected 7",
    );
    refused(
        "gpt_oss",
        "\"rope_parameters\"",
        "\"another\"",
        "rope_scaling: found nothing",
    );
    refused(
        "gpt_oss",
        "\"num_local_experts\": 8",
        "\"num_local_experts\": 4",
        "expected shape [4, ",
    );
    refused(
        "gpt_oss",
        "\"beta_fast\": 4.0",
        "\"beta_fast\": 1.0",
        "beta_fast: found 1, expected more than beta_slow",
    );
    refused(
        "gpt_oss_mxfp4",
        "\"intermediate_size\": 96",
        "\"intermediate_size\": 64",
        "down_proj_blocks': found shape [4, 64, 48], expected shape [4, 64, 32]",
    );
    refused(
        "gpt_oss_mxfp4",
        "\"quant_method\": \"mxfp4\"",
        "\"quant_method\": \"fp8\"",
        "quant_method: found 'fp8'",
    );
    refused(
        "qwen3",
        "\"qwen3\"",
        "\"qwen2\"",
        "attn_k_norm.weight': found it in the file",
    );
    refused(
        "qwen2",
        "\"qwen2\"",
        "\"qwen3\"",
        "attn_q_norm.weight': found none",
    );
}
