"""What a dead worker held is known, and found without looking at the whole queue"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IS_TAKEN_BACK = sa.text("jobs.state = 'queued' AND jobs.taken_back_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("taken_back_at", sa.Float(), nullable=True))
    op.create_index(
        "ix_jobs_taken_back",
        "jobs",
        ["batch_id", "model_class"],
        unique=False,
        sqlite_where=IS_TAKEN_BACK,
        postgresql_where=IS_TAKEN_BACK,
    )
