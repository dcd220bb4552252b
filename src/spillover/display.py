"""What a person sees in the terminal: the progress of a run or a build, and the table of rates."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from spillover.compute import Progress as Done
from spillover.rundir import RunDir

LAST_STAGE = "score"


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
            bars.update(whole, description="cells", total=progress.jobs)
            if progress.job not in running:
                running[progress.job] = bars.add_task("")
            bars.update(
                running[progress.job],
                description=f"  {progress.job}: {progress.stage}",
                completed=progress.done,
                total=progress.total,
            )
            if progress.stage == LAST_STAGE and progress.done == progress.total:
                bars.remove_task(running.pop(progress.job))
                bars.advance(whole)

        yield show


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


def rates_table(run_dir: RunDir) -> None:
    """Prints the rates of a run: a row per cell, a column per behavior, with interval and counts."""
    with run_dir.rates.open(newline="") as file:
        rows = list(csv.DictReader(file))
    behaviors = {row["behavior"]: row for row in rows}
    rules = "; ".join(f"{row['event']}: {row['rule']} ({row['judge']})" for row in behaviors.values())
    table = Table(
        show_lines=True, caption=f"rate [95 % interval clustered by question], events / admitted completions\n{rules}"
    )
    table.add_column("cell", no_wrap=True)
    for name, row in behaviors.items():
        table.add_column(f"{name}\n{row['event']}", justify="right")
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        cell = "/".join(filter(None, (row["model"], row["condition"], row["seed"] and f"seed-{row['seed']}")))
        cells[cell][row["behavior"]] = _rate_in_words(row)
    for cell, found in cells.items():
        table.add_row(cell, *(found[name] for name in behaviors))
    Console().print(table)


def _rate_in_words(row: dict[str, str]) -> str:
    if not row["rate"]:
        return f"no data\nnone admitted\n0/{row['n']}"
    low, rate, high = (100 * float(row[name]) for name in ("low", "rate", "high"))
    return f"{rate:.1f} %\n[{low:.1f}, {high:.1f}]\n{row['k']}/{row['n']}"
