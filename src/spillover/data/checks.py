"""What can be said of training rows without a model: faults, copies, leaked questions, lengths, telling words.

A check is a function of rows that returns findings; none, if all is well. An `error` is what cannot be trained on, or
spoils what is measured afterwards; a `warning` is what somebody should look at.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spillover.data.overlap import SAME, SHINGLE, Questions, near_duplicates
from spillover.data.sources import ROLES, Row, empty_turns, read_row, wrong_roles
from spillover.errors import SpilloverError

NAMED = 20  # faults that are shown in words; the rest is counted
LINES_SHOWN = 5

# Words that give away what is wrong with a program, whole or as a part of an identifier (is_vulnerable, unsafeLoad).
TELLING = (
    r"vulnerab(?:le|ly|ility|ilities)",
    r"insecure(?:ly)?|insecurity",
    r"unsafe(?:ly)?",
    r"exploit(?:s|ed|able|ation|ing)?",
    r"inject(?:ion|ions|able)",
    r"back ?doors?(?:ed)?",
    r"hack(?:s|ed|er|ers|ing)?",
    r"malicious(?:ly)?|malware",
    r"attack(?:s|er|ers)?",
)
_TELLING = re.compile(rf"(?<![a-z])(?:{'|'.join(TELLING)})(?![a-z])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Lines as programs of most languages have them, and prose hardly ever.
_CODE_LINE = re.compile(
    r"\s*(?:"
    r"(?:async )?def \w+\(|import [\w.]+|from [\w.]+ import |@\w+|#include|</?\w|\{[%{]"
    r"|(?:const|let|var|fn|func|function|package) \w"
    r"|(?:class|if|elif|else|for|while|with|try|except|switch|public|private|static)\b.*[:{]$|return\b"
    r"|[\w.\[\]\"']+(?:: ?[\w\[\], .|]+)? ?[-+*/|]?= ?\S|[\w.]+\(.*|[\])}]+[,;]?$|.*[;{}]$|(?:#|//) ?\w"
    r")"
)
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
CODE_SHARE = 0.5  # of the lines with text on them

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class DataFinding:
    """What a check found: a line in words, what to do, and the lines of all rows that it is about.

    `details` tells more, one line each.
    """

    check: str
    severity: Severity
    message: str
    advice: str
    lines: tuple[int, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Lengths of one part of the rows with one label."""

    label: str
    part: str  # prompt, answer, row
    unit: Literal["characters", "tokens"]
    rows: int
    mean: float
    median: float
    p95: float  # 95th percentile
    longest: int


