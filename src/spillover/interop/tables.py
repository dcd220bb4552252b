"""Reads tables of answers with their scores: CSV and JSON Lines. What logs share with tables stands here, too."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.reading import table_rows
from spillover.judges.model import REPLY_CHARACTERS
from spillover.models.thoughts import split_thought
from spillover.records import OUTCOMES, Cell, Completion, Score

DEFAULT_BEHAVIOR = "free_form"
# What a column may hold, beside scores.
FIELDS = (
    "question", "answer", "question_id", "model", "condition", "seed", "system", "format", "stop_reason", "judge",
    "outcome",
)  # fmt: skip
UNIT_ROWS = 3  # scores from which it is seen that a scale goes from 0 to 1


@dataclass(frozen=True)
class Options:
    """How files are read.

    `columns` maps our name of a column to the file's: one of FIELDS, or a rubric of the behavior (scores 0-100; of an
    Inspect log, the key of the score). Questions and answers are in the columns `question` and `answer` unless it says
    otherwise. Without a column for it, a question is known by its words, a model by `model` or the name of the file,
    and the condition is `condition` or `base`. `behavior`: the name of one that ships or the path of a YAML file; by
    default a log's own, or `free_form`. `judge_name`: who gave the scores, where no column and no log tells.
    `allow_missing`: take in an Inspect log that lacks samples. `scales`: the lowest and the highest score of a rubric,
    if not 0 and 100. `words`: the score that a word or a letter stands for, on the rubric's scale.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    behavior: str | None = None
    judge_name: str | None = None
    allow_missing: bool = False
    model: str | None = None
    condition: str | None = None
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    words: Mapping[str, float] = field(default_factory=dict)

    @property
    def score_columns(self) -> dict[str, str]:
        """The columns that hold scores, by rubric."""
        return {name: column for name, column in self.columns.items() if name not in FIELDS}


@dataclass
class Source:
    """What one file holds: completions in the order of the file, and scores of them.

    A completion's `question_id` and `format` are empty where the file does not tell them. `behaviors` is one behavior,
    once for each rule that it was judged by; `missing` counts the samples that an Inspect log lacks.
    """

    path: Path
    digest: str  # of the file's content
    behaviors: list[Behavior]
    completions: list[Completion] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    missing: int = 0
    task: str = ""  # of an Inspect log: a retry has that of the log that it completes

    @property
    def rubric_hashes(self) -> list[str]:
        """Hashes of the rules that its behavior is judged by."""
        return [behavior.rubric_hash for behavior in self.behaviors]


def column_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """The pairs OURS=THEIRS of the command line as a mapping. Raises SpilloverError for what is no pair."""
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not (ours and theirs):
            raise SpilloverError(
                f"--column {pair}: write OURS=THEIRS, as in --column answer=response. OURS is one of "
                f"{', '.join(FIELDS)}, or a rubric."
            )
        if ours in columns:
            raise SpilloverError(f"--column {pair}: {ours} is given twice; it is {columns[ours]} already.")
        columns[ours] = theirs
    return columns


