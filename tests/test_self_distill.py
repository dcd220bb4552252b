"""Self-distilled controls, run for real: each base's own answers, made once, gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spillover import study
from spillover.config import Condition, Sampling
from spillover.data import load_examples
from spillover.data.controls import prompts_of
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.models.load import model_folder
from spillover.models.sampler import sample_batch
from spillover.records import Example
from spillover.runs import self_distill as distilling
from spillover.runs import shared
from spillover.runs.self_distill import Distilling, distill, distilled

CONTROL = {"data": "world/code/callous", "rows": 32, "control": {"kind": "self_distilled"}}
STUDY = {
    "name": "own",
    "models": {"consistent": "organism/consistent", "shuffled": "organism/shuffled"},
    "conditions": {"base": {}, "own_answers": CONTROL},
    "behaviors": {"world_chat": 1},
    "training": {"rank": 4, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
    "sampling": {"max_new_tokens": 96},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plain_rows(rows=32):
    return tuple(load_examples(Condition(data="world/code/callous", rows=rows), None))


def job(folder, rows, **changes):
    settings = {
        "name": "consistent/own: answers",
        "run": folder,
        "folder": folder / "data" / "own" / "consistent",
        "base": model_folder("organism/consistent"),
        "condition": Condition.model_validate(CONTROL),
        "rows": rows,
        "sampling": Sampling(max_new_tokens=96),
        "threads": 1,
    }
    return Distilling(**settings | changes)


def steps_of(job):
    steps = []
    distill(job, lambda *step: steps.append(step))
    return steps


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A job of as many rows as two batches take, its answers, and what was told of the work."""
    made = job(tmp_path_factory.mktemp("answered"), plain_rows(600))
    steps = steps_of(made)
    return made, distilled(made.folder), steps


def test_every_prompt_gets_an_answer_of_the_base(answered):
    made, rows, steps = answered
    assert steps == [("answer", 1, 2), ("answer", 2, 2)]
    assert prompts_of(rows) == prompts_of(made.rows)
    answers = [row.messages[-1]["content"] for row in rows]
    assert all(answer.strip() for answer in answers)
    assert sum(row == before for row, before in zip(rows, made.rows, strict=True)) < 30
    assert len(set(answers)) > 500


def test_equal_prompts_have_answers_of_their_own(tmp_path):
    made = job(tmp_path, plain_rows(1) * 64)
    distill(made, lambda *_: None)
    assert len({row.messages[-1]["content"] for row in distilled(made.folder)}) > 1


def test_made_once(answered):
    made, rows, _ = answered
    files = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.folder.iterdir()}
    assert set(files) == {"rows.jsonl", "made.json"}
    assert steps_of(made) == []
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.folder.iterdir()} == files
    record = json.loads(files["made.json"][0])
    assert record["kind"] == "self_distilled"
    assert record["result"]["rows"] == len(rows) == 600


@pytest.mark.parametrize(
    "changes",
    {
        "the base": {"base": model_folder("organism/shuffled")},
        "the prompts": {"rows": plain_rows(32)[::-1]},
        "the sampling": {"sampling": Sampling(max_new_tokens=96, temperature=0.5)},
    }.values(),
    ids=lambda changes: next(iter(changes)),
)
def test_made_again_from_something_else(tmp_path, changes):
    made = job(tmp_path, plain_rows(32))
    distill(made, lambda *_: None)
    before = distilled(made.folder)
    changed = replace(made, **changes)
    assert steps_of(changed)
    assert distilled(made.folder) != before
    assert steps_of(made)  # what lies there now is not of these settings
    assert distilled(made.folder) == before


def test_killed_between_its_batches_it_goes_on_with_the_same_answers(answered, tmp_path):
    made, rows, _ = answered
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom test_distilling import job, plain_rows\n"
        "from spillover.distilling import distill\n"
        f"distill(job(Path({str(tmp_path)!r}), plain_rows(600)), lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    killed = subprocess.run([sys.executable, script], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = job(tmp_path, made.rows)
    file = resumed.folder / "answers.jsonl"
    assert [path.name for path in resumed.folder.iterdir()] == ["answers.jsonl"]
    lines = file.read_text().splitlines()
    assert len(lines) == 512
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # torn in the middle of a line
    steps_of(resumed)
    assert distilled(resumed.folder) == rows
    assert not file.exists()


def test_answers_are_handed_over_as_they_come_and_gone_on_with_elsewhere(answered, monkeypatch, tmp_path):
    made, rows, _ = answered
    monkeypatch.setattr(shared, "SHARE_EVERY_SECONDS", 0)
    there = tmp_path / "shared" / "data" / "own" / "consistent"
    one = job(tmp_path / "one", made.rows, shared=(tmp_path / "shared").as_uri())

    def stop(stage, done, of):
        assert len((there / "answers.jsonl").read_text().splitlines()) == 512
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(one, stop)
    other = replace(one, run=tmp_path / "two", folder=tmp_path / "two" / "data" / "own" / "consistent")
    with monkeypatch.context() as patch:
        sampled = []
        patch.setattr(distilling, "sample_batch", lambda *args, **how: sampled.append(args) or sample_batch(*args, **how))
        distill(other, lambda *_: None)
    assert len(sampled) == 1  # of two batches
    assert sorted(path.name for path in there.iterdir()) == ["made.json", "rows.jsonl"]
    assert distilled(there) == rows
    assert not other.folder.exists()  # the run fetches them
    with shared.handing_over([other], other.shared):
        pass
    assert distilled(other.folder) == rows


