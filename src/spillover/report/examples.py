"""The answers that the example browser shows: of each model, condition, measure and kind the first few by a hash."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from spillover.files import hash_of
from spillover.records import MeasureKey
from spillover.report.rows import GROUPS, Answer

PER_GROUP = 20  # of each model, condition, measure and group
BUDGET = 900_000  # characters of all; with more groups there are fewer of each, and beyond that they are cut shorter
MOST_CHARACTERS, FEWEST_CHARACTERS = 6000, 600  # of one answer


def examples(answers: Sequence[Answer], labels: Mapping[MeasureKey, str]) -> dict[str, Any]:
    """What browser.js reads. `each`: at most so many of a group; `of`: all answers there are."""
    groups: dict[Any, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.cell.model, answer.cell.condition, answer.measure, answer.group].append(answer)
    most = max(FEWEST_CHARACTERS, min(MOST_CHARACTERS, BUDGET // max(1, len(groups))))
    by_group = [
        [_row(answer, labels, most) for answer in sorted(own, key=_place)[:PER_GROUP]] for own in groups.values()
    ]
    each, size = 0, 0
    while each < PER_GROUP and any(len(own) > each for own in by_group):
        size += sum(_size(own[each]) for own in by_group if len(own) > each)
        if each and size > BUDGET:
            break
        each += 1
    rows = [row for own in by_group for row in own[:each]]
    return {"groups": GROUPS, "each": each, "rows": rows, "of": len(answers)}


def _place(answer: Answer) -> str:
    return hash_of(answer.completion.id)


def _row(answer: Answer, labels: Mapping[MeasureKey, str], most: int) -> dict[str, Any]:
    row = answer.completion
    return {
        "model": row.model,
        "condition": row.condition,
        "seed": row.seed,
        "measure": labels[answer.measure],
        "group": answer.group,
        "outcome": answer.outcome.replace("_", "-"),
        "scores": ", ".join(f"{s.rubric} {s.value:.0f}" for s in answer.scores.values() if s.value is not None),
        "reply": next((score.reply[:500] for score in answer.scores.values()), "no score"),
        "question": f"[{row.system}]\n{row.question}" if row.system else row.question,
        "text": row.text[:most] + (" […]" if len(row.text) > most else ""),
        "code": answer.measure[-1] == "code_scan" or answer.outcome == "off_format",
    }


def _size(row: Mapping[str, Any]) -> int:
    return sum(len(key) + len(str(value)) + 6 for key, value in row.items())
