"""How the judges of a run agree, completion by completion: with each other, and with labels that people gave."""

import csv
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spillover.errors import SpilloverError
from spillover.records import MeasureKey
from spillover.runs.results import Results
from spillover.stats import Agreement, Corrected, Pair, compare_judges, corrected_rate

LABELS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


@dataclass(frozen=True)
class JudgePair:
    """How two judges, or one under two rules, agree on the completions of a behavior in one format."""

    a: str
    b: str
    agreement: Agreement


def judges_agree(results: Results) -> list[JudgePair]:
    """Compares every two judges that graded the same behavior in a run, over all targets.

    Raises SpilloverError if no behavior has two judges.
    """
    graded: dict[MeasureKey, dict[str, tuple[float | None, bool | None]]] = defaultdict(dict)
    questions = {}
    for block in results.blocks:
        rubric = block.behavior.rubrics_read[0]
        for row in block.decisions:
            score = block.scores.get((row.completion_id, rubric))
            event = row.event if row.outcome == "scored" else None
            graded[block.measure][row.completion_id] = (score.value if score else None, event)
            questions[row.completion_id] = row.question_id
    pairs = []
    for one, other in itertools.combinations(results.labels, 2):
        if one[:2] == other[:2]:
            a, b = graded[one], graded[other]
            rows = [Pair(questions[id_], a[id_][0], b[id_][0], a[id_][1], b[id_][1]) for id_ in a if id_ in b]
            pairs.append(JudgePair(results.labels[one], results.labels[other], compare_judges(rows)))
    if not pairs:
        path = results.folder.path if results.folder else "RUN"
        raise SpilloverError(
            f"{path}: no behavior there has two judges. Judge it again: spillover score {path} --judge MODEL"
        )
    return pairs


@dataclass(frozen=True)
class LabelAgreement:
    """How a judge agrees with labels in one measure, and the rate of every target without the judge's mistakes.

    `corrected` is by MODEL/CONDITION; None where the labels do not tell (see `stats.corrected_rate`).
    """

    measure: str
    agreement: Agreement
    corrected: dict[str, Corrected | None]


def labels_agree(results: Results, labels_file: Path) -> list[LabelAgreement]:
    """Compares every measure with labels in a CSV file: columns completion_id, and label (1 shows the behavior, or 0).

    Only completions that the rule admits are looked at. Label completions drawn at random, from all targets; the
    judge's mistakes are taken to be the same for all. Raises SpilloverError naming the file and line for labels that
    cannot be read, and the first of those of which the run has no completion.
    """
    labels = read_labels(labels_file)
    if unknown := [id_ for id_ in labels if id_ not in results.completions]:
        others = f", nor are {len(unknown) - 1} others." if len(unknown) > 1 else "."
        raise SpilloverError(f"{labels_file}: completion {unknown[0]} is not in the run{others}")
    pairs: dict[MeasureKey, list[Pair]] = defaultdict(list)
    for block in results.blocks:
        for row in block.decisions:
            if row.admitted and row.completion_id in labels:
                pairs[block.measure].append(Pair(row.question_id, None, None, row.event, labels[row.completion_id]))
    agreements = []
    for measure, rows in pairs.items():
        agreement = compare_judges(rows)
        counted = (agreement.events_both, agreement.events_only_b, agreement.events_neither, agreement.events_only_a)
        corrected = {
            target: corrected_rate([k for k, _ in asked.values()], [n for _, n in asked.values()], *counted)
            for target, asked in _counts_by_target(results, measure).items()
        }
        agreements.append(LabelAgreement(results.labels[measure], agreement, corrected))
    if not agreements:
        raise SpilloverError(f"{labels_file}: no completion that a rule of the run admits has a label.")
    return agreements


def _counts_by_target(results: Results, measure: MeasureKey) -> Mapping[str, dict[str, tuple[int, int]]]:
    """MODEL/CONDITION -> question id -> (events, admitted completions), the seeds together."""
    counts: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for (model, condition, of), seeds in results.counts.items():
        if of == measure:
            asked = counts[f"{model}/{condition}"]
            for arm in seeds.values():
                for id_, row in arm.items():
                    k, n = asked.get(id_, (0, 0))
                    asked[id_] = (k + row[0], n + row[1])
    return counts


def read_labels(path: Path) -> dict[str, bool]:
    """Labels by completion id. Raises SpilloverError naming the file, the line and what is wrong with it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from error
    except csv.Error as error:
        raise SpilloverError(f"{path}: not a CSV table ({error}).") from error
    except UnicodeDecodeError as error:
        raise SpilloverError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    labels: dict[str, bool] = {}
    for line, row in enumerate(rows, 2):
        id_, label = row.get("completion_id"), row.get("label")
        if id_ is None or label is None:
            columns = ", ".join(name for name in row if name) or "none"
            raise SpilloverError(f"{path}, line {line}: needs the columns completion_id and label; it has {columns}.")
        id_, value = id_.strip(), LABELS.get(label.strip().lower())
        if value is None:
            raise SpilloverError(f"{path}, line {line}: label is {label!r}; allowed: {', '.join(LABELS)}.")
        if labels.setdefault(id_, value) != value:
            raise SpilloverError(f"{path}, line {line}: completion {id_} has another label further up.")
    return labels
