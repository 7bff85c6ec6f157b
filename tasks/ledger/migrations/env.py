"""Alembic's entry: the connection is given by tasks/ledger/schema.py, inside its transaction."""

from alembic import context
from sqlmodel import SQLModel

import tasks.tables  # noqa: F401  fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite changes no column in place
)
context.run_migrations()
