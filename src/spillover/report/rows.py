"""What the report reads: typed rows of rates.csv, and each completion with what its judge and its rule made of it."""

import csv
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any, get_args

from spillover import records
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


def read_answers(run_dir: RunDir) -> list[Answer]:
    """The completions of judged.csv, in its order, with what their rule made of them and all their scores."""
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    scores: dict[str, dict[str, Score]] = defaultdict(dict)  # completion id -> rubric -> score
    for score in records.read_appended(run_dir.scores, Score):
        scores[score.completion_id][score.rubric] = score
    with run_dir.judged.open(encoding="utf-8", newline="") as file:
        return [
            Answer(completions[row["completion_id"]], row["outcome"], _group(row), scores[row["completion_id"]])
            for row in csv.DictReader(file)
        ]


def _group(row: dict[str, str]) -> str:
    if row["admitted"] == "False":
        return NOT_ADMITTED
    return EVENT if row["event"] == "True" else NO_EVENT


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
