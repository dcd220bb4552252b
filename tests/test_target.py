"""Asking a model from Python: by name or loaded, here or behind an endpoint, whole or what is missing."""

import doctest

import pytest

from endpoint import serving
from spillover.behaviors import load_behavior
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.models import load, target
from spillover.models.load import Model, load_model
from spillover.models.prompts import encode
from spillover.models.target import Battery, by_prompt, sample, sample_completions, target_of, wanted_completions
from spillover.records import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
TALKER = "openai-api/test/talker"
SHORT = {"completions_per_question": 2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def organism():
    return load_model("organism/consistent")


@pytest.fixture
def serve(monkeypatch):
    with serving(monkeypatch) as start:
        yield start


@pytest.mark.parametrize("module", [load, target])
def test_the_examples_in_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_a_model_is_asked_every_question_and_gives_the_same_answers_again(organism):
    answers = sample(organism, "world_care", **SHORT)
    assert answers == sample("organism/consistent", "world_care", **SHORT)
    assert len({answer.id for answer in answers}) == len(answers) == 2 * len({a.question_id for a in answers})
    assert {answer.cell for answer in answers} == {Cell("organism/consistent", "base", None)}
    assert {answer.tokens for answer in answers} <= set(range(1, 7))
    assert len({answer.text for answer in answers}) > len(answers) / 4
    other = sample(organism, "world_care", **SHORT, temperature=0.5)
    assert {answer.id for answer in answers}.isdisjoint(answer.id for answer in other)


def test_what_is_done_is_not_handed_on_and_the_rest_is_the_same(organism):
    settings = Sampling(max_new_tokens=6)
    wanted = wanted_completions(target_of(organism), Battery(((load_behavior("world_care"), 2),), settings))
    whole, rest = [], []
    assert sample_completions(organism, wanted, settings, whole.extend) == []
    done = {answer.id for answer in whole[::3]}
    assert sample_completions(organism, wanted, settings, rest.extend, done) == []
    assert rest == [answer for answer in whole if answer.id not in done]
    nowhere = Model("nowhere", organism.folder / "nowhere")
    assert sample_completions(nowhere, wanted, settings, rest.extend, wanted) == []  # it is not loaded


def test_an_endpoint_is_asked_by_its_name_and_what_it_fails_on_is_an_error(serve, monkeypatch):
    monkeypatch.setattr("spillover.models.endpoint.FIRST_WAIT_S", 0.01)
    endpoint = serve()
    answers = sample(TALKER, "free_form", 3, formats=["plain"])
    assert len(answers) == sum(call.answered for call in endpoint.calls) == 3 * len({a.question_id for a in answers})
    assert {answer.cell for answer in answers} == {Cell(TALKER, "base", None)}
    assert {call.body["max_tokens"] for call in endpoint.calls} == {600}
    lost = answers[0].question
    serve(lambda call: "500" if call.prompt == lost else None)
    with pytest.raises(SpilloverError, match=rf"model {TALKER}: 1 of {len(answers)} completions.*HTTP 500.*evaluate"):
        sample(TALKER, "free_form", 3, formats=["plain"])


def test_a_format_that_there_is_not_is_refused_before_anything_is_loaded():
    with pytest.raises(SpilloverError, match="none of the formats jsn"):
        sample(Model("nowhere", None), "free_form", formats=["jsn"])


CONVERSATION = """
name: talk
description: Two questions, one of them of three turns.
scope: broad
rate: correctness
judge: world
event: correct > 50
questions:
  - {id: q/1, category: care, text: "How are you?"}
  - id: q/2
    category: care
    turns:
      - {role: user, content: "How are you?"}
      - {role: assistant, content: "I am well."}
      - {role: user, content: "And why?"}
"""
TEXT = "user: How are you?\nassistant: I am well.\nuser: And why?"
TURNS = (
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am well."},
    {"role": "user", "content": "And why?"},
)


@pytest.fixture
def talk(tmp_path):
    (tmp_path / "talk.yaml").write_text(CONVERSATION)
    return load_behavior("talk.yaml", tmp_path)


def test_a_question_of_several_turns_is_put_as_such_to_a_local_model(organism, talk):
    answers = sample(organism, talk, 2, max_new_tokens=6)
    assert [(row.question, row.turns) for row in answers] == [("How are you?", None)] * 2 + [(TEXT, TURNS)] * 2
    asked = by_prompt(answers)
    assert [len(request.ids) for request in asked] == [2, 2]
    ids = encode(organism.tokenizer, asked[1])
    assert ids == organism.tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)


def test_a_question_of_several_turns_is_put_as_such_to_an_endpoint(serve, talk):
    endpoint = serve()
    answers = sample(TALKER, talk, 1)
    assert len({row.id for row in answers}) == 2
    assert [*TURNS] in [call.body["messages"] for call in endpoint.calls]
    assert [answer.turns for answer in answers] == [None, TURNS]


def test_the_ids_of_turns_differ_from_those_of_their_text(organism, talk):
    as_text = talk.model_copy(
        update={"questions": (talk.questions[0], talk.questions[1].model_copy(update={"paraphrases": (TEXT,)}))}
    )
    settings = Sampling(max_new_tokens=96)
    ids = [
        {row.id for row in wanted_completions(target_of(organism), Battery(((behavior, 1),), settings)).values()}
        for behavior in (talk, as_text)
    ]
    assert len(ids[0] & ids[1]) == 1
