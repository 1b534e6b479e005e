"""Answers one prompt with vLLM, and prints what it took from the component."""

import sys

from plinth_vllm_bridge import component


def main(model):
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    llm = LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=4,
        enforce_eager=True,
        gpu_memory_utilization=0.3,
    )
    answer = llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=8))[0]
    config = llm.llm_engine.vllm_config
    heads = config.model_config.hf_config
    width = getattr(heads, "head_dim", None) or heads.hidden_size // heads.num_attention_heads
    chosen = component.attention(
        head_size=width, num_heads=heads.num_attention_heads, dtype="bf16", kv_dtype="auto", layer_kind="full", traits=[]
    )
    wanted = component.block_size(chosen["selected"])
    print("platform      ", type(current_platform).__name__)
    print("answer        ", repr(answer.outputs[0].text))
    print("block size    ", config.cache_config.block_size, "in vLLM,", wanted["block_size"], "by the component")
    print("attention     ", chosen["selected"], "by the component:", chosen["notes"][0]["message"])
    assert type(current_platform).__name__ == "PlinthPlatform"
    assert config.cache_config.block_size == wanted["block_size"]


if __name__ == "__main__":
    main(sys.argv[1])
