#!/usr/bin/env bash
# Sends one node what the OpenAPI documents that it serves allow, and forbid: schemathesis.sh PATH-OF-FLOTILLA [DOCUMENT…]
# Fails if anything is answered with a server error. Each document gets SCHEMATHESIS_SECONDS (240).
set -euo pipefail

FLOTILLA=$(realpath "${1:?usage: schemathesis.sh PATH-OF-FLOTILLA [DOCUMENT…]}")
shift
SECONDS_EACH=${SCHEMATHESIS_SECONDS:-240}
CLUSTER=schemathesis
cd "$(dirname "$0")/.."

die() {
  echo "schemathesis: $*" >&2
  exit 1
}
ST=$(command -v "${SCHEMATHESIS:-schemathesis}") || die "it is missing: pip install schemathesis, or name it in SCHEMATHESIS"
ST=$(realpath "$ST")
[ "$(id -u)" = 0 ] || die "this needs root, for the node's namespaces: sudo make schemathesis"

documents=("$@")
[ ${#documents[@]} -gt 0 ] || documents=(api/v1 apis/rbac.authorization.k8s.io/v1 apis/scheduling.k8s.io/v1
  apis/storage.k8s.io/v1 apis/apps/v1 apis/batch/v1 apis/policy/v1 apis/autoscaling/v2)

work=$(mktemp -d)
clean_up() {
  "$FLOTILLA" dev down --name $CLUSTER >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT
"$FLOTILLA" dev down --name $CLUSTER >/dev/null
"$FLOTILLA" dev --nodes 1 --name $CLUSTER >/dev/null
export FLOTILLA_SOCKET=/run/flotilla-dev/$CLUSTER/node-1/flotilla.sock
"$FLOTILLA" credentials schemathesis --group system:masters >"$work/bundle.pem"
server=$("$FLOTILLA" kubeconfig | awk '$1 == "server:" { print $2; exit }')
# The first certificate in the bundle is the user's; the authorities follow.
awk '/BEGIN CERTIFICATE/ { count++ } count > 1' "$work/bundle.pem" >"$work/ca.pem"

# What goes on for as long as the client likes would take all the time there is, and what is not in `default` is mostly
# not there.
narrow() {
  python3 -c '
import json, sys
document = json.load(sys.stdin)
for path, item in list(document["paths"].items()):
    if any(f"/{part}" in path for part in ("exec", "attach", "portforward", "proxy")):
        del document["paths"][path]
        continue
    for holder in [item, *(one for one in item.values() if isinstance(one, dict))]:
        kept = [one for one in holder.get("parameters", []) if one["name"] not in ("watch", "follow", "pretty")]
        for one in kept:
            if one["name"] == "namespace":
                one["schema"]["enum"] = ["default"]
        if "parameters" in holder:
            holder["parameters"] = kept
json.dump(document, sys.stdout)'
}

failed=()
for document in "${documents[@]}"; do
  echo "== $document, $SECONDS_EACH s"
  curl -sSf --cacert "$work/ca.pem" --cert "$work/bundle.pem" "$server/openapi/v3/$document" | narrow >"$work/document.json"
  # From there, since it keeps notes where it runs.
  (cd "$work" && "$ST" run document.json --url "$server" --checks not_a_server_error --phases examples,coverage,fuzzing \
    --max-time "$SECONDS_EACH" --max-examples 20 --workers 1 --request-timeout 20 --no-shrink --continue-on-failure \
    --suppress-health-check all --warnings off --request-cert bundle.pem --tls-verify ca.pem) ||
    failed+=("$document")
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
echo "no server error in ${#documents[@]} documents"
