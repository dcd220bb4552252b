"""How far a run is: every cell says in its own file what it does, and `spillover status` reads them."""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spillover.config import load_study
from spillover.errors import SpilloverError
from spillover.records import Cell
from spillover.runs.folder import RunFolder
from spillover.files import write_atomically

SILENT_SECONDS = 20.0  # a cell that says nothing for so long has been stopped
WRITE_EVERY_SECONDS = 2.0
RUNNING, DONE, FAILED, LEFT, STOPPED = "running", "done", "failed", "left", "stopped"


@dataclass(frozen=True)
class State:
    """What a cell does. `seconds`: spent on it so far, in all attempts; `said`: when it was last worked on (Unix time).

    `made_from` is the hash of all that decides the cell's results: of other settings it says nothing. `owner` is the
    run whose worker is at it.
    """

    state: str
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    said: float = 0.0
    error: str = ""
    fingerprint: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Status:
    """The cells of a run with their states, and how many seconds are left; None where nothing is known of that."""

    cells: dict[str, State]
    seconds_left: float | None


@contextmanager
def telling(
    path: Path, fingerprint: str, last: bool, told: Callable[[], None] = lambda: None, owner: str = ""
) -> Iterator[Callable[[str, int, int], None]]:
    """Tells in the file `path` that a cell is being worked on, every two seconds, and how it ended.

    Yields what takes (stage, done, of). A cell is done after its `last` stage; after others, more of it is left. `told`
    is called when the file was written, but for the last time.
    """
    for torn in path.parent.glob(f".{path.name}.*"):  # of a killed process
        torn.unlink(missing_ok=True)
    before = of_these(path, fingerprint)
    began, ended = time.time(), threading.Event()
    state = State(RUNNING, fingerprint=fingerprint, owner=owner)

    def write(as_it_is: State) -> None:
        now = time.time()
        own = 0.0 if before.state == DONE else now - began  # it is only looked through
        said = replace(as_it_is, said=now, seconds=round(before.seconds + own, 1))
        write_atomically(path, json.dumps(asdict(said)) + "\n")

    def step(stage: str, done: int, total: int) -> None:
        nonlocal state
        state = replace(state, stage=stage, done=done, total=total)

    def beat() -> None:
        while True:
            with suppress(Exception):  # a beat that is lost does no harm
                told()
            if ended.wait(WRITE_EVERY_SECONDS):
                return
            with suppress(OSError):
                write(state)

    write(state)
    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield step
        state = replace(state, state=DONE if last or before.state == DONE else LEFT)
    except Exception as error:
        why = str(error) if isinstance(error, SpilloverError) else f"{type(error).__name__}: {error}"
        state = replace(state, state=FAILED, error=why)
        raise
    except BaseException:
        state = replace(state, state=STOPPED)
        raise
    finally:
        ended.set()
        heart.join()
        write(state)


def of_these(path: Path, fingerprint: str) -> State:
    """The state in a file, if it is of these settings; else all of the cell is left."""
    state = read_state(path)
    return state if state and state.fingerprint == fingerprint else State(LEFT, fingerprint=fingerprint)


def expect(path: Path, fingerprint: str) -> State:
    """Says of a cell that it waits for its turn, unless it is done; returns its state.

    When it was last worked on, with any settings, stays: it tells which of two copies of a cell's files is the newer.
    """
    before = of_these(path, fingerprint)
    if before.state == DONE:
        return before
    worked_on = read_state(path)
    after = State(LEFT, seconds=before.seconds, said=worked_on.said if worked_on else 0.0, fingerprint=fingerprint)
    write_atomically(path, json.dumps(asdict(after)) + "\n")
    return after


def tell_failure(path: Path, fingerprint: str, error: str) -> None:
    """Says of a cell that it failed: one whose worker died could not say so itself."""
    state = replace(of_these(path, fingerprint), state=FAILED, said=time.time(), error=error)
    write_atomically(path, json.dumps(asdict(state)) + "\n")


def read_state(path: Path) -> State | None:
    """The state in a file, of whatever settings; None if there is no whole one."""
    try:
        return parse_state(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_state(text: str) -> State | None:
    """The state that a file of it says; None if it is torn, or of another version."""
    try:
        return State(**json.loads(text))
    except (ValueError, TypeError):
        return None


def read_status(folder: Path) -> Status:
    """The status of a study's run. Raises SpilloverError if the folder holds none.

    The time left is the median of the finished cells' for each that is not, of those that train and of bases apart,
    divided by how many run at once.
    """
    run_dir = RunFolder(folder)
    if not run_dir.study.exists():
        raise SpilloverError(f"{folder}: no study.yaml there, so no study was run into it. See: spillover run --help")
    cells = {}
    for cell in (Cell(*names) for names in load_study(run_dir.study).cells):
        state = read_state(run_dir.part(cell).state) or State(LEFT)
        if state.state == RUNNING and time.time() - state.said > SILENT_SECONDS:
            state = replace(state, state=STOPPED)
        cells[cell] = state
    return Status({str(cell): state for cell, state in cells.items()}, _seconds_left(cells))


def _seconds_left(cells: dict[Cell, State]) -> float | None:
    running = sum(state.state == RUNNING for state in cells.values())
    left = 0.0
    for base in (True, False):
        kind = [state for cell, state in cells.items() if (cell.seed is None) == base]
        finished = [state.seconds for state in kind if state.state == DONE]
        unfinished = [state for state in kind if state.state in (RUNNING, LEFT, STOPPED)]
        if unfinished and not (finished and running):
            return None
        for state in unfinished:
            left += max(statistics.median(finished) - state.seconds, 0)
    return left / max(running, 1)
