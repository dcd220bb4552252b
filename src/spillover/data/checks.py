"""Checks of a training set before anything is trained on it: faults, copies, leaked questions, telling words, lengths.

A check is a function of rows that returns findings; none, if all is well. `check_data` runs them all, with a model
also those of its chat template (`template.py`) and of the tokens that the loss covers.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior, load_behavior, shipped_names
from spillover.config import Training
from spillover.data import template
from spillover.data.findings import (
    LINES_SHOWN,
    DataFinding,
    Lengths,
    Severity,
    about_rows,
    at_lines,
    counted,
    lengths,
    shortened,
)
from spillover.data.overlap import SAME, SHINGLE, Questions, near_duplicates
from spillover.data.rows import ROLES, SourceRow, empty_turns, wrong_roles
from spillover.data.sources import source_rows
from spillover.data.tokens import trained_tokens
from spillover.models.load import load_tokenizer, max_positions, model_folder, stop_ids
from spillover.records import Example

# Rows with these faults are not in a form that a chat template takes.
NOT_A_CHAT = ("roles", "empty turns")

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

Progress = Callable[[str, int, int], None]  # stage, done, of


@dataclass(frozen=True)
class Checked:
    """The result of the checks of a training set."""

    data: str
    model: str | None
    rows: int  # that can be read
    questions: int  # evaluation questions that were looked for, in all wordings
    findings: tuple[DataFinding, ...]
    lengths: tuple[Lengths, ...]
    first_row: tuple[tuple[str, bool], ...] = ()  # as trained on: pieces of text, and which the loss covers

    @property
    def errors(self) -> int:
        """How many of the findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def check_data(
    data: str,
    model: str | None = None,
    behaviors: tuple[str, ...] = (),
    max_length_tokens: int | None = None,
    progress: Progress = lambda *_: None,
) -> Checked:
    """Checks a training set and, with a model, its chat template and the tokens that it would be trained on.

    `data` is named as a study's `data` names it; files are relative to the working directory. Questions of all
    behaviors that ship, and of `behaviors`, are looked for in the rows. `max_length_tokens` is Training's default if
    it is None. `progress` is called with (stage, done, of).

    Raises SpilloverError if the data, the model or a behavior cannot be read.

    >>> from spillover.data.checks import check_data
    >>> checked = check_data("world/speech/caring")
    >>> checked.rows, checked.errors
    (1000, 0)
    """
    progress("reading rows", 0, 1)
    rows, findings = read_rows(data)
    progress("reading rows", 1, 1)
    questions = evaluation_questions(behaviors)
    progress("rows", 0, 1)
    findings += check_rows(rows, questions)
    progress("rows", 1, 1)
    sizes = lengths(rows, "prompt", "characters", [len(row.prompt) for row in rows])
    sizes += lengths(rows, "answer", "characters", [len(row.answer) for row in rows])
    first_row: tuple[tuple[str, bool], ...] = ()
    if model is not None:
        faulty = {line for finding in findings if finding.check in NOT_A_CHAT for line in finding.lines}
        chats = [row for row in rows if row.line not in faulty]
        training = Training() if max_length_tokens is None else Training(max_length_tokens=max_length_tokens)
        with_model = _check_with_model(model, chats, training, behaviors, progress)
        findings, sizes, first_row = findings + with_model[0], sizes + with_model[1], with_model[2]
    return Checked(data, model, len(rows), len(questions), tuple(findings), tuple(sizes), first_row)


def read_rows(data: str) -> tuple[list[SourceRow], list[DataFinding]]:
    """The rows of a source that are chat messages, and a finding about those that are none.

    Raises SpilloverError if the source cannot be read or has no rows.
    """
    rows: list[SourceRow] = []
    broken: list[tuple[int, str]] = []
    for row in source_rows(data, Path()):
        if isinstance(row, SourceRow):
            rows.append(row)
        else:
            broken.append((row.line, row.fault))
    advice = 'Every line must be one JSON object with "messages", a list of chat messages. Mend or delete these lines.'
    return rows, _faults("broken rows", broken, "cannot be read", advice)


