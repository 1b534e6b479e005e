#!/usr/bin/env bash
# All tests, on the real model.
#
# usage: tests/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

rustup target add wasm32-unknown-unknown
bash examples/get-model.sh
cargo test --workspace --locked
(cd guest-plugins && cargo test --package plinth-sdk --locked --target-dir ../target/guests)
