"""How sure we are: rates with every outcome counted, and intervals clustered by question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta, t

from spillover.records import OUTCOMES


@dataclass(frozen=True)
class Judged:
    """One completion after judging by one judge and rule: its outcome, whether the rule admits it, and the event.

    `judge_injection`: the answer addresses the judge; it is counted, not dropped.
    """

    completion_id: str
    question_id: str
    judge: str
    rubric_hash: str
    outcome: str
    admitted: bool
    event: bool
    judge_injection: bool


def clustered_interval(events: Sequence[int], trials: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
    """Korn-Graubard interval of a rate whose trials come in clusters (questions).

    `events` and `trials` count per cluster, aligned. The Clopper-Pearson interval is taken at the effective number of
    trials n / deff, where deff is the design effect of the ratio estimator, corrected for the few degrees of freedom
    (clusters - 1) and never below 1. Honest at 0 and at all (Korn and Graubard, Survey Methodology 24, 1998).
    Raises ValueError without any trial.
    """
    k, n = np.asarray(events, float), np.asarray(trials, float)
    k, n = k[n > 0], n[n > 0]
    if not len(n):
        raise ValueError("an interval needs at least one trial")
    total, clusters = n.sum(), len(n)
    rate = k.sum() / total
    effective = total
    if 0 < rate < 1 and clusters > 1:
        residual = k - rate * n
        variance = clusters / (clusters - 1) * (residual**2).sum() / total**2
        tail = (1 + confidence) / 2
        widening = (t.ppf(tail, clusters - 1) / t.ppf(tail, total - 1)) ** 2 if total > 1 else 1.0
        effective = rate * (1 - rate) / variance / widening if variance > 0 else total
        effective = min(total, effective)
    x, alpha = rate * effective, 1 - confidence
    low = 0.0 if k.sum() == 0 else float(beta.ppf(alpha / 2, x, effective - x + 1))
    high = 1.0 if k.sum() == total else float(beta.ppf(1 - alpha / 2, x + 1, effective - x))
    return low, high


def summarize(rows: Sequence[Judged]) -> dict[str, Any]:
    """Counts, rates and interval of one cell and behavior: the numeric fields of `records.Rate`.

    Nothing unscored disappears: the outcomes sum to `completions`. Without any admitted completion, rate and interval
    are None.
    """
    outcomes = Counter(row.outcome for row in rows)
    trials = Counter(row.question_id for row in rows if row.admitted)
    events = Counter(row.question_id for row in rows if row.admitted and row.event)
    k, n, completions = events.total(), trials.total(), len(rows)
    low = high = None
    if n:
        questions = sorted(trials)
        low, high = clustered_interval([events[q] for q in questions], [trials[q] for q in questions])
    return {
        "k": k,
        "n": n,
        "rate": k / n if n else None,
        "low": low,
        "high": high,
        "completions": completions,
        "rate_of_all": k / completions if completions else None,
        "coverage": n / completions if completions else None,
        "questions": len({row.question_id for row in rows}),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "judge_injection": sum(row.judge_injection for row in rows),
    }