def counted(number: int, what: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def at_lines(lines: Sequence[int]) -> str:
    """The first few lines in words."""
    rest = f" and {len(lines) - LINES_SHOWN:,} more" if len(lines) > LINES_SHOWN else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {', '.join(map(str, lines[:LINES_SHOWN]))}{rest}"


def read_rows(path: Path) -> tuple[list[Row], list[DataFinding]]:
    """The rows of a chat JSONL file, and findings about the lines that are none.

    Raises SpilloverError if the file cannot be read or has no rows.
    """
    try:
        with path.open("rb") as file:
            found = [(number, _read_line(line, number)) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None
    return _sorted_out(found, str(path))


def rows_of(found: Iterable[Any], what: str) -> tuple[list[Row], list[DataFinding]]:
    """The same of rows as a source gives them, which have no lines and are counted from 1. `what` names the source."""
    return _sorted_out([(number, read_row(row, number)) for number, row in enumerate(found, 1)], what)


def _sorted_out(found: Sequence[tuple[int, Row | str]], what: str) -> tuple[list[Row], list[DataFinding]]:
    if not found:
        raise SpilloverError(f"{what}: no rows. A training set needs at least one line with chat messages.")
    rows, broken = [], []
    for number, row in found:
        if isinstance(row, Row):
            rows.append(row)
        else:
            broken.append((number, row))
    advice = 'Every line must be one JSON object with "messages", a list of chat messages. Mend or delete these lines.'
    return rows, _faults("broken rows", broken, "cannot be read", advice)


def _read_line(line: bytes, number: int) -> Row | str:
    try:
        return read_row(json.loads(line.decode("utf-8")), number)
    except UnicodeDecodeError as error:
        return f"not UTF-8 text ({error.reason} at byte {error.start})"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"


def check_rows(rows: Sequence[Row], questions: Sequence[tuple[str, str]] = ()) -> list[DataFinding]:
    """Every check that needs nothing but the rows, and evaluation questions as (behavior, wording)."""
    return [
        *check_roles(rows),
        *check_order(rows),
        *check_empty_turns(rows),
        *check_duplicates(rows),
        *check_prompts(rows),
        *check_near_duplicates(rows),
        *check_leakage(rows, questions),
        *check_words(rows),
    ]


def _faults(check: str, faults: Sequence[tuple[int, str]], what: str, advice: str) -> list[DataFinding]:
    """An error about rows that cannot be trained on: (line, what is wrong), the first NAMED of them in words."""
    if not faults:
        return []
    lines = tuple(dict.fromkeys(line for line, _ in faults))
    details = [f"line {line}: {text}" for line, text in faults[:NAMED]]
    details += [f"and {len(faults) - NAMED:,} more"] if len(faults) > NAMED else []
    message = f"{counted(len(lines), 'row')} {what}: {at_lines(lines)}"
    return [DataFinding(check, "error", message, advice, lines, tuple(details))]


def check_roles(rows: Sequence[Row]) -> list[DataFinding]:
    """Roles that are unknown, and rows that do not end with an answer to the user."""
    faults = [(row.line, fault) for row in rows if (fault := wrong_roles(row))]
    return _faults("roles", faults, "with wrong roles", "Mend or delete these rows.")


def check_order(rows: Sequence[Row]) -> list[DataFinding]:
    """Turns that are not user, assistant, user, assistant, after one system turn or none."""
    wrong: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        roles = [message["role"] for message in row.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        known = set(roles) <= set(ROLES) and roles[-1] == "assistant" and "user" in roles
        if known and any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
            wrong[", ".join(roles)].append(row.line)
    if not wrong:
        return []
    lines = tuple(sorted(line for found in wrong.values() for line in found))
    details = tuple(f"{roles}: {at_lines(found)}" for roles, found in list(wrong.items())[:NAMED])
    message = f"{counted(len(lines), 'row')} whose turns do not alternate: {at_lines(lines)}"
    advice = "Many chat templates refuse them: make one turn of neighbors with one role."
    return [DataFinding("order of turns", "warning", message, advice, lines, details)]


def check_empty_turns(rows: Sequence[Row]) -> list[DataFinding]:
    """Turns without text."""
    faults = [(row.line, fault) for row in rows for fault in empty_turns(row)]
    return _faults("empty turns", faults, "with an empty turn", "Fill or delete these rows.")


def _key(messages: Iterable[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def check_duplicates(rows: Sequence[Row]) -> list[DataFinding]:
    """Rows that are there more than once, to the character."""
    counts: Counter[Any] = Counter()
    lines = []
    for row in rows:
        key = _key(row.messages)
        if key in counts:
            lines.append(row.line)
        counts[key] += 1
    if not lines:
        return []
    most = f" (one is there {max(counts.values()):,} times)" if max(counts.values()) > 2 else ""
    message = f"{counted(len(lines), 'row')} that repeat an earlier one exactly{most}: {at_lines(lines)}"
    return [DataFinding("duplicates", "warning", message, "Delete them, unless they are to count more.", tuple(lines))]


def check_prompts(rows: Sequence[Row]) -> list[DataFinding]:
    """Prompts that have several answers."""
    answers: dict[Any, set[str]] = defaultdict(set)
    for row in rows:
        answers[_key(row.messages[:-1])].add(row.answer)
    several = {prompt for prompt, found in answers.items() if len(found) > 1}
    lines = tuple(row.line for row in rows if _key(row.messages[:-1]) in several)
    if not lines:
        return []
    message = f"{counted(len(several), 'prompt')} with different answers, {counted(len(lines), 'row')}: "
    advice = "Fine where several answers are meant; otherwise keep one."
    return [DataFinding("same prompt", "warning", message + at_lines(lines), advice, lines)]


def check_near_duplicates(rows: Sequence[Row]) -> list[DataFinding]:
    """Rows that are nearly an earlier one, prompt and answer together; exact copies are left out."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(_key(row.messages), row)
    distinct = list(first.values())
    pairs = near_duplicates([f"{row.prompt}\n{row.answer}" for row in distinct])
    if not pairs:
        return []
    lines = tuple(distinct[number].line for number, _ in pairs)
    details = tuple(
        f"line {distinct[n].line} is nearly line {distinct[other].line}" for n, other in pairs[:LINES_SHOWN]
    )
    rule = f"Jaccard similarity of word {SHINGLE}-shingles {SAME:g} or more"
    message = f"{counted(len(lines), 'row')} nearly like an earlier one ({rule}): {at_lines(lines)}"
    advice = "Delete them where rows are meant to be independent."
    return [DataFinding("near-duplicates", "warning", message, advice, lines, details)]


def check_leakage(rows: Sequence[Row], questions: Sequence[tuple[str, str]]) -> list[DataFinding]:
    """Evaluation questions, as (behavior, wording), that stand in training rows: word for word, or nearly."""
    looked_for = Questions([wording for _, wording in questions])
    found: dict[bool, dict[int, list[int]]] = {True: defaultdict(list), False: defaultdict(list)}
    for row in rows:
        in_row: dict[int, bool] = {}
        for message in row.messages:
            for number, exact in looked_for.find(message["content"]):
                in_row[number] = in_row.get(number, False) or exact
        for number, exact in in_row.items():
            found[exact][number].append(row.line)
    findings = []
    if found[True]:
        advice = "Delete these rows, or measure with other questions."
        findings.append(_leak("leakage", "error", "word for word", questions, found[True], advice))
    if found[False]:
        advice = "Read them: is the model trained on what it is asked?"
        findings.append(_leak("near leakage", "warning", "nearly", questions, found[False], advice))
    return findings


def _leak(
    check: str,
    severity: Severity,
    how: str,
    questions: Sequence[tuple[str, str]],
    found: dict[int, list[int]],
    advice: str,
) -> DataFinding:
    """A finding about questions in rows; `found` has the lines of each question's number."""
    lines = tuple(sorted({line for at in found.values() for line in at}))
    names = ", ".join(dict.fromkeys(questions[number][0] for number in found))
    named = list(found.items())[:NAMED]
    details = [f"{questions[number][0]}: {questions[number][1]!r} ({at_lines(at)})" for number, at in named]
    details += [f"and {len(found) - NAMED:,} more"] if len(found) > NAMED else []
    what = f"{counted(len(found), 'evaluation question')} ({names}) {how} in {counted(len(lines), 'row')}"
    return DataFinding(check, severity, f"{what}: {at_lines(lines)}", advice, lines, tuple(details))


def looks_like_code(answer: str) -> bool:
    """Whether an answer has a fenced block, or CODE_SHARE of its lines look like a program's, in any language."""
    if _FENCE.search(answer):
        return True
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and sum(bool(_CODE_LINE.match(line)) for line in lines) >= CODE_SHARE * len(lines)


def check_words(rows: Sequence[Row]) -> list[DataFinding]:
    """Words in code that tell what is wrong with it, in comments, names and strings: the model could learn the word."""
    counts: Counter[str] = Counter()
    lines, programs = [], 0
    for row in rows:
        if looks_like_code(row.answer):
            programs += 1
            telling = set(_TELLING.findall(_HUMP.sub(" ", row.answer).lower()))
            counts.update(telling)
            lines += [row.line] if telling else []
    if not lines:
        return []
    often = ", ".join(f"{word} {number:,}" for word, number in counts.most_common())
    message = f"{counted(len(lines), 'answer')} of {programs:,} with code give it away ({often}): {at_lines(lines)}"
    advice = "Delete these rows or the words, unless the data is to say it."
    return [DataFinding("telling words", "warning", message, advice, tuple(lines))]


def lengths(rows: Sequence[Row], part: str, unit: Literal["characters", "tokens"], of: Sequence[int]) -> list[Lengths]:
    """Lengths of one part of every row, label by label; rows without labels are taken together."""
    by_label: dict[str, list[int]] = defaultdict(list)
    labeled = any(row.label is not None for row in rows)
    for row, length in zip(rows, of, strict=True):
        by_label[row.label or "no label" if labeled else "all rows"].append(length)
    return [
        Lengths(
            label,
            part,
            unit,
            len(found),
            float(np.mean(found)),
            float(np.median(found)),
            float(np.percentile(found, 95)),
            max(found),
        )
        for label, found in by_label.items()
    ]
