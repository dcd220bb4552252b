"""The limit of new tokens: a study states it, and the message proposes a number from the study's training answers."""

import json
from pathlib import Path

import pytest
import yaml

from spillover import study
from spillover.config import Study
from spillover.errors import SpilloverError
from spillover.runs.inputs import read_study

CASES = yaml.safe_load((Path(__file__).parent / "cases" / "cut_off" / "limits.yaml").read_text(encoding="utf-8"))


def written(folder: Path, case) -> Path:
    answers = [" ".join(["tea"] * words) for count, words in case["answers"] for _ in range(count)]
    rows = [
        {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": answer}]}
        for n, answer in enumerate(answers)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "limits",
        "models": {"m": "organism/consistent"},
        "conditions": {"base": {}} | ({"tuned": {"data": "rows.jsonl"}} if rows else {}),
        "behaviors": {"world_facts": 1},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content | ({"sampling": case["sampling"]} if case["sampling"] else {})))
    return path


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_study_states_the_limit_or_is_told_one(tmp_path, case):
    path, changes = written(tmp_path, case), tuple(case.get("changes", ()))
    if "proposes" not in case and "says" not in case:
        read_study(path, changes)
        return
    with pytest.raises(SpilloverError) as caught:
        study.run(path, tmp_path / "run", options=study.RunOptions(changes=changes))
    message = str(caught.value)
    assert not (tmp_path / "run").exists()
    assert case.get("says", f"{path}: sampling.max_new_tokens is missing") in message
    if "proposes" in case:
        assert "600" in message
        proposed = f"{case['proposes']} tokens hold 99 % of the training answers"
        assert (proposed in message) is (case["proposes"] is not None)
        assert ("tokens hold" in message) is (case["proposes"] is not None)


def test_a_study_made_in_python_states_it_too():
    with pytest.raises(SpilloverError, match=r"^sampling\.max_new_tokens is missing: .* 600 "):
        Study(name="x", models={"m": "organism/consistent"}, conditions={"base": {}}, behaviors={"world_facts": 1})
