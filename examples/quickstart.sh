#!/usr/bin/env bash
# From a bare machine with Rust to an answer: Wasm target, build, model (by package name, checksum verified), one prompt.
#
# usage: examples/quickstart.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")/.."

prompt=${1:-"Explain in one sentence what a compiler does."}

say() { printf '\n== %s\n' "$*" >&2; }

say "the WebAssembly target, for the sandboxed platforms"
rustup target add wasm32-unknown-unknown

say "building plinth (some minutes the first time: Wasmtime is large)"
cargo build --release --locked

say "the model"
model=$(bash examples/get-model.sh)

say "one answer"
target/release/plinth run "$model" "$prompt" --max-tokens 120

say "and why this machine runs it so (plinth plan $model)"
target/release/plinth plan "$model"
