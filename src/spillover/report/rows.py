"""What the report reads: typed rows of rates.csv, and each completion with what its judge and its rule made of it."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from spillover import records
from spillover.behaviors import parse_cut, passes
from spillover.config import Study
from spillover.records import Cell, Completion, Rate, Score
from spillover.rundir import RunDir

EVENT, NO_EVENT, NOT_ADMITTED = GROUPS = ("event", "no event", "not admitted")
RateKey = tuple[str, str, int | None, str]  # model, condition, seed, behavior


@dataclass(frozen=True)
class Answer:
    """A completion, its outcome, the group its rule puts it in (one of GROUPS), and its scores by rubric."""

    completion: Completion
    outcome: str
    group: str
    scores: dict[str, Score]

    @property
    def cell(self) -> Cell:
        """Who answered."""
        return self.completion.cell


@dataclass
class QuestionCount:
    """One question in one condition, all seeds together: k events among n admitted completions."""

    text: str
    k: int = 0
    n: int = 0
    completions: int = 0

    @property
    def rate(self) -> float | None:
        """Events per admitted completion, or None for 0 of 0."""
        return self.k / self.n if self.n else None


def key_of(row: Rate | Completion) -> RateKey:
    """The cell and behavior of a row."""
    return row.model, row.condition, row.seed, row.behavior


def read_rates(run_dir: RunDir) -> list[Rate]:
    """The rows of rates.csv, typed as `Rate` says; an empty field is None."""
    with run_dir.rates.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Rate(**{field.name: _typed(row[field.name], field.type) for field in fields(Rate)}) for row in rows]


def _typed(value: str, kind: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if value == "" and type(None) in kinds:
        return None
    return value if str in kinds else int(value) if int in kinds else float(value)


def read_answers(run_dir: RunDir, study: Study, base_hashes: Mapping[str, str], rates: list[Rate]) -> list[Answer]:
    """The completions that the study asks for, judged by the rules of its rates; one of each cell, question and number.

    completions.jsonl is append-only and may hold answers of an earlier setting: of several for the same place the last
    is taken, and answers of another base model are left out. `disagreements` tells when that was not enough.
    """
    by_rate = {key_of(rate): rate for rate in rates}
    names = dict.fromkeys(rate.behavior for rate in rates)  # in the study's order
    asked = dict(zip(names, study.behaviors.values(), strict=True))
    latest: dict[tuple[RateKey, str, int], Completion] = {}
    for row in records.read_appended(run_dir.completions, Completion):
        current = row.model_hash == base_hashes.get(row.model, row.model_hash)
        if key_of(row) in by_rate and current and row.number < asked[row.behavior]:
            latest[key_of(row), row.question_id, row.number] = row
    scores: dict[str, dict[tuple[str, str], Score]] = defaultdict(dict)  # completion id -> (judge, rubric) -> score
    for score in records.read_appended(run_dir.scores, Score):
        scores[score.completion_id][score.judge, score.rubric] = score
    answers = [_answer(row, by_rate[key_of(row)], scores[row.id]) for row in latest.values()]
    return [answer for answer in answers if answer is not None]


def _answer(completion: Completion, rate: Rate, scores: dict[tuple[str, str], Score]) -> Answer | None:
    """A completion under a rate's rule, or None while the rule's scores are missing."""
    event, _, among = rate.rule.partition(" among ")
    rubrics = [parse_cut(cut)[0] for cut in (event, among) if cut]
    own = {rubric: scores[rate.judge, rubric] for rubric in rubrics if (rate.judge, rubric) in scores}
    if len(own) < len(set(rubrics)):
        return None
    values = {rubric: score.value for rubric, score in own.items()}
    outcome = own[rubrics[0]].outcome
    if outcome != "scored" or (among and not passes(among, values)):
        return Answer(completion, outcome, NOT_ADMITTED, own)
    return Answer(completion, outcome, EVENT if passes(event, values) else NO_EVENT, own)


def disagreements(rates: list[Rate], answers: list[Answer]) -> list[str]:
    """Cells and behaviors whose answers do not add up to their row of rates.csv (answers of an earlier setting)."""
    groups = Counter((key_of(answer.completion), answer.group) for answer in answers)
    found = []
    for rate in rates:
        k, others, rest = (groups[key_of(rate), group] for group in GROUPS)
        if (k, k + others, k + others + rest) != (rate.k, rate.n, rate.completions):
            found.append(f"{Cell(rate.model, rate.condition, rate.seed)}, {rate.behavior}")
    return found


def count_questions(answers: list[Answer], behavior: str) -> dict[tuple[str, str], dict[str, QuestionCount]]:
    """(model, condition) -> question id -> counts, for one behavior; seeds are pooled."""
    counts: dict[tuple[str, str], dict[str, QuestionCount]] = defaultdict(dict)
    for answer in answers:
        row = answer.completion
        if row.behavior == behavior:
            count = counts[row.model, row.condition].setdefault(row.question_id, QuestionCount(row.question))
            count.completions += 1
            count.n += answer.group != NOT_ADMITTED
            count.k += answer.group == EVENT
    return counts
