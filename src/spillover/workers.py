"""Runs independent jobs side by side in worker processes on this machine, and says which failed."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from spillover.errors import SpilloverError

ATTEMPTS = 3  # at a job whose worker process died
BEGUN, DONE, FAILED = "begun", "done", "failed"  # stages of a batch of jobs that begins, and of a job that has ended
READY = "ready"  # what a worker says when it can take its first job

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
class Failure:
    """A job that failed: what a user reads, and the traceback, empty where the reason says all."""

    job: str
    reason: str
    detail: str = ""


OnProgress = Callable[[Progress], None]


@dataclass
class _Worker:
    """A process with the job it has, or will have once it is ready, which attempt that is, and its place among all."""

    process: BaseProcess
    pipe: "Connection[Any, Any]"
    job: Any
    attempt: int
    place: int
    started: bool = False


def run_side_by_side(
    function: Callable[[Any, Step], None],
    jobs: Sequence[Any],
    workers: int,
    on_progress: OnProgress,
    gpus: Sequence[str] = (),
) -> list[Failure]:
    """Calls `function(job, step)` for every job in `workers` processes; `step(stage, done, total)` reports progress.

    `gpus`: for each worker, the GPUs that it sees, as CUDA_VISIBLE_DEVICES names them; empty: all see what we see.
    A job that raises is reported, and the rest goes on. One whose worker process died is tried again, after the others.
    """
    failures: list[Failure] = []
    ended = ending(len(jobs), on_progress, failures)
    waiting = deque((job, 1) for job in jobs)
    at_work: list[_Worker] = []
    if jobs:
        on_progress(Progress("", len(jobs), BEGUN, 0, 0))
    try:
        while waiting or at_work:
            while waiting and len(at_work) < workers:
                place = min({*range(workers)} - {worker.place for worker in at_work})
                at_work.append(_hire(function, len(jobs), place, gpus[place] if gpus else None, *waiting.popleft()))
            ready = wait([worker.pipe for worker in at_work], timeout=1.0)
            for worker in [*at_work]:
                if worker.pipe not in ready and worker.process.is_alive():
                    continue
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):
                    at_work.remove(worker)
                    worker.process.join()
                    if worker.attempt < ATTEMPTS:
                        waiting.append((worker.job, worker.attempt + 1))
                    else:
                        ended(worker.job, Failure(str(worker.job), _died(worker)))
                    continue
                if isinstance(said, Progress):
                    on_progress(said)
                    continue
                worker.started = True
                if said != READY:
                    ended(worker.job, said)
                    if not waiting:
                        at_work.remove(worker)
                        worker.pipe.close()  # which ends it
                        continue
                    worker.job, worker.attempt = waiting.popleft()
                with suppress(OSError):  # it died; the next look at it tells
                    worker.pipe.send(worker.job)
    finally:
        for worker in at_work:
            worker.process.terminate()
    return failures


def _hire(function: Callable[..., None], of: int, place: int, gpus: str | None, job: Any, attempt: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, of, gpus))
    process.start()
    theirs.close()
    return _Worker(process, ours, job, attempt, place)


def _serve(pipe: "Connection[Any, Any]", function: Callable[..., None], of: int, gpus: str | None) -> None:
    """What a worker does: job after job, until the pipe is closed."""
    if gpus is not None:  # CUDA looks when it is first used, which no import does
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then ends its workers
    pipe.send(READY)
    with suppress(EOFError):
        while True:
            job = pipe.recv()
            name = str(job)
            pipe.send(call(function, job, lambda *step, name=name: pipe.send(Progress(name, of, *step))))


def _died(worker: _Worker) -> str:
    code = worker.process.exitcode
    if not worker.started and code == 1:  # the interpreter's own exit code after a traceback, which it has printed
        return (
            "its worker process could not start; its own message stands above. Each worker imports the script that was "
            'run, so the script must be a file, and start its study below `if __name__ == "__main__":`.'
        )
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return f"its worker process died {ATTEMPTS} times, last {how}. Is there enough memory?"


def call(function: Callable[..., None], job: Any, step: Step) -> Failure | None:
    """Calls `function(job, step)`; what it raises comes back as a Failure."""
    try:
        function(job, step)
    except SpilloverError as error:
        return Failure(str(job), str(error))
    except Exception as error:
        return Failure(str(job), f"{type(error).__name__}: {error}", traceback.format_exc())
    return None


def ending(of: int, on_progress: OnProgress, failures: list[Failure]) -> Callable[[Any, Failure | None], None]:
    """What takes the end of each job: it is told, and a failure is kept."""

    def ended(job: Any, failure: Failure | None) -> None:
        on_progress(Progress(str(job), of, FAILED if failure else DONE, 1, 1))
        if failure:
            failures.append(failure)

    return ended


def die_with_parent() -> None:
    """A worker must not outlive the run that started it, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
