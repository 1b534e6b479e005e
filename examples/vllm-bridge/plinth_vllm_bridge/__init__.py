"""A platform plugin for vLLM that decides nothing itself: it asks a sandboxed Plinth component.

vLLM finds `register` by its entry point. The platform is vLLM's own for CPUs, but for two decisions, the attention backend
and the block size, which are those of the component that PLINTH_PLUGIN names (a file, or the id of a built-in platform).
"""


def register():
    """The class that vLLM is to use, by its name: vLLM imports it later."""
    return "plinth_vllm_bridge.platform.PlinthPlatform"
