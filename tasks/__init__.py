"""Words, rules and the ledger: what every other room stands on, and what imports none of them.

Pure, importing no server and no database:
    errors        the whole error tree
    states        the states of a job and of a batch, drawn beside the enum
    categories    what kinds of work there are, and how each is asked for
    checks        named checks on a category's output
    labels        the labels that a prompt offers
    validation    is this output acceptable
    leaks         a reasoning model's thoughts, taken out of its answer (streamed_leaks: as it comes)
    policy/       what may not be left to a local model, and why; policy.yaml
    privacy       tiers and reaches; what tightens a tier
    detectors     secrets and personal data in a text (detectors_values, detectors_personal)
    routing       where a job goes: verdict and tier meet the classes there are
    lines         a job line in the pool's own form
    openai_lines  a line of an OpenAI batch file
    schemas       the bytes of a line become a job: read, checked, judged and routed
    auditing      the second opinion: who is asked, what, and what the answer says
    sampling      whom the audit draws, what share is right, when it has dropped
    eta           when a batch will be over: an honest guess from numbers alone
    budget        what a call takes of its provider's limits
    pricing       what a call costs, and what its tokens would have cost at the cloud
    sketches      quantiles of many values in little memory
    rollups       what an hour's calls come to
    helper_log    the helpers' log: where it was read to, and which lines are new
    notices       what is told of what happened, and what is folded into one
    cursors       which rows are new, in whatever order they were committed
    fanning       a fan-out's steps; placeholders, splitting, merging, merge_texts are its parts
    turns         which class a provider serves next, and how many jobs are sent

Shells:
    settings      the environment; where the state folder is
    providers     a provider as it is configured: its address, reach, limits
    registry      providers, classes and categories in force
    config        offload.yaml, read and checked
    yaml_text     YAML that people write, and where its faults are
    tables        the SQL tables
    ledger/       every state change of a job, and nothing else changes one
    dispatch      keeps the window of every class full
    queues, app   every queue and task name; the Celery app
    consumer      how workers and beat outlive a connection to Redis

Nothing here ever puts a prompt or an output into a message, a log line or an exception.
"""
