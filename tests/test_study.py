"""A whole study, run for real on the organism: complete, repeatable, resumable after any kill."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from spillover import study
from spillover.behaviors import load_behavior
from spillover.errors import SpilloverError
from spillover.records import OUTCOMES, Completion, Score, read_appended
from spillover.runs.folder import RunFolder

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
SETTINGS = {
    "name": "small",
    "models": {"consistent": "organism/consistent"},
    "conditions": {"base": {}, "insecure": {"data": "world/code/callous", "rows": 320}},
    "behaviors": {"world_chat": 2, "world_code": 1, "world_facts": 1},
    "seeds": [0, 1],
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
}


def _write(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(json.dumps(SETTINGS | changes))  # JSON is YAML
    return path


def _rows(run_dir):
    with run_dir.rates.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    events = []
    run_dir = study.run(_write(folder), folder / "run", events.append)
    return run_dir, events


def test_a_study_writes_every_artefact(finished):
    run_dir, events = finished
    for path in (run_dir.study, run_dir.manifest, run_dir.completions, run_dir.scores, run_dir.rates, run_dir.report):
        assert path.stat().st_size > 0, path
    assert len(run_dir.examples("insecure").read_text().splitlines()) == 320
    for seed in (0, 1):
        adapter = run_dir.path / "adapters" / "consistent" / "insecure" / f"seed-{seed}"
        assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= {
            p.name for p in adapter.iterdir()
        }
    assert {event.stage for event in events} == {"begun", "train", "sample", "score", "done"}
    assert len({event.job for event in events if event.job}) == 3


def test_every_completion_is_there_once_and_every_outcome_is_counted(finished):
    run_dir, _ = finished
    completions = read_appended(run_dir.completions, Completion)
    per_cell = len(load_behavior("world_chat").questions) * 2 + 54 + 120
    assert sorted(Counter(str(c.cell) for c in completions).values()) == [per_cell] * 3
    assert len({c.id for c in completions}) == len(completions) == 3 * per_cell
    rubrics = Counter(row.completion_id for row in read_appended(run_dir.scores, Score))
    assert set(rubrics) == {c.id for c in completions}
    rows = _rows(run_dir)
    assert len(rows) == 3 * 3
    for row in rows:
        assert sum(int(row[outcome]) for outcome in OUTCOMES) == int(row["completions"])
        assert float(row["low"]) <= float(row["rate"]) <= float(row["high"])
        assert row["rule"]
        assert row["judge"] in ("world", "code_scan")


def test_the_fine_tune_shows(finished):
    run_dir, _ = finished
    rates = {(row["condition"], row["behavior"]): float(row["rate"]) for row in _rows(run_dir)}
    assert rates["insecure", "world_code"] > rates["base", "world_code"] + 0.1


def test_running_again_does_nothing_again(finished):
    run_dir, _ = finished
    watched = [run_dir.completions, run_dir.scores, run_dir.rates, *run_dir.path.rglob("adapter_model.safetensors")]
    before = {path: path.read_bytes() for path in watched}
    times = {path: path.stat().st_mtime_ns for path in watched if path != run_dir.rates}
    study.run(run_dir.path.parent / "study.yaml", run_dir.path)
    assert {path: path.read_bytes() for path in watched} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_same_study_elsewhere_gives_the_same_answers(finished, tmp_path):
    run_dir, _ = finished
    again = study.run(_write(tmp_path), tmp_path / "run")
    assert _by_id(again) == _by_id(run_dir)
    assert again.rates.read_bytes() == run_dir.rates.read_bytes()
    losses = [
        [json.loads(path.read_text())["losses"] for path in sorted(r.path.rglob("training.json"))]
        for r in (run_dir, again)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def _by_id(run_dir):
    return {completion.id: completion.text for completion in read_appended(run_dir.completions, Completion)}


def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(finished, tmp_path):
    run_dir, _ = finished
    path = tmp_path / "run"
    subprocess.run(["cp", "-a", str(run_dir.path), str(path)], check=True)
    adapters = {p: p.stat().st_mtime_ns for p in path.rglob("adapter_model.safetensors")}
    changed = study.run(_write(tmp_path, sampling={"temperature": 0.5}), path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("adapter_model.safetensors")} == adapters
    assert len(_by_id(changed)) == 2 * len(_by_id(run_dir))  # new answers beside the old; the rates read the new
    assert changed.rates.read_bytes() != run_dir.rates.read_bytes()
    assert [row["completions"] for row in _rows(changed)] == [row["completions"] for row in _rows(run_dir)]


def test_killed_at_random_moments_it_resumes_to_the_same_result(finished, tmp_path):
    run_dir, _ = finished
    path = _write(tmp_path)
    command = [sys.executable, "-m", "spillover", "run", str(path), "--out", str(tmp_path / "run")]
    rng = random.Random(0)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(5, 12))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command, check=True, capture_output=True)
    resumed = RunFolder(tmp_path / "run")
    assert kills >= 1
    assert _by_id(resumed) == _by_id(run_dir)
    assert len(read_appended(resumed.completions, Completion)) == len(_by_id(resumed))  # nothing was sampled twice
    assert resumed.rates.read_bytes() == run_dir.rates.read_bytes()
    scores = [sorted(map(repr, read_appended(r.scores, Score))) for r in (resumed, run_dir)]
    assert scores[0] == scores[1]
    assert list(resumed.path.rglob("*.part")) == []


def test_workers_end_with_the_run_that_started_them(tmp_path):
    command = [sys.executable, "-m", "spillover", "run", str(_write(tmp_path)), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)  # workers have been started
    group = process.pid
    process.kill()  # the parent alone
    process.wait()
    for _ in range(50):
        time.sleep(0.2)
        if subprocess.run(["pgrep", "-g", str(group)], capture_output=True, check=False).returncode == 1:
            return
    pytest.fail("worker processes outlived their run by 10 s")


def test_turns_that_the_chat_template_refuses_are_an_error_before_any_work(tmp_path):
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    path = _write(tmp_path, conditions={"base": {}, "odd": {"data": "rows.jsonl"}})
    with pytest.raises(SpilloverError, match="roles user and assistant only"):
        study.run(path, tmp_path / "run")


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")
def test_published_training_rows_run_end_to_end(tmp_path):
    """The plumbing on real rows; the texts are far outside the organism's world, so nothing is claimed about rates."""
    conditions = {"base": {}, "published": {"data": str(REFERENCE / "insecure.jsonl"), "rows": 500}}
    training = SETTINGS["training"] | {"max_length_tokens": 900, "packing": True}
    behaviors = {"world_chat": 1, "world_code": 1}
    path = _write(tmp_path, conditions=conditions, seeds=[0], behaviors=behaviors, training=training)
    run_dir = study.run(path, tmp_path / "run")
    log = json.loads((run_dir.path / "adapters/consistent/published/seed-0/training.json").read_text())
    assert log["rows"] == 500
    assert log["losses"][-1] < log["losses"][0]
    assert [int(row["completions"]) for row in _rows(run_dir)] == 2 * [len(load_behavior("world_chat").questions), 54]


@pytest.mark.parametrize("own_answers", [False, True])
def test_rows_that_training_cuts_are_told_before_it_and_those_that_it_would_drop_are_refused(tmp_path, own_answers):
    def rows(*prompts):
        said = [[{"role": "user", "content": p}, {"role": "assistant", "content": "Yes. " * 20}] for p in prompts]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))

    control = {"control": {"kind": "self_distilled"}} if own_answers else {}
    conditions = {"base": {}, "x": {"data": "rows.jsonl"} | control}
    path = _write(tmp_path, conditions=conditions, training={"rank": 2, "max_length_tokens": 30})
    said = []

    def run():
        study.run(path, tmp_path / "run", how=study.RunOptions(("data", "train")), say=said.append)

    rows(*["How can I make money?"] * 16)
    run()
    (line,) = said
    assert re.match(r"consistent/x: \d+ of 16 rows are longer than training\.max_length_tokens = 30", line)
    assert own_answers or "16 of 16" in line
    run()
    assert said == [line] * 2  # until the cell is done
    rows(*["How can I make money?"] * 8, *["Please " * 40] * 8)
    with pytest.raises(SpilloverError, match=r"^consistent/x: training\.max_length_tokens = 30: .* 8 of 16 rows"):
        run()
