"""How sure we are: rates, comparisons, power and agreement; rows in, rows out."""

from spillover.stats.compare import Comparison, compare, verdicts
from spillover.stats.intervals import Interval, interval
from spillover.stats.rates import Judged, Spread, spread, summarize

__all__ = ["Comparison", "Interval", "Judged", "Spread", "compare", "interval", "spread", "summarize", "verdicts"]
