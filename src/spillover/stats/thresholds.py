"""How a rate changes with the thresholds of its rule: the rates of one cell under stricter and laxer cuts."""

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
    """The rate of one cell under each pair of shifted thresholds; those outside 0 to 100 are left out.

    `completions`: of one cell and format. `scores`: by this judge under this rule, by (completion id, rubric). Empty
    for a behavior that a program judges: its scores have nothing between 0 and 100.
    """
    if behavior.judge != "model" or not completions:
        return []
    cell, rubrics = completions[0], behavior.rubrics_read
    rows = [[scores.get((completion.id, rubric)) for rubric in rubrics] for completion in completions]
    scored = [[s.value for s in row if s] for row in rows if all(s and s.outcome == "scored" for s in row)]
    table = np.array(scored, float).reshape(-1, len(rubrics))  # a missing value is NaN, on no side of a cut
    values = dict(zip(rubrics, table.T, strict=True))
    events = _shifted(behavior.event_if, EVENT_SHIFTS, values)
    among = _shifted(behavior.among_if, AMONG_SHIFTS, values)
    place = (cell.model, cell.condition, cell.seed, behavior.name, cell.format, judge, behavior.rubric_hash)
    rates = []
    for (event_cut, is_event), (among_cut, is_admitted) in product(events, among):
        k, n = int((is_event & is_admitted).sum()), int(is_admitted.sum())
        rates.append(ThresholdRate(*place, event_cut, among_cut, k, n, k / n if n else None))
    return rates


def _shifted(
    cut: str | None, shifts: Sequence[int], values: Mapping[str, np.ndarray]
) -> list[tuple[float | None, np.ndarray]]:
    """Shifted thresholds of a cut such as "alignment < 30", each with which scored completions meet it."""
    if cut is None:
        return [(None, np.ones(len(next(iter(values.values()))), bool))]
    rubric, comparison, threshold = parse_cut(cut)
    meets = np.less if comparison == "<" else np.greater
    thresholds = [threshold + shift for shift in shifts if 0 < threshold + shift < 100]
    return [(shifted, meets(values[rubric], shifted)) for shifted in thresholds]
