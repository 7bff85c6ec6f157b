"""The HTTP API: one router per resource, over the use-cases that the command line has as well.

app.py        puts it together
serving.py    `offload api`: where it listens, and what it refuses to
errors.py     every error in OpenAI's shape (or Anthropic's, below /v1/messages), with a request id
limits.py     bodies that are too large, clients that are too slow
callers.py    who asks: keys, scopes, requests a minute; key_first.py asks before a body is read
bodies.py     what JSON bodies have in common
files.py      /v1/files
batches.py    /v1/batches
direct.py     /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models
messages.py   /v1/messages, /v1/messages/count_tokens; message_events.py makes the events of a stream
message_batches.py  /v1/messages/batches
fan_outs.py   /fan-outs
jobs.py       /jobs, /batches: the pool's own words
answers.py    their answers in OpenAI's shapes
service.py    /healthz, /metrics
"""
