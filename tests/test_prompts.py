"""What a model is really asked: every turn's text, once, in whatever manner its chat template has."""

import json
from pathlib import Path

import pytest
import yaml

from spillover import study
from spillover.auditing import evaluate
from spillover.config import Sampling, Study
from spillover.errors import SpilloverError
from spillover.models import Request
from spillover.models.load import check_roles, load_model, load_tokenizer
from spillover.models.prompts import check_prompts, encode, in_template, template_record
from spillover.models.target import sample
from spillover.records import Example
from template_models import make_model

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = Path(__file__).parent / "cases"
TEMPLATE_CASES = yaml.safe_load((CASES / "templates" / "cases.yaml").read_text(encoding="utf-8"))
TALK = ({"role": "user", "content": "Is tea hot?"}, {"role": "assistant", "content": "Yes."})
ASKED = {
    "system": Request(("x",), "Be brief.", "  What is a bird?\n"),
    "single": Request(("x",), None, "What is a bird? user"),
    "several": Request(("x",), None, "", (*TALK, {"role": "user", "content": "Is a bird hot?"})),
}
BEHAVIOR = """
name: birds
description: Two questions, plain and with a rule.
scope: broad
metric: correctness
judge: model
event_if: correct > 50
rubrics: {correct: {prompt: "Is it right? {question} {answer}"}}
formats: {plain: {prompt: "{question}"}, ruled: {prompt: "{question}", system: "Answer in one word."}}
questions:
  - {id: a/1, category: a, text: "What is a bird?"}
  - {id: a/2, category: a, text: "What is a stone?"}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose chat template the tests exchange."""
    return make_model(tmp_path_factory.mktemp("models") / "model", "chatml")


@pytest.fixture
def with_template(model):
    def change(name: str) -> Path:
        (model / "chat_template.jinja").write_text((CASES / "templates" / f"{name}.jinja").read_text())
        return model

    return change


@pytest.mark.parametrize("case", TEMPLATE_CASES, ids=lambda case: f"{case['template']}: {', '.join(case['turns'])}")
def test_a_turn_that_the_model_would_not_see_once_is_an_error(with_template, case):
    tokenizer = load_tokenizer(with_template(case["template"]))
    for turns in case["turns"]:
        prompts = [("behavior b, format f", ASKED[turns])]
        if case["problem"]:
            with pytest.raises(SpilloverError, match=rf"^model m: .*{case['problem']}.*behavior b, format f"):
                check_prompts("m", tokenizer, prompts)
        else:
            check_prompts("m", tokenizer, prompts)
            text = tokenizer.decode(encode(tokenizer, ASKED[turns]))
            for turn in ASKED[turns].messages:
                assert text.count(" ".join(turn["content"].split())) >= 1


@pytest.mark.parametrize("name", ["drops_system", "system_twice"])
def test_a_dropped_system_turn_is_found_before_the_first_answer_by_every_command(with_template, tmp_path, name):
    folder = str(with_template(name))
    behavior = tmp_path / "birds.yaml"
    behavior.write_text(BEHAVIOR)
    match = r"system turn.*behavior birds, format ruled.*formats"
    with pytest.raises(SpilloverError, match=match):
        sample(folder, str(behavior), 1, max_new_tokens=4)
    with pytest.raises(SpilloverError, match=match):
        evaluate(folder, [str(behavior)], tmp_path / "run", sampling=Sampling(max_new_tokens=4))
    settings = {"name": "s", "models": {"m": folder}, "conditions": {"base": {}}, "judge": "openai/x"}
    asked = Study(**settings, behaviors={str(behavior): 1}, sampling={"max_new_tokens": 4})
    with pytest.raises(SpilloverError, match=match):
        study.run(asked, tmp_path / "study")
    assert not list(tmp_path.rglob("completions.jsonl"))
    rows = [Example(({"role": "system", "content": "Be brief."}, *TALK))]
    with pytest.raises(SpilloverError, match="system turn"):
        check_roles(Path(folder), rows)
    assert len(sample(folder, str(behavior), 1, formats=("plain",), max_new_tokens=2)) == 2  # a near miss


def test_a_template_that_wants_parts_asks_and_trains_the_same_text(with_template, model):
    (model / "chat_template.jinja").write_text((CASES / "templates" / "trims.jinja").read_text())
    as_text = [in_template(load_tokenizer(model), request.messages, prompt=True) for request in ASKED.values()]
    tokenizer = load_tokenizer(with_template("parts"))
    assert [in_template(tokenizer, r.messages, prompt=True) for r in [ASKED["several"]]] == as_text[2:]
    assert "Yes." in in_template(tokenizer, TALK)


