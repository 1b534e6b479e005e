#!/usr/bin/env bash
# Builds the tests of the kernels for 64-bit ARM and runs them in an emulator, on any machine: once on a CPU that has
# everything, once on one (Cortex-A53) that has neither dot products nor products of byte matrices. Gets what it needs with
# apt-get; elsewhere, have qemu-aarch64 and aarch64-linux-gnu-gcc at hand.
#
# usage: native-kernels/test-aarch64.sh
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
libraries=/usr/aarch64-linux-gnu

rustup target add "$target"
if ! command -v qemu-aarch64 > /dev/null || ! command -v aarch64-linux-gnu-gcc > /dev/null ||
  ! [ -e "$libraries/lib/ld-linux-aarch64.so.1" ]; then
  if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
    qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross; }; then
    echo "NOT RUN: qemu-aarch64 and aarch64-linux-gnu-gcc cannot be had here"
    exit 0
  fi
fi

# $1: the CPU, the rest: what to run.
run() {
  printf '\n-- %s\n' "$1"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $1 -L $libraries" \
    cargo test --target "$target" --package plinth-kernels --lib --locked "${without_checks[@]}" -- --show-output "${@:2}"
}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-D warnings"
# Native tests have these checks; without them this compiles in two thirds of the time.
without_checks=()
for setting in overflow-checks debug-assertions debug; do
  without_checks+=(--config "profile.dev.package.plinth-kernels.$setting=false")
done

# How fast an emulator is concerns nobody.
run max --skip calibrate
run cortex-a53 bind conformance generic::dot panel rows_tests
