"""Calls say all that telemetry needs; hours are summed"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ZERO, EMPTY = sa.text("0"), sa.text("''")
KEY = ("category", "model_class", "model", "provider", "node", "app", "decision")
COUNTS = (
    "calls",
    "stale",
    "errors",
    "jobs_done",
    "jobs_failed",
    "jobs_escalated",
    "jobs_refused",
    "tokens_in",
    "tokens_out",
    "tokens_thinking",
    "leaks",
    "json_failures",
    "audits",
    "audits_agreed",
)
#: what is not an INTEGER of these
LARGE = ("tokens_in", "tokens_out", "tokens_thinking")


def upgrade() -> None:
    _jobs()
    _calls()
    _fill()
    _tables()


def _jobs() -> None:
    op.add_column("jobs", sa.Column("decision", sa.String(), nullable=False, server_default="offload"))
    op.add_column("jobs", sa.Column("app", sa.String(), nullable=False, server_default=EMPTY))
    op.add_column("jobs", sa.Column("queued_at", sa.Float(), nullable=False, server_default=ZERO))


def _calls() -> None:
    for column in (
        sa.Column("hour", sa.Integer(), nullable=False, server_default=ZERO),
        sa.Column("app", sa.String(), nullable=False, server_default=EMPTY),
        sa.Column("decision", sa.String(), nullable=False, server_default="offload"),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("considered", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=ZERO),
        sa.Column("queue_ms", sa.Float(), nullable=False, server_default=ZERO),
        sa.Column("sent", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column("ended", sa.String(), nullable=True),
        sa.Column("validated", sa.Boolean(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Float(), nullable=False, server_default=ZERO),
        sa.Column("avoided_usd", sa.Float(), nullable=False, server_default=ZERO),
    ):
        op.add_column("calls", column)
    op.create_index("ix_calls_hour", "calls", ["hour"], unique=False)
    op.create_index("ix_audits_judged_at", "audits", ["judged_at"], unique=False)


def _fill() -> None:
    """What rows of before have in the new columns, as far as it is known."""
    op.execute("UPDATE jobs SET decision = 'refuse' WHERE state = 'refused'")
    op.execute("UPDATE jobs SET decision = 'audit' WHERE category = 'audit'")
    op.execute("UPDATE jobs SET decision = 'escalate' WHERE escalated_from IS NOT NULL AND state <> 'refused'")
    live = "('queued', 'dispatched', 'running')"
    made = "(SELECT created_at FROM batches WHERE batches.id = jobs.batch_id)"
    op.execute(f"UPDATE jobs SET queued_at = {made} WHERE state IN {live}")
    end = "(started_at + duration_ms / 1000) / 3600"
    hour = f"floor({end})" if op.get_bind().dialect.name == "postgresql" else end
    op.execute(f"UPDATE calls SET hour = CAST({hour} AS INTEGER)")
    of_job = "FROM jobs WHERE jobs.id = calls.job_id"
    op.execute(f"UPDATE calls SET decision = COALESCE((SELECT decision {of_job}), 'offload')")
    counted = "jobs.fence = calls.fence AND jobs.state IN ('done', 'escalated', 'failed', 'refused')"
    op.execute(f"UPDATE calls SET ended = (SELECT state {of_job} AND {counted}) WHERE NOT stale")


def _tables() -> None:
    sketches = ("wait", "first_token", "duration")
    quantiles = [f"{name}_{p}" for name in sketches for p in ("p50", "p75", "p95", "p99")]
    op.create_table(
        "rollups",
        sa.Column("hour", sa.Integer(), nullable=False, autoincrement=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in KEY),
        *(sa.Column(n, sa.BigInteger() if n in LARGE else sa.Integer(), nullable=False) for n in COUNTS),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("cost_usd", "cost_avoided_usd", "load_ms")),
        *(sa.Column(name, sa.Float(), nullable=True) for name in quantiles),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in sketches),
        sa.PrimaryKeyConstraint("hour", *KEY),
    )
    op.create_table(
        "rolled_hours",
        sa.Column("hour", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("dirty", sa.Boolean(), nullable=False),
        sa.Column("rolled_at", sa.Float(), nullable=True),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("hour"),
    )
    op.create_table(
        "taken_logs",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("tail", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("taken_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
