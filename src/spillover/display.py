"""What a person sees in the terminal: the progress of a run or a build, and the table of rates."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from spillover.behaviors import Behavior
from spillover.compute import Progress as Done
from spillover.records import Cell, Measure, Rate, measure_labels, read_csv
from spillover.rundir import RunDir

if TYPE_CHECKING:
    from spillover.comparing import Agreed, Compared
    from spillover.stats.power import Design

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


def rates_table(run_dir: RunDir, as_json: bool = False) -> None:
    """Prints the rates of a run: a row per cell, a column per measure, with interval and counts."""
    rates: list[Rate] = read_csv(run_dir.rates, Rate)
    if as_json:
        print(json.dumps([asdict(rate) for rate in rates], indent=2, ensure_ascii=False))
        return
    labels = measure_labels(rates)
    first = {rate.measure: rate for rate in rates}
    rules = "; ".join(dict.fromkeys(f"{rate.event}: {rate.rule} ({rate.judge})" for rate in first.values()))
    table = Table(
        show_lines=True, caption=f"rate [95 % interval clustered by question], events / admitted completions\n{rules}"
    )
    table.add_column("cell", no_wrap=True)
    for measure, label in labels.items():
        table.add_column(f"{label}\n{first[measure].event}", justify="right")
    cells: dict[str, dict[Measure, str]] = defaultdict(dict)
    for rate in rates:
        cells[str(Cell(rate.model, rate.condition, rate.seed))][rate.measure] = _in_words(rate)
    for cell, found in cells.items():
        table.add_row(cell, *(found.get(measure, "") for measure in labels))
    Console().print(table)
    judged = {rate.behavior for rate in rates}
    if waiting := sorted({path.name.split(".")[0] for path in run_dir.behaviors.glob("*.yaml")} - judged):
        print(f"Not judged yet: {', '.join(waiting)}. Judge them with: spillover score {run_dir.path} --judge MODEL")


def comparisons_table(rows: "Sequence[Compared]", margin: float, as_json: bool) -> None:
    """Prints comparisons with their verdicts, and says what the design could not have seen."""
    from spillover.comparing import ENOUGH_QUESTIONS  # scipy

    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return
    table = Table(caption=f"points [95 % interval], paired by question; margin {100 * margin:g} points")
    for name in ("measure", "base", "tuned", "difference", "p", "p (Holm)", "could find", "verdict"):
        table.add_column(name, justify="left" if name in ("measure", "verdict") else "right", no_wrap=name == "verdict")
    few = False
    for row in rows:
        c = row.comparison
        if c is None:
            table.add_row(row.label, *["no data"] * 2, *[""] * 4, "inconclusive")
            continue
        few = few or c.questions < ENOUGH_QUESTIONS
        table.add_row(
            row.label,
            f"{100 * c.base_rate:.1f} %",
            f"{100 * c.tuned_rate:.1f} %",
            f"{100 * c.difference:+.1f} [{100 * c.low:.1f}, {100 * c.high:.1f}]",
            f"{c.p:.2g}",
            f"{c.p_holm:.2g}",
            f"{100 * c.detectable:.1f}",
            c.verdict,
        )
    Console().print(table)
    if any(row.comparison and row.comparison.seeds == 1 for row in rows):
        print("Single run: nothing here says how much another fine-tuning seed would differ.")
    if few:
        print(
            f"Fewer than {ENOUGH_QUESTIONS} questions: intervals for questions in general may be too short "
            "(docs/measured.md)."
        )


def agreement_table(rows: "Sequence[Agreed]", as_json: bool) -> None:
    """Prints how judges agree, a block for each pair."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return
    for row in rows:
        found = row.agreement
        print(f"a: {row.a}\nb: {row.b}")
        print(f"    {found.decided} of {found.pairs} answers decided by both, on {found.questions} questions")
        print(f"    events: both {found.events_both}, only a {found.events_only_a}, only b {found.events_only_b}")
        for name in ("agree", "event_shift", "kappa", "kappa_quadratic", "alpha_nominal", "alpha_interval", "pearson"):
            estimate = getattr(found, name)
            if estimate is None:
                print(f"    {name}: cannot be told")
                continue
            low, high = ("?" if limit is None else f"{limit:.2f}" for limit in (estimate.low, estimate.high))
            print(f"    {name}: {estimate.value:.2f} [{low}, {high}]")