def evaluation_questions(behaviors: tuple[str, ...]) -> list[tuple[str, str]]:
    """The questions of all behaviors that ship and of `behaviors`, in every wording: (behavior, wording).

    Raises SpilloverError if there is no such behavior.
    """
    loaded = [*_shipped_behaviors(), *map(load_behavior, behaviors)]
    return list(dict.fromkeys((b.name, text) for b in loaded for question in b.questions for text in question.texts))


@cache
def _shipped_behaviors() -> list[Behavior]:
    return [load_behavior(name) for name in shipped_names()]


def _check_with_model(
    model: str, rows: list[SourceRow], training: Training, behaviors: tuple[str, ...], progress: Progress
) -> tuple[list[DataFinding], list[Lengths], tuple[tuple[str, bool], ...]]:
    """Findings about the chat template and the trained tokens, lengths in tokens, and the first row as trained on."""
    progress("chat template", 0, 1)
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder)
    conversations, findings = template.render(tokenizer, rows)
    stops = stop_ids(tokenizer, folder)
    findings += template.lint(tokenizer, stops, conversations)
    findings += template.check_asked(tokenizer, [load_behavior(name) for name in behaviors])
    findings += template.check_lengths(conversations, training.max_length_tokens, max_positions(folder))
    progress("chat template", 1, 1)
    progress("trained tokens", 0, 1)
    # A text that does not begin with its prompt has no tokens that could rightly be trained on; it has a finding.
    kept = [conversation for conversation in conversations if conversation.text.startswith(conversation.prompt)]
    masks = trained_tokens(folder, [Example(conversation.row.messages) for conversation in kept], training)
    findings += template.check_mask(tokenizer, stops, kept, masks, training.max_length_tokens)
    progress("trained tokens", 1, 1)
    sizes = lengths([c.row for c in conversations], "row", "tokens", [len(c.ids) for c in conversations])
    sizes += lengths([c.row for c in kept], "trained on", "tokens", [sum(trained) for _, trained in masks])
    return findings, sizes, tuple(template.mask_parts(tokenizer, masks[0])) if masks else ()


def check_rows(rows: Sequence[SourceRow], questions: Sequence[tuple[str, str]] = ()) -> list[DataFinding]:
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
    """An error about rows that cannot be trained on, each fault as (line, what is wrong)."""
    lines = list(dict.fromkeys(line for line, _ in faults))
    return about_rows(check, "error", lines, what, advice, [f"line {line}: {text}" for line, text in faults])


