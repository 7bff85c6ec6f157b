"""`llm-offload` and `anchor-offload` as a test calls them, in a home of their own: the real executables, or in here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from api.helpers import gated, raw
from tests.support.cli import Ran, here
from tests.support.pool import clean_environment

LLM, ANCHOR = (str(Path(sys.executable).with_name(name)) for name in ("llm-offload", "anchor-offload"))


class Home:
    """A home, and the two helpers in it. in_here: their own code in this process, without Python's start."""

    def __init__(
        self, path: Path, config: Mapping[str, Any] | None = None, *, in_here: bool = False, **environment: str
    ) -> None:
        self.path = path
        self._in_here = in_here
        path.mkdir(parents=True, exist_ok=True)
        self.environment = clean_environment() | {"OFFLOAD_HOME": str(path)} | environment
        if config is not None:
            self.configure(config)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write its offload.yaml."""
        (self.path / "offload.yaml").write_text(yaml.safe_dump(dict(config)))

    def llm(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """Run llm-offload."""
        if self._in_here:
            return here(self.environment, raw.run, *arguments, stdin=stdin)
        return self._run(LLM, *arguments, stdin=stdin)

    def anchor(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """Run anchor-offload."""
        if self._in_here:
            return here(self.environment, gated.run, *arguments, stdin=stdin)
        return self._run(ANCHOR, *arguments, stdin=stdin)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start one; the caller ends it."""
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def telemetry(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        path = self.path / "offload.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def _run(self, *command: str, stdin: bytes) -> Ran:
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr.decode())
