"""Asks models behind an endpoint, many requests at once, and hands each response on the moment it is there.

OpenAI-compatible servers (openai-api/SERVICE/NAME) are asked by the openai SDK's client, all others by Inspect's
providers: these take 4 ms of CPU for each call, the client 1 ms (benchmarks/judging.py).
"""

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from spillover.errors import SpilloverError
from spillover.models import Request, Response
from spillover.models.asking import Settings, asking
from spillover.models.thoughts import split_thought
from spillover.records import CUT_OFF

SHORTEST_KEY = 6  # characters; what is shorter is no secret, and its letters stand in other words
CHOICES_PER_CALL = 10  # a call that fails loses no more than these
ATTEMPTS, MALFORMED_ATTEMPTS = 8, 3  # of a call that fails, and of one whose answer is no chat completion
INSPECT_RETRIES = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # between attempts; doubled from one to the next
RETRIED = (408, 409, 425, 429)  # HTTP statuses worth another attempt, beside those of 500 and above
REJECTED = (400, 413, 422)  # statuses that concern one request, not all: too long, filtered, too many choices
HOPELESS = 128  # calls that fail one after the other before an endpoint is given up
# What Inspect knows as the first part of a model's name; tests compare it with Inspect's own list.
PROVIDERS = (
    "anthropic", "azureai", "bedrock", "cloudflare", "deepseek", "fireworks", "google", "grok", "groq", "hf",
    "hf-inference-providers", "litellm-proxy", "llama-cpp-python", "meta", "mistral", "mockllm", "moonshot", "nnterp",
    "none", "ollama", "openai", "openai-api", "openai-api-completions", "openrouter", "perplexity", "sagemaker",
    "sambanova", "sglang", "together", "transformer_lens", "vllm", "vllm-completions",
)  # fmt: skip


Endpoint = Callable[[Request, int], Awaitable[list[Response]]]  # (request, choices) -> so many responses, or fewer
OnResponses = Callable[[list[tuple[str, Response]]], None]  # takes pairs of id and response


