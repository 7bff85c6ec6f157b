"""How `offload nodes` and `offload drain` say what became of a wish."""

from __future__ import annotations

import pytest

from api.commands.nodes import _judge
from api.use_cases.nodes import Following, NodeWorker
from tasks.errors import PoolError
from tasks.ledger.nodes import Wanted, Wish

WORKER = NodeWorker("gpu1", "ollama", ["small"], 0, 4, 1.0, False, "drained", "stopped", "healthy", "")
TROUBLE = {"gpu1/ollama": "provider ollama names no command"}


@pytest.mark.parametrize("wanted", [Wanted.STOPPED, Wanted.SERVING])
def test_a_stop_that_failed_says_that_the_node_takes_no_work_and_how_it_does_again(wanted: Wanted) -> None:
    """The wish outlasts the failure, so the node stays drained; of a `start` that failed nothing such is said."""
    wish = Wish(wanted, 1.0)
    with pytest.raises(PoolError, match="gpu1/ollama: provider ollama names no command") as failed:
        _judge("gpu1", Following(wish, wish, [WORKER], TROUBLE))
    assert ("offload resume gpu1" in str(failed.value)) == (wanted is Wanted.STOPPED)
