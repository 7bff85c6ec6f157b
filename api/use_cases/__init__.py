"""What the command line calls, and every later way in: no printing, no exit codes, no click.

pool         what a caller holds: settings, registry, ledger, publisher
submitting   a file of job lines becomes a batch, or every fault is reported
control      batches paused, resumed and retried; a node resumed
watching     progress of a batch, and whether a pool is there to make any
outlook      an open batch's place, its rate, when it will be over, and why its jobs wait
explaining   what the policy says of a job, and a table of such cases
nodes        what people want of a node, and waiting until it is so
audits       what the second opinions say
doctor       what is broken, with the command that mends it
deep         whether all rows of the ledger agree with each other
"""
