"""A model server without a model: Ollama's, OpenAI's and Anthropic's protocols over real HTTP.

It is the load generator's counterpart and the place where every fault of a real server can be had on
request.  A generation request travels through it so:

    server.py            socket, routes, start and stop (background.py: on a thread of its own)
      exchange.py        one request: read, choose faults, wait for a slot, answer, log
        ollama_routes, ollama_store, openai_routes, anthropic_routes
                         dialects: a body becomes an Ask; a Reply becomes bytes, whole or as a stream
        faults.py        which faults this request meets: markers in its prompt, or rates
        models.py        slots, the queue, loading and eviction
        answers.py       the text for an Ask (json_from_schema.py, pattern_text.py, vectors.py, spoiled.py)
        delivery.py      how bytes leave: at once, at a pace, or broken off
      control_routes.py  /sim/…: what tests read and turn
      call_log.py        one record per request; never a prompt, only its hash

Answers are a function of (model, prompt) alone and say that they are simulated.  With the speed unlimited a
whole stream is one write.  A simulator never opens a connection, and never keeps or logs a prompt.
"""

from workers.simulator.background import BackgroundSimulator, in_thread
from workers.simulator.config import ModelSpec, SimulatorConfig
from workers.simulator.server import RunningSimulator, serve, start

__all__ = [
    "BackgroundSimulator",
    "ModelSpec",
    "RunningSimulator",
    "SimulatorConfig",
    "in_thread",
    "serve",
    "start",
]
