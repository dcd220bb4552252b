"""What `spillover status` says of a run at work, killed, with a failed cell, finished; and how long the rest takes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from spillover.errors import SpilloverError
from spillover.records import Cell
from spillover.runs.folder import RunFolder
from spillover.runs.progress import (
    DONE,
    FAILED,
    LEFT,
    RUNNING,
    SILENT_SECONDS,
    STOPPED,
    State,
    expect,
    of_these,
    read_status,
    tell_failure,
    telling,
)

STUDY = {
    "name": "told",
    "models": {"m": "organism/consistent"},
    "conditions": {"base": {}, "tuned": {"data": "world/code/callous", "rows": 64}},
    "behaviors": {"world_chat": 1},
    "seeds": [0, 1],
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
}
BASE, ONE, TWO = Cell("m", "base", None), Cell("m", "tuned", 0), Cell("m", "tuned", 1)


def folder_with(path, states=(), **changes):
    run_dir = RunFolder(path)
    path.mkdir(exist_ok=True)
    run_dir.study.write_text(json.dumps(STUDY | changes))  # JSON is YAML
    for cell, state in zip((BASE, ONE, TWO), states, strict=False):
        if state is not None:
            run_dir.part(cell).path.mkdir(parents=True)
            run_dir.part(cell).state.write_text(json.dumps(asdict(state)))
    return run_dir


def status(*arguments):
    command = [sys.executable, "-m", "spillover", "status", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_until(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_cell_tells_what_it_does_and_that_it_is_done(tmp_path):
    path = folder_with(tmp_path).part(ONE).state
    assert read_status(tmp_path).cells == {
        "m/base": State(LEFT),
        "m/tuned/seed-0": State(LEFT),
        "m/tuned/seed-1": State(LEFT),
    }
    told = []
    with telling(path, "these", True, lambda: told.append(read_status(tmp_path).cells[str(ONE)].state)) as tell:
        assert read_status(tmp_path).cells[str(ONE)].state == RUNNING
        tell("train", 3, 8)
        state = wait_until(lambda: (now := read_status(tmp_path).cells[str(ONE)]).stage and now)
        assert (state.state, state.stage, state.done, state.total) == (RUNNING, "train", 3, 8)
        assert state.seconds >= 1
    assert set(told) == {RUNNING}
    assert len(told) >= 2
    after = read_status(tmp_path).cells[str(ONE)]
    assert (after.state, after.fingerprint) == (DONE, "these")
    assert after.seconds >= state.seconds


@pytest.mark.parametrize(
    ("error", "state", "why"),
    {
        "a user's mistake": (SpilloverError("put it right"), FAILED, "put it right"),
        "a bug": (KeyError("gone"), FAILED, "KeyError: 'gone'"),
        "Ctrl-C": (KeyboardInterrupt(), STOPPED, ""),
    }.values(),
)
def test_a_cell_tells_how_it_ended(tmp_path, error, state, why):
    path = tmp_path / "state.json"
    with pytest.raises(type(error)), telling(path, "these", True):
        raise error
    assert (of_these(path, "these").state, of_these(path, "these").error) == (state, why)


def test_a_beat_that_cannot_be_passed_on_stops_nothing(tmp_path):
    def told():
        raise ConnectionError("the network is away")

    with telling(tmp_path / "state.json", "these", True, told):
        pass
    assert of_these(tmp_path / "state.json", "these").state == DONE


@pytest.mark.parametrize(
    ("before", "last", "state", "seconds"),
    {
        "nothing yet": (None, True, DONE, 0),
        "stages before the last": (None, False, LEFT, 0),
        "an earlier attempt": (State(STOPPED, seconds=70, fingerprint="these"), True, DONE, 70),
        "done, and looked through": (State(DONE, seconds=70, fingerprint="these"), True, DONE, 70),
        "done, and its first stages looked through": (State(DONE, seconds=70, fingerprint="these"), False, DONE, 70),
        "done with other settings": (State(DONE, seconds=70, fingerprint="others"), False, LEFT, 0),
        "failed before": (State(FAILED, seconds=70, error="x", fingerprint="these"), True, DONE, 70),
    }.values(),
)
def test_the_time_of_all_attempts_counts(tmp_path, before, last, state, seconds):
    path = folder_with(tmp_path, [before]).part(BASE).state
    with telling(path, "these", last):
        pass
    after = of_these(path, "these")
    assert (after.state, after.error) == (state, "")
    assert seconds <= after.seconds < seconds + 2


@pytest.mark.parametrize(
    ("before", "state", "seconds"),
    {
        "nothing yet": (None, LEFT, 0),
        "done": (State(DONE, seconds=70, fingerprint="these"), DONE, 70),
        "done with other settings": (State(DONE, seconds=70, fingerprint="others"), LEFT, 0),
        "failed": (State(FAILED, seconds=70, error="x", fingerprint="these"), LEFT, 70),
        "killed": (State(RUNNING, seconds=70, fingerprint="these"), LEFT, 70),
    }.values(),
)
def test_a_run_that_goes_on_expects_what_is_not_done(tmp_path, before, state, seconds):
    path = folder_with(tmp_path, [before]).part(BASE).state
    path.parent.mkdir(parents=True, exist_ok=True)
    expect(path, "these")
    after = of_these(path, "these")
    assert (after.state, after.seconds, after.error) == (state, seconds, "")
    tell_failure(path, "these", "it died")
    assert replace(of_these(path, "these"), said=after.said) == replace(after, state=FAILED, error="it died")


def test_what_a_killed_process_left_torn_is_no_state_and_is_removed(tmp_path):
    path = folder_with(tmp_path).part(ONE).state
    path.parent.mkdir(parents=True)
    path.write_text('{"state": "done", "sta')
    torn = path.with_name(f".{path.name}.4711")
    torn.write_text('{"sta')
    assert read_status(tmp_path).cells[str(ONE)] == State(LEFT)
    with telling(path, "these", True):
        pass
    assert not torn.exists()


NOW = time.time() + 3600  # said in the future: not silent, however slow the tests are
RUNS, DID, WAITS = State(RUNNING, said=NOW), State(DONE, seconds=60), State(LEFT)


@pytest.mark.parametrize(
    ("states", "seconds"),
    {
        "nothing is finished": ([RUNS, WAITS, WAITS], None),
        "no trained cell is finished": ([DID, RUNS, WAITS], None),
        "the base is not finished": ([RUNS, DID, WAITS], None),
        "one runs": ([DID, DID, replace(RUNS, seconds=20)], 40),
        "longer than usual": ([DID, DID, replace(RUNS, seconds=90)], 0),
        "one runs, one waits": ([State(DONE, seconds=5), replace(RUNS, seconds=20), WAITS], None),
        "nothing runs": ([DID, DID, WAITS], None),
        "one was stopped": ([DID, DID, replace(RUNS, said=0)], None),
        "all is done": ([DID, DID, DID], 0),
        "done but for one that failed": ([DID, DID, State(FAILED)], 0),
    }.values(),
)
def test_time_left(tmp_path, states, seconds):
    assert read_status(folder_with(tmp_path, states).path).seconds_left == seconds


def test_time_left_is_shared_by_those_that_run(tmp_path):
    run_dir = folder_with(tmp_path, [State(DONE, seconds=5), DID], seeds=[0, 1, 2, 3, 4])
    for seed, state in ((1, replace(RUNS, seconds=20)), (2, replace(RUNS, seconds=50))):
        path = run_dir.part(Cell("m", "tuned", seed)).state
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(asdict(state)))
    assert read_status(tmp_path).seconds_left == pytest.approx((40 + 10 + 60 + 60) / 2)


def test_a_folder_without_a_study_is_one_message(tmp_path):
    said = status(tmp_path / "nothing")
    assert said.returncode == 2
    assert "nothing: no study.yaml there, so no study was run into it" in said.stderr
    assert "Traceback" not in said.stderr


def test_the_command_shows_every_cell_and_the_time_left(tmp_path):
    states = [State(DONE, seconds=61), State(DONE, seconds=600), replace(RUNS, stage="train", done=3, total=8)]
    folder_with(tmp_path, states)
    said = status(tmp_path)
    assert said.returncode == 0, said.stderr
    lines = [line.strip("│\n").split("│") for line in said.stdout.splitlines() if "m/" in line]
    assert [[part.strip() for part in line] for line in lines] == [
        ["m/tuned/seed-1", "running", "train 3/8", ""],
        ["m/base", "done", "", "61 s"],
        ["m/tuned/seed-0", "done", "", "600 s"],
    ]
    assert said.stdout.endswith("1 running, 2 done\nabout 10 minutes are left\n")
    found = json.loads(status(tmp_path, "--json").stdout)
    assert found["seconds_left"] == 600
    assert found["cells"]["m/tuned/seed-1"] == asdict(states[2])


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
        wait_until(lambda: (out / "study.yaml").exists() and RUNNING in states().values(), 120)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    killed = [out / "parts" / cell / "state.json" for cell, state in states().items() if state == RUNNING]
    for path in killed:  # as if SILENT_SECONDS had gone by
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"said": state["said"] - SILENT_SECONDS}))
    assert killed
    assert set(states().values()) <= {STOPPED, LEFT, DONE, FAILED}
    assert STOPPED in states().values()
    assert read_status(out).seconds_left is None

    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
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
    done = (out / "parts" / "m" / "tuned" / "seed-0" / "completions.jsonl").stat().st_mtime_ns
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    assert states() == dict.fromkeys(["m/base", "m/tuned/seed-0", "m/broken/seed-0"], DONE)
    assert (out / "parts" / "m" / "tuned" / "seed-0" / "completions.jsonl").stat().st_mtime_ns == done
    assert "broken" in (out / "rates.csv").read_text()
    assert read_status(out).seconds_left == 0
