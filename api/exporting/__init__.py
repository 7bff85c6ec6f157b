"""What the pool tells Prometheus, by `offload metrics` and by whichever web server mounts the same collector.

    exporter.py   the collector: asks everybody, each for a bounded time
    sources.py    the ledger and Redis, each on a thread of its own
    counting.py   what was counted, and how far everything was read
    tally.py      counters and histograms, from rows that came since the last look (pure)
    families.py   every metric by name, with its labels and what it is (pure)
    server.py     `/metrics` and `/healthz` by HTTP

Gauges are how ledger and Redis stand at the scrape.  Counters begin at 0 with the process, which Prometheus takes for
the reset that it is.  Label values are names of the configuration and words of our own, so their number is bounded:
never a prompt, an answer, an app, a line's id or a batch's.
"""