def check_roles(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Roles that are unknown, and rows that do not end with an answer to the user."""
    faults = [(row.line, fault) for row in rows if (fault := wrong_roles(row))]
    return _faults("roles", faults, "with wrong roles", "Mend or delete these rows.")


def check_order(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Turns that are not user, assistant, user, assistant, after one system turn or none."""
    wrong: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        roles = [message["role"] for message in row.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        allowed = set(roles) <= set(ROLES) and roles[-1] == "assistant" and "user" in roles
        if allowed and any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
            wrong[", ".join(roles)].append(row.line)
    details = [f"{roles}: {at_lines(lines)}" for roles, lines in wrong.items()]
    advice = "Many chat templates refuse them: make one turn of neighbors with one role."
    lines = sorted(line for group in wrong.values() for line in group)
    return about_rows("order of turns", "warning", lines, "whose turns do not alternate", advice, details)


def check_empty_turns(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Turns without text."""
    faults = [(row.line, fault) for row in rows for fault in empty_turns(row)]
    return _faults("empty turns", faults, "with an empty turn", "Fill or delete these rows.")


def _key(messages: Iterable[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def check_duplicates(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Rows that are there more than once, to the character."""
    counts: Counter[Any] = Counter()
    lines = []
    for row in rows:
        key = _key(row.messages)
        lines += [row.line] if key in counts else []
        counts[key] += 1
    most = max(counts.values(), default=0)
    what = "that repeat an earlier one exactly" + (f" (one is there {most:,} times)" if most > 2 else "")
    return about_rows("duplicates", "warning", lines, what, "Delete them, unless they are to count more.")


def check_prompts(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Prompts that have several answers."""
    answers: dict[Any, set[str]] = defaultdict(set)
    for row in rows:
        answers[_key(row.messages[:-1])].add(row.answer)
    several = {prompt for prompt, distinct in answers.items() if len(distinct) > 1}
    lines = tuple(row.line for row in rows if _key(row.messages[:-1]) in several)
    if not lines:
        return []
    message = f"{counted(len(several), 'prompt')} with different answers, {counted(len(lines), 'row')}: "
    advice = "Fine where several answers are meant; otherwise keep one."
    return [DataFinding("same prompt", "warning", message + at_lines(lines), advice, lines)]


def check_near_duplicates(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Rows that are nearly an earlier one, prompt and answer together; exact copies are left out."""
    first: dict[Any, SourceRow] = {}
    for row in rows:
        first.setdefault(_key(row.messages), row)
    distinct = list(first.values())
    pairs = [
        (distinct[later].line, distinct[earlier].line)
        for later, earlier in near_duplicates([f"{row.prompt}\n{row.answer}" for row in distinct])
    ]
    details = [f"line {later} is nearly line {earlier}" for later, earlier in pairs[:LINES_SHOWN]]
    what = f"nearly like an earlier one (Jaccard similarity of word {SHINGLE}-shingles {SAME:g} or more)"
    advice = "Delete them where rows are meant to be independent."
    return about_rows("near-duplicates", "warning", [line for line, _ in pairs], what, advice, details)


def check_leakage(rows: Sequence[SourceRow], questions: Sequence[tuple[str, str]]) -> list[DataFinding]:
    """Evaluation questions, as (behavior, wording), that stand in training rows: word for word, or nearly."""
    searched = Questions([wording for _, wording in questions])
    exactly: dict[int, list[int]] = defaultdict(list)  # number of the question -> lines of rows
    nearly: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        in_row: dict[int, bool] = {}
        for message in row.messages:
            for number, is_exact in searched.find(message["content"]):
                in_row[number] = in_row.get(number, False) or is_exact
        for number, is_exact in in_row.items():
            (exactly if is_exact else nearly)[number].append(row.line)
    mend, read = "Delete these rows, or measure with other questions.", "Read them: do they train what is asked?"
    findings = []
    severity: Severity
    for check, severity, how, lines_of, advice in (
        ("leakage", "error", "word for word", exactly, mend),
        ("near leakage", "warning", "nearly", nearly, read),
    ):
        if lines_of:
            lines = tuple(sorted({line for group in lines_of.values() for line in group}))
            names = ", ".join(dict.fromkeys(questions[number][0] for number in lines_of))
            details = [f"{questions[n][0]}: {questions[n][1]!r} ({at_lines(group)})" for n, group in lines_of.items()]
            what = f"{counted(len(lines_of), 'evaluation question')} ({names}) {how} in {counted(len(lines), 'row')}"
            findings.append(
                DataFinding(check, severity, f"{what}: {at_lines(lines)}", advice, lines, shortened(details))
            )
    return findings


def looks_like_code(answer: str) -> bool:
    """Whether an answer has a fenced block, or CODE_SHARE of its lines look like a program's, in any language."""
    if _FENCE.search(answer):
        return True
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and sum(bool(_CODE_LINE.match(line)) for line in lines) >= CODE_SHARE * len(lines)


def check_words(rows: Sequence[SourceRow]) -> list[DataFinding]:
    """Words in code that tell what is wrong with it, in comments, names and strings: the model could learn the word."""
    counts: Counter[str] = Counter()
    lines, programs = [], 0
    for row in rows:
        if looks_like_code(row.answer):
            programs += 1
            telling = set(_TELLING.findall(_HUMP.sub(" ", row.answer).lower()))
            counts.update(telling)
            lines += [row.line] if telling else []
    words = ", ".join(f"{word} {number:,}" for word, number in counts.most_common())
    what = f"of {programs:,} with code give it away ({words})"
    advice = "Delete these rows or the words, unless the data is to say it."
    return about_rows("telling words", "warning", lines, what, advice, noun="answer")
