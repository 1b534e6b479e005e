"""vLLM's platform for CPUs, with the decisions of a component."""

from vllm.logger import init_logger
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

from . import component

# By a name below vLLM's own, so that its logging shows what is decided.
logger = init_logger("vllm.plinth_bridge")

DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float32": "f32"}


class PlinthPlatform(CpuPlatform):
    _enum = PlatformEnum.CPU

    @classmethod
    def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None, **more):
        config = attn_selector_config
        traits = [
            name
            for name, field in {
                "sinks": "has_sink",
                "sparse": "use_sparse",
                "mm-prefix": "use_mm_prefix",
                "per-head-scales": "use_per_head_quant_scales",
                "non-causal": "use_non_causal",
                "batch-invariant": "use_batch_invariant",
            }.items()
            if getattr(config, field, False)
        ]
        kind = getattr(config, "attn_type", "decoder")
        kind = str(getattr(kind, "value", kind))
        traits += [kind.replace("_", "-")] if kind != "decoder" else []
        chosen = component.attention(
            head_size=config.head_size,
            num_heads=num_heads or 1,
            dtype=DTYPES.get(str(config.dtype), str(config.dtype)),
            kv_dtype=config.kv_cache_dtype or "auto",
            layer_kind="mla" if config.use_mla else "full",
            traits=traits,
            **({"block_size": config.block_size} if config.block_size else {}),
        )
        # A backend of vLLM's for CPUs comes in several sets of instructions, named behind it.
        backend = chosen["selected"].split("/")[0]
        why = chosen["notes"][0]["message"] if chosen["notes"] else "no reason given"
        logger.info("plinth chose the attention backend %s: %s", chosen["selected"], why)
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        return AttentionBackendEnum[backend].get_path()

    @classmethod
    def check_and_update_config(cls, vllm_config):
        super().check_and_update_config(vllm_config)
        cache = vllm_config.cache_config
        if cache is None or getattr(cache, "user_specified_block_size", False):
            return
        plan = component.block_size("CPU_ATTN/vec")
        cache.block_size = plan["block_size"]
        logger.info("plinth chose blocks of %d tokens: %s", plan["block_size"], plan["reason"])
