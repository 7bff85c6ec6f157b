"""What the command line calls, and every later way in: no printing, no exit codes, no click.

pool         what a caller holds: settings, registry, ledger, publisher
submitting   a file of job lines becomes a batch, or every fault is reported
control      batches paused, resumed and retried; a node resumed
watching     progress of a batch, and whether a pool is there to make any
outlook      an open batch's place, its rate, when it will be over, and why its jobs wait
explaining   what the policy says of a job, and a table of such cases
nodes        what people want of a node, and waiting until it is so
fanning      a fan-out is submitted and followed; fan_views shows it
uploads      files of the HTTP API; validating makes their lines jobs, batch_checks says what is wrong with them
openai_views rows of the ledger as OpenAI's objects, in the words of openai_texts; anthropic_views as Anthropic's
direct       requests that are answered while somebody waits
webhooks     who is told the end of a batch
backup       the pool as a folder, and back
audits       what the second opinions say
doctor       what is broken, with the command that mends it
deep         whether all rows of the ledger agree with each other
"""
