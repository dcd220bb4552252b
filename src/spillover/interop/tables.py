"""Reads tables of answers with their scores: CSV and JSON Lines."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
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
ScoreCell = tuple[str, float | None, str]  # outcome, value, what stands there


@dataclass(frozen=True)
class Options:
    """How files are read.

    `columns` maps what we call it to what the file calls it: one of FIELDS, or a rubric of the behavior (scores 0-100;
    of an Inspect log, the score's key). Questions and answers are in the columns `question` and `answer` if nothing
    else is said; without `question_id`, a question is known by its words; without `model`, the model is called as the
    file; without `condition`, the condition is `base`. `judge_name`: who gave the scores, where no column and no log
    says it. `allow_missing`: take in an Inspect log that lacks samples.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    behavior: str | None = None
    judge_name: str | None = None
    allow_missing: bool = False

    @property
    def score_columns(self) -> dict[str, str]:
        """The columns that hold scores, by rubric."""
        return {name: column for name, column in self.columns.items() if name not in FIELDS}


def column_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """The pairs OURS=THEIRS of the command line as a mapping."""
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise SpilloverError(
                f"--column {pair}: write OURS=THEIRS, as in --column answer=response. OURS is one of "
                f"{', '.join(FIELDS)}, or a rubric."
            )
        columns[ours] = theirs
    return columns


@dataclass
class Source:
    """One file: its completions in order, those of a table with an empty `question_id` or `format` if it names none."""

    path: Path
    digest: str
    behaviors: list[Behavior]
    completions: list[Completion] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    missing: int = 0

    @property
    def rules(self) -> list[str]:
        """Hashes of the rules that its behavior is judged by."""
        return [behavior.rubric_hash for behavior in self.behaviors]


def read_table(path: Path, digest: str, options: Options) -> Source:
    """Reads a table. Raises SpilloverError naming file, line and column."""
    columns, behavior = options.columns, load_behavior(options.behavior or DEFAULT_BEHAVIOR)
    scores = options.score_columns
    check_rubrics(behavior, scores, f"{path}")
    if "outcome" in columns and not scores:
        raise SpilloverError(
            f"{path}: an outcome is one of scores, and there are none. Name them: --column RUBRIC=THEIRS"
        )
    if scores and not ("judge" in columns or options.judge_name):
        raise SpilloverError(f"{path}: who gave its scores? Say it: --judge-name NAME, or --column judge=THEIRS")
    source = Source(path, digest, [behavior])
    for number, (line, row) in enumerate(_rows(path)):
        get = _RowReader(row, columns, f"{path}, line {line}")
        cell = Cell(
            get.name("model") if "model" in columns else path.stem,
            get.name("condition") if "condition" in columns else BASE,
            None,
        )
        completion = imported_completion(
            hash_of(digest, number),
            cell,
            behavior,
            question_id=get.name("question_id") if "question_id" in columns else "",
            question=get.text("question"),
            text=get.text("answer", may_be_empty=True),
        )
        source.completions.append(completion)
        if not scores:
            continue
        judge = get.name("judge") if "judge" in columns else options.judge_name or ""
        values = {rubric: get.score(rubric, behavior) for rubric in scores}
        if "outcome" in columns:
            values |= get.outcome(values, behavior)
        for rubric, (outcome, value, text) in values.items():
            source.scores.append(imported_score(completion.id, rubric, behavior, judge, outcome, value, text))
    return source


def check_rubrics(behavior: Behavior, scores: Mapping[str, str], where: str) -> None:
    """Raises SpilloverError unless the scores are of rubrics that the behavior has, and of all that its rule reads."""
    rubrics = list(dict.fromkeys((*behavior.rubrics_read, *behavior.rubrics)))
    if unknown := [rubric for rubric in scores if rubric not in rubrics]:
        raise SpilloverError(
            f"{where}: --column {unknown[0]}={scores[unknown[0]]}: {unknown[0]} is none of {', '.join(FIELDS)}, "
            f"and no rubric of behavior {behavior.name}, which has {', '.join(rubrics)}. Another behavior: "
            "--behavior NAME|FILE"
        )
    missing = [rubric for rubric in behavior.rubrics_read if rubric not in scores]
    if scores and missing:
        raise SpilloverError(
            f"{where}: the rule of {behavior.name} ({behavior.rule}) reads {missing[0]} too. Name its column, --column "
            f"{missing[0]}=THEIRS, or a behavior with another rule: --behavior FILE"
        )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a table."""
    if path.suffix.lower() == ".jsonl":
        yield from records.read_jsonl(path)
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an answer may be long
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] = next(reader, [])
            if len(set(header)) < len(header):
                raise SpilloverError(f"{path}, line 1: two columns have the same name. Rename one: {', '.join(header)}")
            line = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise SpilloverError(
                        f"{path}, line {line}: has {len(row)} fields, and the header {len(header)}. A field with a "
                        "comma or a line break in it needs quotes around it."
                    )
                if row:
                    yield line, dict(zip(header, row, strict=True))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise SpilloverError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except csv.Error as error:
        raise SpilloverError(f"{path}, line {line}: not valid CSV ({error}). Mend the row or its quotes.") from None


@dataclass(frozen=True)
class _RowReader:
    """Reads the fields of one row; every error names the place, the column, what is there and what to do."""

    row: Mapping[str, Any]
    columns: Mapping[str, str]
    place: str

    def raw(self, field_name: str) -> Any:
        column = self.columns.get(field_name, field_name)
        if column not in self.row:
            raise SpilloverError(
                f"{self.place}: there is no column {column!r}, but {', '.join(map(repr, self.row))}. Name the right "
                f"one: --column {field_name}=THEIRS"
            )
        return self.row[column]

    def text(self, field_name: str, kinds: tuple[type, ...] = (str,), may_be_empty: bool = False) -> str:
        value = self.raw(field_name)
        if type(value) not in kinds or not (str(value).strip() or may_be_empty):
            raise SpilloverError(
                f"{self._column(field_name)}: {value!r:.80} is no {field_name.replace('_', ' ')}. Every row needs one; "
                "mend the row or leave it out."
            )
        return str(value)

    def name(self, field_name: str) -> str:
        return _whole(self.text(field_name, (str, int)).strip())

    def outcome(self, scores: Mapping[str, ScoreCell], behavior: Behavior) -> dict[str, ScoreCell]:
        """The scores that the row's outcome changes: those that it says there are not."""
        outcome = self.raw("outcome")
        without = [rubric for rubric, (_, value, _) in scores.items() if value is None]
        if outcome not in OUTCOMES or (outcome == "scored" and without):
            what = f"but there is no score for {without[0]}" if outcome in OUTCOMES else f"not in {', '.join(OUTCOMES)}"
            raise SpilloverError(f"{self._column('outcome')}: the outcome is {outcome!r:.80}, {what}.")
        if outcome == "scored":
            return {}
        return {rubric: (outcome, None, scores[rubric][2]) for rubric in without or behavior.rubrics_read[:1]}

    def score(self, rubric: str, behavior: Behavior) -> ScoreCell:
        """Nothing there is `unparsed`, an escape word of the rubric its outcome."""
        raw = self.raw(rubric)
        return (*read_score(raw, rubric, behavior, self._column(rubric)), "" if raw is None else str(raw))

    def _column(self, field_name: str) -> str:
        return f"{self.place}, column {self.columns.get(field_name, field_name)}"


def read_score(raw: Any, rubric: str, behavior: Behavior, place: str) -> tuple[str, float | None]:
    """Outcome and value of what stands for a score at a place. Raises SpilloverError if it is none."""
    said = "" if raw is None else str(raw).strip()
    if said.lower() in ("", "nan"):
        return "unparsed", None
    if rubric in behavior.rubrics and (outcome := behavior.rubrics[rubric].escapes.get(said.upper())):
        return outcome, None
    try:
        value = math.nan if isinstance(raw, bool) else float(said)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise SpilloverError(
            f"{place}: {raw!r:.80} is no score for {rubric}. A score is a number from 0 to 100, or empty where the "
            "judge gave none."
        )
    return "scored", value


def imported_score(
    id_: str, rubric: str, behavior: Behavior, judge: str, outcome: str, value: float | None, said: str
) -> Score:
    """A score that a file brought; `said` is kept as the judge's reply."""
    reply = json.dumps({"text": _whole(said[:REPLY_CHARACTERS]), "read": "imported"}, ensure_ascii=False)
    return Score(id_, rubric, behavior.rubric_hash, judge, outcome, value, reply)


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half characters (lone surrogates) have no UTF-8


def imported_completion(id_: str, cell: Cell, behavior: Behavior, **known: Any) -> Completion:
    """A completion of which a file says only what is `known`."""
    known = {name: _whole(value) if isinstance(value, str) else value for name, value in known.items()}
    unknown: dict[str, Any] = {"question_id": "", "category": "", "format": "", "paraphrase": 0, "number": 0}
    unknown |= {"system": None, "stop_reason": "", "tokens": None}
    unknown |= {"model_hash": None, "adapter_hash": None, "template_hash": None}
    return Completion(id=id_, **asdict(cell), behavior=behavior.name, **(unknown | known))
