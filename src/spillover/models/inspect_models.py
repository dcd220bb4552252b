"""Asks any model that Inspect AI knows, through its providers, with their retries and connection limits."""

# Inspect's cache stays off: it knows neither weights nor sample ids, and would answer one question a hundred times with
# one answer. What was answered is in completions.jsonl, and nothing is asked twice.

import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelOutput, get_model

from spillover.models import Request, Response
from spillover.models.endpoint import (
    REJECTED,
    TOP_LOGPROBS,
    TRY_AGAIN,
    Endpoint,
    RejectedError,
    Settings,
    UnreachableError,
    complaint,
    refused,
)

RETRIES = 6


@asynccontextmanager
async def open_endpoint(model: str, settings: Settings) -> AsyncIterator[Endpoint]:
    """The endpoint of a model that Inspect knows. Raises SpilloverError if it does not, or if its key is missing."""
    config = GenerateConfig(
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        max_connections=settings.connections,
        max_retries=RETRIES,
        attempt_timeout=math.ceil(settings.seconds),
        logprobs=settings.probabilities or None,
        top_logprobs=TOP_LOGPROBS if settings.probabilities else None,
    )
    try:
        opened: Any = get_model(model, config=config, memoize=False)
    except Exception as error:  # providers raise what they like
        raise refused(model, _reason(error)) from None

    async def ask_once(ask: Request, choices: int) -> list[Response]:
        try:
            output = await opened.generate(
                chat(ask.system, ask.text), config=GenerateConfig(num_choices=choices if choices > 1 else None)
            )
        except PrerequisiteError as error:
            raise refused(model, _reason(error)) from None
        except Exception as error:
            status, last = getattr(error, "status_code", None), getattr(error, "last_attempt", None)
            if last is not None:  # Inspect has tried often enough
                return [Response(error=_reason(last.exception()))] * choices
            if status in REJECTED:
                raise RejectedError(_reason(error)) from None
            if isinstance(status, int) and 400 <= status < 500 and status not in TRY_AGAIN:
                raise refused(model, _reason(error)) from None
            raise UnreachableError(_reason(error)) from None
        if output.error or not output.choices:
            raise UnreachableError(complaint(output.error or "the response has no choices"))
        return replies(output)

    async with opened:
        yield ask_once


def chat(system: str | None, text: str) -> list[ChatMessage]:
    """A prompt as Inspect's messages."""
    turns: list[ChatMessage] = [] if system is None else [ChatMessageSystem(content=system)]
    return [*turns, ChatMessageUser(content=text)]


def _reason(error: BaseException) -> str:
    said = str(getattr(error, "provider_message", None) or error)
    said = re.sub(r"\[/?(bold|blue|link)[^\]]*\]", "", said).strip().removeprefix("ERROR: ")  # console markup
    return complaint(said if isinstance(error, PrerequisiteError) else f"{type(error).__name__}: {said}", 300)


def replies(output: ModelOutput) -> list[Response]:
    """The choices of an answer in Inspect's words as replies in ours."""
    usage = output.usage.output_tokens if output.usage and len(output.choices) == 1 else None
    replies = []
    for choice in output.choices:
        first = None
        if choice.logprobs and choice.logprobs.content and choice.logprobs.content[0].top_logprobs:
            first = {top.token: math.exp(top.logprob) for top in choice.logprobs.content[0].top_logprobs}
        text = choice.message.text.encode("utf-8", "replace").decode().strip()
        replies.append(Response(text, choice.stop_reason, usage, first))
    return replies
