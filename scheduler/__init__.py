"""What time makes: periodic services, sent by Celery beat and run by the scheduler queue's worker.

    beat.py      one table: what, when, how long a tick is worth running, why
    sweep.py     takes back what nobody reports, sends again what got lost, ends transactions of frozen processes
    service.py   when a service runs: on beat's tick, or by its process's own clock when none comes
    dead_classes.py  what waits for a class that nobody serves goes on to the cloud, where it may
    audit.py     second opinions on finished jobs
    rollups.py   sums hours of calls, takes in what the helpers logged, deletes calls that are old
    fanning.py   fan-outs go on: the next merge, or the end
    watch.py     what is news and nobody wrote down: providers, quotas, backlogs
    notify.py    makes notices of what is news, and sends them
    receivers.py who is told: a webhook, or what apprise knows
    redis_keys.py  keeps Redis's keys what Celery expects
    process.py   the role: beat and the worker of queue `scheduler` in one process

A service is `run_once(...)`, returns counts, and may run twice at once or not at all for hours without harm.
"""
