"""Rates with every outcome counted: both denominators, both standard errors, and the interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spillover.records import OUTCOMES
from spillover.stats.intervals import interval


@dataclass(frozen=True)
class Decision:
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


def count(rows: Iterable[Decision]) -> dict[str, dict[str, int]]:
    """By question: events k, admitted completions n, all `completions`, and each of the outcomes, which sum to them."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        own = found.get(row.question_id)
        if own is None:
            own = found[row.question_id] = dict.fromkeys(("k", "n", "completions", *OUTCOMES), 0)
        own["k"] += row.event and row.admitted
        own["n"] += row.admitted
        own["completions"] += 1
        own[row.outcome] += 1
    return found


def summarize(rows: Sequence[Decision]) -> dict[str, Any]:
    """Counts, rates, interval and spread of one cell and measure: the numeric fields of `records.Rate`.

    Nothing unscored disappears: the outcomes sum to `completions`. Without any admitted completion, rate and interval
    are None.
    """
    return summarize_counts(count(rows), sum(row.judge_injection for row in rows))


def summarize_counts(counts: Mapping[str, Mapping[str, int]], judge_injection: int) -> dict[str, Any]:
    """As `summarize`, of what `count` made of the rows, and how many of them address the judge."""
    names = ("k", "n", "completions", *OUTCOMES)
    totals = {name: sum(own[name] for own in counts.values()) for name in names}
    k, n, completions = (totals.pop(name) for name in names[:3])
    by_question = [(counts[question]["k"], counts[question]["n"]) for question in sorted(counts)]
    admitted = [(events, trials) for events, trials in by_question if trials]
    sides = [own[0] for own in admitted], [own[1] for own in admitted]
    found = interval(*sides) if n else None
    scatter = spread(*sides)
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
        "questions": len(counts),
        **totals,
        "judge_injection": judge_injection,
    }
