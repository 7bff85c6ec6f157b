#!/bin/sh
# Makes .venv with the pinned packages and the `offload` command. Uses uv where it works, else pip.
set -eu
python=${PYTHON:-python3}
"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Offload needs Python 3.11 or newer; this is {sys.version.split()[0]}. Name another: make setup PYTHON=python3.12")
PY
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "setting up .venv"
if .venv/bin/python -m pip install -q --disable-pip-version-check uv &&
    UV_PYTHON_DOWNLOADS=never .venv/bin/uv pip install -q --python .venv/bin/python --require-hashes \
        -r ops/requirements.txt; then
    UV_PYTHON_DOWNLOADS=never .venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e .
else
    echo "uv cannot be used here; pip takes a little longer"
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r ops/requirements.txt
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
fi
