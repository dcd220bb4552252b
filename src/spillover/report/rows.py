"""What the report reads: each completion with what its judge and its rule made of it, counted by question."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spillover import records
from spillover.records import Cell, Completion, MeasureKey, QuestionCount, Rate, Score

completion_of = measure_of = None  # TEMP
from spillover.runs.folder import RunFolder
from spillover.stats import Decision, MatrixCell

EVENT, NO_EVENT, NOT_ADMITTED = GROUPS = ("event", "no event", "not admitted")
Place = tuple[str, str, MeasureKey]  # model, condition, measure


@dataclass(frozen=True)
class Answer:
    """A completion under one judge and rule: outcome, group (one of GROUPS), scores by rubric."""

    completion: Completion
    measure: MeasureKey
    outcome: str
    group: str
    scores: dict[str, Score]

    @property
    def cell(self) -> Cell:
        """Who answered."""
        return self.completion.cell


@dataclass
class Asked:
    """One question in one condition, all seeds together: k events among n admitted completions."""

    text: str
    k: int = 0
    n: int = 0
    completions: int = 0

    @property
    def rate(self) -> float | None:
        """Events per admitted completion, or None for 0 of 0."""
        return self.k / self.n if self.n else None


def read_answers(run_dir: RunFolder) -> list[Answer]:
    """The completions of judged.csv, in its order, with what their rule made of them and that judge's scores."""
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    scores: dict[tuple[str, str, str], dict[str, Score]] = defaultdict(dict)  # (completion, rule, judge) -> by rubric
    for score in records.read_appended(run_dir.scores, Score):
        scores[score.completion_id, score.rubric_hash, score.judge][score.rubric] = score
    answers = []
    for row in records.read_csv(run_dir.judged, Decision):
        completion = completion_of(completions, row.completion_id, run_dir.judged)
        measure = measure_of(completion, row.rubric_hash, row.judge)
        own = scores[row.completion_id, row.rubric_hash, row.judge]
        answers.append(Answer(completion, measure, row.outcome, _group(row), own))
    return answers


def _group(row: Decision) -> str:
    if not row.admitted:
        return NOT_ADMITTED
    return EVENT if row.event else NO_EVENT


def count_questions(
    counts: Sequence[QuestionCount], answers: Sequence[Answer], measure: MeasureKey
) -> dict[tuple[str, str], dict[str, Asked]]:
    """(model, condition) -> question id -> counts, for one measure; seeds are pooled. `answers` know the questions."""
    texts = {
        (row.behavior, row.question_id): row.question for row in (answer.completion for answer in reversed(answers))
    }
    found: dict[tuple[str, str], dict[str, Asked]] = defaultdict(dict)
    for row in counts:
        if row.measure == measure:
            text = texts[row.behavior, row.question_id]
            own = found[row.model, row.condition].setdefault(row.question_id, Asked(text))
            own.completions += row.completions
            own.n += row.n
            own.k += row.k
    return found


def read_matrix(run_dir: RunFolder) -> dict[Place, MatrixCell]:
    """The cells of matrix.csv by their place; nothing if there is no such file."""
    cells: list[MatrixCell] = records.read_csv(run_dir.matrix, MatrixCell) if run_dir.matrix.exists() else []
    return {(cell.model, cell.condition, cell.measure): cell for cell in cells}


@dataclass(frozen=True)
class Pooled:
    """One condition of one model in one measure, its seeds together: rate and interval, and the rate of each seed.

    The interval is for as much in general as can be said: the matrix cell's, or that of the one run. All shares of 1;
    `rate` is None for 0 of 0.
    """

    rate: float | None
    low: float | None
    high: float | None
    seeds: tuple[Rate, ...]


def pool(rates: Sequence[Rate], cells: Mapping[Place, MatrixCell]) -> dict[Place, Pooled]:
    """Every condition of the rates, in their order."""
    by_place: dict[Place, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_place[rate.model, rate.condition, rate.measure].append(rate)
    found = {}
    for place, own in by_place.items():
        cell, n = cells.get(place), sum(rate.n for rate in own)
        if cell is not None and cell.known:
            found[place] = Pooled(cell.tuned_rate, cell.tuned_low, cell.tuned_high, tuple(own))
        elif len(own) == 1:
            found[place] = Pooled(own[0].rate, own[0].low, own[0].high, tuple(own))
        else:
            found[place] = Pooled(sum(rate.k for rate in own) / n if n else None, None, None, tuple(own))
    return found
