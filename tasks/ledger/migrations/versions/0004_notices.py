"""People are told: events become notices"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

FALSE = sa.text("false")
IS_NEWS = sa.text("NOT events.noticed")
IS_WAITING = sa.text("notices.state = 'waiting'")


def upgrade() -> None:
    op.add_column("batches", sa.Column("notify", sa.Boolean(), nullable=False, server_default=FALSE))
    op.add_column("events", sa.Column("times", sa.Integer(), nullable=False, server_default=sa.text("1")))
    op.add_column("events", sa.Column("noticed", sa.Boolean(), nullable=False, server_default=FALSE))
    op.execute("UPDATE events SET noticed = true")  # old alarms are no news
    op.create_index("ix_events_news", "events", ["id"], sqlite_where=IS_NEWS, postgresql_where=IS_NEWS)
    op.create_table(
        "notices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("receiver", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.Float(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("sent_at", sa.Float(), nullable=True),
        sa.Column("answer", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    waiting = ["receiver", "due_at"]
    op.create_index("ix_notices_waiting", "notices", waiting, sqlite_where=IS_WAITING, postgresql_where=IS_WAITING)