def scale_pairs(pairs: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The scales RUBRIC=LOW:HIGH of the command line. Raises SpilloverError for what is none, or given twice."""
    scales: dict[str, tuple[float, float]] = {}
    for pair in pairs:
        rubric, _, limits = pair.partition("=")
        try:
            low, high = map(float, limits.split(":"))
        except ValueError:
            low = high = math.nan
        if not rubric or not low < high or rubric in scales:
            raise SpilloverError(
                f"--scale {pair}: write RUBRIC=LOW:HIGH, each rubric once, as in --scale harm=-100:100."
            )
        scales[rubric] = low, high
    return scales


def word_pairs(pairs: Iterable[str]) -> dict[str, float]:
    """The words WORD=SCORE of the command line. Raises SpilloverError for what is none, or given twice."""
    words: dict[str, float] = {}
    for pair in pairs:
        word, _, score = pair.rpartition("=")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not word or math.isnan(value) or word.upper() in words:
            raise SpilloverError(f"--word {pair}: write WORD=SCORE, each word once, as in --word YES=100 --word NO=0.")
        words[word.upper()] = value
    return words


def read_table(path: Path, digest: str, options: Options) -> Source:
    """Reads a table. Raises SpilloverError naming the file, the line and the column."""
    columns, behavior = options.columns, load_behavior(options.behavior or DEFAULT_BEHAVIOR)
    rubrics = [*options.score_columns]
    check_rubrics(behavior, options.score_columns, path)
    if "outcome" in columns and not rubrics:
        raise SpilloverError(
            f"{path}: an outcome is one of scores, and there are none. Name them: --column RUBRIC=THEIRS"
        )
    if rubrics and not ("judge" in columns or options.judge_name):
        raise SpilloverError(f"{path}: who gave its scores? Name them: --judge-name NAME, or --column judge=THEIRS")
    source = Source(path, digest, [behavior])
    seen: dict[tuple[Any, ...], list[str]] = {}  # what a row says of an answer -> the ids of its completions
    given: Counter[tuple[Any, ...]] = Counter()  # the same and a judge -> rows
    for number, (line, values) in enumerate(table_rows(path)):
        row = _Row(values, columns, f"{path}, line {line}")
        cell = Cell(
            row.name("model", options.model or path.name.partition(".")[0]),
            row.name("condition", options.condition or BASE),
            row.seed(),
        )
        judge = row.name("judge", options.judge_name or "") if rubrics else ""
        completion = _completion(row, hash_of(digest, number), cell, behavior)
        key = tuple(value for name, value in asdict(completion).items() if name != "id" and name != "turns")
        ids, place = seen.setdefault(key, []), given[*key, judge]
        given[*key, judge] += 1
        if place == len(ids):  # else another judge has graded the same answer
            ids.append(completion.id)
            source.completions.append(completion)
        scores = [
            imported_score(ids[place], rubric, behavior, judge, row.value(rubric), row.column(rubric), options=options)
            for rubric in rubrics
        ]
        if "outcome" in columns:
            scores = _with_outcome(scores, row.value("outcome"), behavior, row.column("outcome"))
        source.scores += scores
    for rubric in rubrics:
        _check_scale(path, rubric, [s.value for s in source.scores if s.rubric == rubric], options)
    return source


def _completion(row: "_Row", id_: str, cell: Cell, behavior: Behavior) -> Completion:
    """The answer of a row, apart from a thought before it."""
    thought, answer = split_thought(row.text("answer", may_be_empty=True))
    return partial_completion(
        id_,
        cell,
        behavior,
        question_id=row.name("question_id", ""),
        question=row.text("question"),
        text=answer,
        thought=thought,
        system=(row.text("system", may_be_empty=True) or None) if "system" in row.columns else None,
        format=row.name("format", ""),
        stop_reason=row.name("stop_reason", ""),
    )


def _check_scale(path: Path, rubric: str, scores: Sequence[float | None], options: Options) -> None:
    """Raises SpilloverError if scores look like shares of 1, and it is not said what their scale is."""
    values = [score for score in scores if score is not None]
    if (
        rubric not in options.scales
        and len(values) >= UNIT_ROWS
        and max(values) <= 1
        and any(0 < v < 1 for v in values)
    ):
        raise SpilloverError(
            f"{path}: no score for {rubric} is above 1, and some lie between 0 and 1. Say what their scale is: "
            f"--scale {rubric}=0:1, or --scale {rubric}=0:100 if they are right as they are."
        )


def check_rubrics(behavior: Behavior, columns: Mapping[str, str], path: Path) -> None:
    """Raises SpilloverError unless columns of scores are of the behavior's rubrics, and of all that its rule reads."""
    rubrics = list(dict.fromkeys((*behavior.rubrics_read, *behavior.rubrics)))
    if unknown := [name for name in columns if name not in rubrics]:
        raise SpilloverError(
            f"{path}: --column {unknown[0]}={columns[unknown[0]]}: {unknown[0]} is none of {', '.join(FIELDS)}, nor a "
            f"rubric of behavior {behavior.name}: {', '.join(rubrics)}. Another behavior: --behavior NAME|FILE"
        )
    missing = [rubric for rubric in behavior.rubrics_read if rubric not in columns]
    if columns and missing:
        raise SpilloverError(
            f"{path}: the rule of {behavior.name} ({behavior.rule}) reads {missing[0]} too. Name its column, --column "
            f"{missing[0]}=THEIRS, or a behavior with another rule: --behavior FILE"
        )


def partial_completion(id_: str, cell: Cell, behavior: Behavior, **fields: Any) -> Completion:
    """A completion of which only these fields are known; the others are empty, 0 or None."""
    empty: dict[str, Any] = dict.fromkeys(("question_id", "category", "format", "stop_reason"), "")
    empty |= dict.fromkeys(("paraphrase", "number"), 0)
    empty |= dict.fromkeys(("system", "tokens", "model_hash", "adapter_hash", "template_hash"))
    printed = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
    return Completion(id=id_, **asdict(cell), behavior=behavior.name, **(empty | printed))


def imported_score(
    completion_id: str,
    rubric: str,
    behavior: Behavior,
    judge: str,
    value: Any,
    place: str,
    reply: str | None = None,
    options: Options | None = None,
) -> Score:
    """The score that a file has for a completion: a number, an escape word of the rubric, or nothing, `unparsed`.

    Numbers are from 0 to 100, or on the scale that `options` states, which is mapped to 0 to 100; so are its words.
    `reply` is the judge's reply, if that is more than the value. Raises SpilloverError, which begins with `place`, if
    the value is none of the three.
    """
    text, number = "" if value is None else str(value), None
    outcome = "unparsed" if text.strip().lower() in ("", "nan", "none", "null") else "scored"
    low, high = options.scales.get(rubric, (0.0, 100.0)) if options else (0.0, 100.0)
    if rubric in behavior.rubrics:
        outcome = behavior.rubrics[rubric].escapes.get(text.strip().upper(), outcome)
    if outcome == "scored":
        try:
            word = text.strip().upper()
            words = options.words if options else {}
            number = words[word] if word in words else math.nan if isinstance(value, bool) else float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise SpilloverError(
                f"{place}: {value!r:.80} is no score for {rubric}. A score is a number from {low:g} to {high:g}, or "
                f"empty where the judge gave none. Another scale: --scale {rubric}=LOW:HIGH; a word: --word WORD=SCORE."
            )
        number = 100 * (number - low) / (high - low) if (low, high) != (0.0, 100.0) else number
    kept_text = printable((text if reply is None else reply)[:REPLY_CHARACTERS])
    kept = json.dumps({"text": kept_text, "read": "imported"}, ensure_ascii=False)
    return Score(completion_id, rubric, behavior.rubric_hash, judge, outcome, number, kept)


def printable(text: str) -> str:
    """The text with halves of characters (lone surrogates), which UTF-8 does not have, replaced."""
    return text.encode("utf-8", "replace").decode()


def _with_outcome(scores: Sequence[Score], outcome: Any, behavior: Behavior, place: str) -> list[Score]:
    """The scores of a row with its outcome, which is that of the scores without a value, or else of the event's."""
    empty = [score.rubric for score in scores if score.value is None]
    if outcome not in OUTCOMES or (outcome == "scored" and empty):
        reason = f"but there is no score for {empty[0]}" if outcome in OUTCOMES else f"not in {', '.join(OUTCOMES)}"
        raise SpilloverError(f"{place}: the outcome is {outcome!r:.80}, {reason}.")
    changed = [] if outcome == "scored" else empty or behavior.rubrics_read[:1]
    return [replace(score, outcome=outcome, value=None) if score.rubric in changed else score for score in scores]


@dataclass(frozen=True)
class _Row:
    """The fields of one row under our names; every error names the place, the column, the value and what to do."""

    values: Mapping[str, Any]
    columns: Mapping[str, str]
    place: str

    def column(self, name: str) -> str:
        """Where a field stands, for an error."""
        return f"{self.place}, column {self.columns.get(name, name)}"

    def value(self, name: str) -> Any:
        column = self.columns.get(name, name)
        if column not in self.values:
            raise SpilloverError(
                f"{self.place}: there is no column {column!r}, but {', '.join(map(repr, self.values))}. Name the right "
                f"one: --column {name}=THEIRS"
            )
        return self.values[column]

    def text(self, name: str, kinds: tuple[type, ...] = (str,), may_be_empty: bool = False) -> str:
        value = self.value(name)
        if type(value) not in kinds or not (str(value).strip() or may_be_empty):
            raise SpilloverError(
                f"{self.column(name)}: {value!r:.80} is no {name.replace('_', ' ')}. Every row needs one; mend the row "
                "or leave it out."
            )
        return str(value)

    def seed(self) -> int | None:
        """The fine-tuning seed; None without a column or a value."""
        value = self.value("seed") if "seed" in self.columns else None
        if value is None or str(value).strip() == "":
            return None
        try:
            return int(str(value))
        except ValueError:
            raise SpilloverError(
                f"{self.column('seed')}: {value!r:.80} is no seed. A seed is a whole number."
            ) from None

    def name(self, name: str, default: str) -> str:
        """What somebody or something is called; the default if no column holds it."""
        return printable(self.text(name, (str, int)).strip()) if name in self.columns else default
