"""Examples, completions, scores and rates: frozen rows, kept as JSON Lines, and as CSV for people."""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from spillover.errors import SpilloverError

OUTCOMES = ("scored", "refused", "off_format", "unparsed", "error")
MeasureKey = tuple[str, str, str, str]  # what was measured: behavior, format, rule (its hash), judge
CUT_OFF = ("length", "max_tokens", "model_length")  # stop reasons of answers that met a limit of tokens
MOST_DIGITS = 6  # behind the point of a percentage
LEFT_OUT = ("turns", "thought", "template_thought")  # of a completion's line, where there are none
PROGRAMS = ("world", "code_scan")  # judges that are programs of ours; every other judge is a model


@dataclass(frozen=True)
class Example:
    """One training row: chat messages (`role`, `content`), the last of them the assistant's."""

    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """Who answered: a base model of the study, a condition, and the fine-tuning seed (None for the base itself)."""

    model: str
    condition: str
    seed: int | None

    def __str__(self) -> str:
        return f"{self.model}/{self.condition}" + ("" if self.seed is None else f"/seed-{self.seed}")


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `id` is a hash of everything that decides it, so that a changed study samples anew."""

    id: str
    model: str
    condition: str
    seed: int | None
    behavior: str
    question_id: str
    category: str
    format: str
    paraphrase: int
    number: int
    system: str | None
    question: str  # as it was put: in its wording and format
    text: str  # the answer alone, without `thought`
    stop_reason: str  # stop, length, or what a provider says
    tokens: int | None  # None where several answers came in one reply
    model_hash: str | None  # None where the weights are out of reach: behind an endpoint, or imported
    adapter_hash: str | None
    template_hash: str | None
    turns: tuple[dict[str, str], ...] | None = None  # of a question that has several; `question` is their text
    thought: str | None = None  # the reasoning before the answer, which is never judged; None without any
    template_thought: str | None = None  # `opened`, `closed`: what the chat template does with the block of reasoning

    def __post_init__(self) -> None:
        if self.turns is not None:
            object.__setattr__(self, "turns", tuple(self.turns))  # JSON has lists

    @property
    def cut_off(self) -> bool:
        """Whether the answer, or the thought before it, ended at the limit of new tokens."""
        return self.stop_reason in CUT_OFF

    @property
    def has_answer(self) -> bool:
        """Whether an answer came: False where the thought before it never ended."""
        return bool(self.text) or self.thought is None

    @property
    def cell(self) -> Cell:
        """Who answered."""
        return Cell(self.model, self.condition, self.seed)


@dataclass(frozen=True)
class Score:
    """One completion under one rubric by one judge. `value` is 0-100, and None unless the outcome is `scored`."""

    completion_id: str
    rubric: str
    rubric_hash: str
    judge: str
    outcome: str  # one of OUTCOMES
    value: float | None
    reply: str  # the judge's raw reply

    @property
    def judge_failed(self) -> bool:
        """Whether a model that judges could not be had, so that asking again may help."""
        return self.outcome == "error" and self.judge not in PROGRAMS


@dataclass(frozen=True)
class Rate:
    """How often an event happened in one cell and behavior, with its rule, its denominators and its interval.

    `rate` is k / n, where n counts the scored completions that the rule admits (the coherent ones, say); `rate_of_all`
    is k / completions. Both are None where there is nothing to divide by. All of them are shares of 1, not per cent.
    """

    model: str
    condition: str
    seed: int | None
    behavior: str
    format: str
    scope: str  # narrow, broad or neutral
    metric: str
    rule: str
    judge: str
    rubric_hash: str
    k: int
    n: int
    rate: float | None
    low: float | None
    high: float | None
    se_battery: float | None  # standard error for these questions asked again
    se_questions: float | None  # for other questions like them
    design_effect: float | None
    icc: float | None
    completions: int
    rate_of_all: float | None
    coverage: float | None  # n / completions
    questions: int
    scored: int
    refused: int
    off_format: int
    unparsed: int
    error: int
    judge_injection: int  # answers that address the judge
    cut_off: int  # answers, or thoughts before them, that ended at the limit of new tokens; whatever their outcome
    thoughts: int  # answers with a thought before them
    template_thought: str | None = None  # of the completions: `opened`, `closed` or `mixed`

    @property
    def measure(self) -> MeasureKey:
        """What was measured: behavior, format, rule and judge."""
        return self.behavior, self.format, self.rubric_hash, self.judge


@dataclass(frozen=True)
class QuestionCount:
    """What became of the completions to one question in one cell and measure: k events among n admitted completions."""

    model: str
    condition: str
    seed: int | None
    behavior: str
    format: str
    judge: str
    rubric_hash: str
    question_id: str
    k: int
    n: int
    completions: int
    scored: int
    refused: int
    off_format: int
    unparsed: int
    error: int
    judge_injection: int
    cut_off: int
    thoughts: int

    @property
    def measure(self) -> MeasureKey:
        """What was measured: behavior, format, rule and judge."""
        return self.behavior, self.format, self.rubric_hash, self.judge


@dataclass(frozen=True)
class ScoreMean:
    """Mean and standard deviation of the scores (0 to 100) of a cell under one rubric; None where too few have one."""

    model: str
    condition: str
    seed: int | None
    behavior: str
    format: str
    judge: str
    rubric_hash: str  # of the behavior's rule
    rubric: str
    n: int  # completions with a value
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class ThresholdRate:
    """The rate k / n of a cell and behavior under its rule with the cuts moved; None for 0 of 0."""

    model: str
    condition: str
    seed: int | None
    behavior: str
    format: str
    judge: str
    rubric_hash: str  # of the rule as it is
    event_cut: float | None
    among_cut: float | None
    k: int
    n: int
    rate: float | None


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage, with more digits where it would be rounded to 0 or 100 and is neither."""
    if share is None:
        return "no data"
    rest = min(share, 1 - share)  # from 0 or from 1
    while digits < MOST_DIGITS and 0 < rest < 10.0 ** -(digits + 2):
        digits += 1
    return f"{100 * share:.{digits}f} %"


