#!/usr/bin/env bash
# Runs tests of the kernels in an interpreter that watches every access to memory, for what is out of bounds, used after
# it was freed, or written by two threads at a time: the threads, the memory, the views that workers write side by side,
# and attention in one small step. It executes no assembly and few vector instructions; kernels with those run against
# guard pages instead (src/cpu/guard_pages.rs). Steps of a whole layer take it too long.
#
# usage: native-kernels/test-miri.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# One that is known to have the interpreter: not every nightly does.
toolchain=nightly-2026-10-30
if ! rustup toolchain install "$toolchain" --profile minimal --component miri,rust-src; then
  echo "NOT RUN: $toolchain with its interpreter cannot be had here"
  exit 0
fi

# Tests read the machine's description and the clock.
export MIRIFLAGS=-Zmiri-disable-isolation
# What a profile optimises is of no use to an interpreter, and is not kept apart from what is.
export CARGO_TARGET_DIR=target/miri
run() { cargo "+$toolchain" miri test --locked --package plinth-kernels "$@"; }

run --lib -- memory:: workers:: kv_cache:: tensor::
run --test kernels -- a_row_of_no_sequence_is_left_alone a_step_without_rows_is_no_work shapes_that_do_not_fit_are_refused
