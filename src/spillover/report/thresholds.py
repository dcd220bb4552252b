"""Threshold-sensitivity grids: what each rate would be if the cuts of its rule lay elsewhere, the seeds together."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from spillover.records import MeasureKey, Rate, ThresholdRate, percent

Cuts = tuple[float | None, float | None]  # of the event, of what is admitted


@dataclass(frozen=True)
class Grids:
    """One measure: (k, n) at every pair of cuts by (model, condition), and its rule.

    `event` and `among` are (rubric, < or >, cut) of the rule; `among` is None for a rule that admits all.
    """

    measure: MeasureKey
    event: tuple[str, str, float]
    among: tuple[str, str, float] | None
    event_cuts: list[float | None]
    among_cuts: list[float | None]
    counts: dict[tuple[str, str], dict[Cuts, tuple[int, int]]]

    @property
    def rule_cuts(self) -> Cuts:
        """The cuts of the rule as it is."""
        return self.event[2], self.among[2] if self.among else None


def grids(threshold_rates: Iterable[ThresholdRate], rates: Iterable[Rate]) -> list[Grids]:
    """The grids of every measure that has some, in the order of the rates."""
    by_measure: dict[MeasureKey, dict[tuple[str, str], dict[Cuts, tuple[int, int]]]]
    by_measure = defaultdict(lambda: defaultdict(dict))
    for row in threshold_rates:
        grid = by_measure[row.behavior, row.format, row.rubric_hash, row.judge][row.model, row.condition]
        k, n = grid.get((row.event_cut, row.among_cut), (0, 0))
        grid[row.event_cut, row.among_cut] = k + row.k, n + row.n
    grids = []
    for measure, rule in {rate.measure: rate.rule for rate in rates if rate.measure in by_measure}.items():
        words = [cut.split() for cut in rule.split(" among ")]
        event, *among = [(rubric, comparison, float(cut)) for rubric, comparison, cut in words]
        counts = by_measure[measure]
        event_cuts, among_cuts = (
            sorted({cuts[place] for grid in counts.values() for cuts in grid}, key=lambda cut: cut or 0.0)
            for place in (0, 1)
        )
        grids.append(Grids(measure, event, among[0] if among else None, event_cuts, among_cuts, dict(counts)))
    return grids


def grid_number(k: int, n: int) -> str:
    """A share k of n in per cent, without its sign; a dash for 0 of 0."""
    if not n:
        return "\u2013"
    return percent(k / n, 1 if 0 < k / n < 0.0995 else 0).removesuffix(" %")
