"""The SQL tables.  Times are unix seconds from the database's clock; outputs and bodies have tables of their own.

batches ──< jobs ──1 bodies      what was asked
              │  ├─1 outputs     what was answered
              │  ├─1 samples     that it may be audited when it is done, while nobody has looked
              │  └─1 audits      the second opinion on it
              ├──< calls         one row a request to a backend, and one for each job that ended without any
dependencies  which batches a batch waits for
slices        jobs of one class that one message carries by reference, while unclaimed
workers       one row a worker: what it serves, how much it takes, when it was last seen
nodes         what people want of a node; one that nobody said anything of has no row
strata        jobs of one kind, and the state of their sequential test
usage         what a provider's calls took of its limits, by window
rollups       an hour's calls, summed, one row a key
rolled_hours  which hours are summed, from how many calls, and which are closed
taken_logs    how far each log of the helpers was taken in
events        what happened that people should know; of most of it notices are made
notices       what a receiver is told, or will be: the outbox
ticks         when each periodic service last ran
pool          facts of this pool: one row
api_keys      who may use the HTTP API, and for what
api_files     files that were uploaded to it; their content is on disk
api_batches   what the HTTP API keeps of a batch beside its row in batches
fan_outs      batches whose answers are merged, by batches of the pool's own
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, LargeBinary, UniqueConstraint, text
from sqlmodel import Field, SQLModel

#: ids that are counted up: 64 bits on both databases (SQLite counts up INTEGER only, which has them)
BIG = BigInteger().with_variant(Integer, "sqlite")

#: the conditions of ix_jobs_out and ix_jobs_taken_back; a query uses such an index only when it says just this
IS_OUT = text("jobs.state IN ('dispatched', 'running')")
IS_TAKEN_BACK = text("jobs.state = 'queued' AND jobs.taken_back_at IS NOT NULL")
IN_SLICE = text("slice_id IS NOT NULL")
#: likewise, of ix_events_news and ix_notices_waiting
IS_NEWS = text("NOT events.noticed")
IS_WAITING = text("notices.state = 'waiting'")
#: of ix_notices_sent; a query that compares the time says it too
IS_SENT = text("sent_at IS NOT NULL")
#: defaults that the database itself has: rows of before a migration get it
ZERO, EMPTY, FALSE = text("0"), text("''"), text("false")
#: due_at of a job that waits for nothing: no clock, however wrong, puts it off
AT_ONCE = 0.0


class Batch(SQLModel, table=True):
    """Jobs submitted together. The counters are kept by the statements that end jobs."""

    __tablename__ = "batches"

    id: str = Field(primary_key=True)
    name: str | None = None
    kind: str = "jobs"  #: or `audit`, `merge`: the pool's own
    state: str = Field(index=True)
    priority: int = 0  #: higher is served first
    created_at: float = Field(index=True)
    touched_at: float  #: last commit while loading, or when it was resumed
    opened_at: float | None = None
    finished_at: float | None = None
    deadline_at: float
    cancelled_at: float | None = None
    paused_at: float | None = None  #: dispatch sends nothing of it
    notify: bool = Field(default=False, sa_column_kwargs={"server_default": FALSE})  #: its end is told
    retry_of: str | None = Field(default=None, foreign_key="batches.id", index=True)  #: whose lines these are again
    served_at: float = 0  #: when dispatch last took from it; fair turns
    idempotency_key: str | None = Field(default=None, unique=True)
    body_hash: str | None = None  #: of what the key was used for: lines, priority, deadline, dependencies
    total: int = 0
    open: int = 0  #: jobs that are not terminal
    done: int = 0
    escalated: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    expired: int = 0


class Dependency(SQLModel, table=True):
    """A batch whose jobs wait until another one has ended."""

    __tablename__ = "dependencies"

    batch_id: str = Field(primary_key=True, foreign_key="batches.id")
    needs: str = Field(primary_key=True, foreign_key="batches.id", index=True)


class Job(SQLModel, table=True):
    """One request: one row from submit to end."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("batch_id", "line", name="uq_jobs_line"),
        Index("ix_jobs_queue", "batch_id", "model_class", "state", "tier", "rank"),
        Index("ix_jobs_slice", "slice_id", sqlite_where=IN_SLICE, postgresql_where=IN_SLICE),
        Index("ix_jobs_out", "state", "model_class", "lease_until", sqlite_where=IS_OUT, postgresql_where=IS_OUT),
        Index(
            "ix_jobs_taken_back",
            "batch_id",
            "model_class",
            sqlite_where=IS_TAKEN_BACK,
            postgresql_where=IS_TAKEN_BACK,
        ),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    batch_id: str = Field(foreign_key="batches.id")
    line: int  #: 1-based line of the input
    line_id: str  #: the producer's own id
    category: str
    model_class: str
    model: str | None = None  #: asked for by name
    tier: str = "lan_ok"  #: how far it may go; dispatch sends it to no class beyond
    verdict: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  #: JSON; see tasks/routing.py
    escalated_from: str | None = None  #: the class it was meant for, where the cloud has it instead
    escalation: str | None = None  #: why, in words
    decision: str = Field(default="offload", sa_column_kwargs={"server_default": "offload"})  #: see tasks/routing.py
    app: str = Field(default="", sa_column_kwargs={"server_default": EMPTY})  #: the producer's name of its program
    state: str
    priority: int = 0
    rank: int  #: the line of the first job with the same prefix, so that those run side by side
    due_at: float  #: not before; AT_ONCE where it waits for nothing
    queued_at: float = Field(default=0, sa_column_kwargs={"server_default": ZERO})  #: since when it waits for its call
    slice_id: str | None = None
    fence: int = 0  #: grows with every claim; a result counts only under the fence it was claimed with
    lease_until: float | None = None
    worker: str | None = None
    run_id: str | None = None  #: the worker process that holds the lease
    started_at: float | None = None  #: handed to the loop: its call may have been sent
    in_company: bool = False  #: its process lost another started job's lease while this one ran: no crash of one alone
    attempts: int = 0
    taken_back_at: float | None = None  #: when a lease of it ran out; it has waited, and goes before others
    crashes: int = 0
    crashes_alone: int = 0
    finished_at: float | None = None
    served_model: str | None = None
    provider: str | None = None
    node: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    duration_ms: float | None = None
    error_code: str | None = None
    error_message: str | None = None


