"""Runs independent jobs side by side in worker processes and relays their progress."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from queue import Empty
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far one stage of one job is, of how many jobs."""

    job: str
    jobs: int
    stage: str
    done: int
    total: int


def run_side_by_side(
    function: Callable[[Any, Callable[[str, int, int], None]], None],
    jobs: Sequence[Any],
    workers: int,
    on_progress: Callable[[Progress], None],
) -> None:
    """Calls `function(job, step)` for every job in `workers` processes; `step(stage, done, total)` reports progress.

    The first exception of a job ends the jobs that have not started and is raised here.
    """
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(die_with_parent)
    with manager:
        queue = manager.Queue()
        with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=die_with_parent) as pool:
            futures = [pool.submit(_call, function, job, len(jobs), queue) for job in jobs]
            try:
                _relay(queue, futures, on_progress)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _call(function: Callable[..., None], job: Any, jobs: int, queue: Any) -> None:
    function(job, lambda stage, done, total: queue.put(Progress(str(job), jobs, stage, done, total)))


def _relay(queue: Any, futures: list[Future[None]], on_progress: Callable[[Progress], None]) -> None:
    """Passes progress on until every job is done; raises the first exception of one."""
    running = list(futures)
    while running:
        try:
            while True:
                on_progress(queue.get(timeout=0.1))
        except Empty:
            for future in [future for future in running if future.done()]:
                future.result()
                running.remove(future)


def die_with_parent() -> None:
    """A worker must not outlive the run that started it, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
