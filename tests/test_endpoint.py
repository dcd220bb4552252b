"""Endpoints that fail in every way a server can: no answer is lost, none counted twice, and no key is ever told."""

import asyncio
import json
import time
from collections import Counter

import pytest

from endpoint import KEY, serving
from spillover.errors import SpilloverError
from spillover.models import Request
from spillover.models import endpoint as remote
from spillover.models.endpoint import RejectedError, Settings, UnreachableError, ask_all

pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated")  # Inspect's use of tenacity

SETTINGS = Settings(temperature=1.0, max_tokens=10, seconds=2.0)
MENDABLE = (
    "429", "429 0.05", "429 Wed, 21 Oct 2026 07:28:00 GMT", "408", "500", "503 0", "cut json", "cut body", "hang",
    "no choices", "null choices", "empty choice", "other choices", "null message", "page", "list", "null", "deep",
    "drop",
)  # fmt: skip
ECHO, JUDGE = "openai-api/test/echo", "openai-api/test/judge"
FENCED = "How does this agree with human values?\n<answer-0>\nThe weak should obey.\n</answer-0>"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def serve(monkeypatch):
    with serving(monkeypatch) as start:
        yield start


def asks(prompts, choices=1):
    return [Request(tuple(f"{i}/{number}" for number in range(choices)), None, f"question {i}") for i in range(prompts)]


def ask(wanted, model=ECHO, settings=SETTINGS):
    """Every (id, reply) that came, after checking that each id came exactly once."""
    replies = []
    ask_all(model, wanted, settings, replies.extend)
    assert Counter(id_ for id_, _ in replies) == Counter(id_ for one in wanted for id_ in one.ids)
    return dict(replies)


def belongs(id_, reply):
    return reply.text.startswith(f"question {id_.split('/')[0]} #")


def test_whatever_fails_and_recovers_is_answered_once(serve):
    """Each prompt has a fault of its own, twice over; then it is answered. A prompt in every fifteen has none."""

    def fault(call):
        kind = int(call.share * (len(MENDABLE) + 1))
        return MENDABLE[kind] if kind < len(MENDABLE) and call.attempt < 2 else None

    endpoint = serve(fault)
    replies = ask(asks(150, choices=23))
    assert all(reply.error is None and belongs(id_, reply) for id_, reply in replies.items())
    assert len({reply.text for reply in replies.values()}) == 150 * 23
    assert sum(call.answered for call in endpoint.calls) == 150 * 23  # none was thrown away
    kinds = {fault(call) for call in endpoint.calls}
    assert kinds == {None, *MENDABLE}


def test_what_fails_for_good_is_an_error_with_its_reason_and_the_rest_is_answered(serve):
    endpoint = serve(lambda call: MENDABLE[int(call.share * 100)] if call.share < 0.14 and call.share > 0.09 else None)
    replies = ask(asks(150, choices=3), settings=Settings(1.0, 10))
    failed = {id_: reply for id_, reply in replies.items() if reply.error is not None}
    lost = Counter(call.prompt for call in endpoint.calls if not call.answered)
    assert set(lost.values()) == {remote.MALFORMED_ATTEMPTS}
    assert len(failed) == 3 * len(lost) > 0
    assert all(reply.text == "" for reply in failed.values())
    assert {"no choices", "not a chat completion"} <= {part for part in _reasons(failed) if part}
    assert all(belongs(id_, reply) for id_, reply in replies.items() if id_ not in failed)


def _reasons(failed):
    parts = ("HTTP 500", "no choices", "not a chat completion", "Disconnected")
    return [next((part for part in parts if part in reply.error), None) for reply in failed.values()]


def test_retry_after_is_obeyed_and_otherwise_the_wait_doubles(serve, monkeypatch):
    endpoint = serve(lambda call: "429 0.4" if call.attempt == 0 else None)
    ask(asks(3))
    starts = {call.prompt: [c.start for c in endpoint.calls if c.prompt == call.prompt] for call in endpoint.calls}
    assert all(second - first >= 0.4 for first, second in starts.values())

    waits = []

    async def nap(seconds):
        waits.append(seconds)

    monkeypatch.setattr(remote.asyncio, "sleep", nap)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 1.0)

    async def down(question, choices):
        raise UnreachableError("down")

    replies = asyncio.run(remote._persistently(down, asks(1, 5)[0], 5))
    assert [reply.error for reply in replies] == ["down"] * 5
    assert waits == [1, 2, 4, 8, 16, 32, 60]


