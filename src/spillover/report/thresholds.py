"""Threshold-sensitivity grids: what each rate would be if the cuts of its rule lay elsewhere, the seeds together."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spillover.records import MeasureKey, Rate, ThresholdRate
from spillover.report.matrix import STEPS


@dataclass(frozen=True)
class GridCell:
    """k of n events at one pair of cuts; `rule` marks the rule as it is."""

    k: int
    n: int
    rule: bool

    @property
    def number(self) -> str:
        """The rate in per cent, without its sign; a dash for 0 of 0."""
        value = 100 * self.k / self.n if self.n else None
        return "\u2013" if value is None else f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"

    @property
    def shade(self) -> str:
        """Class of its colour, on the steps of the transfer matrix."""
        step = bisect_right(STEPS, self.k / self.n) if self.n else 0
        return f"u{step}" if step else "n"


@dataclass(frozen=True)
class Grids:
    """One measure: its rule as two cuts in words (the second may be missing), and by model a grid per condition."""

    measure: MeasureKey
    event: tuple[str, str]  # (rubric, < or >)
    among: tuple[str, str] | None
    event_cuts: list[float]
    among_cuts: list[float | None]
    models: dict[str, list[tuple[str, list[list[GridCell | None]]]]]  # (condition, rows of squares)


def grids(shifted: Sequence[ThresholdRate], rates: Sequence[Rate], conditions: Sequence[str]) -> list[Grids]:
    """The grids of every measure that has some: rows are cuts of what is admitted, columns cuts of the event."""
    rules = {rate.measure: rate.rule for rate in rates}
    sums: dict[MeasureKey, dict[tuple[str, str], dict[tuple[float | None, float | None], tuple[int, int]]]]
    sums = defaultdict(lambda: defaultdict(dict))
    for row in shifted:
        own = sums[row.behavior, row.format, row.rubric_hash, row.judge][row.model, row.condition]
        k, n = own.get((row.event_cut, row.among_cut), (0, 0))
        own[row.event_cut, row.among_cut] = (k + row.k, n + row.n)
    return [_grids(measure, rules[measure], sums[measure], conditions) for measure in rules if measure in sums]


def _grids(
    measure: MeasureKey,
    rule: str,
    sums: Mapping[tuple[str, str], Mapping[tuple[float | None, float | None], tuple[int, int]]],
    conditions: Sequence[str],
) -> Grids:
    event, *among = [(name, side, float(cut)) for name, side, cut in re.findall(r"([\w.-]+) ([<>]) ([\d.]+)", rule)]
    cuts = [cut for own in sums.values() for cut in own]
    event_cuts = sorted({cut for cut, _ in cuts if cut is not None})
    among_cuts = sorted({cut for _, cut in cuts}, key=lambda cut: cut or 0.0)
    as_it_is = (event[2], among[0][2] if among else None)
    models: dict[str, list[tuple[str, list[list[GridCell | None]]]]] = defaultdict(list)
    for model, condition in sorted(sums, key=lambda cell: conditions.index(cell[1])):
        own = sums[model, condition]
        rows = [
            [GridCell(*own[x, y], rule=(x, y) == as_it_is) if (x, y) in own else None for x in event_cuts]
            for y in among_cuts
        ]
        models[model].append((condition, rows))
    return Grids(measure, event[:2], among[0][:2] if among else None, event_cuts, among_cuts, dict(models))
