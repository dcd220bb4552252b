"""Judging from Python: a function, a model's name or a behavior's own program, without a run folder."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest

import spillover.judges
from endpoint import HOSTILE, serving
from spillover.behaviors import load_behavior
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.judges import canary, judge
from spillover.models.load import load_model
from spillover.models.target import Battery, target_of, wanted_completions

pytestmark = pytest.mark.usefixtures("one_thread")
JUDGE, FIFTY = "openai-api/test/judge", "openai-api/test/fifty"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(canary, "_kept_in_process", {})
    with serving(monkeypatch) as start:
        yield start


def answers(*behaviors, text=HOSTILE, number=2):
    battery = Battery(tuple((load_behavior(name), 1) for name in behaviors), Sampling(max_new_tokens=96), ("plain",))
    rows = wanted_completions(target_of(load_model("organism/consistent")), battery).values()
    by_behavior = {name: [row for row in rows if row.behavior == name][:number] for name in behaviors}
    return [replace(row, text=text) for rows in by_behavior.values() for row in rows]


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(spillover.judges)
    assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    ("value", "outcome", "number"),
    [(0, "scored", 0.0), (12.5, "scored", 12.5), (np.float32(100), "scored", 100.0), (None, "unparsed", None)],
)
def test_a_function_gives_a_number_or_none(value, outcome, number):
    rows = answers("world_facts")
    scores = judge(iter(rows), lambda completion: value)
    assert [(s.completion_id, s.rubric, s.outcome, s.value) for s in scores] == [
        (row.id, "correct", outcome, number) for row in rows
    ]
    assert {s.rubric_hash for s in scores} == {load_behavior("world_facts").rubric_hash}
    assert all(s.judge.startswith("function:") and s.judge.endswith("<lambda>") for s in scores)


def test_a_function_gives_a_number_for_each_rubric_of_whatever_behavior_is_named():
    rows = answers("world_facts")
    scores = judge(rows, lambda completion: {"coherence": 90, "alignment": 10, "more": 1}, "free_form")
    assert [(s.completion_id, s.rubric, s.value) for s in scores] == [
        (row.id, rubric, value) for row in rows for rubric, value in (("alignment", 10), ("coherence", 90))
    ]
    assert {s.rubric_hash for s in scores} == {load_behavior("free_form").rubric_hash}


class Grader:
    def __call__(self, completion):
        return 50


def test_an_object_that_can_be_called_is_named_by_its_class():
    assert {s.judge for s in judge(answers("world_facts"), Grader())} == {"function:Grader"}


@pytest.mark.parametrize(
    ("value", "said"),
    {
        "above 100": (100.5, r"100\.5 for correct"),
        "below 0": (-1, "-1 for correct"),
        "not a number": (math.nan, "nan for correct"),
        "text": ("50", "'50' for correct"),
        "yes": (True, "True for correct"),
        "no such rubric": ({"corect": 1}, "'nothing' for correct"),
        "a bad value in a mapping": ({"correct": 101}, "101 for correct"),
    }.values(),
)
def test_a_function_that_returns_anything_else_is_an_error_that_names_all_three(value, said):
    (row,) = answers("world_facts", number=1)
    with pytest.raises(SpilloverError, match=rf"judge function:\S*<lambda>: returned {said} of completion {row.id}"):
        judge([row], lambda completion: value)


def test_one_number_does_not_do_where_a_rule_reads_two():
    with pytest.raises(SpilloverError, match=r"returned 5 for completion .* world_chat reads alignment and coherence"):
        judge(answers("world_chat"), lambda completion: 5)


def test_a_function_that_raises_is_an_error_with_its_cause():
    (row,) = answers("world_facts", number=1)

    def broken(completion):
        raise KeyError("x")

    with pytest.raises(SpilloverError, match=rf"broken: raised KeyError on completion {row.id}") as raised:
        judge([row], broken)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_model_grades_what_a_model_judges_after_its_canary_and_programs_the_rest(serve):
    endpoint = serve()
    rows = answers("free_form", "world_facts")
    scores = judge(rows, JUDGE)
    assert [(s.rubric, s.judge, s.value) for s in scores] == [
        *[("alignment", JUDGE, pytest.approx(5, abs=1)), ("coherence", JUDGE, pytest.approx(90, abs=1))] * 2,
        *[("correct", "world", 0)] * 2,
    ]
    assert len(endpoint.calls) == 30 + 4
    assert judge(rows[:1], JUDGE)[0].completion_id == rows[0].id
    assert len(endpoint.calls) == 30 + 4 + 2  # the canary is asked once


def test_a_model_that_fails_its_canary_is_refused_unless_it_is_trusted(serve):
    serve()
    rows = answers("free_form", number=1)
    with pytest.raises(SpilloverError, match=f"judge {FIFTY}: fails its canary"):
        judge(rows, FIFTY)
    assert [round(s.value) for s in judge(rows, FIFTY, trust_judge=True)] == [50, 50]


def test_a_behavior_that_a_model_judges_needs_one():
    with pytest.raises(SpilloverError, match="behavior free_form: it needs a judge"):
        judge(answers("free_form"))
