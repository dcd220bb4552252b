"""What a person sees while work goes on: a bar for the whole, and one for each cell or stage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from spillover.workers import BEGUN, DONE, FAILED
from spillover.workers import Progress as Done


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


@contextmanager
def run_display() -> Iterator[Callable[[Done], None]]:
    """A bar for the whole study and one for each cell being worked on; yields what takes the progress."""
    with _bars() as bars:
        whole = bars.add_task("loading", total=None)
        running: dict[str, TaskID] = {}

        def show(progress: Done) -> None:
            if progress.stage == BEGUN:
                bars.update(whole, description="cells", completed=0, total=progress.jobs)
                return
            if progress.stage in (DONE, FAILED):
                if progress.job in running:
                    bars.remove_task(running.pop(progress.job))
                bars.advance(whole)
                return
            if progress.job not in running:
                running[progress.job] = bars.add_task("")
            bars.update(
                running[progress.job],
                description=f"  {progress.job}: {progress.stage}",
                completed=progress.done,
                total=progress.total,
            )

        yield show


def log(line: str) -> None:
    """Prints a line that a person should read, beside the bars and not in the output."""
    Console(stderr=True).print(line, markup=False)


@contextmanager
def build_display() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a build; yields what takes (stage, done, of)."""
    with _bars() as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
