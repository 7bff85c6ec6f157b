"""What a caller of the use-cases holds."""

from __future__ import annotations

from functools import cached_property

from tasks.config import load_registry
from tasks.errors import BrokerDown
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.registry import Registry
from tasks.settings import Settings, load_settings


class Pool:
    """One process's view of the pool; everything is opened when first needed."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()

    @cached_property
    def registry(self) -> Registry:
        """The configuration in force."""
        return load_registry(self.settings)

    @cached_property
    def db(self) -> Database:
        """The ledger."""
        return open_ledger(self.settings.ledger())

    def dispatch(self) -> None:
        """Send what there is room for; raises BrokerDown when the jobs must wait for Redis."""
        from tasks.app import Publisher, make_app  # Celery takes a while to import: only here
        from tasks.dispatch import fill

        url = self.settings.broker_url()
        if url is None:
            raise BrokerDown("the pool is not running")
        publisher = Publisher(make_app(url))
        try:
            fill(self.db, publisher, self.registry.reaches, self.settings.times)
        finally:
            publisher.close()
