"""Runs independent jobs side by side, in worker processes here or as tasks of a Ray cluster, and says which failed."""

import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from spillover.errors import SpilloverError

RAY = "ray"
ATTEMPTS = 3  # at a job whose worker process died
BEGUN, DONE, FAILED = "begun", "done", "failed"  # stages of a batch of jobs that begins, and of a job that has ended
READY = "ready"  # what a worker says when it can take its first job
REACH_SECONDS = 5.0  # Ray itself takes half a minute, or two, to say that nothing answers at an address
LOOK_EVERY_SECONDS = 2.0

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
    ended = _ending(len(jobs), on_progress, failures)
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
            pipe.send(_call(function, job, lambda *step, name=name: pipe.send(Progress(name, of, *step))))


def _died(worker: _Worker) -> str:
    code = worker.process.exitcode
    if not worker.started and code == 1:  # the interpreter's own exit code after a traceback, which it has printed
        return (
            "its worker process could not start; its own message stands above. Each worker imports the script that was "
            'run, so the script must be a file, and start its study below `if __name__ == "__main__":`.'
        )
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return f"its worker process died {ATTEMPTS} times, last {how}. Is there enough memory?"


def _call(function: Callable[..., None], job: Any, step: Step) -> Failure | None:
    try:
        function(job, step)
    except SpilloverError as error:
        return Failure(str(job), str(error))
    except Exception as error:
        return Failure(str(job), f"{type(error).__name__}: {error}", traceback.format_exc())
    return None


def _ending(of: int, on_progress: OnProgress, failures: list[Failure]) -> Callable[[Any, Failure | None], None]:
    """What takes the end of each job: it is told, and a failure is kept."""

    def ended(job: Any, failure: Failure | None) -> None:
        on_progress(Progress(str(job), of, FAILED if failure else DONE, 1, 1))
        if failure:
            failures.append(failure)

    return ended


def run_on_ray(
    function: Callable[[Any, Step], None],
    jobs: Sequence[Any],
    address: str,
    cpus: float,
    gpus: float,
    on_progress: OnProgress,
    look: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Calls `function(job, step)` for every job as a task of a Ray cluster that takes so many CPUs and GPUs.

    `address` is ray://HOST:PORT, or ray for the cluster in RAY_ADDRESS, or one on this machine. A task whose worker
    died is tried again. What `step` is told stays on the worker: every two seconds `look` is called.

    Raises SpilloverError without Ray, without the cluster, or if none of its machines has so many CPUs and GPUs.
    """
    failures: list[Failure] = []
    ended = _ending(len(jobs), on_progress, failures)
    if not jobs:
        return failures
    with _ray(address) as ray:
        _check_room(ray.nodes(), address, cpus, gpus)
        task = ray.remote(_alone).options(num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1, name="spillover")
        running = {task.remote(function, job): job for job in jobs}
        on_progress(Progress("", len(jobs), BEGUN, 0, 0))
        while running:
            try:
                found, _ = ray.wait([*running], num_returns=1, timeout=LOOK_EVERY_SECONDS)
            except (ConnectionError, ray.exceptions.RayError) as error:
                raise SpilloverError(
                    f"--on {address}: the cluster went away ({_last_line(error)}). The same command goes on."
                ) from None
            with suppress(Exception):  # a look that fails does no harm: the next is in two seconds
                look()
            for task_id in found:
                job = running.pop(task_id)
                try:
                    failure = ray.get(task_id)
                except ray.exceptions.RayTaskError as error:  # before the job began: its code is not on the worker
                    failure = Failure(str(job), f"its Ray task failed ({_last_line(error)})", str(error))
                except ray.exceptions.RayError as error:
                    reason = f"its Ray worker died {ATTEMPTS} times ({type(error).__name__}). Is there enough memory?"
                    failure = Failure(str(job), reason, str(error))
                ended(job, failure)
    return failures


def _alone(function: Callable[..., None], job: Any) -> Failure | None:
    return _call(function, job, lambda *_: None)


def check_cluster(address: str) -> str | None:
    """Where the cluster is that `run_on_ray` would use; None where it would look on this machine.

    Raises SpilloverError without Ray, or if the address is none, or if nothing answers there.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise SpilloverError(
            f"--on {address}: Ray is not installed. Install it here and on the machines of the cluster: "
            "pip install 'spillover[ray]'"
        ) from None
    where = os.environ.get("RAY_ADDRESS") if address == RAY else address
    host, _, port = (where or "").removeprefix("ray://").rpartition(":")
    if address != RAY and not (host and port.isdigit()):
        raise SpilloverError(
            f"--on {address}: no address of a Ray cluster. Give ray://HOST:PORT (the port of Ray's clients is 10001), "
            "or ray for the cluster in RAY_ADDRESS, or one on this machine."
        )
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise SpilloverError(
                f"--on {address}: nothing answers at {where} ({error}). Is the cluster up, and its port open from here?"
            ) from None
    return where


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    where = check_cluster(address)
    import ray

    for last in (False, True):  # the proxy of Ray's clients forks, which gRPC's fork handlers at times make fail
        try:
            ray.init(address=where, log_to_driver=False, configure_logging=False)
            break
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            if last:
                why = _last_line(error)
                raise SpilloverError(f"--on {address}: no Ray cluster can be had there ({why}).") from None
            ray.shutdown()
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_room(nodes: Sequence[dict[str, Any]], address: str, cpus: float, gpus: float) -> None:
    """Raises SpilloverError if no machine could ever take a job: Ray would wait for one without a word."""
    machines = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
    if not any(cpus <= has_cpus and gpus <= has_gpus for has_cpus, has_gpus in machines):
        there = ", ".join(sorted({f"{has_cpus:g} CPUs and {has_gpus:g} GPUs" for has_cpus, has_gpus in machines}))
        raise SpilloverError(
            f"--on {address}: a cell takes {cpus:g} CPUs and {gpus:g} GPUs, and no machine of the cluster has them "
            f"(there are machines with {there}). Set resources: {{cpus: N, gpus: N}} in the study."
        )


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def die_with_parent() -> None:
    """A worker must not outlive the run that started it, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
