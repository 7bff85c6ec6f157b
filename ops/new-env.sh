#!/bin/sh
# Writes .env beside compose.yaml, from .env.example, with a fresh password in each empty place of its first part; of an
# .env that is there every line stays, and what is missing of that part is added: sh ops/new-env.sh
set -eu
umask 077
cd "$(dirname "$0")/.."
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
has() {  # whether the last line that says it holds a value
    grep -E "^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=" .env | tail -n 1 |
        grep -Eq "=[[:space:]\"']*[^[:space:]\"'#]"
}

[ ! -e .env ] || chmod 600 .env
needed=$(sed '/^# ---/,$d' .env.example | sed -n 's/^\([A-Z_]*_PASSWORD\)=$/\1/p')
if [ ! -s .env ]; then
    while IFS= read -r line; do
        for name in $needed; do
            [ "$line" != "$name=" ] || line=$line$(password)
        done
        printf '%s\n' "$line"
    done <.env.example >.env
    echo "wrote .env, with passwords of its own; read it for what else can be said there" >&2
    exit
fi
added=
for name in $needed; do
    has "$name" && continue
    [ -z "$(tail -c 1 .env)" ] || echo >>.env  # its last line does not end
    printf '%s=%s\n' "$name" "$(password)" >>.env  # of two lines the last one counts
    added="$added $name"
done
echo "kept .env as it was${added:+, and added$added}" >&2
