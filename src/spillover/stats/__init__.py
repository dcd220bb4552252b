"""How sure we are: rates, comparisons, power and agreement; rows in, rows out."""

from spillover.stats.agreement import Agreement, Corrected, Pair, compare_judges, corrected_rate
from spillover.stats.compare import Comparison, compare, verdicts
from spillover.stats.intervals import Interval, interval
from spillover.stats.matrix import Arm, MatrixCell, matrix
from spillover.stats.pooling import Counts, PooledRate, pool
from spillover.stats.rates import Decision, Spread, count, spread, summarize, summarize_counts

__all__ = [
    "Agreement",
    "Arm",
    "Comparison",
    "Corrected",
    "Counts",
    "Decision",
    "Interval",
    "MatrixCell",
    "Pair",
    "PooledRate",
    "Spread",
    "compare",
    "compare_judges",
    "corrected_rate",
    "count",
    "interval",
    "matrix",
    "pool",
    "spread",
    "summarize",
    "summarize_counts",
    "verdicts",
]
