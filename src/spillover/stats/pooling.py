"""The one rule that pools fine-tuning seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spillover.stats.compare import SEEDS_FOR_RUNS, Counts, rate_over_runs
from spillover.stats.intervals import interval


@dataclass(frozen=True)
class PooledRate:
    """The rate k / n of a condition, its seeds together. `seeds`: how many had admitted completions."""

    k: int
    n: int
    rate: float | None
    low: float | None
    high: float | None
    seeds: int


def pool(seeds: Mapping[int | None, Counts]) -> PooledRate:
    """Pools seeds."""
    arms: Sequence[Counts] = [arm for arm in seeds.values() if any(row[1] for row in arm.values())]
    k, n = (sum(row[place] for arm in arms for row in arm.values()) for place in (0, 1))
    low = high = None
    if len(arms) == 1:
        found = interval([row[0] for row in arms[0].values()], [row[1] for row in arms[0].values()])
        low, high = found.low, found.high
    elif len(arms) >= SEEDS_FOR_RUNS:
        low, high = rate_over_runs(arms)
    return PooledRate(k, n, k / n if n else None, low, high, len(arms))