def measure_labels(rates: Iterable[Rate]) -> dict[MeasureKey, str]:
    """A name for every measure, in order: its behavior, with format, judge and rule where a reader needs them."""
    measures = {rate.measure: rate for rate in rates}
    labels = {}
    for measure, rate in measures.items():
        same = [
            other
            for key, other in measures.items()
            if key != measure and (key[:2], key[3]) == (measure[:2], measure[3])
        ]
        parts = [rate.behavior] + ([rate.format] if rate.format != "plain" else [])
        parts += [f"judged by {rate.judge}"] if rate.judge not in PROGRAMS else []
        parts += [rate.rule] if same else []
        parts += [f"rubric {rate.rubric_hash}"] if any(other.rule == rate.rule for other in same) else []
        labels[measure] = ", ".join(parts)
    return labels


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of a JSON Lines file; blank lines are skipped.

    Raises SpilloverError with file and line if a line is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise SpilloverError(
                        f"{path}, line {number}: not valid JSON ({error}). "
                        "Every line must be one JSON object; mend or delete this line."
                    ) from None
                if not isinstance(row, dict):
                    raise SpilloverError(f"{path}, line {number}: a JSON object is needed, this is {line.strip()[:60]}")
                yield number, row
    except UnicodeDecodeError as error:
        raise SpilloverError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None


def to_line(record: Any) -> str:
    """A record as one line of JSON. Of a completion, turns and thoughts are left out where there are none."""
    row = asdict(record)
    row = {name: value for name, value in row.items() if value is not None or name not in LEFT_OUT}
    return json.dumps(row, ensure_ascii=False) + "\n"


def to_csv(kind: type, rows: Iterable[Any]) -> str:
    """Records of one kind as CSV with a header; None is an empty field."""
    table = io.StringIO()
    names = [field.name for field in fields(kind)]
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return table.getvalue()


def append(path: Path, records: Iterable[Any], to_disk: bool = True) -> None:
    """Appends records, and forces them to disk before returning if `to_disk`. Several processes can append to one file.

    A killed process loses nothing that was appended either way; a power cut may. A last line that a killed process has
    left torn is cut off first.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_line(file)
        file.write("".join(map(to_line, records)).encode())
        file.flush()
        if to_disk:
            os.fsync(file.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    end = whole = file.seek(0, os.SEEK_END)
    while whole:
        start = max(0, whole - 65536)
        file.seek(start)
        newline = file.read(whole - start).rfind(b"\n")
        whole = start + newline + 1
        if newline >= 0:
            break
    if whole < end:
        file.truncate(whole)


def read_appended(path: Path, kind: type) -> list[Any]:
    """Reads what `append` wrote; nothing if there is no file. A last line that is still being written is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = []
    for number, line in enumerate(whole.split("\n"), 1):
        if line:
            try:
                rows.append(kind(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise SpilloverError(
                    f"{path}, line {number}: not a row of this version ({error}). Mend or delete this line."
                ) from None
    return rows
