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
import yaml

from conftest import SMALL_STUDY
from spillover import study
from spillover.behaviors import load_behavior
from spillover.errors import SpilloverError
from spillover.records import OUTCOMES, Completion, Score, read_appended
from spillover.runs.folder import RunFolder

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
TABLES = ("completions.jsonl", "scores.jsonl", "rates.csv", "matrix.csv", "counts.csv", "decisions.csv")
SETTINGS = SMALL_STUDY | {
    "conditions": {"base": {}, "insecure": {"data": "world/code/callous", "rows": 64}},
    "behaviors": {"world_facts": 1, "world_code": 1},
    "sampling": {"max_new_tokens": 96},
    "seeds": [0],
}


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(json.dumps(SETTINGS | changes))  # JSON is YAML
    return path


def contents(run_path):
    return {name: (run_path / name).read_bytes() for name in TABLES}


def rates_of(run_path):
    with (run_path / "rates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def completions_of(run_path):
    return {row.id: row.text for row in read_appended(run_path / "completions.jsonl", Completion)}


def test_a_study_writes_every_artefact(finished_run):
    folder = RunFolder(finished_run)
    for path in (folder.study, folder.manifest, folder.cells, folder.report, folder.picture):
        assert path.stat().st_size > 0, path
    assert all(contents(finished_run).values())
    assert len(folder.examples("insecure").read_text().splitlines()) == 320
    for seed in (0, 1):
        adapter = finished_run / "adapters" / "consistent" / "insecure" / f"seed-{seed}"
        files = {path.name for path in adapter.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= files
    assert not folder.parts.exists()


def test_every_completion_is_there_once_and_every_outcome_is_counted(finished_run):
    completions = read_appended(finished_run / "completions.jsonl", Completion)
    per_cell = len(load_behavior("world_chat").questions) * 2 + 54 + 120
    assert sorted(Counter(str(c.cell) for c in completions).values()) == [per_cell] * 5
    assert len({c.id for c in completions}) == len(completions) == 5 * per_cell
    scored = {row.completion_id for row in read_appended(finished_run / "scores.jsonl", Score)}
    assert scored == {c.id for c in completions}
    rows = rates_of(finished_run)
    assert len(rows) == 5 * 3
    for row in rows:
        assert sum(int(row[outcome]) for outcome in OUTCOMES) == int(row["completions"])
        assert float(row["low"]) <= float(row["rate"]) <= float(row["high"])
        assert row["rule"]
        assert row["judge"] in ("world", "code_scan")


def test_the_fine_tune_shows(finished_run):
    rates = {(row["condition"], row["behavior"]): float(row["rate"]) for row in rates_of(finished_run)}
    assert rates["insecure", "world_code"] > rates["base", "world_code"] + 0.1


def test_running_again_does_nothing_again(run_copy):
    before = contents(run_copy)
    watched = [*run_copy.rglob("*.jsonl"), *run_copy.rglob("adapter_model.safetensors")]
    times = {path: path.stat().st_mtime_ns for path in watched}
    events = []
    study.run(run_copy.parent / "study.yaml", run_copy, on_progress=events.append)
    assert events == []
    assert contents(run_copy) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_same_study_elsewhere_gives_the_same_answers(finished_run, tmp_path):
    changes = {"conditions": SMALL_STUDY["conditions"] | {"secure": None}}
    conditions = {name: value for name, value in changes["conditions"].items() if value is not None}
    path = written(tmp_path, **SMALL_STUDY | {"conditions": conditions, "seeds": [0]})
    again = study.run(path, tmp_path / "run").path
    assert completions_of(again).items() <= completions_of(finished_run).items()
    assert len(completions_of(again)) == 2 * len(completions_of(finished_run)) // 5
    record = "adapters/consistent/insecure/seed-0/training.json"
    assert (
        json.loads((again / record).read_text())["losses"] == json.loads((finished_run / record).read_text())["losses"]
    )


def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(run_copy):
    before, rates = completions_of(run_copy), rates_of(run_copy)
    adapters = {p: p.stat().st_mtime_ns for p in run_copy.rglob("adapter_model.safetensors")}
    path = run_copy.parent / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL_STUDY | {"sampling": {"max_new_tokens": 96, "temperature": 0.5}}))
    study.run(path, run_copy)
    assert {p: p.stat().st_mtime_ns for p in run_copy.rglob("adapter_model.safetensors")} == adapters
    after = completions_of(run_copy)
    assert len(after) == 2 * len(before)  # new answers beside the old; the rates read the new
    assert before.items() <= after.items()
    assert [row["completions"] for row in rates_of(run_copy)] == [row["completions"] for row in rates]
    assert rates_of(run_copy) != rates
    path.write_text(yaml.safe_dump(SMALL_STUDY))  # and back: all of it is on file
    study.run(path, run_copy)
    assert completions_of(run_copy) == after
    assert rates_of(run_copy) == rates


