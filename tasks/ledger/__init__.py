"""The ledger: the only truth about jobs.  Every state change of a job is here, and nowhere else.

    database   the engine, its two kinds of transaction, the database's clock
    schema     opening a ledger, upgrading it; tables of another version are left as they are
    copying    the whole ledger as one file, and back
    patience   a PostgreSQL that says nothing more is given up
    submit     a batch is loaded in commits of bounded size; the last one is the promise
    claims     dispatched → running under a new fence and a lease; renewing; what a worker says of itself
    record     results, retries and give-backs, in groups, each only where id, fence and running still match
    strata     which jobs may be audited, fixed at submit
    audits     second opinions: chosen, asked, judged
    usage      what providers' calls took of their limits
    endings    cancelled and expired; the counters of a batch and its closing
    control    batches paused, resumed, retried, and cancelled with what they depend on
    retries    which batches are retries of which, and the newest state of a line
    sweeping   what nobody reports: leases that ran out, slices that got lost, loads given up
    rollups    hours of calls, summed, closed and pruned; `unsent` are the rows of jobs that ended without a call
    taking     what the helpers logged becomes calls, each once
    reading    status and results
    standing   what a batch waits for, what is before and beside it, and how fast its classes go
    nodes      what people want of nodes, and how far their workers are with it
    api_batches files and batches of the HTTP API, and whose they are; `api_keys` are its keys
    direct     calls without a job: their telemetry, and the few that may be audited
    fan_outs   fan-outs: where each stands, what its step's answers are
    gauges     how the pool stands, for whoever measures it
    invariants what must always hold, as questions to the ledger; `mending` repairs what can be
    events     what happened that people should know, written with the fact
    fallbacks  which of it is work that one had failed at and another has
    notices    the outbox: events become notices, leased to whoever sends them
    ticks      when each periodic service last ran

No transaction is long: each handles a bounded number of rows, so that no heartbeat waits behind it.
"""
