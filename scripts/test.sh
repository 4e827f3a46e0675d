#!/usr/bin/env bash
# Runs every test. Those of programs that failed are run once more, by themselves: a failure that does not come back is
# told of at the end and is a bug to look for, one that does fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if "$CARGO" test --workspace --no-fail-fast 2>&1 | tee "$log"; then
  exit 0
fi
# Cargo ends with a line for each: `-p PACKAGE --test NAME`, `-p PACKAGE --lib`, `-p PACKAGE --bin NAME`.
mapfile -t failed < <(sed -n '/^error: [0-9]* targets\? failed:/,$ s/^ *`-p \([^ ]*\) \(--[^`]*\)`$/\1 \2/p' "$log" | sort -u)
[ "${#failed[@]}" -gt 0 ] || { echo "test: nothing could be run" >&2; exit 1; }
[ "${#failed[@]}" -le 5 ] || { echo "test: ${#failed[@]} programs failed" >&2; exit 1; }
for one in "${failed[@]}"; do
  read -r package target <<<"$one"
  echo && echo "test: once more, by itself: $package $target"
  # Not -p: that would select other features and build much of it anew.
  # shellcheck disable=SC2086
  "$CARGO" test --workspace $target || { echo "test: failed twice: $package $target" >&2; exit 1; }
done
echo && printf 'test: failed once and not again: %s\n' "${failed[@]}"
