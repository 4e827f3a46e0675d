#!/usr/bin/env bash
# Fuzzes every decoder for FUZZ_SECONDS each: scripts/fuzz.sh [CRATE…]. Says what is missing if it cannot.
# What it finds is left in fuzz/artifacts/CRATE; put the input, made small with `cargo fuzz tmin`, among the seeds.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
toolchain=${FUZZ_TOOLCHAIN:-nightly}

missing() {
    echo "not fuzzed: $1 is missing; $2" >&2
    echo "The same targets ran on stable Rust, with their seeds and some thousands of mutations, in 'make test'." >&2
    exit 1
}
cargo "+$toolchain" --version >/dev/null 2>&1 || missing "a nightly toolchain" "rustup toolchain install $toolchain"
cargo fuzz --version >/dev/null 2>&1 || missing "cargo-fuzz" "cargo install cargo-fuzz"

crates=("$@")
[ ${#crates[@]} -gt 0 ] || crates=(api net runtime raft daemon)
failed=()
for crate in "${crates[@]}"; do
    for seeds in fuzz/seeds/"$crate"/*/; do
        target=$(basename "$seeds")
        corpus=fuzz/corpus/$crate/$target
        mkdir -p "$corpus"
        echo "== $crate $target, $seconds s"
        FUZZ_TARGET=$target cargo "+$toolchain" fuzz run --features "$crate" "$crate" "$corpus" "$seeds" -- \
            -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=0 \
            -verbosity=0 || failed+=("$crate/$target")
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; the inputs are in fuzz/artifacts" >&2
    exit 1
fi
echo "nothing found"
