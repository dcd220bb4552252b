"""How sure we are: rates, comparisons, power and agreement; rows in, rows out."""

from spillover.stats.agreement import Agreement, Corrected, Pair, compare_judges, corrected_rate
from spillover.stats.compare import Comparison, Counts, compare, verdicts
from spillover.stats.intervals import Interval, interval
from spillover.stats.matrix import MatrixCell, Row, matrix
from spillover.stats.rates import Judged, Spread, count, spread, summarize, summarize_counts

__all__ = [
    "Agreement",
    "Comparison",
    "Corrected",
    "Counts",
    "Interval",
    "Judged",
    "MatrixCell",
    "Pair",
    "Row",
    "Spread",
    "compare",
    "compare_judges",
    "corrected_rate",
    "count",
    "interval",
    "matrix",
    "spread",
    "summarize",
    "summarize_counts",
    "verdicts",
]