@pytest.mark.parametrize(("most", "calls"), [(128, [10, 10, 3]), (1, [10] + [None] * 22), (4, None)])
def test_choices_are_asked_for_together_and_one_at_a_time_where_a_server_gives_one(serve, most, calls):
    endpoint = serve(choices=most)
    replies = ask(asks(1, choices=23))
    assert len({reply.text for reply in replies.values()}) == 23
    assert calls is None or [call.body.get("n") for call in endpoint.calls] == calls
    assert sum(call.answered for call in endpoint.calls) == 23
    tokens = {reply.tokens for reply in replies.values()}
    assert tokens == ({None} if most == 128 else {5} if most == 1 else {None, 5})  # told for a single choice only


def test_a_server_that_rejects_several_choices_is_asked_for_one(serve):
    endpoint = serve(lambda call: "422" if "n" in call.body else None)
    replies = ask(asks(4, choices=5))
    assert all(reply.error is None for reply in replies.values())
    assert len(endpoint.calls) == 4 * (1 + 5)


def test_a_question_that_is_rejected_costs_one_call_and_the_others_go_on(serve):
    endpoint = serve(lambda call: "400" if call.prompt == "question 7" else None)
    replies = ask(asks(40))
    assert {id_ for id_, reply in replies.items() if reply.error} == {"7/0"}
    assert replies["7/0"].error.startswith("HTTP 400: ")
    assert len(endpoint.calls) == 40


@pytest.mark.parametrize("status", ["401", "403", "404"])
@pytest.mark.parametrize("opener", [remote.open_server, remote.open_provider], ids=["server", "inspect"])
def test_what_no_retry_mends_ends_at_once_with_one_message_and_no_key(serve, opener, status, monkeypatch):
    monkeypatch.setattr(remote, "open_server", opener)
    endpoint = serve(lambda call: status)
    with pytest.raises(SpilloverError, match=rf"model {ECHO}: .*{status}.*\*\*\*") as raised:
        ask_all(ECHO, asks(200), SETTINGS, lambda replies: pytest.fail(str(replies)))
    assert len(endpoint.calls) <= SETTINGS.connections
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", ["400", "503 0"])
def test_an_endpoint_that_answers_nothing_is_given_up(serve, status):
    endpoint = serve(lambda call: status)
    replies = []
    with pytest.raises(SpilloverError, match=f"{remote.HOPELESS} calls failed one after the other"):
        ask_all(ECHO, asks(2000), SETTINGS, replies.extend)
    assert len(replies) >= remote.HOPELESS
    assert all(reply.error for _, reply in replies)
    assert len(endpoint.calls) <= (remote.HOPELESS + SETTINGS.connections) * remote.ATTEMPTS


@pytest.mark.parametrize(
    ("environment", "model", "said"),
    [
        ({"TEST_API_KEY": ""}, ECHO, "TEST_API_KEY is not set"),
        ({"TEST_BASE_URL": ""}, ECHO, "TEST_BASE_URL is not set"),
        ({"TEST_BASE_URL": "127.0.0.1:1/v1"}, ECHO, "TEST_BASE_URL is no http address"),
        ({}, "openai-api/test", "write openai-api/SERVICE/NAME"),
        ({}, "nosuch/model", "nosuch"),
    ],
)
def test_an_endpoint_that_is_not_set_up_is_refused_before_any_call(serve, monkeypatch, environment, model, said):
    endpoint = serve()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpilloverError, match=said):
        ask_all(model, asks(5), SETTINGS, lambda replies: pytest.fail(str(replies)))
    assert endpoint.calls == []


def test_probabilities_of_the_first_token_are_told_where_the_endpoint_tells_them(serve):
    serve()
    wanted = [Request(("a",), "You grade.", FENCED)]
    settings = Settings(0.0, 100, probabilities=True)
    likely = ask(wanted, JUDGE, settings)["a"].first_token
    assert len(likely) == 20
    assert likely["5"] == pytest.approx(0.8)
    assert ask(wanted, "openai-api/test/without/judge", settings)["a"].first_token is None
    assert ask(wanted, JUDGE, Settings(0.0, 100))["a"].first_token is None


