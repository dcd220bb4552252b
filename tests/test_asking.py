"""What endpoints are asked with and what they answer: refused settings, thoughts, probabilities, failed canaries."""

import json
import math
from pathlib import Path

import pytest
import yaml

import endpoint as server
from endpoint import serving
from spillover.auditing import evaluate, rescore
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.judges.canary import check_judge
from spillover.judges.scoring import AS_JUDGE
from spillover.models import Request, asking
from spillover.models import endpoint as remote
from spillover.models.asking import NEUTRAL, Settings, asked_with
from spillover.records import Completion, read_appended
from spillover.runs.folder import RunFolder

CASES = Path(__file__).parent / "cases" / "endpoint"
REPLIES = yaml.safe_load((CASES / "replies.yaml").read_text(encoding="utf-8"))
REFUSALS = yaml.safe_load((CASES / "refusals.yaml").read_text(encoding="utf-8"))
JUDGE, TALKER = "openai-api/test/judge", "openai-api/test/talker"


@pytest.fixture
def serve(monkeypatch):
    with serving(monkeypatch) as start:
        yield start


@pytest.mark.parametrize("case", REPLIES, ids=lambda case: case["name"])
def test_a_reply_is_read_apart_from_its_thought_and_its_probabilities_are_its_own(case):
    message = dict(case["message"])
    stop_reason = message.pop("finish_reason", "stop")
    positions = [{"token": token, "top_logprobs": [{"token": token, "logprob": -0.1}]} for token in case["tokens"]]
    choice = {"message": message, "finish_reason": stop_reason, "logprobs": {"content": positions}}
    (response,) = remote._responses({"choices": [choice]})
    assert (response.text, response.thought) == (case["text"], case["thought"])
    assert (response.first_token is not None) is case["used"]
    if case["used"]:
        assert response.first_token == {case["tokens"][0]: pytest.approx(math.exp(-0.1))}


def refusing(case):
    """A server that refuses a setting in the words of a case, as long as it is sent."""

    def fault(call):
        sent = call.body | ({"system": True} if call.body["messages"][0]["role"] == "system" else {})
        asked = case["refused"] in sent and case.get("value", sent[case["refused"]]) == sent[case["refused"]]
        if case["refused"] == "top_p":
            asked = asked and "temperature" in sent
        return f"refuses {case['says']}" if case["refused"] is None or asked else None

    return fault


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case["says"][:50])
def test_what_a_judge_refuses_is_left_out_and_recorded(serve, case):
    endpoint = serve(refusing(case))
    responses = {}
    answer = f"<answer-x>\n{server.HOSTILE}\n</answer-x>"
    wanted = [Request((str(number),), "You grade.", f"{answer} {number}") for number in range(40)]
    remote.ask_all(JUDGE, wanted, AS_JUDGE, lambda pairs: responses.update(pairs))
    record = asked_with(JUDGE, AS_JUDGE)
    if case["left_out"] is None:
        assert record["left_out"] == {}
        assert all(case["says"][:100] in response.error for response in responses.values())
        assert len(endpoint.calls) == 40  # a request that is at fault is asked once
        return
    assert sorted(record["left_out"]) == sorted(case["left_out"])
    assert all(response.error is None and response.text == "5" for response in responses.values())
    last = endpoint.calls[-1].body
    sent = {name: last[name] for name in last if name not in ("model", "messages")}
    assert sent == record["sent"]
    assert {"max_tokens", "max_completion_tokens"} & sent.keys()
    if case["left_out"] == ["system turn"]:
        assert endpoint.calls[-1].body["messages"][0]["role"] == "user"
        assert "You grade." in endpoint.calls[-1].prompt
    before = len(endpoint.calls)
    remote.ask_all(JUDGE, wanted[:1], AS_JUDGE, lambda pairs: None)
    assert len(endpoint.calls) == before + 1  # what was learned is kept


def test_a_system_turn_of_a_measured_model_is_never_moved(serve):
    serve(refusing(next(case for case in REFUSALS if case["refused"] == "system")))
    responses = {}
    remote.ask_all(TALKER, [Request(("a",), "Be brief.", "Hello")], Settings(1.0, 9), lambda new: responses.update(new))
    assert "system" in responses["a"].error


def test_every_setting_that_decides_the_distribution_is_sent_and_recorded(serve, tmp_path):
    """End to end: a server that knows no top_k, a judge that has no log-probabilities."""

    def fault(call):
        if call.model == "talker":
            return "refuses Unrecognized request argument supplied: top_k" if "top_k" in call.body else None
        return "refuses logprobs is not supported" if "logprobs" in call.body else None

    endpoint, lines = serve(fault), []
    settings = {"completions_per_question": 1, "formats": ["plain"], "sampling": Sampling(max_new_tokens=50)}
    evaluate(TALKER, ["free_form"], tmp_path, judge=JUDGE, log=lines.append, **settings)
    folder = RunFolder(tmp_path)
    (evaluation,) = folder.read_manifest()["evaluations"].values()
    sent = {"temperature": 1.0, "max_tokens": 50} | NEUTRAL
    del sent["top_k"]
    assert evaluation["asked"]["sent"] == sent
    assert "top_k" in evaluation["asked"]["left_out"]["top_k"]
    assert sent.items() <= endpoint.of("talker")[-1].body.items()
    judge = json.loads(folder.judges.read_text())[JUDGE]["asked"]
    assert set(judge["left_out"]) == {"logprobs", "top_logprobs"}
    assert [("talker" in line, "top_k" in line, "logprobs" in line) for line in lines] == [
        (False, False, True),
        (True, True, False),
    ]
    assert {json.loads(score.reply)["read"] for score in read_scores(folder) if score.outcome == "scored"} == {"number"}
    evaluate(TALKER, ["free_form"], tmp_path, judge=JUDGE, **settings)  # nothing is asked, and the record stays
    asking._ASKED.clear()
    evaluate(TALKER, ["free_form"], tmp_path, judge=JUDGE, **settings)
    assert folder.read_manifest()["evaluations"].popitem()[1]["asked"]["sent"] == sent


