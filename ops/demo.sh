#!/bin/sh
# A pool in a folder of its own, one batch to its end, a table; stops everything and leaves nothing.
set -eu
offload=.venv/bin/offload
OFFLOAD_HOME=$(mktemp -d "${TMPDIR:-/tmp}/offload-demo.XXXXXX")
export OFFLOAD_HOME
unset OFFLOAD_CONFIG OFFLOAD_LOG OFFLOAD_REDIS_URL OFFLOAD_DATABASE_URL
leave() {
    status=$?
    trap - EXIT INT TERM
    "$offload" down 2>/dev/null || true
    rm -rf "$OFFLOAD_HOME"
    exit $status
}
trap leave EXIT
trap 'exit 130' INT TERM

"$offload" up --detach --simulator 2>&1
batch=$("$offload" submit ops/examples/jobs.jsonl --name demo --wait -o "$OFFLOAD_HOME/results.jsonl")
echo
"$offload" status "$batch"
echo
"$offload" rollup
echo
echo "That was a batch of $(wc -l <"$OFFLOAD_HOME/results.jsonl" | tr -d ' ') jobs; the pool is gone again. Go on with:"
echo "    .venv/bin/offload up"