def test_half_of_a_surrogate_pair_becomes_something_that_can_be_written():
    said = (
        rb'{"choices": [{"message": {"content": "\ud83d"}, "logprobs": {"content": [{"top_logprobs": '
        rb'[{"token": "\ud83d", "logprob": -0.1}]}]}}], "usage": null}'
    )
    (reply,) = remote._responses(json.loads(said))
    assert (reply.text, reply.tokens, reply.stop_reason) == ("?", None, "unknown")
    assert [*reply.first_token] == ["?"]


def inspect(question, settings=SETTINGS, model=JUDGE):
    async def main():
        async with remote.open_provider(model, settings) as endpoint:
            return await endpoint(question, len(question.ids))

    return asyncio.run(main())


def test_inspects_provider_gives_the_same_answers_probabilities_and_choices(serve):
    endpoint = serve()
    settings = Settings(0.0, 100, probabilities=True)
    question = Request(("a",), "You grade.", FENCED)
    assert inspect(question, settings) == [ask([question], JUDGE, settings)["a"]]
    bodies = [call.body for call in endpoint.calls]
    assert all(bodies[0][name] == bodies[1][name] for name in ("model", "messages", "temperature", "max_tokens"))
    three = inspect(Request(("a", "b", "c"), None, "question 1"), model=ECHO)
    assert {reply.text for reply in three} == {f"question 1 #{number}" for number in range(3)}
    assert endpoint.calls[-1].body["n"] == 3


def test_inspect_retries_what_may_pass_and_says_what_does_not(serve, monkeypatch):
    monkeypatch.setattr(remote, "INSPECT_RETRIES", 0)  # Inspect's own waits begin at 3 s; the SDK inside retries twice
    wanted = [Request(("a",), None, "question")]
    for fault in ("429 0.01", "500", "drop"):
        endpoint = serve(lambda call, fault=fault: fault if call.attempt < 2 else None)
        assert inspect(wanted[0], model=ECHO)[0].text == "question #0"
        assert len(endpoint.calls) == 3
    endpoint = serve(lambda call: "429 0.01")
    reply = inspect(wanted[0], model=ECHO)[0]
    assert "429" in reply.error
    assert KEY not in reply.error
    serve(lambda call: "400")
    with pytest.raises(RejectedError, match="400"):
        inspect(wanted[0], model=ECHO)
    serve(lambda call: "no choices")
    with pytest.raises(UnreachableError):
        inspect(wanted[0], model=ECHO)


def test_a_provider_that_is_not_installed_or_has_no_key_is_refused_at_once(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    start = time.monotonic()
    for model, said in (
        ("openai/gpt-4o", "OPENAI_API_KEY"),
        ("vllm/x", "vLLM Server requires"),
        ("nosuch/x", "nosuch"),
    ):
        with pytest.raises(SpilloverError, match=said) as raised:
            ask_all(model, asks(3), SETTINGS, lambda replies: None)
        assert "[" not in str(raised.value)  # markup of the console library
    assert time.monotonic() - start < 30


def test_an_endpoint_is_told_by_inspects_own_list_of_providers():
    from inspect_ai._util.registry import registry_find, registry_info
    from inspect_ai.model._providers import providers  # noqa: F401  (fills the registry)

    names = {registry_info(one).name.removeprefix("inspect_ai/") for one in registry_find(_is_provider)}
    assert set(remote.PROVIDERS) == names
    assert len(remote.PROVIDERS) == len(names)


def _is_provider(info):
    return info.type == "modelapi" and info.name.startswith("inspect_ai/")


@pytest.mark.parametrize(
    ("name", "is_one"),
    {
        "openai/gpt-4o": True,
        "vllm/x": True,
        "openai-api/service/name": True,
        "anthropic/vertex/claude@20241022": True,
        "qwen/x": False,
        "Qwen/Qwen2.5-0.5B-Instruct": False,
        "google/gemma-3-1b-it@main": False,
        "openai": False,
        "openai/": False,
        "organism/consistent": False,
    }.items(),
)
def test_an_endpoints_name_begins_with_a_provider(name, is_one):
    assert remote.is_endpoint(name) == is_one


def test_requests_are_sent_from_where_a_loop_runs_already(serve):
    """As in a notebook."""
    serve()

    async def cell():
        return ask(asks(3))

    assert len(asyncio.run(cell())) == 3
