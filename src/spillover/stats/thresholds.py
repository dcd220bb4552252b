"""How a rate moves when the cuts of its rule move: the threshold-sensitivity grid of scores that a model gave."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from spillover.behaviors import Behavior, parse_cut
from spillover.records import Completion, Score, ThresholdRate

EVENT_SHIFTS = (-20, -10, 0, 10, 20)  # of 100
AMONG_SHIFTS = (-20, 0, 20)


def threshold_rates(
    completions: Sequence[Completion], scores: Mapping[tuple[str, str], Score], behavior: Behavior, judge: str
) -> list[ThresholdRate]:
    """The grid of one cell; nothing for a behavior that a program judges, whose scores have no grades between.

    `scores` are of this judge and rule, by (completion id, rubric). Cuts that would leave 0 to 100 are left out.
    """
    if behavior.judge != "model" or not completions:
        return []
    cell, found = completions[0], []
    rows = [[scores.get((completion.id, rubric)) for rubric in behavior.rubrics_read] for completion in completions]
    scored = [[row.value for row in own if row] for own in rows if all(row and row.outcome == "scored" for row in own)]
    table = np.array(scored, float).reshape(-1, len(behavior.rubrics_read))  # a missing value is NaN, on no side
    values = dict(zip(behavior.rubrics_read, table.T, strict=True))
    events, admitted = (
        _sides(cut, shifts, values)
        for cut, shifts in ((behavior.event_if, EVENT_SHIFTS), (behavior.among_if, AMONG_SHIFTS))
    )
    for (event_cut, event), (among_cut, among) in product(events, admitted):
        k, n = int((event & among).sum()), int(among.sum())
        found.append(
            ThresholdRate(
                model=cell.model,
                condition=cell.condition,
                seed=cell.seed,
                behavior=behavior.name,
                format=cell.format,
                judge=judge,
                rubric_hash=behavior.rubric_hash,
                event_cut=event_cut,
                among_cut=among_cut,
                k=k,
                n=n,
                rate=k / n if n else None,
            )
        )
    return found


def _sides(
    cut: str | None, shifts: Sequence[int], values: Mapping[str, np.ndarray]
) -> list[tuple[float | None, np.ndarray]]:
    """Moved cuts, each with which of the scored completions are on its side: (completions,)."""
    if cut is None:
        return [(None, np.ones(len(next(iter(values.values()))), bool))]
    rubric, comparison, threshold = parse_cut(cut)
    side = np.less if comparison == "<" else np.greater
    return [
        (threshold + shift, side(values[rubric], threshold + shift)) for shift in shifts if 0 < threshold + shift < 100
    ]
