"""Suspects of a crash are found without looking at the whole queue"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IS_SUSPECT = sa.text("jobs.state = 'queued' AND jobs.crashes > 0")


def upgrade() -> None:
    op.create_index(
        "ix_jobs_suspects",
        "jobs",
        ["batch_id", "model_class"],
        unique=False,
        sqlite_where=IS_SUSPECT,
        postgresql_where=IS_SUSPECT,
    )
