"""A shared folder, on any file system that fsspec knows: cells run elsewhere leave there what they have made.

What says of other files that they are whole (a mark) comes last, and goes first when these change. Of two copies of a
job's folders, here and there, the one that was worked on later counts.
"""

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import fsspec

from spillover.errors import SpilloverError
from spillover.runs.folder import RunFolder
from spillover.files import one_at_a_time, wait_while, write_atomically
from spillover.runs.progress import DONE, RUNNING, State, expect, of_these, parse_state, read_state

SHARE_EVERY_SECONDS = 60.0
STALE_SECONDS = 180.0  # a worker that has said nothing for so long is gone
RECORDS = ("training.json", "made.json")  # of an adapter, of distilled rows: folders with equal ones are equal
MARKS = ("whole.json", "identity.json", *RECORDS)  # the first two of states of a training; in the order of handing over
STATE = "state.json"  # of a cell: after all else, for it may say that the cell is done
TEMPORARY = "spillover-"

Seen = dict[str, tuple[int, int]]  # file -> its size and time here when it was the same in the shared folder


class Handed(Protocol):
    """A job whose folders are handed over. All paths but `run`, the run's folder, are relative to it.

    `folders`: what it makes, each with the file without which it counts as not there (or ""), the state's last.
    `reads`: what others have made for it. `state`: the file in which it tells how far it is, if it does; `lock`: the
    one that keeps workers of one machine apart, as `owner`, the run that it belongs to, does those of others.
    """

    @property
    def run(self) -> Path: ...  # noqa: D102
    @property
    def shared(self) -> str | None: ...  # noqa: D102
    @property
    def owner(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> Any: ...  # noqa: D102
    @property
    def folders(self) -> Mapping[Path, str]: ...  # noqa: D102
    @property
    def reads(self) -> Mapping[Path, str]: ...  # noqa: D102
    @property
    def state(self) -> Path | None: ...  # noqa: D102
    @property
    def lock(self) -> Path: ...  # noqa: D102
    @property
    def done(self) -> bool: ...  # noqa: D102


def open_shared(shared: str) -> str:
    """Makes the shared folder if it is not there, and returns its whole address.

    Raises SpilloverError if nothing can be written there.
    """
    try:
        system, place = fsspec.core.url_to_fs(shared)
        system.makedirs(place, exist_ok=True)
        system.pipe_file(f"{place}/.spillover", b"")
        system.rm_file(f"{place}/.spillover")
    except Exception as error:  # every file system has errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SpilloverError(f"--shared {shared}: nothing can be written there ({reason}).") from None
    return system.unstrip_protocol(place)


@contextmanager
def handing_over(jobs: Sequence[Handed], shared: str | None) -> Iterator[Callable[[], None]]:
    """For the run: the newer copy of every job's folders is in the shared folder before, and in the run's afterwards.

    Yields what fetches how far the jobs are. Without a shared folder it does nothing.
    """
    if shared is None:
        yield lambda: None
        return
    for job in jobs:
        _reconcile(job, shared)

    def fetch() -> None:
        for job in jobs:
            there = _state(job, shared)
            if job.state is None or there is None or there.fingerprint != job.fingerprint:
                continue
            if there.said == of_these(job.run / job.state, job.fingerprint).said:
                continue
            if there.state == RUNNING:
                write_atomically(job.run / job.state, json.dumps(asdict(there)) + "\n")
            else:  # what is done is whole here before it is called done here
                _pull_all(job, job.run, shared)

    yield fetch
    fetch()
    for job in jobs:
        if not job.done:
            _pull_all(job, job.run, shared)


@contextmanager
def at_work(job: Handed, waits: Callable[[], None]) -> Iterator[tuple[RunFolder, Callable[[], None]]]:
    """For a worker: the run's folder, or a temporary one in its place that is handed over to the shared folder.

    Yields it with what hands over the state, and all else at most once a minute; all is handed over at the end. A job
    that another worker is at waits until that has ended; `waits` is called once it has taken a minute.
    """
    if job.shared is None:
        with one_at_a_time(job.run / job.lock, waits):
            yield RunFolder(job.run), lambda: None
        return
    shared = job.shared
    _wait_for_others(job, shared, waits)
    with _temporary_folder() as here:
        seen = {path: _pull(here, path, shared, needs) for path, needs in job.folders.items()}
        for path, needs in job.reads.items():
            _pull(here, path, shared, needs)
        handed_over = time.monotonic()

        def hand_over() -> None:
            for path, known in seen.items():
                _push(here, path, shared, known)

        def share() -> None:
            nonlocal handed_over
            with suppress(Exception):  # files come and go meanwhile, and so may the network: next time, then
                if time.monotonic() - handed_over >= SHARE_EVERY_SECONDS:
                    hand_over()
                    handed_over = time.monotonic()
                elif job.state is not None and (here / job.state).exists():
                    _put(here, job.state, shared)

        try:
            yield RunFolder(here), share
        finally:
            hand_over()


def _reconcile(job: Handed, shared: str) -> None:
    """Puts what is here into the shared folder if it is the newer, and the other way round."""
    here = read_state(job.run / job.state) if job.state else None
    there = _state(job, shared)
    if job.state is None:
        newer_here = job.done or not any(_names(path, shared) for path in job.folders)
    else:
        done_there = there is not None and there.state == DONE and there.fingerprint == job.fingerprint
        said_here, said_there = here.said if here else 0.0, there.said if there else -1.0
        if job.done and done_there and said_here == said_there:
            return
        newer_here = said_here > said_there or (job.done and not done_there)
    if newer_here:
        for path in job.folders:
            _push(job.run, path, shared, {})
    else:
        _pull_all(job, job.run, shared)
        if job.state is not None:
            expect(job.run / job.state, job.fingerprint)


def _wait_for_others(job: Handed, shared: str, waits: Callable[[], None]) -> None:
    """Waits while a worker of another run is at the job."""

    def busy() -> bool:
        there = _state(job, shared)
        if there is None or there.state != RUNNING or there.owner == job.owner:
            return False
        return time.time() - there.said < STALE_SECONDS

    wait_while(busy, waits)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is removed afterwards; those that killed workers of this machine have left are removed now."""
    for lock in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/.lock"):
        with suppress(OSError), lock.open("a") as file:  # OSError: its worker lives, or it is another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as place, (Path(place) / ".locking").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(file.name).rename(Path(place) / ".lock")  # from now on others can see it, and that it is held
        yield Path(place)


def _push(here: Path, path: Path, shared: str, seen: Seen) -> None:
    """Makes a folder in the shared folder what it is here: what is not as it was `seen` goes there. Then it is."""
    stamps = {}
    for file in (here / path).rglob("*"):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".part":  # locks, what is being written
            stat = file.stat()
            stamps[file.relative_to(here / path).as_posix()] = stat.st_size, stat.st_mtime_ns
    if not stamps and not seen:
        return
    there = _names(path, shared)
    system, place = _there(path, shared)
    marked = any(map(_is_mark, [*there, *stamps]))  # without marks files only grow
    if not seen and _same_record(here / path, system, place, there):
        return
    changed = [name for name, stamp in stamps.items() if seen.get(name) != stamp or name not in there]
    for name in sorted(there, key=_rank, reverse=True):
        gone = name not in stamps and (marked or name in seen)
        if gone or (name in changed and _is_mark(name)):
            system.rm_file(f"{place}/{name}")
            seen.pop(name, None)
    for name in sorted(changed, key=_rank):
        _put(here, path / name, shared)
        seen[name] = stamps[name]
    for name in seen.keys() - stamps.keys():
        del seen[name]


def _pull(here: Path, path: Path, shared: str, needs: str) -> Seen:
    """Fetches what the shared folder holds of a folder, unless it lacks what it `needs`, or it is the same here.

    Returns what there is here now of the same content.
    """
    names = _names(path, shared)
    system, place = _there(path, shared)
    folder = here / path
    if (needs and needs not in names) or _same_record(folder, system, place, names):
        return {}
    if any(map(_is_mark, names)) and folder.exists():
        for mark in reversed(MARKS):
            for file in [*folder.rglob(mark)]:
                file.unlink()
        shutil.rmtree(folder)
    seen = {}
    for name in sorted(names, key=_rank):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(f"{place}/{name}", str(target.with_name(f"{target.name}.part")))
        target.with_name(f"{target.name}.part").replace(target)
        seen[name] = target.stat().st_size, target.stat().st_mtime_ns
    return seen


def _pull_all(job: Handed, here: Path, shared: str) -> None:
    for path, needs in job.folders.items():
        _pull(here, path, shared, needs)


def _put(here: Path, file: Path, shared: str) -> None:
    system, place = _there(file, shared)
    system.makedirs(place.rpartition("/")[0], exist_ok=True)
    system.put_file(str(here / file), f"{place}.part")
    system.mv(f"{place}.part", place)


def _is_mark(name: str) -> bool:
    return name.rpartition("/")[2] in MARKS


def _rank(name: str) -> tuple[int, str]:
    """Where a file stands in the order of handing over."""
    last, order = name.rpartition("/")[2], (*MARKS, STATE)
    return order.index(last) + 1 if last in order else 0, name


def _same_record(folder: Path, system: Any, place: str, names: Sequence[str]) -> bool:
    """Whether the folder has the same record here and there."""
    record = next((name for name in RECORDS if name in names and (folder / name).exists()), None)
    return record is not None and system.cat_file(f"{place}/{record}") == (folder / record).read_bytes()


def _state(job: Handed, shared: str) -> State | None:
    """What the job last told of itself in the shared folder, of whatever settings; None if nothing whole."""
    if job.state is None:
        return None
    system, place = _there(job.state, shared)
    try:
        return parse_state(system.cat_file(place).decode())
    except (FileNotFoundError, ValueError):  # ValueError: it is being written
        return None


def _names(path: Path, shared: str) -> list[str]:
    """The files that the shared folder holds of a folder; not those of a hand-over that was killed."""
    system, place = _there(path, shared)
    files = [file[len(place) + 1 :] for file in system.find(place)] if system.exists(place) else []
    return [name for name in files if not name.endswith(".part")]


def _there(path: Path, shared: str) -> tuple[Any, str]:
    """The shared file system, and where in it a file or folder of the run is."""
    system, place = fsspec.core.url_to_fs(shared)
    system.invalidate_cache()  # others write there
    return system, f"{place.rstrip('/')}/{path.as_posix()}"
