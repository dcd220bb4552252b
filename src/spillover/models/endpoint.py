"""Asks models behind an endpoint: many questions at once, retried, each reply handed on the moment it is there."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from spillover.errors import SpilloverError
from spillover.models import Request, Response

CHOICES_PER_CALL = 10  # a call that fails loses no more than these
ATTEMPTS = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # between attempts; doubled from one to the next
TOP_LOGPROBS = 20  # the most that OpenAI gives
TRY_AGAIN = (408, 409, 425, 429)  # HTTP status, beside those of 500 and above
REJECTED = (400, 413, 422)  # this question, not every one: too long, filtered, too many choices
HOPELESS = 128  # calls that fail for good one after the other: nobody is there, or nobody answers questions like these


@dataclass(frozen=True)
class Settings:
    """How an endpoint is asked. `seconds` is the longest that one attempt may take."""

    temperature: float
    max_tokens: int
    probabilities: bool = False
    seconds: float = 300.0
    connections: int = 64


Endpoint = Callable[[Request, int], Awaitable[list[Response]]]  # (ask, choices) -> that many replies, or fewer


class UnreachableError(Exception):
    """An attempt failed in a way that another attempt may mend; `after` is how long the endpoint said to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class RejectedError(Exception):
    """The endpoint will not answer one question, or not with that many choices: too long, filtered."""


def is_remote(model: str) -> bool:
    """Whether a model is named as Inspect names them (openai/gpt-4o, openai-api/SERVICE/NAME, vllm/NAME)."""
    return bool(re.fullmatch(r"[a-z][a-z0-9_-]*/[^\s]+", model)) and not model.startswith("organism/")


def ask_all(
    model: str, asks: Iterable[Request], settings: Settings, on_replies: Callable[[list[tuple[str, Response]]], None]
) -> None:
    """Asks everything, `settings.connections` at a time; `on_replies` gets (id, reply) pairs as they come.

    Every id gets exactly one reply; one with an `error` where the endpoint kept failing. Raises SpilloverError at once
    for what no retry mends: an unknown model, a key that is refused, an endpoint that answers nothing.
    """
    if model.startswith("openai-api/"):
        from spillover.models.chat_completions import open_endpoint
    else:
        from spillover.models.inspect_models import open_endpoint

    async def main() -> None:
        async with open_endpoint(model, settings) as endpoint:
            await _work(model, endpoint, iter(asks), settings.connections, on_replies)

    try:
        asyncio.run(main())
    except ExceptionGroup as group:  # every worker ends with the first error
        raise group.exceptions[0] from None


async def _work(
    model: str,
    endpoint: Endpoint,
    asks: Any,
    connections: int,
    on_replies: Callable[[list[tuple[str, Response]]], None],
) -> None:
    choices, failed = CHOICES_PER_CALL, 0

    async def worker() -> None:
        nonlocal choices, failed
        for ask in asks:
            left, most = list(ask.ids), CHOICES_PER_CALL
            while left:
                wanted = min(len(left), most, choices)
                try:
                    replies = (await _persistently(endpoint, ask, wanted))[:wanted]
                except RejectedError as error:
                    if wanted > 1:
                        most = 1  # some endpoints reject every number of choices but one
                        continue
                    replies = [Response(error=str(error))]
                if len(replies) < wanted:
                    choices = 1  # this provider gives one answer a call
                on_replies(list(zip(left, replies, strict=False)))
                del left[: len(replies)]
                failed = failed + 1 if replies[-1].error is not None else 0
                if failed == HOPELESS:
                    raise refused(model, f"{failed} calls failed one after the other ({replies[-1].error})")

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())


async def _persistently(endpoint: Endpoint, ask: Request, choices: int) -> list[Response]:
    """The replies to one call, or after ATTEMPTS failures as many replies that say why. Raises RejectedError."""
    for attempt in range(ATTEMPTS):
        try:
            return await endpoint(ask, choices)
        except UnreachableError as error:
            if attempt + 1 == ATTEMPTS:
                return [Response(error=str(error))] * choices
            await asyncio.sleep(
                error.after if error.after is not None else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            )
    raise AssertionError("the last attempt returns")


def refused(model: str, reason: str) -> SpilloverError:
    """The error for what no retry mends."""
    return SpilloverError(
        f"model {model}: {reason.rstrip('.')}. Everything answered so far is kept; mend it and run again."
    )


def complaint(text: str, characters: int = 200) -> str:
    """What an endpoint says is wrong: on one line, cut, and without any key that the environment holds."""
    for name, value in os.environ.items():
        if name.endswith("_API_KEY") and value:
            text = text.replace(value, "***")
    return " ".join(text.split()).encode("utf-8", "replace").decode()[:characters]
