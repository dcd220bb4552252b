"""Rates with every outcome counted: both denominators, both standard errors, and the interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spillover.records import OUTCOMES
from spillover.stats.intervals import interval

COUNTED = ("judge_injection", "cut_off", "thoughts")  # beside the outcome of an answer
NUMBERS = ("k", "n", "completions", *OUTCOMES, *COUNTED)


@dataclass(frozen=True)
class Decision:
    """What a rule makes of one completion's scores by one judge.

    `outcome` is one of OUTCOMES. `admitted`: the completion is in the denominator of the rate (it is coherent, say).
    `event`: it shows the behavior. Counted beside the outcome, whatever it is: `judge_injection`, the answer addresses
    the judge; `cut_off`, it ended at the limit of new tokens; `thought`, there is one before it.
    """

    completion_id: str
    question_id: str
    judge: str
    rubric_hash: str
    outcome: str
    admitted: bool
    event: bool
    judge_injection: bool
    cut_off: bool = False
    thought: bool = False


@dataclass(frozen=True)
class Spread:
    """How a rate varies over questions; None where there is too little data.

    `se_battery`: standard error if the same questions were asked again; `se_questions`: for questions in general.
    `design_effect`: variance, divided by that of as many independent completions. `icc`: intraclass correlation.
    """

    se_battery: float | None
    se_questions: float | None
    design_effect: float | None
    icc: float | None


def spread(events: Sequence[int], trials: Sequence[int]) -> Spread:
    """Standard errors of the rate sum(events) / sum(trials), which are counted per question: (questions,) each.

    For questions in general: the cluster-robust standard error (linearised variance of the ratio estimator, times
    questions / (questions - 1)). For these questions: the binomial variance within each. The intraclass correlation
    follows from the design effect by Kish's formula, 1 + (size - 1) icc, with the mean size weighted by trials.
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
    icc = float(np.clip((effect - 1) / (size - 1), 0, 1)) if size > 1 else None
    return Spread(within, between, float(effect), icc)


def count(decisions: Iterable[Decision]) -> dict[str, dict[str, int]]:
    """By question id: events `k`, admitted completions `n`, `completions`, each outcome (they sum to it), COUNTED."""
    counts: dict[str, dict[str, int]] = {}
    for decision in decisions:
        question = counts.get(decision.question_id)
        if question is None:
            question = counts[decision.question_id] = dict.fromkeys(NUMBERS, 0)
        question["k"] += decision.event and decision.admitted
        question["n"] += decision.admitted
        question["completions"] += 1
        question[decision.outcome] += 1
        question["judge_injection"] += decision.judge_injection
        question["cut_off"] += decision.cut_off
        question["thoughts"] += decision.thought
    return counts


def summarize(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Counts, rate, interval and spread of one cell and measure: the numeric fields of `records.Rate`, by name.

    Every completion is counted: the outcomes sum to `completions`. If none is admitted, rate and limits are None.
    """
    return summarize_counts(count(decisions))


def summarize_counts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The same from the counts by question that `count` returns."""
    totals = {name: sum(row[name] for row in counts.values()) for name in NUMBERS}
    k, n, completions = (totals.pop(name) for name in ("k", "n", "completions"))
    admitted = [counts[question] for question in sorted(counts) if counts[question]["n"]]
    events, trials = [row["k"] for row in admitted], [row["n"] for row in admitted]
    limits = interval(events, trials) if n else None
    return {
        "k": k,
        "n": n,
        "rate": k / n if n else None,
        "low": limits.low if limits else None,
        "high": limits.high if limits else None,
        **asdict(spread(events, trials)),
        "completions": completions,
        "rate_of_all": k / completions if completions else None,
        "coverage": n / completions if completions else None,
        "questions": len(counts),
        **totals,
    }
