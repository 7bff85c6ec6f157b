"""Every way in, and the one place that starts the roles.

commands/    the command line (click): one file a command or a small family
helpers/     llm-offload and anchor-offload, which start quickly and need no pool
http/        the HTTP API (FastAPI): OpenAI's and Anthropic's words, and the pool's own
exporting/   what Prometheus is told
use_cases/   submit, watch, check: what every way in calls
services/    roles as services of the system: systemd, launchd, scheduled tasks
embedded/    the one-machine pool: a Redis of our own, and the supervisor of all roles
interrupts   what Ctrl-C leaves running, and how to come back to it
logs         what the roles say, for people or as JSON
flower_role  Flower on the pool's Celery app: who may come in, and what it shows of a slice
"""
