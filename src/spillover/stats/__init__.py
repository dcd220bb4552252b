"""How sure we are: rates, comparisons, power and agreement; rows in, rows out."""

from spillover.stats.agreement import Agreement, Pair, compare_judges
from spillover.stats.compare import Comparison, compare, verdicts
from spillover.stats.intervals import Interval, interval
from spillover.stats.rates import Judged, Spread, spread, summarize

__all__ = [
    "Agreement",
    "Comparison",
    "Interval",
    "Judged",
    "Pair",
    "Spread",
    "compare",
    "compare_judges",
    "interval",
    "spread",
    "summarize",
    "verdicts",
]
