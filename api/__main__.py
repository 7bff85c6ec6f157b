"""`python -m api` is the `offload` command."""

from api.commands import main

main()