class UnreachableError(Exception):
    """An attempt failed and another may succeed; `wait_s` is how long the endpoint said to wait, in seconds."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class MalformedError(UnreachableError):
    """The endpoint answered, and not with a chat completion: a few more attempts tell whether it ever will."""


class RejectedError(Exception):
    """The endpoint will not answer one request, or not with so many choices: too long, filtered."""


def is_endpoint(model: str) -> bool:
    """Whether a model's name is an endpoint's: it begins with a provider that Inspect knows (openai/gpt-4o, vllm/X).

    OWNER/NAME@REVISION is always the Hub's, also where the owner is called like a provider (google/gemma-3-1b-it@main).
    """
    provider, _, name = model.partition("/")
    return provider in PROVIDERS and bool(name) and not re.fullmatch(r"[^/]+@.+", name)


def ask_all(model: str, requests: Iterable[Request], settings: Settings, on_responses: OnResponses) -> None:
    """Sends all requests, `settings.connections` at a time; `on_responses` gets the responses as they come.

    Every id gets exactly one response, with an `error` where the endpoint kept failing. Raises SpilloverError at once
    for what no retry mends: an unknown model, a key that is refused, an endpoint that answers nothing.
    """
    opener = open_server if model.startswith("openai-api/") else open_provider

    async def main() -> None:
        async with opener(model, settings) as endpoint:
            await _send(model, endpoint, iter(requests), settings.connections, on_responses)

    try:
        _run(main)
    except ExceptionGroup as group:  # every worker ends with the first error
        raise group.exceptions[0] from None


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine to its end, in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main())
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, main()).result()


async def _send(
    model: str, endpoint: Endpoint, requests: Iterator[Request], connections: int, on_responses: OnResponses
) -> None:
    most_choices, failures = CHOICES_PER_CALL, 0  # failures: calls in a row

    async def worker() -> None:
        nonlocal most_choices, failures
        for request in requests:
            ids, accepted = list(request.ids), CHOICES_PER_CALL
            while ids:
                wanted = min(len(ids), accepted, most_choices)
                try:
                    responses = (await _persistently(endpoint, request, wanted))[:wanted]
                except RejectedError as error:
                    if wanted > 1:
                        accepted = 1  # some endpoints reject every number of choices but one
                        continue
                    responses = [Response(error=str(error))]
                if len(responses) < wanted:
                    most_choices = 1  # this provider gives one answer a call
                on_responses(list(zip(ids, responses, strict=False)))
                del ids[: len(responses)]
                failures = failures + 1 if responses[-1].error is not None else 0
                if failures == HOPELESS:
                    raise hopeless(model, f"{failures} calls failed one after the other ({responses[-1].error})")

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())


async def _persistently(endpoint: Endpoint, request: Request, choices: int) -> list[Response]:
    """The responses to one call, or after ATTEMPTS failures as many that say why. Raises RejectedError."""
    for attempt in range(ATTEMPTS):
        try:
            return await endpoint(request, choices)
        except UnreachableError as error:
            if attempt + 1 == (MALFORMED_ATTEMPTS if isinstance(error, MalformedError) else ATTEMPTS):
                return [Response(error=str(error))] * choices
            doubled = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            await asyncio.sleep(doubled if error.wait_s is None else error.wait_s)
    raise AssertionError("the last attempt returns")


@asynccontextmanager
async def open_server(model: str, settings: Settings) -> AsyncIterator[Endpoint]:
    """The server of `openai-api/SERVICE/NAME`, at SERVICE_BASE_URL with the key SERVICE_API_KEY, as in Inspect.

    Raises SpilloverError if one of the two variables is missing.
    """
    import openai

    _, _, rest = model.partition("/")
    service, _, name = rest.partition("/")
    prefix = service.upper().replace("-", "_")
    url, key = (os.environ.get(f"{prefix}_{what}", "").strip() for what in ("BASE_URL", "API_KEY"))
    if not (service and name):
        raise hopeless(model, "write openai-api/SERVICE/NAME")
    if not (url and key):
        raise hopeless(model, f"the environment variable {prefix}_{'API_KEY' if url else 'BASE_URL'} is not set")
    if not url.startswith(("http://", "https://")):
        raise hopeless(model, f"{prefix}_BASE_URL is no http address: {url}")
    asked = asking(model, settings)

    async def call(request: Request, choices: int) -> list[Response]:
        sent, with_system_turn = dict(asked.sent), asked.with_system_turn
        content = {"model": name, **sent, "messages": asked.messages(request)} | ({"n": choices} if choices > 1 else {})
        try:
            async with asyncio.timeout(settings.seconds):
                # `object`: the JSON as it is. The SDK's own type for it costs another 0.7 ms of CPU.
                return _responses(await client.post("/chat/completions", cast_to=object, body=content))
        except openai.APIStatusError as error:
            status, told = error.status_code, error.body
            message = told.get("message") if isinstance(told, Mapping) else None
            words = str(message or error.response.text)
            reason = f"HTTP {status}: {complaint(words)}"
            if status in REJECTED and asked.step_down(complaint(words, 2000), sent, with_system_turn):
                return await call(request, choices)
            if status in RETRIED or status >= 500:
                raise UnreachableError(reason, _seconds(error.response.headers.get("retry-after"))) from None
            raise RejectedError(reason) if status in REJECTED else hopeless(model, reason) from None
        except (TimeoutError, openai.APIConnectionError) as error:
            cause = error.__cause__ or error
            raise UnreachableError(complaint(f"{type(cause).__name__}: {cause or 'no answer in time'}")) from None
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = complaint(f"{type(error).__name__}: {error}")
            raise MalformedError(f"the response is not a chat completion ({reason})") from None

    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=settings.seconds) as client:
        yield call


def _responses(answer: Any) -> list[Response]:
    """The choices of a chat completion. Raises MalformedError if it has none, and other errors if it is none."""
    choices = answer["choices"]
    tokens = (answer.get("usage") or {}).get("completion_tokens") if len(choices) == 1 else None
    if not choices:
        raise MalformedError("the response has no choices")
    responses = []
    for choice in choices:
        message = choice["message"]
        text, thought = _parts(message.get("content") or message.get("refusal") or "")
        thought = message.get("reasoning_content") or message.get("reasoning") or thought
        positions = [
            (position.get("token"), {top["token"]: top["logprob"] for top in position.get("top_logprobs") or ()})
            for position in (choice.get("logprobs") or {}).get("content") or ()
        ]
        responses.append(_response(text, thought, choice.get("finish_reason") or "unknown", tokens, positions))
    return responses


def _parts(content: Any) -> tuple[str, str | None]:
    """Text and reasoning of a message's content, which is a text or a list of parts."""
    if isinstance(content, str):
        return content, None
    text, thought = "", ""
    for part in content:
        kind = part if isinstance(part, str) else part.get("type", "text")
        if isinstance(part, str):
            text += part
        elif kind in ("text", "output_text", "refusal"):
            text += part.get("text") or part.get("refusal") or ""
        elif kind in ("thinking", "reasoning"):
            inside = part.get(kind) or part.get("text") or ""
            thought += _parts(inside)[0]
    return text, thought or None