class Body(SQLModel, table=True):
    """What a job asks, as JSON."""

    __tablename__ = "bodies"

    job_id: int = Field(primary_key=True, foreign_key="jobs.id", sa_type=BIG)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Output(SQLModel, table=True):
    """What a job was answered, as JSON: a string, a value, or a list of floats."""

    __tablename__ = "outputs"

    job_id: int = Field(primary_key=True, foreign_key="jobs.id", sa_type=BIG)
    fence: int  #: the job's, under which it was recorded
    output: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Sample(SQLModel, table=True):
    """A job that may be audited when it is done; gone once the audit has looked at it."""

    __tablename__ = "samples"

    job_id: int = Field(primary_key=True, foreign_key="jobs.id", sa_type=BIG)
    stratum: str
    draw: float  #: audited where it is below the rate of that moment; below 0: always, one of the first of its stratum
    rate: float  #: its category's


class Audit(SQLModel, table=True):
    """The second opinion on a finished job."""

    __tablename__ = "audits"

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    job_id: int = Field(foreign_key="jobs.id", unique=True, sa_type=BIG)
    batch_id: str = Field(index=True)
    stratum: str = Field(index=True)
    category: str
    model_class: str
    model: str  #: that served the job
    probability: float  #: with which it was chosen
    state: str = Field(index=True)  #: chosen, asked, person (waits for one), judged
    asked_job_id: int | None = Field(default=None, index=True, sa_type=BIG)  #: the job that asks the auditor
    auditor: str | None = None  #: the model, or `person NAME`
    verdict: str | None = None  #: agree, disagree, unsure
    reason: str | None = None
    created_at: float
    judged_at: float | None = Field(default=None, index=True)  #: for the first time


class Stratum(SQLModel, table=True):
    """Jobs of one category, class and template."""

    __tablename__ = "strata"

    id: str = Field(primary_key=True)
    category: str
    model_class: str
    template: str
    seen: int = 0  #: submitted, counted up to the number of the first that are all audited
    audits: int = 0  #: that agreed or disagreed
    statistic: float = 0  #: of the sequential test
    alarms: int = 0
    armed: bool = True  #: False from an alarm until the statistic has fallen back


class Usage(SQLModel, table=True):
    """What the calls of one window took of one of a provider's limits, reservations included."""

    __tablename__ = "usage"

    provider: str = Field(primary_key=True)
    unit: str = Field(primary_key=True)
    per: str = Field(primary_key=True)
    began: float = Field(primary_key=True)  #: the window's start
    amount: float = 0


