"""Runs the cells of a study as tasks of a Ray cluster."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from spillover.errors import SpilloverError
from spillover.files import folder_atomically, write_atomically
from spillover.workers import ATTEMPTS, Failure, OnProgress, OnResult, Outcomes, Step, Success, call

RAY = "ray"
REACH_SECONDS = 5.0  # Ray itself takes half a minute, or two, to say that nothing answers at an address


def run_on_ray(
    function: Callable[[Any, Step], Any],
    jobs: Sequence[Any],
    address: str,
    cpus: float,
    gpus: float,
    on_progress: OnProgress,
    on_result: OnResult = lambda *_: None,
) -> list[Failure]:
    """Calls `function(job, step)` for every job as a task of a Ray cluster that takes so many CPUs and GPUs.

    A job has a `folder`, the run's, and in it `inputs` and `outputs`, paths relative to it. Nothing is shared: a worker
    gets copies of the inputs in a folder of its own, and returns the outputs with what the function returned, or with
    the `unfinished` files of a job that failed; they are written into the run's folder here, before `on_result` gets
    the job and the value. A task whose worker died is tried again from the start. `address` is ray://HOST:PORT, or ray
    for the cluster in RAY_ADDRESS, or one on this machine.

    Raises SpilloverError without Ray, without the cluster, or if none of its machines has so many CPUs and GPUs.
    """
    if not jobs:
        return []
    with _ray(address) as ray:
        _check_room(ray.nodes(), address, cpus, gpus)
        outcomes = Outcomes(len(jobs), on_progress, on_result)
        task = ray.remote(_work_alone).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1, name="spillover", scheduling_strategy="SPREAD"
        )
        stored: dict[Path, Any] = {}  # a file that many jobs read goes to the cluster once
        running = {}
        for job in jobs:
            files = [file for path in job.inputs for file in _files(job.folder / path)]
            for file in files:
                if file not in stored:
                    stored[file] = ray.put(file.read_bytes())
            names = [file.relative_to(job.folder) for file in files]
            running[task.remote(function, job, names, *(stored[file] for file in files))] = job
        while running:
            try:
                ended, _ = ray.wait([*running], num_returns=1)
            except (ConnectionError, ray.exceptions.RayError) as error:
                raise SpilloverError(
                    f"--on {address}: the cluster went away ({_last_line(error)}). The same command goes on."
                ) from error
            for task_id in ended:
                job = running.pop(task_id)
                try:
                    outcome, files_made = ray.get(task_id)
                except ray.exceptions.RayTaskError as error:  # before the job began: its code is not on the worker
                    outcomes.take(job, Failure(str(job), f"its Ray task failed ({_last_line(error)})", str(error)))
                except ray.exceptions.RayError as error:
                    reason = f"its Ray worker died {ATTEMPTS} times ({type(error).__name__}). Is there enough memory?"
                    outcomes.take(job, Failure(str(job), reason, str(error)))
                else:
                    _write_outputs(job, files_made)
                    outcomes.take(job, outcome)
        return outcomes.failures


def _work_alone(
    function: Callable[..., Any], job: Any, names: Sequence[Path], *contents: bytes
) -> tuple[Success | Failure, dict[Path, bytes]]:
    """What a task does: the job in a folder of its own. Returns its outcome and the outputs it has made."""
    with tempfile.TemporaryDirectory(prefix="spillover-") as place:
        folder = Path(place)
        for name, content in zip(names, contents, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        outcome = call(function, replace(job, folder=folder), lambda *_: None)
        paths = [*job.outputs, *(job.unfinished if isinstance(outcome, Failure) else ())]
        files = [file for path in paths for file in _files(folder / path)]
        return outcome, {file.relative_to(folder): file.read_bytes() for file in files}


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder but for hidden ones; none if nothing is there."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return [path] if path.is_file() else []


def _write_outputs(job: Any, contents: Mapping[Path, bytes]) -> None:
    """Puts what a job has made into the run's folder: a folder takes its place when it is whole."""
    for path in (*job.outputs, *job.unfinished):
        files = {name: content for name, content in contents.items() if name.is_relative_to(path)}
        if not files:
            continue
        if path in files:  # a file
            write_atomically(job.folder / path, files[path].decode())
            continue
        (job.folder / path).parent.mkdir(parents=True, exist_ok=True)
        with folder_atomically(job.folder / path) as made:
            for name, content in files.items():
                target = made / name.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


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
