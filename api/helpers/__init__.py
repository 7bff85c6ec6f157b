"""The two commands that people's scripts call: `llm-offload` and `anchor-offload`.

    raw         llm-offload: one prompt straight to the configured provider, its answer on stdout
    gated       anchor-offload: the policy first, then whether the server is healthy, then the raw call in process
    plan        what they need of the configuration, kept as one plain JSON (defaults.json: where nothing is configured)
    making      a plan made from the whole configuration
    arguments   their command lines
    answers     what they print
    health      whether a server answers, looked at once in 10 s
    telemetry   one JSON line for each gated call
    kept        small files in the run folder
    pooled      the same calls through the pool: --pool, --escalate

They start in a fraction of the time that `offload` takes: on the straight way nothing beyond the standard library is
imported.  `making` and `pooled` are what load the rest, and they are imported where they are called.  Prompts and
answers are in no message and in no log.
"""
