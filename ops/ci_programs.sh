#!/bin/sh
# What CI's tests drive and no Python registry has: a browser for Flower's pages, Prometheus with its promtool, and a
# Redis and a PostgreSQL that speak TLS.
# Installs what is missing with apt-get, as root or by sudo; where that cannot be, the tests will say what they miss.
set -eu

has() {
    for name in "$@"; do
        if command -v "$name" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

wanted=
has chromium chromium-browser google-chrome || wanted="$wanted chromium"
{ has prometheus && has promtool; } || wanted="$wanted prometheus"
{ has redis-server && has redis-cli; } || wanted="$wanted redis-server"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || wanted="$wanted postgresql"
has openssl || wanted="$wanted openssl"
has wget || wanted="$wanted wget"
has systemd-analyze || wanted="$wanted systemd"
if [ -z "$wanted" ]; then exit 0; fi

root=
if [ "$(id -u)" != 0 ]; then root="sudo -n"; fi
export DEBIAN_FRONTEND=noninteractive
for pause in 5 20 0; do
    # shellcheck disable=SC2086  # several words, or none
    if $root apt-get -qq update && $root apt-get -qq -y --no-install-recommends install $wanted >/dev/null; then exit 0; fi
    sleep "$pause"
done
echo "could not install:$wanted" >&2
