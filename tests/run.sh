#!/usr/bin/env bash
# All tests, on the real model.
#
# usage: tests/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

bash examples/get-model.sh
cargo test --workspace --locked