def _response(
    text: str,
    thought: str | None,
    stop_reason: str,
    tokens: int | None,
    positions: Sequence[tuple[str | None, Mapping[str, float]]],
) -> Response:
    """One choice as a response: the answer apart from its thought, and the probabilities of its first token.

    `thought`: told apart by the endpoint; None where it may stand in the text. `positions`: each token of the reply, if
    it is told, with log-probabilities of the likeliest in its place. They are used only where they belong to the
    visible reply: not to a thought, nor to another text.
    """
    in_text, answer = (None, text) if thought is not None else split_thought(text)
    told = "".join(token or "" for token, _ in positions).strip()
    visible = answer.strip()
    belongs = in_text is None and (visible.startswith(told) or told.startswith(visible)) and bool(visible)
    first = positions[0][1] if positions and belongs else {}
    thought = in_text if thought is None else thought.strip()
    if not visible and thought is None and stop_reason in CUT_OFF:
        thought = ""  # a thought that the endpoint does not show took all the tokens
    return Response(
        _printable(visible),
        stop_reason,
        tokens,
        {_printable(token): math.exp(logprob) for token, logprob in first.items()} or None,
        thought=thought if thought is None else _printable(thought),
    )


@asynccontextmanager
async def open_provider(model: str, settings: Settings) -> AsyncIterator[Endpoint]:
    """The endpoint of a model that Inspect knows. Raises SpilloverError if it does not, or if its key is missing."""
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import GenerateConfig, get_model

    def reason(error: BaseException) -> str:
        text = str(getattr(error, "provider_message", None) or error)
        text = re.sub(r"\[/?(bold|blue|link)[^\]]*\]", "", text).strip().removeprefix("ERROR: ")  # console markup
        return complaint(text if isinstance(error, PrerequisiteError) else f"{type(error).__name__}: {text}", 300)

    # Inspect's cache stays off: it knows neither weights nor ids, and would give one answer a hundred times.
    config = GenerateConfig(
        max_connections=settings.connections,
        max_retries=INSPECT_RETRIES,
        attempt_timeout=math.ceil(settings.seconds),
    )
    asked = asking(model, settings)
    try:
        provider: Any = get_model(model, config=config, memoize=False)
    except Exception as error:  # providers raise what they like
        raise hopeless(model, reason(error)) from None

    async def call(request: Request, choices: int) -> list[Response]:
        sent, with_system_turn = dict(asked.sent), asked.with_system_turn
        known = {"max_tokens" if name == "max_completion_tokens" else name: value for name, value in sent.items()}
        others = {name: known.pop(name) for name in [*known] if name not in GenerateConfig.model_fields}
        with_settings = GenerateConfig(num_choices=choices if choices > 1 else None, extra_body=others or None, **known)
        try:
            output = await provider.generate(inspect_messages(asked.messages(request)), config=with_settings)
        except PrerequisiteError as error:
            raise hopeless(model, reason(error)) from None
        except Exception as error:
            status, last = getattr(error, "status_code", None), getattr(error, "last_attempt", None)
            if last is not None:  # Inspect has tried often enough
                return [Response(error=reason(last.exception()))] * choices
            if status in REJECTED and asked.step_down(reason(error), sent, with_system_turn):
                return await call(request, choices)
            if status in REJECTED:
                raise RejectedError(reason(error)) from None
            if isinstance(status, int) and 400 <= status < 500 and status not in RETRIED:
                raise hopeless(model, reason(error)) from None
            raise UnreachableError(reason(error)) from None
        if output.error or not output.choices:
            raise MalformedError(complaint(output.error or "the response has no choices"))
        return inspect_responses(output)

    async with provider:
        yield call


def inspect_messages(messages: Sequence[Mapping[str, str]]) -> list[Any]:
    """Chat messages (`role`, `content`) as Inspect's."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds: dict[str, Any] = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }
    return [kinds[message["role"]](content=message["content"]) for message in messages]


def inspect_responses(output: Any) -> list[Response]:
    """The choices of Inspect's ModelOutput as responses."""
    tokens = output.usage.output_tokens if output.usage and len(output.choices) == 1 else None
    responses = []
    for choice in output.choices:
        content = choice.message.content
        thoughts = [] if isinstance(content, str) else [part.reasoning for part in content if part.type == "reasoning"]
        positions = [
            (position.token, {top.token: top.logprob for top in position.top_logprobs or ()})
            for position in (choice.logprobs.content if choice.logprobs else ())
        ]
        thought = "\n".join(thoughts) if thoughts else None
        responses.append(_response(choice.message.text, thought, choice.stop_reason, tokens, positions))
    return responses


def hopeless(model: str, reason: str) -> SpilloverError:
    """The error for what no retry mends."""
    return SpilloverError(
        f"model {model}: {reason.rstrip('.')}. Everything answered so far is kept; mend it and run again."
    )


def complaint(text: str, characters: int = 200) -> str:
    """What an endpoint says is wrong: on one line, cut, and without any key that the environment holds."""
    for name, value in os.environ.items():
        if name.endswith("_API_KEY") and len(value) >= SHORTEST_KEY:
            text = text.replace(value, "***")
    return _printable(" ".join(text.split()))[:characters]


def _printable(text: str) -> str:
    """The text as a file can hold it: half of a surrogate pair has no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _seconds(header: str | None) -> float | None:
    """The seconds of a Retry-After header; None if it is missing or a date, and the usual wait will do."""
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(header or "")))
    except ValueError:
        return None
