"""What runs work: one process a provider, one asyncio loop in it, hundreds of calls in flight.

    process.py     the Celery worker of one provider: wiring, start, drain
    slices.py      the Celery task: claim a slice, wait for room, hand over, return
    claiming.py    claims while the ledger is away, and what broken ones leave behind
    loop.py        runs the jobs in hand; starts waiting ones by priority, gives back what cannot run
    hand.py        the jobs in hand and how long their leases hold
    gate.py        how many calls may run now: the provider's limit, its health, its waits (pure)
    asking.py      a job becomes a Call (pure)
    choosing.py    a tool that must be called, where a server cannot make its model call one (pure)
    judging.py     a reply or an error becomes an Outcome (pure)
    recorder.py    outcomes become commits, in groups
    saying.py      what the log says of jobs
    tracing.py     what OpenTelemetry is told of slices and calls
    heartbeat.py   renews leases, reports the worker, drops what was cancelled
    draining.py    follows what is wanted of the node: drained, stopped, serving again
    server_commands.py  runs the commands that start and stop this node's model server
    watchdog.py    ends a worker that lives and does nothing
    meter.py       keeps a provider's calls within its limits
    direct.py      calls that somebody waits for, without a job: the HTTP API's way to the providers
    straight.py    one question by the standard library alone, for the helpers (straight_bodies.py: what is sent)
    backends/      one file per protocol; the one place that opens a connection to a model
    simulator/     a model server without a GPU
    detect.py      which model servers this machine has

A job's way:  slices.claim ─► hand ─► loop ─► asking ─► backend ─► judging ─► recorder ─► forgotten.

A worker never changes a job except through tasks.ledger, and never holds a job without a lease.
"""
