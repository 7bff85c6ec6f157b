"""A file of more lines than OpenAI's API takes in one batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from tasks.ledger import reading
from tests.support.cli import jsonl
from tests.support.pool import running, simulated
from workers.simulator import SimulatorConfig, in_thread

#: OpenAI's API takes 50,000
LINES = 55_000


def test_a_large_file_is_one_batch(tmp_path: Path) -> None:
    """Our own command makes one id, one progress and one file of results of it, in which every line is there once."""
    lines, results = tmp_path / "lines.jsonl", tmp_path / "results.jsonl"
    lines.write_bytes(jsonl({"id": f"j{i}", "category": "summarize", "prompt": f"Text {i}."} for i in range(LINES)))
    with (
        in_thread(SimulatorConfig(slots=512, queue_limit=100_000)) as server,
        running(tmp_path, simulated(server.url, in_flight=128), hurry=1, fresh=True) as pool,
    ):
        pool.up()
        ran = pool.cli("submit", str(lines), "--wait", "-o", str(results))
        assert ran.code == 0, ran.stderr
        (batch,) = reading.recent_batches(pool.db, 10)
        status = pool.cli("status", batch.id, "--json").json
    told = [line for line in ran.stderr.splitlines() if line.startswith("batch_")]
    assert {line.split()[0] for line in told} == {batch.id}
    assert f"{LINES:,} of {LINES:,}" in told[-1]
    assert (status["total"], status["done"]) == (LINES, LINES)
    with results.open("rb") as file:
        found = Counter(orjson.loads(line)["id"] for line in file)
    assert found == Counter({f"j{i}": 1 for i in range(LINES)})
