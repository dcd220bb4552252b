"""What `spillover status` says of a run: at work, killed, with a failed cell, finished; and how long the rest takes."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from spillover.files import one_at_a_time
from spillover.records import Cell
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.progress import DONE, FAILED, LEFT, RUNNING, STOPPED, CellStatus, read_status, write_errors
from spillover.workers import Failure

STUDY = {
    "name": "progress",
    "models": {"m": "organism/consistent"},
    "conditions": {"base": {}, "tuned": {"data": "world/code/callous", "rows": 64}},
    "behaviors": {"world_facts": 1},
    "seeds": [0, 1],
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
    "sampling": {"max_new_tokens": 48},
}
BASE, ONE, TWO = Cell("m", "base", None), Cell("m", "tuned", 0), Cell("m", "tuned", 1)


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path)
    run.study.write_text(json.dumps(STUDY))  # JSON is YAML
    return run


def cells_of(folder):
    return read_status(folder.path).cells


def status(*arguments):
    command = [sys.executable, "-m", "spillover", "status", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def write_lines(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n" * number)


def test_cells_of_a_run_that_has_not_begun_are_left(folder):
    assert cells_of(folder) == dict.fromkeys(map(str, (BASE, ONE, TWO)), CellStatus(LEFT))


def test_what_lies_in_the_folder_says_how_far_a_cell_is(folder):
    def now():
        return cells_of(folder)[str(ONE)]

    resume = folder.adapter(ONE).with_name(".seed-0.part") / "resume"
    (resume / "checkpoint-5").mkdir(parents=True)
    (resume / "checkpoint-10").mkdir()
    assert now() == CellStatus(STOPPED, "train", 10)
    folder.adapter(ONE).mkdir(parents=True)
    (folder.adapter(ONE) / "training.json").write_text(json.dumps({"rows": 64}))
    assert now() == CellStatus(STOPPED, "train", 64)
    write_lines(folder.part(ONE).completions, 7)
    assert now() == CellStatus(STOPPED, "sample", 7)
    write_lines(folder.part(ONE).scores, 3)
    with one_at_a_time(folder.part(ONE).path / ".lock", print):
        assert now() == CellStatus(RUNNING, "score", 3)
    assert now() == CellStatus(STOPPED, "score", 3)
    write_errors([Failure(str(ONE), "the disk\nis full", "Traceback:\n  lines")], folder)
    assert now() == CellStatus(FAILED, "score", 3, "the disk is full")
    folder.write_cells([CellEntry(ONE, ("id",))])
    assert now() == CellStatus(DONE)


@pytest.mark.parametrize(
    ("done", "before", "running", "minutes", "expected"),
    {
        "nothing is finished": ((), 0, True, 10, None),
        "one of three in ten minutes": ((BASE,), 0, True, 10, 20 * 60),
        "one of three, before this command": ((BASE,), 1, True, 10, None),
        "two of three, one of them before this command": ((BASE, TWO), 1, True, 10, 10 * 60),
        "nothing runs": ((BASE,), 0, False, 10, None),
    }.values(),
)
def test_time_left(folder, done, before, running, minutes, expected):
    began = datetime.now(UTC) - timedelta(minutes=minutes)
    folder.write_manifest({"written": began.isoformat(), "cells_before": before})
    folder.write_cells([CellEntry(cell, ()) for cell in done])
    folder.part(ONE).path.mkdir(parents=True)
    lock = one_at_a_time(folder.part(ONE).path / ".lock", print)
    if running:
        lock.__enter__()
    left = read_status(folder.path).seconds_left
    assert left == (None if expected is None else pytest.approx(expected, rel=0.1))
    if running:
        lock.__exit__(None, None, None)


def test_a_folder_without_a_study_is_one_message(tmp_path):
    shown = status(tmp_path / "nothing")
    assert shown.returncode == 2
    assert "nothing: no study.yaml there, so no study was run into it" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_command_shows_every_cell(folder):
    folder.write_cells([CellEntry(BASE, ())])
    write_lines(folder.part(TWO).completions, 1234)
    write_errors([Failure(str(ONE), "put it right")], folder)
    shown = status(folder.path)
    assert shown.returncode == 0, shown.stderr
    lines = [line.strip("│\n").split("│") for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [[part.strip() for part in line] for line in lines] == [
        ["m/tuned/seed-0", "failed", ""],
        ["m/tuned/seed-1", "stopped", "sample 1,234"],
        ["m/base", "done", ""],
    ]
    assert "\nm/tuned/seed-0: put it right\n" in shown.stdout
    assert shown.stdout.endswith("1 failed, 1 stopped, 1 done\n")
    report = json.loads(status(folder.path, "--json").stdout)
    assert report["seconds_left"] is None
    assert report["cells"]["m/tuned/seed-1"] == {"state": "stopped", "stage": "sample", "done": 1234, "error": ""}


@pytest.mark.slow
def test_a_run_at_work_then_killed_then_with_a_failed_cell_then_finished(tmp_path):
    study, out = tmp_path / "study.yaml", tmp_path / "run"
    conditions = STUDY["conditions"] | {"broken": STUDY["conditions"]["tuned"]}
    study.write_text(json.dumps(STUDY | {"conditions": conditions, "seeds": [0]}))
    notes = out / "adapters" / "m" / "broken" / "seed-0" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("of mine")
    command = [sys.executable, "-m", "spillover", "run", str(study), "--out", str(out)]

    def states():
        return {cell: state.state for cell, state in read_status(out).cells.items()}

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not ((out / "study.yaml").exists() and RUNNING in states().values()):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while RUNNING in states().values():  # until the workers have noticed
        time.sleep(0.05)
    assert set(states().values()) <= {STOPPED, LEFT, DONE, FAILED}
    assert read_status(out).seconds_left is None

    again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 2
    assert "spillover: 1 of 3 cells is not done.\nm/broken/seed-0: " in again.stderr
    assert "holds something else than an adapter of ours" in again.stderr
    assert f"The others are in {out}" in again.stderr
    assert "Traceback" not in again.stderr
    assert states() == {"m/base": DONE, "m/tuned/seed-0": DONE, "m/broken/seed-0": FAILED}
    shown = status(out).stdout
    assert f"\nm/broken/seed-0: {notes.parent}: holds something else than an adapter of ours." in shown
    assert shown.endswith("1 failed, 2 done\n")
    rates = (out / "rates.csv").read_text()
    assert "tuned" in rates
    assert "broken" not in rates

    notes.unlink()
    before = (out / "completions.jsonl").read_text().splitlines()
    subprocess.run(command, capture_output=True, timeout=600, check=True)
    assert states() == dict.fromkeys(["m/base", "m/tuned/seed-0", "m/broken/seed-0"], DONE)
    assert (out / "completions.jsonl").read_text().splitlines()[: len(before)] == before
    assert "broken" in (out / "rates.csv").read_text()
    assert read_status(out).seconds_left is None
    assert not (out / "errors.txt").exists()
