#!/bin/sh
# Becomes the pool's Redis.  usage: start.sh RULES_FOLDER DATA_FOLDER [SERVER_OPTIONS…]
# The roles' passwords are in the environment as REDIS_<ROLE>_PASSWORD; only their hashes are written down.
set -eu
umask 077
here=$(dirname "$0") rules=$1/users.acl data=$2
shift 2
joined() { awk '/^#/ || /^$/ { next } /^ / { sub(/^ +/, " "); printf "%s", $0; next } { printf "%s%s", (n++ ? "\n" : ""), $0 } END { print "" }' "$1"; }
put=
for role in ADMIN SUBMITTER API WORKER NODE CLOUD BEAT FLOWER METRICS; do
    eval "password=\${REDIS_${role}_PASSWORD:?is not set: see .env.example}"
    put="$put;s/@$role@/$(printf %s "$password" | sha256sum | cut -d' ' -f1)/"
    unset "REDIS_${role}_PASSWORD"
done
joined "$here/users.acl" | sed "${put#;}" >"$rules"
exec "${REDIS_SERVER:-valkey-server}" "$here/redis.conf" --aclfile "$rules" --dir "$data" "$@"
