"""What the bodies that FastAPI reads have in common."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A JSON object of which no value is repeated in an error, and every value can be written as JSON again."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        """Python reads more as JSON than can be sent on: integers beyond 64 bits, halves of characters."""
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise PydanticCustomError("value_error", "holds a number or a character that JSON cannot carry") from None
        return value
