"""The newest batches, a page of an owner's, and what was told lately are found without looking at all there were"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

IS_SENT = sa.text("sent_at IS NOT NULL")


def upgrade() -> None:
    op.create_index("ix_batches_created_at", "batches", ["created_at"])
    op.create_index("ix_api_batches_page", "api_batches", ["owner", "created_at", "id"])
    op.drop_index("ix_api_batches_owner", "api_batches")
    op.create_index(
        "ix_notices_sent", "notices", ["receiver", "sent_at"], sqlite_where=IS_SENT, postgresql_where=IS_SENT
    )
