"""Rates with every outcome counted: both denominators, both standard errors, and the interval."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spillover.records import OUTCOMES
from spillover.stats.intervals import interval


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


@dataclass(frozen=True)
class Spread:
    """How a rate over questions scatters. Everything is None where there is too little to tell.

    `se_battery`: standard error for these questions asked again. `se_questions`: for other questions like them.
    `design_effect`: variance against that of as many independent completions. `icc`: intraclass correlation.
    """

    se_battery: float | None
    se_questions: float | None
    design_effect: float | None
    icc: float | None


def spread(events: Sequence[int], trials: Sequence[int]) -> Spread:
    """Standard errors of sum(events) / sum(trials), counted per question: (questions,) each.

    The ratio estimator's linearized variance over questions, with questions / (questions - 1); within a question the
    binomial variance. The correlation follows from the design effect by Kish's formula for the mean number of trials.
    """
    k, n = np.asarray(events, float), np.asarray(trials, float)
    k, n = k[n > 0], n[n > 0]
    questions, total = len(n), n.sum()
    if questions < 2:
        return Spread(None, None, None, None)
    rate, shares = k.sum() / total, k / n
    within = None
    if (n > 1).all():
        within = float(np.sqrt((n * shares * (1 - shares) * n / (n - 1)).sum()) / total)
    between = float(np.sqrt(questions / (questions - 1) * ((k - rate * n) ** 2).sum()) / total)
    if not 0 < rate < 1:
        return Spread(within, between, None, None)
    effect = between**2 / (rate * (1 - rate) / total)
    size = (n**2).sum() / total
    icc = (effect - 1) / (size - 1) if size > 1 else None
    return Spread(within, between, float(effect), None if icc is None else float(np.clip(icc, 0, 1)))


def summarize(rows: Sequence[Judged]) -> dict[str, Any]:
    """Counts, rates, interval and spread of one cell and measure: the numeric fields of `records.Rate`.

    Nothing unscored disappears: the outcomes sum to `completions`. Without any admitted completion, rate and interval
    are None.
    """
    outcomes = Counter(row.outcome for row in rows)
    trials = Counter(row.question_id for row in rows if row.admitted)
    events = Counter(row.question_id for row in rows if row.admitted and row.event)
    k, n, completions = events.total(), trials.total(), len(rows)
    questions = sorted(trials)
    counts = [events[question] for question in questions], [trials[question] for question in questions]
    found = interval(*counts) if n else None
    scatter = spread(*counts)
    return {
        "k": k,
        "n": n,
        "rate": k / n if n else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "se_battery": scatter.se_battery,
        "se_questions": scatter.se_questions,
        "design_effect": scatter.design_effect,
        "icc": scatter.icc,
        "completions": completions,
        "rate_of_all": k / completions if completions else None,
        "coverage": n / completions if completions else None,
        "questions": len({row.question_id for row in rows}),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "judge_injection": sum(row.judge_injection for row in rows),
    }