def read_scores(folder):
    from spillover.records import Score

    return read_appended(folder.scores, Score)


def thinker(prompt: str, number: int) -> dict:
    """A model that thinks in a field of its own, and now and then so long that no answer comes."""
    if len(prompt) % 3 == 0:
        return {"content": None, "reasoning": server.HOSTILE, "finish_reason": "length"}
    return {"content": server.GOOD, "reasoning": server.HOSTILE}


def test_the_answer_of_an_endpoint_is_judged_without_its_thought_and_one_that_never_came_is_cut_off(
    serve, tmp_path, monkeypatch
):
    monkeypatch.setitem(server.MODELS, "thinker", thinker)
    serve()
    settings = {"completions_per_question": 3, "formats": ["plain"], "sampling": Sampling(max_new_tokens=50)}
    run = evaluate("openai-api/test/thinker", ["free_form"], tmp_path, judge=JUDGE, **settings)
    (rate,) = run.results.rates
    cut = sum(len(row.question) % 3 == 0 for row in run.results.completions.values())
    assert 0 < cut < rate.completions
    assert (rate.k, rate.n, rate.cut_off, rate.off_format, rate.unparsed) == (0, rate.completions - cut, cut, cut, 0)
    assert rate.thoughts == rate.completions
    rows = read_appended(RunFolder(tmp_path).completions, Completion)
    assert {(row.text, row.thought) for row in rows} == {(server.GOOD, server.HOSTILE), ("", server.HOSTILE)}


def talkative(prompt, number):
    return "What a fine question, I would say that it depends."


def harsh(prompt, number):
    """Tells good answers from bad ones, and is hard on all of them."""
    said, _ = server.keyword_judge(prompt, number)
    return {"95": "60", "5": "0"}.get(said, said)


def endless(prompt, number):
    return {"content": None, "reasoning_content": "Let me see. " * 9, "finish_reason": "length"}


def backwards(prompt, number):
    said, _ = server.keyword_judge(prompt, number)
    return {"95": "5", "5": "95"}.get(said, said)


CANARY = {  # judge -> (what it says, or the fault of all its calls; words of the reason; whether trust may help)
    "talkative": (talkative, "30 of 30 replies hold no grade, for example 'What a fine question", False),
    "endless": (endless, "since the thought before them takes all 2048 tokens", False),
    "fifty": (server.fifty, "bad answers 50 and good ones 50 .*does not tell them apart", False),
    "backwards": (backwards, "bad answers 95 and good ones 5 .*does not tell them apart", False),
    "harsh": (harsh, r"bad answers 0 and good ones 60 .*\(good\) got 60", True),
    "down": ("500 0", "30 calls failed .*HTTP 500", False),
    "refusing": ("refuses no such thing", "30 calls failed .*no such thing", False),
    "sound": (server.keyword_judge, None, False),
    "without/sound": (server.keyword_judge, None, False),
}


@pytest.mark.parametrize("name", CANARY)
def test_the_canary_says_why_and_names_trust_only_where_it_can_help(serve, monkeypatch, tmp_path, name):
    says, reason, trust = CANARY[name]
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0)
    monkeypatch.setitem(server.MODELS, name.removeprefix("without/"), says)
    serve((lambda call: says) if isinstance(says, str) else (lambda call: None))
    judge = f"openai-api/test/{name}"
    if reason is None:
        check_judge(judge, tmp_path / "judges.json")
        return
    with pytest.raises(SpilloverError, match=rf"^judge {judge}: fails its canary.*{reason}") as raised:
        check_judge(judge, tmp_path / "judges.json")
    assert ("--trust-judge" in str(raised.value)) is trust
    check_judge(judge, tmp_path / "judges.json", trust_judge=True)


def test_a_judge_asked_again_says_what_it_was_asked_without(serve, tmp_path):
    serve(lambda call: "refuses temperature is not supported" if "temperature" in call.body else None)
    settings = {"completions_per_question": 1, "formats": ["plain"], "sampling": Sampling(max_new_tokens=50)}
    with pytest.raises(SpilloverError, match="no behavior"):
        rescore(evaluate(TALKER, ["free_form"], tmp_path, **settings).path, JUDGE, behaviors=["x"])
    lines = []
    rescore(tmp_path, JUDGE, log=lines.append)
    assert len(lines) == 1
    assert "temperature" in lines[0]
