"""Runs independent jobs side by side in worker processes on this machine, and says which failed."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from spillover.errors import SpilloverError

ATTEMPTS = 3  # at a job whose worker process died
BEGUN, DONE, FAILED = "begun", "done", "failed"  # stages of a batch of jobs that begins, and of a job that has ended
READY = "ready"  # what a worker sends when it can take its first job

Step = Callable[[str, int, int], None]  # (stage, done, of)


@dataclass(frozen=True)
class Progress:
    """How far one stage of one job is, of how many jobs."""

    job: str
    jobs: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Success:
    """What a job returned."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """A job that failed: what a user reads, and the traceback, empty where the reason says all."""

    job: str
    reason: str
    detail: str = ""


OnProgress = Callable[[Progress], None]
OnResult = Callable[[Any, Any], None]  # (job, what its function returned)


@dataclass
class _Worker:
    """A process with the job it has, or will have once it is ready, which attempt that is, and its place among all."""

    process: BaseProcess
    pipe: "Connection[Any, Any]"
    job: Any
    attempt: int
    place: int


class Outcomes:
    """Takes the end of each of a batch of jobs: reports it, hands results on, and keeps the failures."""

    def __init__(self, jobs: int, on_progress: OnProgress, on_result: OnResult) -> None:
        self.jobs, self.on_progress, self.on_result = jobs, on_progress, on_result
        self.failures: list[Failure] = []
        if jobs:
            on_progress(Progress("", jobs, BEGUN, 0, 0))

    def take(self, job: Any, outcome: Success | Failure) -> None:
        """Takes the outcome of one job."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.on_result(job, outcome.value)
        self.on_progress(Progress(str(job), self.jobs, FAILED if isinstance(outcome, Failure) else DONE, 1, 1))


def run_side_by_side(
    function: Callable[[Any, Step], Any],
    jobs: Sequence[Any],
    workers: int,
    on_progress: OnProgress,
    gpus: Sequence[str] = (),
    on_result: OnResult = lambda *_: None,
    preload: Sequence[str] = (),
) -> list[Failure]:
    """Calls `function(job, step)` for every job in `workers` processes; `step(stage, done, total)` reports progress.

    `gpus`: for each worker, the GPUs that it sees, as CUDA_VISIBLE_DEVICES names them; empty: all see what we see.
    `on_result` gets each job with what its function returned, in this process and in the order they end. A job that
    raises is reported, and the rest goes on. One whose worker process died is tried again, after the others. Workers
    are forked from a process that holds the modules `preload`, imported once for all of them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([*preload])
    outcomes = Outcomes(len(jobs), on_progress, on_result)
    waiting = deque((job, 1) for job in jobs)
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                place = min({*range(workers)} - {worker.place for worker in busy})
                busy.append(_hire(function, len(jobs), place, gpus[place] if gpus else None, *waiting.popleft()))
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in [*busy]:
                if worker.pipe not in ready and worker.process.is_alive():
                    continue
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    busy.remove(worker)
                    worker.process.join()
                    if worker.attempt < ATTEMPTS:
                        waiting.append((worker.job, worker.attempt + 1))
                    else:
                        outcomes.take(worker.job, Failure(str(worker.job), _how_it_died(worker)))
                    continue
                if isinstance(message, Progress):
                    on_progress(message)
                    continue
                if message != READY:
                    outcomes.take(worker.job, message)
                    if not waiting:
                        busy.remove(worker)
                        worker.pipe.close()  # which ends it
                        continue
                    worker.job, worker.attempt = waiting.popleft()
                with suppress(OSError):  # it died; the next turn of this loop finds out
                    worker.pipe.send(worker.job)
    finally:
        for worker in busy:
            worker.process.terminate()
    return outcomes.failures


def _hire(function: Callable[..., Any], of: int, place: int, gpus: str | None, job: Any, attempt: int) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    # The process that workers are forked from keeps the environment it was started with.
    environment = dict(os.environ) | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
    process = context.Process(target=_serve, args=(theirs, function, of, environment))
    with _without_main():
        process.start()
    theirs.close()
    return _Worker(process, ours, job, attempt, place)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keeps workers from importing the user's script, which would run it again where it has no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(pipe: "Connection[Any, Any]", function: Callable[..., Any], of: int, environment: Mapping[str, str]) -> None:
    """What a worker does: job after job, until the pipe is closed."""
    os.environ.clear()
    os.environ.update(environment)  # CUDA reads it when it is first used, which no import does
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends its workers
    pipe.send(READY)
    with suppress(EOFError):
        while True:
            job = pipe.recv()
            name = str(job)
            pipe.send(call(function, job, lambda *step, name=name: pipe.send(Progress(name, of, *step))))


def _how_it_died(worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return f"its worker process died {ATTEMPTS} times, last {how}. Is there enough memory?"


def call(function: Callable[..., Any], job: Any, step: Step) -> Success | Failure:
    """Calls `function(job, step)`; what it raises comes back as a Failure."""
    try:
        return Success(function(job, step))
    except SpilloverError as error:
        return Failure(str(job), str(error))
    except Exception as error:
        return Failure(str(job), f"{type(error).__name__}: {error}", traceback.format_exc())


def die_with_parent() -> None:
    """Ends this process with the one that started it, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
