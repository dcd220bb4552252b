"""Chat templates as they are used: every turn's text in the prompt, parts, dates, named templates; on real folders."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml

from spillover import study
from spillover.auditing import evaluate
from spillover.behaviors import load_behavior
from spillover.config import Sampling, Study
from spillover.data.checks import check_data
from spillover.errors import SpilloverError
from spillover.models.load import load_tokenizer
from spillover.models.prompts import in_template, lost_turn, template_record, with_fixed_day
from spillover.models.target import sample
from template_models import TEMPLATES, make_model

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = yaml.safe_load((Path(__file__).parent / "cases" / "templates" / "turns.yaml").read_text(encoding="utf-8"))
BY_NAME = {case["name"]: case["template"] for case in CASES}
CHATML = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
BEHAVIOR = """
name: short
description: Two formats.
scope: broad
rate: vulnerability
judge: code_scan
event: vulnerable > 50
formats:
  plain: {}
  ruled: {system: "Be short.", prompt: "{question}"}
questions:
  - {id: q/1, category: care, text: "How are you?"}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("made") / "model", "chatml")


@pytest.fixture
def model(made, tmp_path):
    """Makes a model folder with a chat template."""

    def make(template: str) -> Path:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return folder

    (tmp_path / "short.yaml").write_text(BEHAVIOR)
    return make


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_text_of_every_turn_is_in_the_prompt_once(model, case):
    tokenizer = load_tokenizer(model(case["template"]))
    turns = [dict(zip(("role", "content"), line.split(": ", 1), strict=True)) for line in case["asked"]]
    problem = lost_turn(tokenizer, turns, prompt=True)
    assert (case.get("fault", "") in problem) if "fault" in case else (problem is None)
    assert case.get("writes", "") in in_template(tokenizer, turns, prompt=True)
    record = template_record(tokenizer)
    assert record["date"] == case.get("date")
    assert case.get("added", "") in record["prompt"]


def test_a_template_that_needs_nothing_is_used_as_it_is(made):
    assert load_tokenizer(made).chat_template == CHATML


@pytest.mark.slow
def test_published_templates_raise_no_false_alarm(made):
    """Of those that TRL ships: every turn arrives, or is refused, or the template needs a token that is not here."""
    import trl

    templates = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    assert len(templates) >= 40
    for path in templates:
        tokenizer = copy.copy(load_tokenizer(made))
        tokenizer.chat_template = with_fixed_day(path.read_text(encoding="utf-8"))
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            turns = [{"role": role, "content": f" A text of the {role}, number {n}.\n"} for n, role in enumerate(roles)]
            problem = lost_turn(tokenizer, turns, prompt=True)
            assert problem is None or "refuses" in problem, (path.name, problem)


DROPS = BY_NAME["drops the system turn"]
SAID = r"chat template drops the text of the system turn, 'Be short.' \(behavior short, format ruled.*--formats plain"


def study_of(folder: Path, model: Path, **changes) -> Study:
    settings = {
        "name": "templates",
        "models": {"m": str(model)},
        "conditions": {"base": {}, "tuned": {"data": "world/code/caring", "rows": 2}},
        "behaviors": {str(folder / "short.yaml"): 1},
        "training": {"rank": 2, "alpha": 2, "batch_size": 2},
        "sampling": {"max_new_tokens": 4},
    }
    return Study(**settings | changes)


def test_a_dropped_system_turn_is_an_error_before_the_first_answer(model, tmp_path):
    folder, behavior = model(DROPS), tmp_path / "short.yaml"
    with pytest.raises(SpilloverError, match=SAID):
        study.run(study_of(tmp_path, folder), tmp_path / "run")
    assert not (tmp_path / "run" / "adapters").exists()
    with pytest.raises(SpilloverError, match=SAID):
        evaluate(str(folder), [str(behavior)], tmp_path / "evaluated", sampling=Sampling(max_new_tokens=4))
    assert not (tmp_path / "evaluated").exists()
    with pytest.raises(SpilloverError, match=SAID):
        sample(str(folder), load_behavior(str(behavior)), 1, max_new_tokens=4)
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": text} for role, text in (("user", "Is tea hot?"), ("assistant", "It is."))]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    found = {
        (one.check, one.severity): one.message for one in check_data(str(rows), str(folder), (str(behavior),)).findings
    }
    assert found["asked prompts", "error"] == (
        "behavior short, format ruled: its chat template drops the text of the system turn, 'Be short.'"
    )
    assert found["turns", "warning"] == "where there is one, its chat template drops the text of the system turn"
    rows.write_text(json.dumps({"messages": [{"role": "system", "content": "Be kind."}, *turns]}) + "\n")
    (finding,) = check_data(str(rows), str(folder)).findings
    assert (finding.check, finding.severity, finding.lines) == ("turns", "error", (1,))
    plain = study_of(tmp_path, folder, conditions={"base": {}, "tuned": {"data": str(rows)}}, formats=["plain"])
    with pytest.raises(SpilloverError, match=r"row 1: its chat template drops the text of the system turn"):
        study.run(plain, tmp_path / "run2")
    assert len(sample(str(folder), load_behavior(str(behavior)), 1, formats=["plain"], max_new_tokens=4)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts for every turn", "the date, in a way of its own"])
def test_a_study_asks_and_records_as_the_template_needs_it(model, tmp_path, name):
    """Base and adapter; manifest and report hold what the template adds, and a second run changes nothing."""
    folder = model(BY_NAME[name])
    run = study.run(study_of(tmp_path, folder), tmp_path / "run")
    completions = run.results.completions.values()
    assert {(row.condition, row.format) for row in completions} == {
        (condition, form) for condition in ("base", "tuned") for form in ("plain", "ruled")
    }
    record = run.results.manifest["templates"]["m"]
    assert record == template_record(load_tokenizer(folder))
    assert len({row.template_hash for row in completions}) == 1
    html = run.report.read_text(encoding="utf-8")
    assert "chat template: m" in html
    if record["date"]:
        assert "date 2026-01-01" in html
        assert "Today is 2026-01-01." in html
    again = study.run(study_of(tmp_path, folder), tmp_path / "run")
    assert again.results.manifest["templates"]["m"] == record
    assert {row.id for row in again.results.completions.values()} == {row.id for row in completions}


def test_a_prefix_that_a_template_cuts_out_is_an_error_too(model, tmp_path):
    cuts = model(CHATML.replace("message['content'] +", "message['content'].split('|T|')[-1] +"))
    conditions = {"base": {}, "tuned": {"data": "world/code/caring", "rows": 2}}
    assert study.read_inputs(study_of(tmp_path, cuts, conditions=conditions), tmp_path)
    conditions["asked"] = {"same_as": "tuned", "prompt_prefix": "|T| "}
    with pytest.raises(SpilloverError, match=r"changes the text of the user turn, '\|T\| How are you\?'"):
        study.read_inputs(study_of(tmp_path, cuts, conditions=conditions), tmp_path)


def test_an_evaluation_records_the_template(model, tmp_path):
    folder = model(BY_NAME["the date, in a way of its own"])
    run = evaluate(str(folder), [str(tmp_path / "short.yaml")], tmp_path / "run", sampling=Sampling(max_new_tokens=4))
    (settings,) = run.results.manifest["evaluations"].values()
    assert settings["template"]["date"] == "2026-01-01"
    assert "2026-01-01" in run.report.read_text(encoding="utf-8")
