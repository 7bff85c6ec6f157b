"""From the model server's answer to the output of `offload run`, on an idle pool, as a person sees it.

    python -m tests.bench.latency [--runs 20]

The answer's time is the simulator's own (its call log); the output's is when this process reads it from the pipe.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.support.pool import TestPool, running, simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread


@click.command()
@click.option("--runs", default=20, show_default=True)
def main(runs: int) -> None:
    """Print the figures, in milliseconds."""
    with (
        tempfile.TemporaryDirectory(prefix="offload-bench-") as name,
        in_thread(SimulatorConfig(ttft_s=0.2)) as sim,
        running(Path(name), simulated(sim.url), fresh=True) as pool,
    ):
        pool.beat()
        pool.worker()
        after = [_one(pool, sim, i) for i in range(runs)]
    median, worst = statistics.median(after), max(after)
    click.echo(f"from the answer to the output, {runs} runs: median {median:.0f} ms, worst {worst:.0f} ms")


def _one(pool: TestPool, sim: BackgroundSimulator, i: int) -> float:
    command = [sys.executable, "-m", "api", "run", "summarize", f"A short note, number {i}."]
    process = subprocess.Popen(command, env=pool.environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    printed = time.time()
    process.communicate()
    call = sim.calls(1)[-1]
    return float((printed - call["at"]) * 1000 - call["ms"])


if __name__ == "__main__":
    main()