class Event(SQLModel, table=True):
    """Something that happened and that people should know. detail: ids, configured names, counts and codes."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_news", "id", sqlite_where=IS_NEWS, postgresql_where=IS_NEWS),)

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    at: float
    kind: str
    subject: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    times: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})  #: how often, in one commit
    noticed: bool = Field(default=False, sa_column_kwargs={"server_default": FALSE})  #: no notice is to be made of it


class Notice(SQLModel, table=True):
    """What happened to one subject, for one receiver; see tasks/notices.py."""

    __tablename__ = "notices"
    __table_args__ = (
        Index("ix_notices_waiting", "receiver", "due_at", sqlite_where=IS_WAITING, postgresql_where=IS_WAITING),
        Index("ix_notices_sent", "receiver", "sent_at", sqlite_where=IS_SENT, postgresql_where=IS_SENT),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    receiver: str  #: the variable that holds its address
    kind: str
    subject: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  #: of the last time
    times: int = 1
    first_at: float
    last_at: float
    made_at: float
    state: str = "waiting"  #: or sent, failed (given up)
    due_at: float  #: not before
    lease_until: float | None = None  #: until then somebody sends it
    tries: int = 0
    sent_at: float | None = None
    answer: str | None = None  #: the receiver's last, in words


class PoolFacts(SQLModel, table=True):
    """One row: what is this pool's own."""

    __tablename__ = "pool"

    id: int = Field(default=1, primary_key=True)
    salt: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  #: of the draw that chooses audits


class CallRow(SQLModel, table=True):
    """One request to one backend, those included whose result came too late (stale).

    A job that ended without a request of its own (refused, or not to be sent) has a row as well, not `sent`, and so has
    a call of a helper, without a job (job 0). Nothing of what was asked or answered is here.
    """

    __tablename__ = "calls"

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    job_id: int = Field(index=True, sa_type=BIG)
    batch_id: str
    fence: int
    category: str
    model_class: str
    provider: str
    node: str
    model_asked: str
    model_served: str | None = None
    started_at: float
    duration_ms: float = 0
    load_ms: float = 0
    first_token_ms: float = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_thinking: int | None = None
    finish_reason: str | None = None
    leaked: bool = False
    error_code: str | None = None
    stale: bool = False  #: it cost what it cost, and is no job's
    hour: int = Field(default=0, index=True, sa_column_kwargs={"server_default": ZERO})  #: of its end: unix hours, UTC
    app: str = Field(default="", sa_column_kwargs={"server_default": EMPTY})
    decision: str = Field(default="offload", sa_column_kwargs={"server_default": "offload"})
    reason: str | None = None  #: of the decision, in words
    considered: dict[str, str] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))  #: see routing
    attempt: int = Field(default=0, sa_column_kwargs={"server_default": ZERO})  #: 1-based
    queue_ms: float = Field(default=0, sa_column_kwargs={"server_default": ZERO})  #: from due to the call's start
    sent: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    ended: str | None = None  #: the state in which it ended its job, where it did
    validated: bool | None = None  #: whether the answer passed its checks; None without an answer
    exit_code: int | None = None  #: of a helper
    cost_usd: float = Field(default=0, sa_column_kwargs={"server_default": ZERO})
    avoided_usd: float = Field(default=0, sa_column_kwargs={"server_default": ZERO})  #: see tasks/pricing.py


class Rollup(SQLModel, table=True):
    """The calls of one hour and one key, summed; see tasks/rollups.py for what each figure is.

    wait, first_token, duration: sketches, so that hours can be put together; their quantiles stand beside them.
    """

    __tablename__ = "rollups"

    hour: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    category: str = Field(primary_key=True)
    model_class: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    provider: str = Field(primary_key=True)
    node: str = Field(primary_key=True)
    app: str = Field(primary_key=True)
    decision: str = Field(primary_key=True)
    calls: int = 0
    stale: int = 0
    errors: int = 0
    jobs_done: int = 0
    jobs_failed: int = 0
    jobs_escalated: int = 0
    jobs_refused: int = 0
    tokens_in: int = Field(default=0, sa_type=BigInteger)
    tokens_out: int = Field(default=0, sa_type=BigInteger)
    tokens_thinking: int = Field(default=0, sa_type=BigInteger)
    leaks: int = 0
    json_failures: int = 0
    audits: int = 0
    audits_agreed: int = 0
    cost_usd: float = 0
    cost_avoided_usd: float = 0
    load_ms: float = 0
    wait_p50: float | None = None
    wait_p75: float | None = None
    wait_p95: float | None = None
    wait_p99: float | None = None
    first_token_p50: float | None = None
    first_token_p75: float | None = None
    first_token_p95: float | None = None
    first_token_p99: float | None = None
    duration_p50: float | None = None
    duration_p75: float | None = None
    duration_p95: float | None = None
    duration_p99: float | None = None
    wait: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    first_token: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    duration: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))


class RolledHour(SQLModel, table=True):
    """An hour that was summed, or is to be."""

    __tablename__ = "rolled_hours"

    hour: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    calls: int = 0  #: rows that the sums are made of; calls are only added, so more is newer
    dirty: bool = False  #: an audit of it was judged since
    rolled_at: float | None = None
    closed_at: float | None = None  #: its calls are pruned: its sums stay as they are


class TakenLog(SQLModel, table=True):
    """How far a helpers' log was taken in. tail: hashes of the last lines that were, by which they are found again."""

    __tablename__ = "taken_logs"

    name: str = Field(primary_key=True)  #: node:path
    place: int = Field(default=0, sa_type=BigInteger)  #: bytes
    tail: list[str] = Field(sa_column=Column(JSON, nullable=False))
    version: int = 0  #: grows with every step, so that of two that read at once one counts
    taken_at: float


