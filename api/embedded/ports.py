"""The ports that roles have where nobody else has them."""

from __future__ import annotations

API_PORT = 8484
FLOWER_PORT = 5555
METRICS_PORT = 9811