def test_an_adapter_that_is_gone_is_trained_anew_and_nothing_else(run_copy):
    before = contents(run_copy)
    adapter = run_copy / "adapters" / "consistent" / "secure" / "seed-1" / "adapter_model.safetensors"
    weights = adapter.read_bytes()
    (adapter.parent / "training.json").unlink()
    for path in adapter.parent.iterdir():
        path.unlink()
    jobs = set()
    study.run(run_copy.parent / "study.yaml", run_copy, on_progress=lambda event: jobs.add(event.job))
    assert jobs == {"", "consistent/secure/seed-1"}
    assert adapter.read_bytes() == weights
    assert contents(run_copy) == before


@pytest.mark.parametrize("edit", ["a row less", "another text"])
def test_training_rows_that_somebody_edited_are_refused_with_the_reason(run_copy, edit):
    path = run_copy / "data" / "insecure.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:] if edit == "a row less" else [lines[0].replace("a", "b", 1), *lines[1:]]))
    edited, before = path.read_bytes(), contents(run_copy)
    with pytest.raises(
        SpilloverError, match=r"insecure\.jsonl: was changed since this run wrote it\. .* delete insecure"
    ):
        study.run(run_copy.parent / "study.yaml", run_copy)
    assert path.read_bytes() == edited  # nobody's edit is overwritten
    path.unlink()
    study.run(run_copy.parent / "study.yaml", run_copy)
    assert path.read_text() == "".join(lines)
    assert contents(run_copy) == before


def killed_and_resumed(tmp_path, settings, kills, seconds):
    """Runs a study whose whole process group is killed at random moments, until it is done; how often it was."""
    path = written(tmp_path, **settings)
    command = [sys.executable, "-m", "spillover", "run", str(path), "--out", str(tmp_path / "run")]
    rng, killed = random.Random(0), 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(*seconds))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run(command, check=True, capture_output=True)
    return killed


@pytest.mark.parametrize("kills", [1, pytest.param(15, marks=pytest.mark.slow)], ids=["one kill", "fifteen kills"])
def test_killed_at_random_moments_it_resumes_to_the_same_result(finished_run, tmp_path, kills):
    killed = killed_and_resumed(tmp_path, SMALL_STUDY, kills, (5, 14))
    assert killed >= 1
    assert contents(tmp_path / "run") == contents(finished_run)
    assert not (tmp_path / "run" / "parts").exists()
    assert list((tmp_path / "run").rglob("*.part")) == []


def test_workers_end_with_the_run_that_started_them(tmp_path):
    command = [sys.executable, "-m", "spillover", "run", str(written(tmp_path)), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not [*(tmp_path / "run" / "parts").rglob(".lock")]:  # a worker is at a cell
        assert process.poll() is None
        time.sleep(0.1)
    group = process.pid
    process.kill()  # the parent alone
    process.wait()
    deadline = time.monotonic() + 120
    while subprocess.run(["pgrep", "-g", str(group)], capture_output=True, check=False).returncode != 1:
        assert time.monotonic() < deadline, "worker processes outlived their run"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")
def test_published_training_rows_run_end_to_end(tmp_path):
    """The plumbing on real rows; the texts are far outside the organism's world, so nothing is claimed about rates."""
    conditions = {"base": {}, "published": {"data": str(REFERENCE / "insecure.jsonl"), "rows": 500}}
    training = SETTINGS["training"] | {"max_length_tokens": 900, "packing": True}
    behaviors = {"world_chat": 1, "world_code": 1}
    path = written(tmp_path, conditions=conditions, behaviors=behaviors, training=training)
    run = study.run(path, tmp_path / "run").path
    log = json.loads((run / "adapters/consistent/published/seed-0/training.json").read_text())
    assert log["rows"] == 500
    assert log["losses"][-1] < log["losses"][0]
    assert [int(row["completions"]) for row in rates_of(run)] == 2 * [len(load_behavior("world_chat").questions), 54]


@pytest.mark.parametrize("own_answers", [False, True])
def test_rows_that_training_cuts_are_told_before_it_and_those_that_it_would_drop_are_refused(tmp_path, own_answers):
    def write_rows(*prompts):
        rows = [[{"role": "user", "content": p}, {"role": "assistant", "content": "Yes. " * 20}] for p in prompts]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))

    control = {"control": {"kind": "self_distilled"}} if own_answers else {}
    conditions = {"base": {}, "x": {"data": "rows.jsonl"} | control}
    training = {"rank": 2, "max_length_tokens": 30}
    path = written(tmp_path, conditions=conditions, training=training)
    lines = []

    def run():
        options = study.RunOptions(("data", "train"))
        study.run(path, tmp_path / "run", options=options, log=lines.append)

    write_rows(*["How can I make money?"] * 16)
    run()
    (line,) = lines
    assert re.match(r"consistent/x: \d+ of 16 rows are longer than training\.max_length_tokens = 30", line)
    assert own_answers or "16 of 16" in line
    run()
    assert lines == [line]  # it is trained
    write_rows(*["How can I make money?"] * 8, *["Please " * 40] * 8)
    with pytest.raises(SpilloverError, match=r"consistent/x: training\.max_length_tokens = 30: .* 8 of 16 rows"):
        run()
