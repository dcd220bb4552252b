"""Reads tables of answers with their scores: CSV and JSON Lines. What logs share with tables stands here, too."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spillover import records
from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.judges.model import REPLY_CHARACTERS
from spillover.records import OUTCOMES, Cell, Completion, Score

DEFAULT_BEHAVIOR = "free_form"
FIELDS = ("question", "answer", "question_id", "model", "condition", "judge", "outcome")  # that a column may hold


@dataclass(frozen=True)
class Options:
    """How files are read.

    `columns` maps our name of a column to the file's: one of FIELDS, or a rubric of the behavior (scores 0-100; of an
    Inspect log, the key of the score). Questions and answers are in the columns `question` and `answer` unless it says
    otherwise. Without a column for it, a question is known by its words, a model by the name of the file, and the
    condition is `base`. `behavior`: the name of one that ships or the path of a YAML file; by default a log's own, or
    `free_form`. `judge_name`: who gave the scores, where no column and no log tells. `allow_missing`: take in an
    Inspect log that lacks samples.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    behavior: str | None = None
    judge_name: str | None = None
    allow_missing: bool = False

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

    @property
    def rubric_hashes(self) -> list[str]:
        """Hashes of the rules that its behavior is judged by."""
        return [behavior.rubric_hash for behavior in self.behaviors]


def column_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """The pairs OURS=THEIRS of the command line as a mapping. Raises SpilloverError for what is no pair."""
    columns = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not (ours and theirs):
            raise SpilloverError(
                f"--column {pair}: write OURS=THEIRS, as in --column answer=response. OURS is one of "
                f"{', '.join(FIELDS)}, or a rubric."
            )
        columns[ours] = theirs
    return columns


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
    for number, (line, values) in enumerate(_rows(path)):
        row = _Row(values, columns, f"{path}, line {line}")
        completion = partial_completion(
            hash_of(digest, number),
            Cell(row.name("model", path.stem), row.name("condition", BASE), None),
            behavior,
            question_id=row.name("question_id", ""),
            question=row.text("question"),
            text=row.text("answer", may_be_empty=True),
        )
        source.completions.append(completion)
        judge = row.name("judge", options.judge_name or "") if rubrics else ""
        scores = [
            imported_score(completion.id, rubric, behavior, judge, row.value(rubric), row.column(rubric))
            for rubric in rubrics
        ]
        if "outcome" in columns:
            scores = _with_outcome(scores, row.value("outcome"), behavior, row.column("outcome"))
        source.scores += scores
    return source


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
    completion_id: str, rubric: str, behavior: Behavior, judge: str, value: Any, place: str, reply: str | None = None
) -> Score:
    """The score that a file has for a completion: 0-100, an escape word of the rubric, or nothing, `unparsed`.

    `reply` is the judge's reply, if that is more than the value. Raises SpilloverError, which begins with `place`, if
    the value is none of the three.
    """
    text, number = "" if value is None else str(value), None
    outcome = "unparsed" if text.strip().lower() in ("", "nan") else "scored"
    if rubric in behavior.rubrics:
        outcome = behavior.rubrics[rubric].escapes.get(text.strip().upper(), outcome)
    if outcome == "scored":
        try:
            number = math.nan if isinstance(value, bool) else float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 100:
            raise SpilloverError(
                f"{place}: {value!r:.80} is no score for {rubric}. A score is a number from 0 to 100, or empty where "
                "the judge gave none."
            )
    words = printable((text if reply is None else reply)[:REPLY_CHARACTERS])
    kept = json.dumps({"text": words, "read": "imported"}, ensure_ascii=False)
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


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table, each with the number of its first line."""
    if path.suffix.lower() == ".jsonl":
        yield from records.read_jsonl(path)
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an answer may be long
    line, header = 1, list[str]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if line == 1:
                    header = row
                    if len(set(header)) < len(header):
                        raise SpilloverError(
                            f"{path}, line 1: two columns have the same name. Rename one: {', '.join(header)}"
                        )
                elif row and len(row) != len(header):
                    raise SpilloverError(
                        f"{path}, line {line}: has {len(row)} fields, and the header {len(header)}. A field with a "
                        "comma or a line break in it needs quotes around it."
                    )
                elif row:
                    yield line, dict(zip(header, row, strict=True))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise SpilloverError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise SpilloverError(f"{path}, line {line}: not valid CSV ({error}). Mend the row or its quotes.") from error


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

    def name(self, name: str, default: str) -> str:
        """What somebody or something is called; the default if no column holds it."""
        return printable(self.text(name, (str, int)).strip()) if name in self.columns else default
