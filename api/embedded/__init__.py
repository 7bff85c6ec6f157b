"""The one-machine pool: `offload up`.

    supervisor.py    starts every role, restarts what dies, stops everything
    vital_signs.py   which roles live and do nothing
    leash.py         holds each child, so that a killed supervisor leaves nothing running
    redis_server.py  the embedded Redis: which binary, its configuration
    discover.py      which model servers there are, when no configuration says it
    state.py         the run folder: the lock, and what the running pool says of itself

State is in one folder, OFFLOAD_HOME:
    ledger.db        the SQLite ledger
    redis/           the embedded Redis's append-only file
    run/             lock, pool.json (0600: it holds the Redis password), detected.yaml, redis.conf,
                     flower.auth (0600) and flower.alive, which Flower touches
    logs/pool.log    the background pool's log
"""
