#!/bin/sh
# Becomes PostgreSQL with a key of its own.  usage: start.sh KEY COPY COMMAND…
# PostgreSQL takes a key only from a file that is its own and nobody else's, which a file of the host is not.
set -eu
install -m 0600 "$1" "$2"
shift 2
exec docker-entrypoint.sh "$@"
