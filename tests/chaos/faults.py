"""The table: every row of FAULTS.md, and the function that strikes."""

from __future__ import annotations

from tests.chaos import faults_client as client
from tests.chaos import faults_clocks as clocks
from tests.chaos import faults_commits as commits
from tests.chaos import faults_database as database
from tests.chaos import faults_messages as messages
from tests.chaos import faults_models as models
from tests.chaos import faults_network as network
from tests.chaos import faults_redis as redis
from tests.chaos import faults_workers as workers
from tests.chaos.strike import START_S, Fault
from tests.chaos.watching import SOCKETS_S

TABLE: dict[int, Fault] = {
    fault.number: fault
    for fault in (
        Fault(1, "kill -9 mid-call", workers.kill_mid_call, 45),
        Fault(2, "kill -9 before the commit", commits.killed_before, 45),
        Fault(3, "kill -9 after the commit", commits.killed_after, 45),
        Fault(4, "message lost", messages.lost, 15),
        Fault(5, "out of memory, hundreds in flight", workers.out_of_memory, 45, START_S),
        Fault(6, "SIGSTOP, SIGCONT", workers.stopped, 45),
        Fault(7, "a node cut off", network.cut_off, 45),
        Fault(8, "Redis black-holed", network.black_hole, 60, SOCKETS_S),
        Fault(9, "Redis restarted", redis.restarted, 60, 10),
        Fault(10, "FLUSHALL", redis.flushed, 15),
        Fault(11, "Redis down at submit", redis.down_at_submit, 60, 10),
        Fault(12, "Redis full or read-only", redis.takes_nothing, 60, 10),
        Fault(13, "the database gone", database.gone, 60, 10),
        Fault(14, "connection cut during COMMIT", commits.answer_lost, 45),
        Fault(15, "disk full, database locked", database.full_or_locked, 60, 10),
        Fault(16, "a job kills its worker", workers.poison, 5 * 45, 5 * START_S),
        Fault(17, "a call that hangs", models.hangs, 10, 2),
        Fault(18, "bad JSON, NUL, 100 MB", models.nonsense, 15, 8.5),
        Fault(19, "429, 503, restart, broken stream", models.busy, 25, 7.5),
        Fault(20, "SIGTERM drain", workers.drained, 45),
        Fault(21, "drain too long, KILL", workers.drained_too_long, 45),
        Fault(22, "a wrong clock", clocks.wrong_clock, 60),
        Fault(23, "two beats, a jump of hours", clocks.two_beats, 60),
        Fault(24, "stale and duplicate messages", messages.doubled, 15),
        Fault(25, "one key twice", client.same_key, 45),
        Fault(26, "cancel against completion", client.cancelled, 45),
        Fault(27, "forged messages", messages.forged, 45, START_S),
    )
}
