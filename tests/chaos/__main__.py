"""Arguments, pools side by side, the table.

python -m tests.chaos [--minutes M | --runs N] [--faults 1,4,9] [--ledger sqlite|postgres|both] [--seed S] …
"""

from __future__ import annotations

from tests.chaos.inside import sitecustomize as _inside  # noqa: F401  # isort: skip  # before anybody takes time.time

from tests.chaos.running import main

if __name__ == "__main__":
    main()
