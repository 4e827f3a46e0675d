#!/usr/bin/env bash
# Fuzzes decoders, as many at once as there are processors: scripts/fuzz.sh [CRATE | CRATE/TARGET]…, all if none is named.
# Each gets FUZZ_SECONDS (60), or less where FUZZ_UNTIL (a time in seconds since 1970) would be over before the last had
# its turn. Inputs that reached something new are kept from run to run in the build directory; those that broke
# something are left in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
MINIMUM_SECONDS=5
CARGO=${CARGO:-cargo}
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")

targets=()
for asked in "${@:-*}"; do
    found=(fuzz/seeds/$asked/)
    [[ $asked == */* ]] || found=(fuzz/seeds/$asked/*/)
    [ -d "${found[0]}" ] || { echo "fuzz: nothing is called $asked; there are:" fuzz/seeds/*/* >&2; exit 2; }
    for seeds in "${found[@]}"; do
        seeds=${seeds%/}
        targets+=("${seeds#fuzz/seeds/}")
    done
done

RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/rustc "$CARGO" build --workspace --bin fuzz --features flotilla-fuzz/libfuzzer

jobs=$(nproc)
seconds=${FUZZ_SECONDS:-60}
if [ -n "${FUZZ_UNTIL:-}" ]; then
    left=$(((FUZZ_UNTIL - $(date +%s)) * jobs / ${#targets[@]}))
    seconds=$((left < seconds ? left : seconds))
    seconds=$((seconds < MINIMUM_SECONDS ? MINIMUM_SECONDS : seconds))
fi

fuzz_one() {
    local target=$1 corpus=$target_dir/fuzz/$1 artifacts=fuzz/artifacts/$1/ log
    mkdir -p "$corpus" "$artifacts"
    log=$(mktemp)
    if FUZZ_TARGET=$target "$target_dir/debug/fuzz" "$corpus" "fuzz/seeds/$target" -max_total_time="$seconds" \
        -artifact_prefix="$artifacts" -timeout=25 -rss_limit_mb=2048 -max_len=65536 >"$log" 2>&1; then
        sed -n "s|^#\([0-9]*\)\tDONE *cov: \([0-9]*\).*|$target: \1 inputs, \2 places in the code reached|p" "$log"
        rmdir -p --ignore-fail-on-non-empty "$artifacts"
    else
        tail -n 40 "$log"
        echo "$target: failed. Again: FUZZ_TARGET=$target $target_dir/debug/fuzz $artifacts…"
        touch "$failed/${target//\//-}"
    fi
    rm -f "$log"
}
export -f fuzz_one
failed=$(mktemp -d)
trap 'rm -rf "$failed"' EXIT
export target_dir seconds failed
echo "fuzzing ${#targets[@]} decoders for $seconds s each, $jobs at once"
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -euc 'fuzz_one {}'
if [ -n "$(ls "$failed")" ]; then
    echo "fuzz: found something in: $(ls "$failed" | xargs)" >&2
    exit 1
fi
echo "fuzz: nothing found"
