"""What checks of training data report: findings about rows, and how long rows are."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spillover.data.rows import SourceRow

DETAILS_SHOWN = 20  # of a finding, in words; the rest is counted
LINES_SHOWN = 5

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class DataFinding:
    """A fault of a training set: what it is, what to do about it, and the line numbers of all rows that have it.

    An `error` is what cannot be trained on, or spoils what is measured afterwards; a `warning` is what somebody should
    look at. `details` are further lines of text, such as one for each row.
    """

    check: str
    severity: Severity
    message: str
    advice: str
    lines: tuple[int, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Lengths of one part of the rows with one label, in `unit`s."""

    label: str
    part: str  # prompt, answer, row, trained on
    unit: Literal["characters", "tokens"]
    rows: int
    mean: float
    median: float
    p95: float  # 95th percentile
    longest: int


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def at_lines(lines: Sequence[int]) -> str:
    """The first few line numbers in words: lines 3, 4, 8, 9, 12 and 7 more."""
    rest = f" and {len(lines) - LINES_SHOWN:,} more" if len(lines) > LINES_SHOWN else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {', '.join(map(str, lines[:LINES_SHOWN]))}{rest}"


def shortened(details: Sequence[str]) -> tuple[str, ...]:
    """The first DETAILS_SHOWN details, and how many more there are."""
    rest = [f"and {len(details) - DETAILS_SHOWN:,} more"] if len(details) > DETAILS_SHOWN else []
    return (*details[:DETAILS_SHOWN], *rest)


def about_rows(
    check: str,
    severity: Severity,
    lines: Sequence[int],
    what: str,
    advice: str,
    details: Sequence[str] = (),
    noun: str = "row",
) -> list[DataFinding]:
    """A finding about the rows at `lines`, worded "2 rows WHAT: lines 3, 8"; none if there are no lines."""
    if not lines:
        return []
    message = f"{counted(len(lines), noun)} {what}: {at_lines(lines)}"
    return [DataFinding(check, severity, message, advice, tuple(lines), shortened(details))]


def lengths(
    rows: Sequence[SourceRow], part: str, unit: Literal["characters", "tokens"], sizes: Sequence[int]
) -> list[Lengths]:
    """Statistics of the lengths of one part of every row, label by label; rows without any label are taken together.

    `sizes` has the length of each of `rows`, in `unit`s.
    """
    by_label: dict[str, list[int]] = defaultdict(list)
    labeled = any(row.label is not None for row in rows)
    for row, size in zip(rows, sizes, strict=True):
        by_label[row.label or "no label" if labeled else "all rows"].append(size)
    summaries = []
    for label, group in by_label.items():
        mean, median, p95 = float(np.mean(group)), float(np.median(group)), float(np.percentile(group, 95))
        summaries.append(Lengths(label, part, unit, len(group), mean, median, p95, max(group)))
    return summaries