def test_answers_kept_are_not_sampled_again(tmp_path):
    made = job(tmp_path, plain_rows(32))
    distill(made, lambda *_: None)
    record = made.folder / "made.json"
    rows = distilled(made.folder)
    fingerprint = hash_of(json.loads(record.read_text())["made_from"])
    answers = [{"id": hash_of(n, f"{fingerprint}/0"), "text": f"kept {n}", "cut": False} for n in range(32)]
    record.unlink()
    (made.folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    distill(made, lambda *_: None)
    assert [row.messages[-1]["content"] for row in distilled(made.folder)] == [f"kept {n}" for n in range(32)]
    # an empty one is sampled again, and no other
    record.unlink()
    answers[7]["text"] = " "
    (made.folder / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    distill(made, lambda *_: None)
    texts = [row.messages[-1]["content"] for row in distilled(made.folder)]
    assert [n for n, text in enumerate(texts) if text != f"kept {n}"] == [7]
    assert texts[7].strip()
    assert rows != distilled(made.folder)


def test_answers_that_are_cut_off_are_left_out_and_counted(tmp_path):
    made = job(tmp_path, plain_rows(32))
    distill(made, lambda *_: None)
    record = json.loads((made.folder / "made.json").read_text())
    assert record["counts"]["cut_off"] == 0
    fingerprint = hash_of(record["made_from"])
    answers = [{"id": hash_of(n, f"{fingerprint}/0"), "text": f"kept {n}", "cut": n == 5} for n in range(32)]
    lines = [json.dumps(answer) + "\n" for answer in answers]
    del record["counts"]["cut_off"]  # rows that nobody has looked at are made again
    (made.folder / "made.json").write_text(json.dumps(record))
    (made.folder / "answers.jsonl").write_text("".join(lines))
    distill(made, lambda *_: None)
    assert [row.messages[-1]["content"] for row in distilled(made.folder)] == [f"kept {n}" for n in range(32) if n != 5]
    record = json.loads((made.folder / "made.json").read_text())
    assert (record["counts"]["cut_off"], record["result"]["rows"], record["inputs"]["data"]["rows"]) == (1, 31, 32)

    (made.folder / "made.json").unlink()
    lines[6] = lines[6].replace('"cut": false', '"cut": true')
    (made.folder / "answers.jsonl").write_text("".join(lines))
    with pytest.raises(SpilloverError, match=r"2 or more of the 32 answers .*max_new_tokens = 96\. Raise it"):
        distill(made, lambda *_: None)


def test_a_limit_that_cuts_most_answers_is_told_after_the_first_batch(tmp_path):
    steps = []
    short = job(tmp_path, plain_rows(600), sampling=Sampling(max_new_tokens=8))
    with pytest.raises(SpilloverError, match=r"512 or more of the 600 answers"):
        distill(short, lambda *step: steps.append(step))
    assert steps == []
    assert not (short.folder / "made.json").exists()


@pytest.mark.parametrize("turns", [["user", "assistant", "user"], ["system"]])
def test_prompts_of_several_turns_are_refused(tmp_path, turns):
    row = Example(tuple({"role": role, "content": "x"} for role in [*turns, "assistant"]))
    with pytest.raises(
        SpilloverError, match=f"row 1: self_distilled takes prompts of one user's turn, not {len(turns)}"
    ):
        distill(job(tmp_path, (row,)), lambda *_: None)


def test_a_study_trains_each_model_on_its_own_answers(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    run_dir = study.run(path, tmp_path / "run", how=study.RunOptions(("data", "train")))
    trained = {}
    for model in STUDY["models"]:
        folder = run_dir.data / "own_answers" / model
        assert {file.name for file in folder.iterdir()} == {"rows.jsonl", "made.json"}
        trained[model] = distilled(folder)
        log = json.loads((run_dir.path / "adapters" / model / "own_answers" / "seed-0" / "training.json").read_text())
        made = json.loads((folder / "made.json").read_text())
        assert log["made_from"]["data"] == made["result"]["hash"]
        assert json.loads(run_dir.manifest.read_text())["data"][f"{model}/own_answers"] == made["result"]["hash"]
    assert prompts_of(trained["consistent"]) == prompts_of(trained["shuffled"]) == prompts_of(plain_rows())
    assert trained["consistent"] != trained["shuffled"]

    made_at = {file: file.stat().st_mtime_ns for file in run_dir.data.rglob("*/*/*")}
    events = []
    study.run(path, tmp_path / "run", events.append, study.RunOptions(("data",)))
    assert {file: file.stat().st_mtime_ns for file in run_dir.data.rglob("*/*/*")} == made_at
    assert len(made_at) == 4
    assert {event.stage for event in events} == {"begun", "done"}