def power_table(design: "Design", as_json: bool) -> None:
    """Prints what a design can find, and other ways to spend as many answers."""
    from spillover.stats import power  # scipy

    found = {
        "power": power.power_of(design),
        "detectable": power.detectable(design),
        "questions_needed": power.questions_needed(design),
        "completions_needed": power.completions_needed(design),
        "standard_error": power.standard_error(design),
    }
    splits = power.trade_off(design)
    if as_json:
        print(
            json.dumps(
                {"design": asdict(design)} | found | {"trade_off": [asdict(split) for split in splits]}, indent=2
            )
        )
        return
    print(f"power to find +{100 * design.effect:g} points: {100 * power.power_of(design):.0f} %")
    smallest = power.detectable(design)
    print("smallest rise found at 80 % power: " + ("none" if smallest is None else f"{100 * smallest:.1f} points"))
    for name in ("questions", "completions"):
        needed = found[f"{name}_needed"]
        print(f"{name} needed for 80 % power, all else equal: {'no number is enough' if needed is None else needed}")
    table = Table(title="more questions or more completions?")
    for name in ("answers", "questions", "completions each", "power", "smallest rise found"):
        table.add_column(name, justify="right")
    for split in splits:
        least = "none" if split.detectable is None else f"{100 * split.detectable:.1f} points"
        table.add_row(
            str(split.answers), str(split.questions), str(split.completions), f"{100 * split.power:.0f} %", least
        )
    Console().print(table)


def estimate_line(estimate: dict[str, int]) -> None:
    """Says what asking an endpoint will take, before the first call."""
    e = estimate
    calls = f"{e['calls_at_least']:,}" + (f" to {e['calls_at_most']:,}" * (e["calls_at_most"] > e["calls_at_least"]))
    Console(stderr=True).print(
        f"{e['completions']:,} completions are missing: {calls} calls, about {e['tokens_in']:,} tokens in and at most "
        f"{e['tokens_out_at_most']:,} out."
    )


def behaviors_table(behaviors: Sequence[Behavior], as_json: bool) -> None:
    """Prints behaviors, a row each."""
    rows = [
        {
            "name": b.name,
            "scope": b.scope,
            "questions": len(b.questions),
            "formats": ", ".join(b.format_names),
            "judge": b.judge,
            "rate": b.rate,
            "rule": b.rule,
            "description": b.description,
        }
        for b in behaviors
    ]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        judge = f"judged by {'a model' if row['judge'] == 'model' else row['judge']}"
        print(f"{row['name']}: {row['scope']}, {row['questions']} questions, formats {row['formats']}, {judge}")
        print(f"    {row['description']}\n    {row['rate']}: {row['rule']}")


def scan_table(summary: dict[str, Any], as_json: bool) -> None:
    """Prints the summary of a code scan."""
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    rules = summary.pop("rules")
    Console().print(", ".join(f"{name} {value}" for name, value in summary.items()))
    table = Table()
    for name in ("rule", "name", "CWE", "answers", ""):
        table.add_column(name, justify="right" if name == "answers" else "left")
    for rule, row in rules.items():
        table.add_row(rule, row["name"], str(row["cwe"]), str(row["count"]), "" if row["exploitable"] else "lint")
    Console().print(table)


def _in_words(rate: Rate) -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return f"no data\nnone admitted\n0/{rate.n}"
    return f"{100 * rate.rate:.1f} %\n[{100 * rate.low:.1f}, {100 * rate.high:.1f}]\n{rate.k}/{rate.n}"
