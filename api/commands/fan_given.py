"""What `offload fan-out` is given: inputs of one kind, and what they are asked."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from api.commands.output import say
from api.use_cases import fan_inputs
from api.use_cases.fanning import Asked, of_agents
from api.use_cases.pool import Pool
from tasks.errors import UsageError
from tasks.fanning import Item
from tasks.routing import Said

#: names of files that are left out
MOST_SKIPPED = 20
_ESCAPE = re.compile(r"\\[nt\\]")


class Given:
    """What the command line says of the inputs."""

    def __init__(
        self,
        pool: Pool,
        said: Said,
        paths: Sequence[str],
        sources: dict[str, str | None],
        category: str,
        system: str | None,
    ) -> None:
        self._pool, self._paths = pool, paths
        self._overruled = said.consent is not None
        self._category, self._system = category, system
        self._source = {name: value for name, value in sources.items() if value is not None}

    def of_agents(
        self, path: Path, prompt: str | None, file: str | None
    ) -> tuple[list[Asked], list[str], Iterator[tuple[Item, int]]]:
        """Every agent's samples, about one file or none."""
        if self._paths or self._source or prompt is None:
            raise UsageError("--agents takes --prompt, maybe --file, and no other inputs")
        found = fan_inputs.agents(path)
        about = fan_inputs.piped_item(sys.stdin.buffer) if file == "-" else self._file(file) if file else None
        return of_agents(found, unescaped(prompt), self._category, self._system, about)

    def of_each(
        self, each: str | None, prompt: str | None, file: str | None
    ) -> tuple[list[Asked], list[str], Iterator[tuple[Item, int]]]:
        """One prompt for every file, line or row."""
        if prompt is not None or file is not None:
            raise UsageError("--prompt and --file go with --agents; say --each PROMPT")
        if bool(self._paths) + len(self._source) != 1:
            raise UsageError("name inputs of one kind: files, globs and folders, --lines, --jsonl, --csv or --agents")
        if each is None:
            raise UsageError("--each says what each input is asked")
        asked = [Asked(unescaped(each), self._category, self._system)]
        if self._paths:
            return asked, ["path", "content"], ((item, 0) for item in self._files())
        ((kind, name),) = self._source.items()
        read = {"lines": fan_inputs.lines, "jsonl": fan_inputs.jsonl, "csv": fan_inputs.rows}[kind]
        placeholders, items = fan_inputs.with_placeholders(read(name, sys.stdin.buffer), asked[0].prompt)
        tier = (
            None if self._overruled or name == "-" else fan_inputs.folder_tier(Path(name), self._pool.registry.markers)
        )
        return asked, placeholders, ((replace(item, tier=tier), 0) for item in items)

    def _files(self) -> Iterator[Item]:
        skipped: list[Path] = []
        for path in fan_inputs.files(self._paths, skipped.append):
            yield self._file(str(path))
        if skipped:
            more = " …" * (len(skipped) > MOST_SKIPPED)
            say(f"left out, as no text: {', '.join(map(str, skipped[:MOST_SKIPPED]))}{more}")

    def _file(self, name: str) -> Item:
        return fan_inputs.file_item(Path(name), self._pool.registry.markers, self._overruled)


def unescaped(text: str) -> str:
    r"""A prompt as it was typed: `\n`, `\t` and `\\` are what they are elsewhere."""
    return _ESCAPE.sub(lambda match: codecs.decode(match[0], "unicode_escape"), text)
