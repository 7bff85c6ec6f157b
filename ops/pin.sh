#!/bin/sh
# Pins every package with its hashes for Python 3.11 and newer on Linux and macOS. Names no index and no address.
#   requirements.txt        what developers and CI install
#   requirements-image.txt  of the same versions, what a container needs: no tests' tools, no engine
#   requirements-build.txt  what makes the wheel inside the image's first stage
set -eu
pin() {
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links "$@"
}
pin --extra dev --extra llamacpp -o ops/requirements.txt pyproject.toml
pin --extra postgres --extra claude --extra notify --extra otel -c ops/requirements.txt \
    -o ops/requirements-image.txt pyproject.toml
.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
    pin -o ops/requirements-build.txt -
