"""What a simulator is made of; every field can be changed while it runs (POST /sim/config)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from workers.simulator.faults import check_name

Protocol = Literal["ollama", "openai", "anthropic"]


class ModelSpec(BaseModel):
    """One model that the simulator serves.

    dimensions: length of a vector, for kind embed. context: tokens, unless a request's num_ctx says
    otherwise. hosted: on the server's side of the internet, so never loaded, evicted or limited in sampling
    parameters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["chat", "embed"] = "chat"
    thinking: bool = False
    dimensions: int = Field(default=1024, ge=1, le=16384)
    context: int = Field(default=32768, ge=1)
    hosted: bool = False


#: what a `claude-…` model is on Anthropic's route, where any such name is served
HOSTED = ModelSpec(context=1_000_000, hosted=True)

#: the models of the host that the two helpers were written for (contracts/offload-helpers.md)
DEFAULT_MODELS = {
    "gemma3:4b": ModelSpec(context=131072),
    "qwen2.5-coder:7b": ModelSpec(),
    "gemma4:26b": ModelSpec(thinking=True, context=131072),
    "gemma4:31b": ModelSpec(context=131072),
    "qwen3-coder:30b": ModelSpec(context=131072),
    "bge-m3": ModelSpec(kind="embed", dimensions=1024, context=8192),
    "nomic-embed-text": ModelSpec(kind="embed", dimensions=768, context=2048),
}

Seconds = Annotated[float, Field(ge=0)]


class SimulatorConfig(BaseModel):
    """How the simulator behaves. Times are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, ModelSpec] = Field(default_factory=lambda: dict(DEFAULT_MODELS))
    load_s: Seconds = 0.0  #: to bring a model into memory
    loaded_limit: int = Field(default=3, ge=1)  #: models in memory at once; Ollama's default for one GPU
    slots: int = Field(default=16, ge=1)  #: requests served at once, all models together
    queue_limit: int = Field(default=512, ge=0)  #: requests that may wait for a slot; the next one gets 503
    ttft_s: Seconds = 0.0  #: from the loaded model to the first token
    tokens_per_s: float = Field(default=0.0, ge=0)  #: of one request; 0 is unlimited
    faults: dict[str, float] = Field(default_factory=dict)  #: "name" or "name=arg" → share of requests, 0..1
    seed: int = 0  #: of the draw that `faults` uses
    api_key: str | None = None  #: asked for as a bearer token or x-api-key
    call_log: Path | None = None  #: JSONL, appended to
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"  #: the second is newer vLLM's
    protocols: tuple[Protocol, ...] = ("ollama", "openai", "anthropic")

    @field_validator("faults")
    @classmethod
    def _known_and_possible(cls, faults: dict[str, float]) -> dict[str, float]:
        for name, rate in faults.items():
            check_name(name)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of fault {name!r} is {rate}, not within 0 and 1")
        if sum(faults.values()) > 1 + 1e-9:
            raise ValueError("the rates of all faults together exceed 1")
        return faults

    def resolve(self, name: str) -> tuple[str, ModelSpec] | None:
        """The configured name and the model for a requested name; `x` and `x:latest` are the same model."""
        if spec := self.models.get(name):
            return name, spec
        other = name.removesuffix(":latest") if name.endswith(":latest") else f"{name}:latest"
        return (other, spec) if (spec := self.models.get(other)) else None
