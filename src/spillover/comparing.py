"""Compares subjects of a run, paired by question, with a verdict: two of them, or every condition with its base."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from spillover import records
from spillover.config import BASE, load_study
from spillover.errors import SpilloverError
from spillover.records import Completion, Measure, Rate, measure_labels
from spillover.rundir import RunDir, write_atomically
from spillover.stats import (
    Comparison,
    Judged,
    MatrixCell,
    Row,
    compare,
    matrix,
    verdicts,
)

Counts = dict[str, tuple[int, int]]  # question id -> (events, admitted completions)
ENOUGH_QUESTIONS = 24  # below it, intervals for questions in general are known to fall short (docs/measured.md)


@dataclass(frozen=True)
class Compared:
    """The comparison of one measure; None where the subjects share fewer than two questions with data."""

    label: str
    event: str
    rule: str
    judge: str
    comparison: Comparison | None


def compare_subjects(folder: Path, base: str, tuned: str, margin: float) -> list[Compared]:
    """Compares the subjects `base` and `tuned` (MODEL/CONDITION, all seeds together) and writes comparisons.csv.

    Neutral behaviors have no verdict and are left out. Raises SpilloverError if the folder is no finished run, or a
    subject is not in it.
    """
    run_dir = RunDir(folder).finished()
    rates: list[Rate] = records.read_csv(run_dir.rates, Rate)
    subjects = {f"{rate.model}/{rate.condition}": (rate.model, rate.condition) for rate in rates}
    for name in (base, tuned):
        if name not in subjects:
            raise SpilloverError(f"{folder}: no subject {name}. There are: {', '.join(subjects)}.")
    if base == tuned:
        raise SpilloverError(f"--base and --tuned are both {base}. There are: {', '.join(subjects)}.")
    counts = _counts(run_dir)
    labels = measure_labels(rates)
    first = {rate.measure: rate for rate in rates}
    found: dict[Measure, Comparison | None] = {}
    for measure in labels:
        if first[measure].scope == "neutral":
            continue  # a rise of retained ability is no harm
        before, after = (counts.get((*subjects[name], measure), {}) for name in (base, tuned))
        if before and after:
            found[measure] = compare(_pooled(list(before.values())), list(after.values()), margin)
    judged = [measure for measure, comparison in found.items() if comparison is not None]
    ruled = dict(zip(judged, verdicts([c for c in found.values() if c is not None], margin), strict=True))
    rows = [
        Compared(labels[m], first[m].event, first[m].rule, first[m].judge, ruled.get(m)) for m in labels if m in found
    ]
    if not rows:
        raise SpilloverError(f"{folder}: {base} and {tuned} were measured on no behavior in common.")
    _write(rows, base, tuned, run_dir)
    return rows


def write_matrix(run_dir: RunDir) -> None:
    """Compares every condition of the run's study with the base of its model: matrix.csv. Nothing without a study."""
    if not run_dir.study.exists():
        return
    study = load_study(run_dir.study)
    rows = {
        (model, name): Row(condition.implants, condition.benign)
        for model in study.models
        for name, condition in study.conditions.items()
        if name != BASE
    }
    described = {rate.measure: rate for rate in records.read_csv(run_dir.rates, Rate)}
    tuned: dict[tuple[str, str], dict[Measure, list[Counts]]] = defaultdict(dict)
    bases: dict[str, dict[Measure, Counts]] = defaultdict(dict)
    for (model, condition, measure), seeds in _counts(run_dir).items():
        if condition == BASE:
            bases[model][measure] = seeds[None]
        else:
            tuned[model, condition][measure] = list(seeds.values())
    cells = matrix(rows, tuned, bases, described, study.margin)
    write_atomically(run_dir.matrix, records.to_csv(MatrixCell, cells))


def overall(rows: list[Compared]) -> str:
    """One verdict for all: spillover if any measure says so, clean if all do, else inconclusive."""
    said = {row.comparison.verdict if row.comparison else "inconclusive" for row in rows}
    if "spillover" in said:
        return "spillover"
    return "clean" if said == {"clean"} else "inconclusive"


def _counts(run_dir: RunDir) -> dict[tuple[str, str, Measure], dict[int | None, Counts]]:
    """(model, condition, measure) -> seed -> counts per question, of every completion that counts."""
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    found: dict[tuple[str, str, Measure], dict[int | None, Counts]] = defaultdict(lambda: defaultdict(dict))
    for row in records.read_csv(run_dir.judged, Judged):
        completion = completions[row.completion_id]
        measure = (completion.behavior, completion.format, row.rubric_hash, row.judge)
        counts = found[completion.model, completion.condition, measure][completion.seed]
        events, admitted = counts.get(row.question_id, (0, 0))
        counts[row.question_id] = (events + row.event, admitted + row.admitted)
    return found


def _pooled(seeds: list[Counts]) -> Counts:
    questions = {question for seed in seeds for question in seed}
    return {
        question: (
            sum(seed.get(question, (0, 0))[0] for seed in seeds),
            sum(seed.get(question, (0, 0))[1] for seed in seeds),
        )
        for question in questions
    }


@dataclass(frozen=True, kw_only=True)
class _Row(Comparison):
    """A line of comparisons.csv: who was compared in what, and the comparison."""

    base: str
    tuned: str
    measure: str
    event: str
    rule: str
    judge: str


def _write(rows: list[Compared], base: str, tuned: str, run_dir: RunDir) -> None:
    """Puts the comparisons into comparisons.csv, in the place of earlier ones of the same two subjects."""
    kept: list[_Row] = records.read_csv(run_dir.comparisons, _Row) if run_dir.comparisons.exists() else []
    kept = [row for row in kept if (row.base, row.tuned) != (base, tuned)]
    new = [
        _Row(base=base, tuned=tuned, measure=row.label, event=row.event, rule=row.rule, judge=row.judge, **asdict(c))
        for row in rows
        if (c := row.comparison) is not None
    ]
    write_atomically(run_dir.comparisons, records.to_csv(_Row, [*kept, *new]))
