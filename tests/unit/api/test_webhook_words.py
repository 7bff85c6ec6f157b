"""What is wrong with a webhook's variables."""

from __future__ import annotations

import pytest

from api.use_cases.webhooks import lacks
from tasks.registry import WebhookTarget

FINE = {"HOOK": "https://hooks.example.com/x", "SECRET": "whsec_c2VjcmV0"}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, ""),
        ({"HOOK": ""}, "HOOK is not set"),
        ({"SECRET": " "}, "SECRET is not set"),
        ({"HOOK": "hooks.example.com"}, "HOOK holds no http(s) address"),
        ({"HOOK": "https://[::1"}, "HOOK holds no http(s) address"),
        ({"HOOK": "https://a:99999/"}, "HOOK holds no http(s) address"),
        ({"SECRET": "c2VjcmV0"}, "SECRET holds no secret: whsec_ and base64"),
        ({"SECRET": "whsec_!"}, "SECRET holds no secret: whsec_ and base64"),
    ],
)
def test_what_a_webhook_lacks(given: dict[str, str], why: str) -> None:
    """The variable is named that is missing or wrong, and nothing that it holds."""
    assert lacks(WebhookTarget(url_env="HOOK", secret_env="SECRET"), FINE | given) == why
