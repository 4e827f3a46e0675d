#!/usr/bin/env bash
# Three nodes on this machine run a job over gRPC, lose a node, and heal: demo.sh PATH-OF-FLOTILLA
set -euo pipefail

FLOTILLA=$(realpath "${1:?usage: demo.sh PATH-OF-FLOTILLA}")
CLUSTER=demo
DEAD=node-3
HEAL_LIMIT_S=60
cd "$(dirname "$0")/.."

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' PLAIN=$'\e[0m'; else BOLD='' DIM='' RED='' PLAIN=''; fi

step() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
die() {
  printf '%sdemo: %s%s\n' "$RED" "$*" "$PLAIN" >&2
  exit 1
}
# Shows a command as a person would type it, and runs it.
run() {
  printf '%s$ %s%s\n' "$DIM" "flotilla $*" "$PLAIN"
  "$FLOTILLA" "$@"
}

[ "$(uname -s)" = Linux ] || die "this needs Linux"
[ "$(id -u)" = 0 ] || die "this needs root, for containers and networks: sudo make demo"

seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'; }

# Pods that run: name, address and node, a line each. Columns begin where their headings do.
running_pods() {
  "$FLOTILLA" get pods -o wide | awk '
    function column(heading) { return index(header, " " heading " ") + 1 }
    function value(heading) { split(substr($0, column(heading)), words, " "); return words[1] }
    NR == 1 { header = " " $0 " "; next }
    { $0 = " " $0; if (value("STATUS") == "Running" && value("READY") == "1/1") print value("NAME"), value("IP"), value("NODE") }'
}

# Asks a pod for its page, from the node it runs on.
answer_of() {
  local ip=$1 node=$2
  timeout 3 "$FLOTILLA" dev exec --name $CLUSTER "$node" -- bash -c \
    "exec 3<>/dev/tcp/$ip/80; printf 'GET / HTTP/1.0\r\nHost: $ip\r\n\r\n' >&3; cat <&3" 2>/dev/null |
    tr -d '\r' | awk 'body && NF { print; exit } /^$/ { body = 1 }'
}

# True if as many pods as wanted answer, none of them on the node that must not count.
all_answer() {
  local wanted=$1 without=$2 name ip node answer count=0
  lines=()
  while read -r name ip node; do
    [ "$node" != "$without" ] || continue
    answer=$(answer_of "$ip" "$node" || true)
    [ -n "$answer" ] || return 1
    lines+=("$(printf '  %-7s %-22s %-12s says: %s' "$node" "$name" "$ip" "$answer")")
    count=$((count + 1))
  done < <(running_pods)
  [ "$count" = "$wanted" ]
}

wait_all_answer() {
  local began=$EPOCHREALTIME
  until all_answer "$1" "$2"; do
    [ "$(awk -v from="$began" -v to="$EPOCHREALTIME" -v limit=$HEAL_LIMIT_S 'BEGIN { print (to - from > limit) }')" = 0 ] ||
      die "not all replicas answer after $HEAL_LIMIT_S s"
    sleep 0.1
  done
  printf '%s\n' "${lines[@]}"
}

clean_up() {
  "$FLOTILLA" dev down --name $CLUSTER >/dev/null
}
trap clean_up EXIT
clean_up

step "1. Three nodes come up and join by token"
run dev --nodes 3 --name $CLUSTER
export FLOTILLA_SOCKET=/run/flotilla-dev/$CLUSTER/node-1/flotilla.sock
run nodes

step "2. A job is submitted over gRPC"
run submit docs/examples/web.yaml
mapfile -t pods < <(running_pods)
count=${#pods[@]}
[ "$count" -gt 0 ] || die "no replica runs"

step "3. Its $count replicas answer over HTTP"
wait_all_answer "$count" none

step "4. $DEAD dies: cable out, then everything on it killed"
began=$EPOCHREALTIME
run dev kill --name $CLUSTER $DEAD --everything

step "5. Its work moves"
wait_all_answer "$count" $DEAD
printf '%s%s replicas answer again after %s s%s\n' "$BOLD" "$count" "$(seconds_since "$began")" "$PLAIN"
run nodes

step "6. All of it goes away"
trap - EXIT
run dev down --name $CLUSTER
