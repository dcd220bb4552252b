"""How the judges of a run agree, completion by completion: with each other, and with labels that people gave."""

import csv
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from spillover import records
from spillover.errors import SpilloverError
from spillover.runs.measure import read_behaviors
from spillover.records import Completion, MeasureKey, QuestionCount, Rate, Score, completion_of, measure_labels, measure_of
from spillover.runs.folder import RunFolder
from spillover.stats import Agreement, Corrected, Decision, Pair, compare_judges, corrected_rate

LABELS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


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
    run_dir = RunFolder(folder).finished()
    labels = measure_labels(records.read_csv(run_dir.rates, Rate))
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    rubrics = {(b.name, b.rubric_hash): b.rubrics_read[0] for b in read_behaviors(run_dir)}
    values = {
        (row.completion_id, row.rubric, row.rubric_hash, row.judge): row.value
        for row in records.read_appended(run_dir.scores, Score)
    }
    graded: dict[MeasureKey, dict[str, tuple[float | None, bool | None]]] = defaultdict(dict)
    for row in records.read_csv(run_dir.judged, Decision):
        completion = completion_of(completions, row.completion_id, run_dir.judged)
        rubric = rubrics[completion.behavior, row.rubric_hash]
        value = values.get((row.completion_id, rubric, row.rubric_hash, row.judge))
        decided = row.event if row.outcome == "scored" else None
        graded[measure_of(completion, row.rubric_hash, row.judge)][row.completion_id] = (value, decided)
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


@dataclass(frozen=True)
class Labelled:
    """How a judge agrees with labels in one measure, and the rate of every subject without the judge's mistakes.

    `corrected` is by MODEL/CONDITION; None where the labels do not tell (see `stats.corrected_rate`).
    """

    measure: str
    agreement: Agreement
    corrected: dict[str, Corrected | None]


def labels_agree(folder: Path, labels_file: Path) -> list[Labelled]:
    """Compares every measure with labels in a CSV file: columns completion_id, and label (1 shows the behavior, or 0).

    Only completions that the rule admits are looked at. Label completions drawn at random, from all subjects; their
    mistakes are taken to be the same for all. Raises SpilloverError naming the file and line for labels that cannot be
    read, and the first of those of which the run has no completion.
    """
    run_dir = RunFolder(folder).finished()
    labels = read_labels(labels_file)
    names = measure_labels(records.read_csv(run_dir.rates, Rate))
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    if unknown := [id_ for id_ in labels if id_ not in completions]:
        raise SpilloverError(
            f"{labels_file}: completion {unknown[0]} is not in {run_dir.completions}"
            + (f", nor are {len(unknown) - 1} others." if len(unknown) > 1 else ".")
        )
    pairs: dict[MeasureKey, list[Pair]] = defaultdict(list)
    for row in records.read_csv(run_dir.judged, Decision):
        if row.admitted and row.completion_id in labels:
            completion = completion_of(completions, row.completion_id, run_dir.judged)
            pair = Pair(row.question_id, None, None, row.event, labels[row.completion_id])
            pairs[measure_of(completion, row.rubric_hash, row.judge)].append(pair)
    counts: dict[MeasureKey, dict[str, dict[str, tuple[int, int]]]] = defaultdict(lambda: defaultdict(dict))
    for line in records.read_csv(run_dir.counts, QuestionCount):
        asked = counts[line.measure][f"{line.model}/{line.condition}"]
        k, n = asked.get(line.question_id, (0, 0))
        asked[line.question_id] = (k + line.k, n + line.n)  # seeds together
    found = []
    for measure, own in pairs.items():
        agreement = compare_judges(own)
        counted = (agreement.events_both, agreement.events_only_b, agreement.events_neither, agreement.events_only_a)
        corrected = {
            subject: corrected_rate([k for k, _ in asked.values()], [n for _, n in asked.values()], *counted)
            for subject, asked in counts[measure].items()
        }
        found.append(Labelled(names[measure], agreement, corrected))
    if not found:
        raise SpilloverError(f"{labels_file}: no completion that a rule of {folder} admits has a label.")
    return found


def read_labels(path: Path) -> dict[str, bool]:
    """Labels by completion id. Raises SpilloverError naming the file, the line and what is wrong with it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None
    except csv.Error as error:
        raise SpilloverError(f"{path}: not a CSV table ({error}).") from None
    except UnicodeDecodeError as error:
        raise SpilloverError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    labels: dict[str, bool] = {}
    for line, row in enumerate(rows, 2):
        id_, label = row.get("completion_id"), row.get("label")
        if id_ is None or label is None:
            has = ", ".join(name for name in row if name) or "none"
            raise SpilloverError(f"{path}, line {line}: needs the columns completion_id and label; it has {has}.")
        id_ = id_.strip()
        if label.strip().lower() not in LABELS:
            raise SpilloverError(f"{path}, line {line}: label is {label!r}; allowed: {', '.join(LABELS)}.")
        if labels.setdefault(id_, LABELS[label.strip().lower()]) != LABELS[label.strip().lower()]:
            raise SpilloverError(f"{path}, line {line}: completion {id_} has another label further up.")
    return labels
