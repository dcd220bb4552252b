"""Compares subjects of a run, paired by question, with a verdict; and judges of a run, completion by completion."""

import itertools
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from spillover import records
from spillover.errors import SpilloverError
from spillover.evaluation.measuring import read_behaviors
from spillover.records import Cell, Completion, Measure, Rate, Score, measure_labels
from spillover.rundir import RunDir, write_atomically
from spillover.stats import Agreement, Comparison, Judged, Pair, compare, compare_judges, verdicts

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
    subjects = list(dict.fromkeys(_subject(Cell(rate.model, rate.condition, rate.seed)) for rate in rates))
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
        before, after = counts.get((base, measure), {}), counts.get((tuned, measure), {})
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


def overall(rows: list[Compared]) -> str:
    """One verdict for all: spillover if any measure says so, clean if all do, else inconclusive."""
    said = {row.comparison.verdict if row.comparison else "inconclusive" for row in rows}
    if "spillover" in said:
        return "spillover"
    return "clean" if said == {"clean"} else "inconclusive"


@dataclass(frozen=True)
class Agreed:
    """How two judges, or one under two rules, agree on the completions of a behavior in one format."""

    a: str
    b: str
    agreement: Agreement


def judges_agree(folder: Path) -> list[Agreed]:
    """Compares every two judges that graded the same behavior in a run, over all subjects.

    Raises SpilloverError if the folder is no finished run, or no behavior has two judges.
    """
    run_dir = RunDir(folder).finished()
    labels = measure_labels(records.read_csv(run_dir.rates, Rate))
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    rubrics = {(b.name, b.rubric_hash): b.rubrics_read[0] for b in read_behaviors(run_dir)}
    values = {
        (row.completion_id, row.rubric, row.rubric_hash, row.judge): row.value
        for row in records.read_appended(run_dir.scores, Score)
    }
    graded: dict[Measure, dict[str, tuple[float | None, bool | None]]] = defaultdict(dict)
    for row in records.read_csv(run_dir.judged, Judged):
        completion = completions[row.completion_id]
        rubric = rubrics[completion.behavior, row.rubric_hash]
        value = values.get((row.completion_id, rubric, row.rubric_hash, row.judge))
        measure = (completion.behavior, completion.format, row.rubric_hash, row.judge)
        graded[measure][row.completion_id] = (value, row.event if row.outcome == "scored" else None)
    found = []
    for one, other in itertools.combinations(labels, 2):
        if one[:2] == other[:2]:
            a, b = graded[one], graded[other]
            pairs = [
                Pair(completions[id_].question_id, a[id_][0], b[id_][0], a[id_][1], b[id_][1]) for id_ in a if id_ in b
            ]
            found.append(Agreed(labels[one], labels[other], compare_judges(pairs)))
    if not found:
        raise SpilloverError(
            f"{folder}: no behavior there has two judges. Judge it again: spillover score {folder} --judge MODEL"
        )
    return found


def _subject(cell: Cell) -> str:
    return f"{cell.model}/{cell.condition}"


def _counts(run_dir: RunDir) -> dict[tuple[str, Measure], dict[int | None, Counts]]:
    """(subject, measure) -> seed -> counts per question, of every completion that counts."""
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    found: dict[tuple[str, Measure], dict[int | None, Counts]] = defaultdict(lambda: defaultdict(dict))
    for row in records.read_csv(run_dir.judged, Judged):
        completion = completions[row.completion_id]
        measure = (completion.behavior, completion.format, row.rubric_hash, row.judge)
        counts = found[_subject(completion.cell), measure][completion.seed]
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


@dataclass(frozen=True)
class _Row:
    """A line of comparisons.csv."""

    base: str
    tuned: str
    measure: str
    event: str
    rule: str
    judge: str
    questions: int
    seeds: int
    base_rate: float
    tuned_rate: float
    difference: float
    low: float
    high: float
    standard_error: float
    odds_ratio: float
    p: float
    p_holm: float
    p_bh: float
    p_equivalent: float
    detectable: float
    verdict: str
    method: str


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
