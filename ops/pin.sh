#!/bin/sh
# Pins every package with its hashes for Python 3.11 and newer on Linux and macOS. Names no index and no address.
set -eu
.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --extra dev --extra llamacpp \
    -o ops/requirements.txt pyproject.toml
