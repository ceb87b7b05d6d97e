#!/usr/bin/env bash
# Builds every fuzz target and runs each for FUZZ_SECONDS (60). Seeds are in fuzz/corpus; what is found goes to fuzz/corpus-run.
# Needs a nightly compiler and cargo-fuzz; `cargo test` replays the seeds without either.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$PWD/.tools/bin:$PATH"
rustup run nightly cargo --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --root .tools cargo-fuzz

for source in fuzz/fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  mkdir -p "fuzz/corpus-run/$target" "fuzz/corpus/$target"
  echo "== $target"
  cargo +nightly fuzz run "$target" "fuzz/corpus-run/$target" "fuzz/corpus/$target" -- \
    -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10
done
