"""Breaks a real pool on purpose, again and again, and checks the promises: `python -m tests.chaos`.

    __main__    arguments, the pools side by side, the table
    running     pools side by side: who strikes what next
    table       the table, and what is red
    nemesis     strikes a pool again and again, and judges each strike
    strike      one strike: its draw from the seed, what was in flight, how long recovery took
    watching    the load of the machine, and I9
    faults      the table: each row of FAULTS.md, its words, its bound, the function that strikes
    faults_*    those functions
    pool        the pool under test: its servers and nodes
    roles       its processes
    proxy       stands before Redis and PostgreSQL, for one node alone: holes, delays, cuts, half-open connections
    machine     a machine of its own for one node: a network namespace, where the machine allows them
    ears        what a proxy overhears: a message popped, a COMMIT
    inside/     what is held of a role from within: its clock, its next commit
    client      submits, cancels, reads; keeps its own history
    checks      I1 to I9
    broken      copies of the tree with one promise switched off: the proof of the proof

Recovery is the time from the strike until every job that was in the victim's hand (of a fault of all: every job
dispatched or running) is terminal or claimed again, and every node that should work has been asked for something new
since the fault ended.

A role that is started again comes from a process that has everything imported already (tests/support/nursery.py):
importing takes seconds of a core and is not what is tested.  What it runs is the command's own code
(`offload worker …`).
"""
