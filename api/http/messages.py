"""/v1/messages and /v1/messages/count_tokens: Anthropic's protocol over the same way as OpenAI's chats.

`model` may be a class, a category, a configured model, `auto`, or a name that `aliases` gives a meaning; the answer's
`model` and the headers name what served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.http import answers
from api.http import direct as ways
from api.http.callers import Caller, needs
from api.http.errors import GONE, ApiError, anthropics
from api.http.message_events import Events, broken, new_id
from api.use_cases import anthropic_bodies as bodies
from api.use_cases import anthropic_views as views
from api.use_cases import direct
from api.use_cases.pool import Pool
from tasks.budget import CHARS_PER_TOKEN
from tasks.errors import BadOutput
from tasks.ledger.api_keys import Scope
from tasks.schemas import prompt_text

router = APIRouter(prefix="/v1/messages", tags=["messages"])

Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
CHAT = "/v1/chat/completions"
#: seconds between two signs of life in a stream
ALIVE_S = 15.0


@router.post("")
async def create(request: Request, caller: Submitter) -> Response:
    """A message, streamed or not."""
    with _their_words():
        body, size = await ways.body_of(request)
        chat = await ways.off_loop(size, bodies.chat, body, _pool(request).registry)
        asked = await ways.judged(request, caller, CHAT, chat, size)
        if asked.stream:
            return await _streamed(request, asked, await ways.off_loop(size, _tokens, chat))
        given = await ways.unless_gone(request, ways.run(request, asked))
    if given is None:
        return Response(status_code=GONE)
    try:
        blocks = views.content(answers.text(given), given.reply)
    except BadOutput as error:
        raise ways.failed(error) from None
    reply = given.reply
    counts = views.usage(reply.tokens_in, reply.tokens_out, reply.tokens_thinking)
    found = views.message(new_id(), reply.model, blocks, views.stopped(reply), counts)
    return Response(orjson.dumps(found), media_type="application/json", headers=ways.headers(asked, given))


@router.post("/count_tokens")
async def count_tokens(request: Request, caller: Submitter) -> dict[str, int]:
    """About how many tokens a message's body has: its characters at 3.5 a token, tools included, images left out.

    An estimate, as the pool makes for its limits: which server will answer, and so which tokenizer, is not known yet.
    The body is checked as if it were sent; nothing is sent anywhere.
    """
    body, size = await ways.body_of(request)
    chat = await ways.off_loop(size, bodies.chat, body, _pool(request).registry, limited=False)
    await ways.checked(request, caller, CHAT, chat, size)
    return {"input_tokens": await ways.off_loop(size, _tokens, chat)}


def _tokens(chat: dict[str, Any]) -> int:
    """An estimate of a chat's tokens."""
    called = [message["tool_calls"] for message in chat["messages"] if "tool_calls" in message]
    tools = orjson.dumps([*called, *chat.get("tools", ())])
    return max(1, ceil((len(prompt_text(chat)) + len(tools)) / CHARS_PER_TOKEN))


@contextmanager
def _their_words() -> Iterator[None]:
    """Agents know by these words that they must make their conversation shorter."""
    try:
        yield
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        raise ApiError(error.status, f"prompt is too long: {error.message}", code=error.code) from None


async def _streamed(request: Request, asked: direct.Request, tokens_in: int) -> Response:
    pieces = ways.Pieces(request, asked, ALIVE_S)
    if await ways.unless_gone(request, pieces.begin()) is None:
        return Response(status_code=GONE)
    events = Events(pieces.model, tokens_in)

    async def told() -> AsyncIterator[bytes]:
        yield events.first()
        try:
            async for delta in pieces:
                yield events.piece(delta)
        except BadOutput as error:
            pieces.error = ways.failed(error)
        if pieces.error is not None:
            yield broken(anthropics(request, pieces.error))
        elif pieces.given is not None:
            yield events.last(pieces.given.reply)

    return ways.Streamed(pieces, told(), pieces.headers())


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool
