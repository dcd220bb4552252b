"""Self-distilled controls, run for real: each base's own answers, made once, gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spillover import study
from spillover.config import Condition, Sampling
from spillover.data import file_examples, load_examples
from spillover.data.controls import prompts_of
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.models.load import model_folder
from spillover.records import Example, to_line
from spillover.runs.self_distill import DistillJob, check_prompts, distill

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
    prompts = folder / "data" / "own.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(map(to_line, rows)))
    settings = {
        "folder": folder,
        "name": "consistent/own: answers",
        "prompts": prompts.relative_to(folder),
        "prompts_hash": hash_of(prompts_of(rows)),
        "rows": Path("data") / "own" / "consistent.jsonl",
        "base": model_folder("organism/consistent"),
        "condition": Condition.model_validate(CONTROL),
        "sampling": Sampling(max_new_tokens=96),
    }
    return DistillJob(**settings | changes)


def answers_file(job):
    return job.folder / job.unfinished[0]


def record_of(job):
    return json.loads((job.folder / job.record).read_text())


def distilled(job):
    return tuple(file_examples(job.folder / job.rows))


def steps_of(job):
    steps = []
    distill(job, lambda *step: steps.append(step))
    return steps


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A job of as many rows as two batches take, its prompts, its answers, and the steps of the work."""
    prompts = plain_rows(600)
    done = job(tmp_path_factory.mktemp("answered"), prompts)
    steps = steps_of(done)
    return done, prompts, distilled(done), steps


def test_every_prompt_gets_an_answer_of_the_base(answered):
    _, prompts, rows, steps = answered
    assert steps == [("answer", 1, 2), ("answer", 2, 2)]
    assert prompts_of(rows) == prompts_of(prompts)
    answers = [row.messages[-1]["content"] for row in rows]
    assert all(answer.strip() for answer in answers)
    assert sum(row == before for row, before in zip(rows, prompts, strict=True)) < 30
    assert len(set(answers)) > 500


def test_equal_prompts_have_answers_of_their_own(tmp_path):
    done = job(tmp_path, plain_rows(1) * 64)
    distill(done, lambda *_: None)
    assert len({row.messages[-1]["content"] for row in distilled(done)}) > 1


def files_of(job):
    files = [path for path in (job.folder / job.rows).parent.iterdir() if not path.name.startswith(".")]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_answered_once(answered):
    done, _, rows, _ = answered
    files = files_of(done)
    assert set(files) == {"consistent.jsonl", "consistent.made.json"}
    assert steps_of(done) == []
    assert files_of(done) == files
    record = record_of(done)
    assert record["kind"] == "self_distilled"
    assert record["result"]["rows"] == len(rows) == 600
    assert done.rows_hash() == record["result"]["hash"] == hash_of([row.messages for row in rows])


@pytest.mark.parametrize("change", ["the base", "the prompts", "the sampling"])
def test_answered_again_from_something_else(tmp_path, change):
    prompts = plain_rows(32)
    done = job(tmp_path, prompts)
    distill(done, lambda *_: None)
    before = distilled(done)
    changes = {
        "the base": {"base": model_folder("organism/shuffled")},
        "the prompts": {},
        "the sampling": {"sampling": Sampling(max_new_tokens=96, temperature=0.5)},
    }
    changed = job(tmp_path, prompts[::-1] if change == "the prompts" else prompts, **changes[change])
    assert changed.rows_hash() is None
    assert steps_of(changed)
    assert distilled(done) != before
    assert steps_of(job(tmp_path, prompts))  # what lies there now is not of these settings
    assert distilled(done) == before


def test_killed_between_its_batches_it_goes_on_with_the_same_answers(answered, tmp_path):
    _, prompts, rows, _ = answered
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom test_self_distill import job, plain_rows\n"
        "from spillover.runs.self_distill import distill\n"
        f"distill(job(Path({str(tmp_path)!r}), plain_rows(600)), lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    killed = subprocess.run([sys.executable, script], env=environment, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = job(tmp_path, prompts)
    file = answers_file(resumed)
    assert set(files_of(resumed)) == {file.name}
    lines = file.read_text().splitlines()
    assert len(lines) == 512
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # torn in the middle of a line
    steps_of(resumed)
    assert distilled(resumed) == rows
    assert not file.exists()


