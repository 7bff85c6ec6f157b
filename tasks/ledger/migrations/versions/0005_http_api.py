"""Keys, files and batches of the HTTP API"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(), nullable=False, primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False, unique=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("most_queued", sa.Integer(), nullable=True),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("ceiling", sa.String(), nullable=True),
    )
    op.create_table(
        "api_files",
        sa.Column("id", sa.String(), nullable=False, primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_api_files_owner", "api_files", ["owner"])
    op.create_index("ix_api_files_expires_at", "api_files", ["expires_at"])
    op.create_table(
        "api_batches",
        sa.Column("meta", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("said", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("told", sa.JSON(), nullable=False),
        sa.Column("gone", sa.JSON(), nullable=False),
        sa.Column("id", sa.String(), nullable=False, primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("input_file_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("request_key", sa.String(), nullable=True, unique=True),
        sa.Column("request_hash", sa.String(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("loaded_at", sa.Float(), nullable=True),
        sa.Column("failed_at", sa.Float(), nullable=True),
        sa.Column("cancelling_at", sa.Float(), nullable=True),
        sa.Column("cancelled_at", sa.Float(), nullable=True),
        sa.Column("tell_at", sa.Float(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
    )
    op.create_index("ix_api_batches_owner", "api_batches", ["owner"])
    op.create_index("ix_api_batches_state", "api_batches", ["state"])
    op.create_index("ix_api_batches_tell_at", "api_batches", ["tell_at"])
    op.create_index("ix_api_batches_created_at", "api_batches", ["created_at"])
