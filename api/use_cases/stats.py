"""What the pool did: live figures from the calls that are there, an hour's rollups, and where its summary goes."""

from __future__ import annotations

import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import orjson

from api.use_cases.pool import Pool
from scheduler.receivers import headers
from tasks.errors import PoolError, UsageError
from tasks.ledger import rollups
from tasks.rollups import HOUR_S, KEY, SKETCHES, SUMS, Summary, regrouped
from tasks.sketches import loaded

#: hours that a chart shows
DAY = 24
#: where an hour's summary is, wherever it goes
PREFIX = "metrics/offload/hourly/"
#: seconds a webhook may take
WEBHOOK_S = 10.0


@dataclass(frozen=True)
class Figures:
    """What was summed, from `since` on and before `until` (unix seconds): rows of a name and figures, and all of it."""

    since: float
    until: float
    by: str
    rows: list[dict[str, Any]]
    total: dict[str, Any]


def live(pool: Pool, by: str, *, hour: int | None = None, since_s: float = 0.0) -> Figures:
    """The figures of an hour, or of the last `since_s` seconds, from the calls themselves."""
    with pool.db.read() as c:
        now = pool.db.now(c)
    since, until = (now - since_s, now) if hour is None else (hour * HOUR_S, (hour + 1) * HOUR_S)
    ahead = HOUR_S if hour is None else 0  # a node's clock may be a little so
    return _figures(rollups.live(pool.db, since, until + ahead), by, since, until)


def _figures(sums: rollups.Sums, by: str, since: float, until: float) -> Figures:
    groups = regrouped(sums, KEY.index(by))
    ordered = sorted(groups.items(), key=lambda item: (-item[1].calls, str(item[0])))
    rows = [{by: name, **_shown(summary)} for name, summary in ordered]
    return Figures(since, until, by, rows, _shown(regrouped(sums, None).get(None, Summary())))


def _shown(summary: Summary) -> dict[str, Any]:
    return {name: value for name, value in summary.columns().items() if name not in SKETCHES}


def hour_name(hour: int) -> str:
    """An hour as people write it, UTC: 2026-04-08T02."""
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y-%m-%dT%H")


def summary(pool: Pool, hour: int) -> dict[str, Any]:
    """An hour's rollups as one document: all of it, and a row for each key."""
    rows = [row._asdict() for row in rollups.of_hour(pool.db, hour)]
    whole = _whole(rows)
    kept = [{name: value for name, value in row.items() if name not in SKETCHES} for row in rows]
    return {"hour": hour_name(hour), "total": whole, "rows": [row | {"hour": hour_name(hour)} for row in kept]}


def _whole(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All keys of an hour together; quantiles are those of the sketches put together."""
    whole = Summary()
    for row in rows:
        one = Summary(**{name: row[name] for name in SUMS if name in Summary.__slots__})
        one.avoided_usd = row["cost_avoided_usd"] + row["cost_usd"]
        one.jobs.update({state: row[f"jobs_{state}"] for state in ("done", "failed", "escalated", "refused")})
        for name in SKETCHES:
            setattr(one, name, loaded(row[name]))
        whole.add(one)
    return _shown(whole)


def jobs_by_hour(pool: Pool, hours: int = DAY) -> tuple[int, list[int]]:
    """The newest hour there may be, and how many jobs ended in each of so many up to it."""
    with pool.db.read() as c:
        last = int(pool.db.now(c) // HOUR_S)
    first = last - hours + 1
    found = rollups.ended_by_hour(pool.db, first)
    return last, [found.get(hour, 0) for hour in range(first, last + 1)]


# --- export ----------------------------------------------------------------------------------------------


def export(where: str, document: Mapping[str, Any]) -> str:
    """Write an hour's summary under its key to a JSON file, beside those that are there, or POST it; the key.

    Raises PoolError where that fails, UsageError for a file that holds something else.
    """
    key = f"{PREFIX}{document['hour']}"
    if where.startswith(("http://", "https://")):
        _post(where, {"key": key, "value": document})
    else:
        _put(Path(where), key, document)
    return key


def _put(path: Path, key: str, document: Mapping[str, Any]) -> None:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no regular file")
        there = orjson.loads(path.read_bytes() or b"{}") if path.exists() else {}
    except OSError as error:
        raise PoolError(f"{path} cannot be read ({error.strerror})") from None
    except orjson.JSONDecodeError:
        there = None
    if not isinstance(there, dict):
        raise UsageError(f"{path} holds something else than summaries; name another file")
    _replace(path, orjson.dumps(there | {key: document}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, or leave it as it is."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(partial).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(partial).unlink()
            raise
    except OSError as error:
        raise PoolError(f"{path} cannot be written ({error.strerror})") from None


_NO_ADDRESS = "--export: the webhook's address is none"


def _address(url: str) -> SplitResult:
    """The parts of a webhook's address; raises UsageError, which does not repeat it."""
    try:
        parts = urlsplit(url)
        fits = parts.hostname and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(_NO_ADDRESS)
    return parts


def _post(url: str, body: Mapping[str, Any]) -> None:
    parts = _address(url)
    where = parts.hostname  # its path may be a secret
    to = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(to, data=orjson.dumps(body), method="POST")
    for name, value in headers(parts).items():
        request.add_unredirected_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_S):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise PoolError(f"{where} answered {error.code}; the summary is in the ledger, export it again") from None
    except http.client.InvalidURL:
        raise UsageError(_NO_ADDRESS) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        words = getattr(reason, "strerror", None) or type(reason).__name__
        raise PoolError(f"{where} was not reached ({words}); the summary is in the ledger, export it again") from None
