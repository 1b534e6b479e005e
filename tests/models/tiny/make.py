"""Makes the tiny models beside it, with what transformers computes for them.

usage: python make.py LLAMA_CPP [NAME ...]      (a source tree of llama.cpp, for its converter; PyPI: torch, transformers)

Every model is random from a fixed seed, stored in bf16. Its logits are computed in f32 from those bf16 weights, for one
prompt, with the plain ("eager") attention. The GGUF files are written by llama.cpp's converter, without a vocabulary.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

HERE = Path(__file__).resolve().parent
PROMPT = [(7919 + n * 104_729 + n * n * 31) % 150 + 3 for n in range(40)]
POSITIONS = [0, 18, 39]

COMMON = dict(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

# The second of eight frequencies is one of those between, and would be another if the ends were whole numbers.
YARN = dict(
    rope_type="yarn", rope_theta=1.5e5, factor=4.0, beta_fast=4.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=64
)

MODELS = {
    # Biases on queries, keys and values; a head of its own.
    "qwen2": ("Qwen2", dict(tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    # Norms of queries and keys; heads that are wider than the hidden size divided by their number.
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    # A window in every other layer; soft caps of attention and logits that bend much.
    "gemma2": (
        "Gemma2",
        dict(head_dim=16, num_hidden_layers=2, sliding_window=12, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, final_logit_softcapping=4.0),
    ),
    # Five layers with a window and a rotary base of their own, then one that sees everything, then one with the window.
    "gemma3": (
        "Gemma3",
        dict(
            num_hidden_layers=7,
            intermediate_size=32,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=8,
            query_pre_attn_scalar=8,
            final_logit_softcapping=6.0,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
    ),
    # A window in every layer.
    "mistral": ("Mistral", dict(head_dim=8, sliding_window=12, tie_word_embeddings=False)),
    # Fused projections.
    "phi3": ("Phi3", dict(tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0)),
    # LongRoPE over a part of each head, with a prompt longer than the first training's context.
    "phi3_longrope": (
        "Phi3",
        dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            original_max_position_embeddings=16,
            partial_rotary_factor=0.75,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=1e4,
                partial_rotary_factor=0.75,
                original_max_position_embeddings=16,
                short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.4],
                long_factor=[1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
            ),
        ),
    ),
    # Two of four experts.
    "mixtral": ("Mixtral", dict(intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)),
    # Three of eight experts, narrower than the hidden size.
    "qwen3_moe": (
        "Qwen3Moe",
        dict(head_dim=8, moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, tie_word_embeddings=True),
    ),
    # Sinks, a window in every other layer, YaRN whose ramp is not truncated, biases everywhere, three of eight experts.
    "gpt_oss": (
        "GptOss",
        dict(
            num_hidden_layers=3,
            intermediate_size=24,
            head_dim=16,
            sliding_window=12,
            max_position_embeddings=256,
            num_local_experts=8,
            num_experts_per_tok=3,
            rope_parameters=YARN,
        ),
    ),
    # The same with experts in MXFP4, two and three blocks a row.
    "gpt_oss_mxfp4": (
        "GptOss",
        dict(
            hidden_size=64,
            intermediate_size=96,
            head_dim=16,
            sliding_window=9,
            max_position_embeddings=256,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters=YARN,
        ),
    ),
}


def randomise(model, generator):
    """Weights under which attention, experts and norms all matter: far from the tiny ones that training starts with."""
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            values = 0.3 * values
        elif "norm" in name:
            center = 0.0 if "gemma" in model.config.model_type else 1.0
            values = center + 0.15 * values
        elif name.endswith("sinks"):
            values = 1.0 + values
        elif "experts.gate_up_proj" in name and model.config.model_type == "gpt_oss":
            # Inputs come first here. Large enough for gates and ups beyond their limits.
            values = values * (4.0 / weight.shape[-2] ** 0.5)
        elif "embed_tokens" in name:
            values = values * (1.0 if model.config.tie_word_embeddings is False else 0.4)
        else:
            values = values * (1.4 / weight.shape[-1] ** 0.5)
        weight.data.copy_(values)


def pack_experts(model, generator):
    """Gives the experts' matrices random values that MXFP4 holds, and returns their blocks and scales by name."""
    packed = {}
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = weight.shape
            shape = (experts, outputs, inputs // 32)
            blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
            # Powers of two from 2^-5 on.
            scales = torch.randint(122, 125, shape, generator=generator, dtype=torch.uint8)
            weight.data.copy_(convert_moe_packed_tensors(blocks, scales))
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return packed


def store_packed(folder, packed):
    """Puts blocks and scales in the place of the matrices that they stand for."""
    tensors = load_file(folder / "model.safetensors")
    for name in packed:
        tensors.pop(name.removesuffix("_blocks").removesuffix("_scales"), None)
    save_file(tensors | packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make(name, family, options):
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")(**(COMMON | options))
    config._attn_implementation = "eager"
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    randomise(model, generator)
    model = model.to(torch.bfloat16)
    packed = pack_experts(model, generator) if "mxfp4" in name else {}
    folder = HERE / name
    model.save_pretrained(folder)
    for unused in ["generation_config.json"]:
        (folder / unused).unlink(missing_ok=True)

    model = getattr(transformers, f"{family}ForCausalLM").from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    expected = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, f32",
        "prompt": PROMPT,
        "logits": [{"position": position, "values": [float(f"{x:.7g}") for x in logits[position].tolist()]} for position in POSITIONS],
    }
    if packed:
        store_packed(folder, packed)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print(name, {k: tuple(v.shape) for k, v in list(load_file(folder / "model.safetensors").items())[:4]}, "logits' deviation", logits.std().item())


def to_gguf(name, llama_cpp):
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    folder = HERE / name
    hparams = ModelBase.load_hparams(folder, False)
    base = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    class WithoutVocabulary(base):
        model_arch = base.model_arch

        def set_vocab(self):
            pass

        def set_gguf_parameters(self):
            super().set_gguf_parameters()
            if self.hparams["model_type"] == "mistral":
                # The converter leaves it out, since llama.cpp gives no model of this architecture a window.
                self.gguf_writer.add_sliding_window(self.hparams["sliding_window"])

        def _create_vocab_sentencepiece(self):
            return [""] * self.hparams["vocab_size"], [], []

    if "gemma3" in name:  # Asks the tokenizer for the number of tokens.
        (folder / "tokenizer.model").touch()
    try:
        with torch.inference_mode():
            WithoutVocabulary(folder, gguf.LlamaFileType.MOSTLY_BF16, HERE / name / "model.gguf", model_name=f"tiny {name}").write()
    finally:
        (folder / "tokenizer.model").unlink(missing_ok=True)


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        make(name, *MODELS[name])
        to_gguf(name, Path(sys.argv[1]).resolve())