class Slice(SQLModel, table=True):
    """A message sent and not yet claimed."""

    __tablename__ = "slices"

    id: str = Field(primary_key=True)
    batch_id: str
    model_class: str
    priority: int
    jobs: int
    suspects: bool = False  #: holds jobs that were in hand when a worker died
    sent_at: float


class Worker(SQLModel, table=True):
    """A worker, as dispatch and `doctor` see it."""

    __tablename__ = "workers"

    name: str = Field(primary_key=True)  #: node/provider
    node: str
    provider: str
    run_id: str
    pid: int
    classes: list[str] = Field(sa_column=Column(JSON, nullable=False))
    reach: str = "local"  #: its provider's
    capacity: int  #: calls at once
    in_flight: int = 0
    consuming: bool = True
    phase: str = "serving"  #: draining, drained (nothing runs, models unloaded), stopped (its server, too)
    health: str = "healthy"
    detail: str = ""
    started_at: float
    last_seen: float
    turn_class: str | None = None  #: the class dispatch now sends it
    turn_since: float = 0


class Node(SQLModel, table=True):
    """What people want of a node; its workers follow within seconds, those that start later too."""

    __tablename__ = "nodes"

    name: str = Field(primary_key=True)
    wanted: str  #: serving, drained, stopped
    at: float  #: since when


class Tick(SQLModel, table=True):
    """When a periodic service last ran, and what it counted."""

    __tablename__ = "ticks"

    name: str = Field(primary_key=True)
    at: float
    counts: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class ApiKey(SQLModel, table=True):
    """A key of the HTTP API. Of the key itself there are its first characters and a hash."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    prefix: str
    hash: str = Field(unique=True)  #: SHA-256 of the key, which is random enough to need no salt
    scopes: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: float
    revoked_at: float | None = None
    most_queued: int | None = None  #: jobs that may be unfinished at once
    per_minute: int | None = None  #: requests
    ceiling: str | None = None  #: the tier that its jobs have at most


class ApiFile(SQLModel, table=True):
    """A file uploaded for a batch."""

    __tablename__ = "api_files"

    id: str = Field(primary_key=True)
    owner: str = Field(index=True)  #: its key's id; empty where the API was open
    filename: str
    bytes: int = Field(sa_type=BigInteger)
    created_at: float
    expires_at: float = Field(index=True)


class ApiBatch(SQLModel, table=True):
    """A batch submitted over HTTP, from before its lines are checked. Its jobs are in `batches`, under the same id."""

    __tablename__ = "api_batches"
    __table_args__ = (Index("ix_api_batches_page", "owner", "created_at", "id"),)

    id: str = Field(primary_key=True)
    owner: str
    state: str = Field(index=True)  #: validating, failed, loaded (its row in `batches` says the rest), cancelled
    endpoint: str
    input_file_id: str
    model: str | None = None  #: that its first line asks for
    window: str
    meta: dict[str, str] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    said: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  #: see api_batches
    request_key: str | None = Field(default=None, unique=True)  #: owner and Idempotency-Key
    request_hash: str | None = None
    created_at: float = Field(index=True)
    expires_at: float
    loaded_at: float | None = None
    failed_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    errors: list[dict[str, Any]] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    told: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  #: webhooks that know its end
    tell_at: float | None = Field(default=None, index=True)  #: when they are tried next; None when all know, or none is
    tries: int = 0
    gone: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  #: of its files, the deleted


class FanOut(SQLModel, table=True):
    """Many jobs at once, and what becomes of their answers; see tasks/merging.py for inputs, steps and notes."""

    __tablename__ = "fan_outs"

    id: str = Field(primary_key=True)
    batch_id: str = Field(foreign_key="batches.id", unique=True)  #: of the inputs' own jobs
    step_batch_id: str = Field(foreign_key="batches.id")  #: of the step under way, or of the last one
    step: int = 0  #: grows with every merge; 0: the inputs
    state: str = Field(index=True)  #: running, done, failed, cancelled
    owner: str | None = None  #: whose it is over HTTP; None where the command line made it
    created_at: float
    finished_at: float | None = None
    quorum: int | None = None  #: inputs' jobs whose answers are enough
    enough_at: float | None = None  #: when they were, and the other jobs were cancelled
    priority: int = 0
    deadline_s: float  #: that each step has
    plan: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))  #: see tasks/ledger/fan_outs.py
    inputs: list[list[Any]] = Field(sa_column=Column(JSON, nullable=False))  #: name, lines, and ask of each
    steps: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))  #: the merges, each with its batch
    error: str | None = None  #: why it failed, for people
