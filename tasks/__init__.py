"""Words, rules and the ledger: what every other room stands on, and what imports none of them.

Pure, importing no server and no database:
    errors        the whole error tree
    states        the states of a job and of a batch, drawn beside the enum
    categories    what kinds of work there are, and how each is asked for
    checks        named checks on a category's output
    labels        the labels that a prompt offers
    validation    is this output acceptable
    leaks         a reasoning model's thoughts, taken out of its answer
    schemas       a job line, in the pool's own form and in OpenAI's
    turns         which class a provider serves next, and how many jobs are sent

Shells:
    settings      the environment; where the state folder is
    registry      providers, classes and categories in force
    config        offload.yaml, read and checked
    tables        the SQL tables
    ledger/       every state change of a job, and nothing else changes one
    dispatch      keeps the window of every class full
    queues, app   every queue and task name; the Celery app

Nothing here ever puts a prompt or an output into a message, a log line or an exception.
"""
