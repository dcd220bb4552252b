"""Speaks the chat completions protocol of OpenAI, as vLLM and most servers do, at a tenth of the cost of its SDK."""

# Inspect's provider for these endpoints takes 4 ms of CPU for each call (measured, docs/measured.md): at 64 connections
# to a judge that answers in 50 ms it would be three quarters of the time. All other providers go through Inspect.

import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from spillover.models import Request, Response
from spillover.models.endpoint import (
    LONGEST_WAIT_S,
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


@asynccontextmanager
async def open_endpoint(model: str, settings: Settings) -> AsyncIterator[Endpoint]:
    """The endpoint of `openai-api/SERVICE/NAME`, at SERVICE_BASE_URL with the key SERVICE_API_KEY, as in Inspect.

    Raises SpilloverError if one of the two variables is missing.
    """
    _, _, rest = model.partition("/")
    service, _, name = rest.partition("/")
    prefix = service.upper().replace("-", "_")
    url, key = (os.environ.get(f"{prefix}_{what}", "").strip() for what in ("BASE_URL", "API_KEY"))
    if not (service and name):
        raise refused(model, "write openai-api/SERVICE/NAME")
    if not (url and key):
        missing = f"{prefix}_BASE_URL" if not url else f"{prefix}_API_KEY"
        raise refused(model, f"the environment variable {missing} is not set")
    if not url.startswith(("http://", "https://")):
        raise refused(model, f"{prefix}_BASE_URL is no http address: {url}")
    body: dict[str, Any] = {"model": name, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
    if settings.probabilities:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}

    async def ask_once(ask: Request, choices: int) -> list[Response]:
        question = body | {"messages": ask.messages} | ({"n": choices} if choices > 1 else {})
        try:
            async with session.post(f"{url.rstrip('/')}/chat/completions", json=question) as response:
                content = await response.read()
                if response.status >= 400:
                    reason = f"HTTP {response.status}: {_complaint(content)}"
                    if response.status in TRY_AGAIN or response.status >= 500:
                        raise UnreachableError(reason, _seconds(response.headers.get("Retry-After")))
                    raise RejectedError(reason) if response.status in REJECTED else refused(model, reason)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise UnreachableError(complaint(f"{type(error).__name__}: {str(error) or 'no answer in time'}")) from None
        return _replies(content)

    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=settings.seconds),
        connector=aiohttp.TCPConnector(limit=settings.connections),
        trust_env=_proxied(url),
    ) as session:
        yield ask_once


def _proxied(url: str) -> bool:
    """Whether the environment names a proxy for it. Asked once: aiohttp would ask in a thread, at every call."""
    address = urlsplit(url)
    return address.scheme in getproxies() and not proxy_bypass(address.netloc)


def _replies(content: bytes) -> list[Response]:
    """The choices of a response. Raises UnreachableError for one that is cut short, or has none."""
    try:
        answer = json.loads(content)
        choices = answer["choices"]
        tokens = (answer.get("usage") or {}).get("completion_tokens") if len(choices) == 1 else None
        replies = [_reply(choice, tokens) for choice in choices]
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = complaint(f"{type(error).__name__}: {error}")
        raise UnreachableError(f"the response is not a chat completion ({reason})") from None
    if not replies:
        raise UnreachableError("the response has no choices")
    return replies


def _reply(choice: dict[str, Any], tokens: int | None) -> Response:
    text = choice["message"].get("content") or choice["message"].get("refusal") or ""
    positions = (choice.get("logprobs") or {}).get("content") or []
    first = (
        {_written(top["token"]): math.exp(top["logprob"]) for top in positions[0].get("top_logprobs") or ()}
        if positions
        else None
    )
    return Response(_written(text).strip(), choice.get("finish_reason") or "unknown", tokens, first or None)


def _written(text: str) -> str:
    """The text as a file can hold it: half of a surrogate pair has no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _complaint(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        text = str(json.loads(text)["error"]["message"])
    return complaint(text)


def _seconds(header: str | None) -> float | None:
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(header))) if header else None
    except ValueError:
        return None  # a date; our own back-off will do