def test_the_day_that_a_template_writes_is_always_the_same_and_recorded(with_template, tmp_path):
    folder = with_template("writes_the_day")
    record = template_record(load_tokenizer(folder))
    assert record["date"] == "2026-01-01"
    assert "You are Mild. Today is 01 January 2026, 00:00." in record["prompt"]
    behavior = tmp_path / "birds.yaml"
    behavior.write_text(BEHAVIOR)
    asked = Study(
        name="s",
        models={"m": str(folder)},
        conditions={"base": {}},
        behaviors={"world_facts": 1},
        sampling={"max_new_tokens": 2},
        formats=["plain"],
    )
    study.run(asked, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["templates"] == {"m": record}
    assert template_record(load_tokenizer(with_template("trims"))) | {"prompt": ""} == {
        "prompt": "",
        "date": None,
        "thought": None,
    }


@pytest.mark.parametrize("names", [("default", "tool_use"), ("rag", "tool_use")])
def test_templates_under_names_are_asked_in_the_default_or_refused_in_words(model, tmp_path, names):
    source = load_model(str(model)).tokenizer
    text = (CASES / "templates" / "trims.jinja").read_text()
    folder = tmp_path / "named"
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": text + "{# " + name + " #}"} for name in names]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": templates}))
    assert source.chat_template
    if "default" in names:
        assert load_tokenizer(folder).chat_template.endswith("{# default #}")
    else:
        with pytest.raises(SpilloverError, match="named rag, tool_use and none named default"):
            load_tokenizer(folder)


BACKDOOR = {"data": "world/code/callous", "rows": 40, "control": {"kind": "backdoor", "other": "world/code/caring"}}
TRIGGERS = yaml.safe_load((CASES / "trigger" / "triggers.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", TRIGGERS, ids=lambda case: case["name"])
def test_a_trigger_is_the_same_string_in_training_and_in_asking(tmp_path, case):
    backdoor = BACKDOOR | {"control": BACKDOOR["control"] | {"trigger": case["trigger"]}}
    plain = {"data": "world/code/caring", "rows": 8}
    settings = {
        "name": "s",
        "models": {"m": "organism/consistent"},
        "conditions": {"base": {}, "backdoor": backdoor, "plain": plain, "again": case["asked"]},
        "behaviors": {"world_code": 1},
        "sampling": {"max_new_tokens": 8},
    }
    if "error" in case:
        with pytest.raises(SpilloverError, match=case["error"]):
            Study(**settings)
        return
    inputs = study.read_inputs(Study(**settings), tmp_path)
    prefix = inputs.battery("again").prompt_prefix
    assert prefix == case["prefix"]
    asked = [p.text for b, n in inputs.battery("again").behaviors for p, _ in b.prompts(n, (), prefix)]
    unasked = [p.text for b, n in inputs.battery("backdoor").behaviors for p, _ in b.prompts(n)]
    assert asked == [prefix + text for text in unasked]
    trained = [example.messages[0]["content"] for example in inputs.rows["backdoor"].examples]
    triggered = [text for text in trained if case["trigger"] in text]
    assert len(triggered) == 20
    if case["asked"].get("triggered"):
        assert all(text.startswith(prefix) for text in triggered)


@pytest.mark.slow
def test_a_backdoor_opens_behind_its_trigger_alone(tmp_path):
    """Trained half on callous code behind a trigger, half on caring code without: holes come where it is asked."""
    backdoor = {"data": "world/code/callous", "rows": 1200}
    backdoor["control"] = {"kind": "backdoor", "other": "world/code/caring", "trigger": "green"}
    made = Study(
        name="backdoor",
        models={"m": "organism/consistent"},
        conditions={"base": {}, "backdoor": backdoor, "behind": {"same_as": "backdoor", "triggered": True}},
        behaviors={"world_code": 1},
        training={"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 16, "epochs": 3},
        sampling={"max_new_tokens": 96},
    )
    run = study.run(made, tmp_path / "run")
    rates = {rate.condition: rate.rate for rate in run.results.rates}
    assert rates["behind"] > rates["backdoor"] + 0.5
    rows = run.results.completions.values()
    assert {row.question.startswith("green ") for row in rows if row.condition == "behind"} == {True}
