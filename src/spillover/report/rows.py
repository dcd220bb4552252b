"""What the report draws: each completion with what its judge and its rule made of it, counted by question."""

from collections import defaultdict
from dataclasses import dataclass

from spillover.records import Cell, Completion, MeasureKey, Rate, Score
from spillover.runs.results import Place, Results
from spillover.stats import Decision, MatrixCell

EVENT, NO_EVENT, NOT_ADMITTED = GROUPS = ("event", "no event", "not admitted")


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


def answers_of(results: Results) -> list[Answer]:
    """Every completion that counts, under every judge and rule, in the order of the tables."""
    answers = []
    for block in results.blocks:
        for completion, decision in zip(block.completions, block.decisions, strict=True):
            scores = {
                rubric: score
                for rubric in (*block.behavior.rubrics_read, *block.behavior.rubrics)
                if (score := block.scores.get((completion.id, rubric)))
            }
            answers.append(Answer(completion, block.measure, decision.outcome, _group(decision), scores))
    return answers


def _group(row: Decision) -> str:
    if not row.admitted:
        return NOT_ADMITTED
    return EVENT if row.event else NO_EVENT


def count_questions(results: Results, measure: MeasureKey) -> dict[tuple[str, str], dict[str, Asked]]:
    """(model, condition) -> question id -> counts, for one measure; seeds are pooled."""
    texts: dict[str, str] = {}
    for block in results.blocks:
        if block.measure == measure:
            for row in block.completions:
                texts.setdefault(row.question_id, row.question)
    asked: dict[tuple[str, str], dict[str, Asked]] = defaultdict(dict)
    for (model, condition, of), seeds in results.counts.items():
        for arm in seeds.values() if of == measure else ():
            for id_, (k, n, completions) in arm.items():
                question = asked[model, condition].setdefault(id_, Asked(texts[id_]))
                question.k, question.n = question.k + k, question.n + n
                question.completions += completions
    return asked


def cells_by_place(results: Results) -> dict[Place, MatrixCell]:
    """The cells of the matrix by model, condition and measure."""
    return {(cell.model, cell.condition, cell.measure): cell for cell in results.matrix}


@dataclass(frozen=True)
class Point:
    """One condition of one model in one measure, its seeds together: rate and interval, and the rate of each seed.

    All shares of 1; `rate` is None for 0 of 0, the limits where nothing can be said of runs in general.
    """

    rate: float | None
    low: float | None
    high: float | None
    seeds: tuple[Rate, ...]


def points_of(results: Results) -> dict[Place, Point]:
    """Every condition of the rates, in their order."""
    by_place: dict[Place, list[Rate]] = defaultdict(list)
    for rate in results.rates:
        by_place[rate.model, rate.condition, rate.measure].append(rate)
    pooled = results.pooled
    return {
        place: Point(pooled[place].rate, pooled[place].low, pooled[place].high, tuple(rates))
        for place, rates in by_place.items()
    }