def kept_answers(job, rows, **changes):
    """Answers on file, as of a job that was killed: "kept 0", "kept 1", ...; `changes`: (number, field) -> value."""
    decided_by = hash_of(job.decided_by)
    answers = [{"id": hash_of(n, f"{decided_by}/0"), "text": f"kept {n}", "cut": False} for n in range(rows)]
    for number, change in changes.get("at", {}).items():
        answers[number] |= change
    answers_file(job).write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def test_answers_kept_are_not_sampled_again(tmp_path):
    done = job(tmp_path, plain_rows(32))
    distill(done, lambda *_: None)
    rows = distilled(done)
    (done.folder / done.record).unlink()
    kept_answers(done, 32)
    distill(done, lambda *_: None)
    assert [row.messages[-1]["content"] for row in distilled(done)] == [f"kept {n}" for n in range(32)]
    # an empty one is sampled again, and no other
    (done.folder / done.record).unlink()
    kept_answers(done, 32, at={7: {"text": " "}})
    distill(done, lambda *_: None)
    texts = [row.messages[-1]["content"] for row in distilled(done)]
    assert [n for n, text in enumerate(texts) if text != f"kept {n}"] == [7]
    assert texts[7].strip()
    assert rows != distilled(done)


def test_answers_that_are_cut_off_are_left_out_and_counted(tmp_path):
    done = job(tmp_path, plain_rows(32))
    distill(done, lambda *_: None)
    assert record_of(done)["counts"]["cut_off"] == 0
    (done.folder / done.record).unlink()
    kept_answers(done, 32, at={5: {"cut": True}})
    distill(done, lambda *_: None)
    assert [row.messages[-1]["content"] for row in distilled(done)] == [f"kept {n}" for n in range(32) if n != 5]
    record = record_of(done)
    assert (record["counts"]["cut_off"], record["result"]["rows"], record["inputs"]["data"]["rows"]) == (1, 31, 32)

    (done.folder / done.record).unlink()
    kept_answers(done, 32, at={5: {"cut": True}, 6: {"cut": True}})
    with pytest.raises(SpilloverError, match=r"2 or more of the 32 answers .*max_new_tokens = 96\. Raise it"):
        distill(done, lambda *_: None)


def test_a_limit_that_cuts_most_answers_is_told_after_the_first_batch(tmp_path):
    steps = []
    short = job(tmp_path, plain_rows(600), sampling=Sampling(max_new_tokens=8))
    with pytest.raises(SpilloverError, match=r"512 or more of the 600 answers"):
        distill(short, lambda *step: steps.append(step))
    assert steps == []
    assert short.rows_hash() is None


@pytest.mark.parametrize("turns", [["user", "assistant", "user"], ["system"]])
def test_prompts_of_several_turns_are_refused(turns):
    row = Example(tuple({"role": role, "content": "x"} for role in [*turns, "assistant"]))
    with pytest.raises(
        SpilloverError, match=f"row 1: self_distilled takes prompts of one user's turn, not {len(turns)}"
    ):
        check_prompts([row])


def test_a_study_trains_each_model_on_its_own_answers(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    run = study.run(path, tmp_path / "run", options=study.RunOptions(("data", "train")))
    rows = {}
    manifest = json.loads((run.path / "manifest.json").read_text())
    for model in STUDY["models"]:
        folder = run.path / "data" / "own_answers"
        rows[model] = file_examples(folder / f"{model}.jsonl")
        log = json.loads((run.path / "adapters" / model / "own_answers" / "seed-0" / "training.json").read_text())
        record = json.loads((folder / f"{model}.made.json").read_text())
        assert log["made_from"]["data"] == record["result"]["hash"]
        assert manifest["data"][f"{model}/own_answers"] == record["result"]["hash"]
    assert prompts_of(rows["consistent"]) == prompts_of(rows["shuffled"]) == prompts_of(plain_rows())
    assert rows["consistent"] != rows["shuffled"]

    written_at = {file: file.stat().st_mtime_ns for file in run.path.rglob("data/own_answers/[!.]*.json*")}
    events = []
    study.run(path, tmp_path / "run", on_progress=events.append, options=study.RunOptions(("data",)))
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("data/own_answers/[!.]*.json*")} == written_at
    assert len(written_at) == 4
    assert events == []
