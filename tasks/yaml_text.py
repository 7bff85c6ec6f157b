"""YAML that people write: read strictly, and every fault told with file, line and field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tasks.errors import ConfigError

_T = TypeVar("_T")

#: the way to a value: keys and list places
Way = tuple[str | int, ...]


class Fault(Exception):
    """One thing wrong at a place of the text."""

    def __init__(self, path: Way, reason: str) -> None:
        super().__init__(reason)
        self.path = path


#: bytes of a file, and values in it once every alias is followed: far beyond what people write
MOST_BYTES, MOST_VALUES = 1024 * 1024, 20_000


def read_text(path: Path) -> str:
    """A file's text; ConfigError where it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file")
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: is larger than {MOST_BYTES >> 20} MiB")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None


def understood(text: str, source: str, expected: str, build: Callable[[dict[str, Any]], _T]) -> _T:
    """What `build` makes of a text's mapping; its Faults and pydantic's become one ConfigError that locates each.

    expected: what the file holds, for the message that it holds something else.
    """
    root, data = _loaded(text, source)
    if not isinstance(data, dict):
        raise ConfigError(f"{source}:1: expected a mapping with {expected}")
    try:
        return build(data)
    except Fault as fault:
        raise ConfigError(_located(fault, root, source)) from None
    except ExceptionGroup as group:
        raise ConfigError("\n".join(_located(f, root, source) for f in group.exceptions)) from None


def _loaded(text: str, source: str) -> tuple[yaml.Node | None, Any]:
    try:
        loader = yaml.SafeLoader(text)  # not libyaml's: it ends the process on a text that nests deeply
        root = loader.get_single_node()
        if _size(root, {}) > MOST_VALUES:
            raise ConfigError(f"{source}: holds more than {MOST_VALUES} values")
        _check_keys_differ(root, source)
        data = loader.construct_document(root) if root is not None else {}  # puts what is merged before a mapping's own
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{source}{where}: not YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nests too deeply, or within itself") from None
    except ValueError as error:  # an impossible date
        raise ConfigError(f"{source}: not YAML: {error}") from None
    return root, data or {}


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The values that a node stands for, each alias counted as what it names; RecursionError for one within itself."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _check_keys_differ(node: yaml.Node | None, source: str) -> None:
    """YAML takes the last of two equal keys in silence; here it is an error."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for i, (key, value) in enumerate(node.value):
                waiting.append(value)
                if isinstance(key, yaml.ScalarNode) and key.value in keys[:i]:
                    raise ConfigError(f"{source}:{key.start_mark.line + 1}: {key.value}: stands here twice")


def faults(error: ValidationError, prefix: Way, known: Callable[[Way], str]) -> list[Fault]:
    """pydantic's errors as Faults. known: for an unknown key, the words that name the nearest known one."""
    found = []
    # a misspelt key first: that another is missing follows from it
    errors = sorted(error.errors(include_input=False, include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    for e in errors:
        unknown = e["type"] == "extra_forbidden"
        found.append(Fault(prefix + e["loc"], "unknown key" + known(e["loc"]) if unknown else e["msg"]))
    return found


def keys(model: type[BaseModel]) -> list[str]:
    """A model's keys as they are written."""
    return [str(f.validation_alias or f.alias or name) for name, f in model.model_fields.items()]


def _located(fault: BaseException, root: yaml.Node | None, source: str) -> str:
    assert isinstance(fault, Fault)  # nothing else is grouped
    line = _line(root, fault.path)
    return f"{source}:{line}: {'.'.join(map(str, fault.path)) or 'file'}: {fault}"


def _line(node: yaml.Node | None, path: Way) -> int:
    """The 1-based line of a place in the text, as deep as it goes."""
    line = 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in reversed(node.value) if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
