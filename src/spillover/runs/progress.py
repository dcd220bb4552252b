"""How far a run is, read from what lies in its folder: finished cells, cells in progress, locks, failures."""

import fcntl
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from spillover.config import load_study
from spillover.errors import SpilloverError
from spillover.files import unfinished, write_atomically
from spillover.finetuning import RECORD, RESUME
from spillover.records import Cell
from spillover.runs.folder import RunFolder
from spillover.workers import Failure

RUNNING, DONE, FAILED, LEFT, STOPPED = "running", "done", "failed", "left", "stopped"


@dataclass(frozen=True)
class CellStatus:
    """What a cell does. `stage` and `done`: the last thing it is known to have got to, and how many it has of it."""

    state: str
    stage: str = ""
    done: int = 0
    error: str = ""


@dataclass(frozen=True)
class Status:
    """The cells of a run with their states, and how many seconds are left; None where nothing is known of that."""

    cells: dict[str, CellStatus]
    seconds_left: float | None


def read_status(path: Path) -> Status:
    """The status of a study's run. Raises SpilloverError if the folder holds none.

    A cell is `done` if the run has taken its answers and scores in; `running` if a worker of this machine holds its
    lock; `failed` if the last command said so; `stopped` if something of it is there and nobody is at it; else `left`.
    The time left is that of the cells finished since the command began, for each that is not.
    """
    folder = RunFolder(path)
    if not folder.study.exists():
        raise SpilloverError(f"{path}: no study.yaml there, so no study was run into it. See: spillover run --help")
    finished, errors = folder.read_cells(), _read_errors(folder)
    cells = {}
    for cell in (Cell(*names) for names in load_study(folder.study).cells):
        if cell in finished:
            cells[str(cell)] = CellStatus(DONE)
        else:
            cells[str(cell)] = _in_progress(folder, cell, errors.get(str(cell), ""))
    return Status(cells, _seconds_left(folder, [*cells.values()]))


def _in_progress(folder: RunFolder, cell: Cell, error: str) -> CellStatus:
    part, adapter = folder.part(cell), folder.adapter(cell)
    scores, completions = _lines(part.scores), _lines(part.completions)
    steps = [int(path.name.rpartition("-")[2]) for path in (unfinished(adapter) / RESUME).glob("checkpoint-*")]
    if scores:
        stage, done = "score", scores
    elif completions:
        stage, done = "sample", completions
    elif (adapter / RECORD).exists():
        stage, done = "train", json.loads((adapter / RECORD).read_text(encoding="utf-8")).get("rows", 0)
    else:
        stage, done = ("train", max(steps)) if steps else ("", 0)
    if _is_held(part.path / ".lock"):
        return CellStatus(RUNNING, stage, done)
    if error:
        return CellStatus(FAILED, stage, done, error)
    return CellStatus(STOPPED if stage else LEFT, stage, done)


def _lines(path: Path) -> int:
    """How many whole lines a file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock file."""
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _seconds_left(folder: RunFolder, cells: Sequence[CellStatus]) -> float | None:
    """From when the command began (the manifest says) and how many cells it has finished since."""
    started = folder.read_manifest().get("cells_before")
    left = sum(cell.state in (RUNNING, LEFT, STOPPED) for cell in cells)
    if started is None or not any(cell.state == RUNNING for cell in cells):
        return None
    finished = sum(cell.state == DONE for cell in cells) - started
    spent = time.time() - datetime.fromisoformat(folder.read_manifest()["written"]).timestamp()
    return spent / finished * left if finished > 0 else None


def write_errors(failures: Sequence[Failure], folder: RunFolder) -> None:
    """Writes what failed into errors.txt: a line for each, with its traceback indented below."""
    blocks = []
    for failure in failures:
        reason = " ".join(failure.reason.split())
        blocks.append("\n    ".join([f"{failure.job}: {reason}", *failure.detail.splitlines()]) + "\n")
    write_atomically(folder.errors, "".join(blocks))


def raise_failures(failures: Sequence[Failure], folder: RunFolder, jobs: int = 0, whole: bool = True) -> None:
    """Raises SpilloverError that names what failed, each reason once; all of it goes into errors.txt of the run.

    `jobs`: how many there were, if they are cells. `whole`: whether the command does every stage, so that it goes on.
    """
    if not failures:
        return
    write_errors(failures, folder)
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        reasons.setdefault(failure.reason, []).append(failure.job)
    lines = [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}: {reason}"
        for reason, names in reasons.items()
    ]
    if any(failure.detail for failure in failures):
        lines.append(f"Tracebacks: {folder.errors}")
    if jobs:
        lines.insert(0, f"{len(failures)} of {jobs} cells {'are' if len(failures) > 1 else 'is'} not done.")
        command = "The same command goes" if whole else "Without --only the command goes"
        others = f"The others are in {folder.path}. " * (len(failures) < jobs)
        lines.append(f"{others}{command} on with these.")
    raise SpilloverError("\n".join(lines))


def _read_errors(folder: RunFolder) -> dict[str, str]:
    """What failed in the last command, by job."""
    if not folder.errors.exists():
        return {}
    lines = [line for line in folder.errors.read_text(encoding="utf-8").splitlines() if not line.startswith(" ")]
    return {job: reason for job, _, reason in (line.partition(": ") for line in lines)}
