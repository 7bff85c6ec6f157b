"""A tiny llama-architecture GGUF with random weights and a byte-level vocabulary, made in half a second.

Purely random weights babble until max_tokens and leave grammar-constrained JSON open.  So four of the 64
hidden dimensions carry fixed weights; the rest, and all feed-forward layers, are random:

    dim 0  a constant: output.weight[:, 0] is a bias for each token (letters likely, control bytes never)
    dim 1  a flag on the <|assistant|> token
    dim 2  a clock: head 0 of layer 0 attends to <|assistant|> through one slow RoPE pair, so its weight is
           about 1 for the first hundred generated tokens and about 0 after; at 0 the end of text and the
           JSON closers win.  Answers therefore always end, at any temperature, and constrained JSON closes.
    dim 3  a flag on JSON punctuation, digits and white space: none of them is followed by white space

Needs `gguf` and `numpy`; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
BYTES = 256
#: the vocabulary: every byte, one merge so that the list of merges is not empty, and the special tokens
TOKEN = {name: BYTES + 1 + i for i, name in enumerate(SPECIAL)}
VOCABULARY = BYTES + 1 + len(SPECIAL)

LAYERS, HIDDEN, HEADS, FEED_FORWARD, CONTEXT = 2, 64, 4, 128, 8192
HEAD = HIDDEN // HEADS
#: the sizes of the fixed weights in dims 0 to 3
CONSTANT, ASSISTANT, CLOCK, FLAG = 4.0, 4.0, 2.0, 2.0
#: RoPE pair of the clock: 10000 ** (-8 / 16) = 0.01 rad a token; and its score at distance 0
CLOCK_PAIR, CLOCK_SCORE = 4, 12.0
FIXED = 4


def make_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write the model to `path` (470 kB) and return it."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    _describe(writer)
    writer.add_tensor("token_embd.weight", _embedding(random))
    for layer in range(LAYERS):
        _add_layer(writer, random, layer)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output.weight", _output(random))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny-random-llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_pooling_type(gguf.PoolingType.MEAN)  # /v1/embeddings gives one vector a text
    _describe_tokens(writer)


def _describe_tokens(writer: gguf.GGUFWriter) -> None:
    letters = _letters_of_bytes()
    space_t = letters[ord(" ")] + "t"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters, space_t, *SPECIAL])
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * (BYTES + 1) + [control] * len(SPECIAL))
    writer.add_token_merges([f"{letters[ord(' ')]} t"])
    writer.add_bos_token_id(TOKEN["<|bos|>"])
    writer.add_eos_token_id(TOKEN["<|end|>"])
    writer.add_pad_token_id(TOKEN["<|pad|>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT)


def _letters_of_bytes() -> list[str]:
    """GPT-2's printable letter for each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(BYTES)]


def _random(random: np.random.Generator, *shape: int, scale: float) -> Weights:
    return (random.standard_normal(shape) * scale).astype(np.float32)


def _embedding(random: np.random.Generator) -> Weights:
    weights = _random(random, VOCABULARY, HIDDEN, scale=0.5)
    weights[:, 0], weights[:, 1:FIXED] = CONSTANT, 0.0
    for char in '"{}[]:,0123456789 \n\t\r':
        weights[ord(char), 3] = FLAG
    weights[TOKEN["<|assistant|>"], 1] = ASSISTANT
    return weights


def _add_layer(writer: gguf.GGUFWriter, random: np.random.Generator, layer: int) -> None:
    q, k, v, o = (_random(random, HIDDEN, HIDDEN, scale=HIDDEN**-0.5) for _ in range(4))
    down = _random(random, HIDDEN, FEED_FORWARD, scale=FEED_FORWARD**-0.5)
    o[:FIXED] = down[:FIXED] = 0  # nothing random writes the fixed dimensions
    if layer == 0:
        _set_clock(q, k, v, o)
    prefix = f"blk.{layer}."
    for name, weights in (("attn_q", q), ("attn_k", k), ("attn_v", v), ("attn_output", o)):
        writer.add_tensor(f"{prefix}{name}.weight", weights)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{prefix}{name}.weight", np.ones(HIDDEN, np.float32))
    for name in ("ffn_gate", "ffn_up"):
        up = _random(random, FEED_FORWARD, HIDDEN, scale=HIDDEN**-0.5)
        writer.add_tensor(f"{prefix}{name}.weight", up)
    writer.add_tensor(f"{prefix}ffn_down.weight", down)


def _set_clock(q: Weights, k: Weights, v: Weights, o: Weights) -> None:
    """Make head 0 write how far back <|assistant|> is into dim 2."""
    size = math.sqrt((CONSTANT**2 + (HIDDEN - FIXED) * 0.25) / HIDDEN)
    size_assistant = math.sqrt((CONSTANT**2 + ASSISTANT**2 + (HIDDEN - FIXED) * 0.25) / HIDDEN)
    strength = math.sqrt(CLOCK_SCORE * math.sqrt(HEAD))
    q[:HEAD] = k[:HEAD] = v[:HEAD] = 0
    o[:, :HEAD] = 0
    q[2 * CLOCK_PAIR, 0] = strength * size / CONSTANT
    k[2 * CLOCK_PAIR, 1] = strength * size_assistant / ASSISTANT
    v[0, 1] = size_assistant / ASSISTANT
    o[2, 0] = CLOCK


def _output(random: np.random.Generator) -> Weights:
    """The output layer: while the clock is young letters win, when it is old the closers do."""
    young, old = _biases()
    # the final norm's size, roughly: each layer adds about 0.45 to each random dimension's variance
    spread = (HIDDEN - FIXED) * (0.25 + 0.45 * LAYERS)
    size_old = math.sqrt((CONSTANT**2 + spread) / HIDDEN)
    size_young = math.sqrt((CONSTANT**2 + CLOCK**2 + spread) / HIDDEN)
    weights = _random(random, VOCABULARY, HIDDEN, scale=0.09)
    weights[:, 1] = weights[:, 3] = 0
    weights[:, 0] = old * size_old / CONSTANT
    weights[:, 2] = (young - old * (size_old / size_young)) * size_young / CLOCK
    for char in " \n\t\r":
        weights[ord(char), 3] = -12.0 * size_old / FLAG
    for char in ":,":
        weights[ord(char), 3] = 2.0 * size_old / FLAG
    return weights


def _biases() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each token's log-odds while the answer is young, and when it is old."""
    young = np.full(VOCABULARY, -12.0)  # control and non-ASCII bytes: never
    old = np.full(VOCABULARY, -12.0)

    def put(tokens: Iterable[int], at_first: float, at_last: float | None = None) -> None:
        for token in tokens:
            young[token], old[token] = at_first, at_first if at_last is None else at_last

    put(range(33, 127), -2.5)
    put(b"0123456789", -1.5)
    for rank, letter in enumerate("etaoinshrdlcumwfgypbvkjxqz"):
        put(letter.encode(), 1.6 - 0.13 * rank)
        put(letter.upper().encode(), -1.2 - 0.1 * rank)
    put(b" ", 1.4, -8.0)
    put(b'"', 1.2, 11.0)
    put(b"}]", -1.0, 10.0)
    put(b":,", -1.5, 6.0)
    put(b"{[", -2.5, -8.0)
    put(b"\\", -12.0)
    put([TOKEN["<|end|>"]], -1.0, 13.0)
    return young, old
