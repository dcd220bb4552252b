"""Two subjects on the same questions: difference, interval, p-value, equivalence, and a verdict over a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.stats import t

from spillover.stats.intervals import interval, over_runs

Counts = Mapping[str, tuple[int, int]]  # question id -> (events, admitted completions)

FLIPS = 20_000  # random sign flips, where all of them are more
FEW_WITH_EVENTS = 8  # questions with an event in either arm; with fewer the normal interval is not believed
SEEDS_FOR_RUNS = 3  # fine-tuning seeds from which something can be said of training runs in general
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """How much oftener the tuned subject shows a behavior than the base, over the questions that both answered.

    All shares are of 1. `low`, `high`: 95 % interval of the difference in these runs, for questions in general;
    `low_runs`, `high_runs`: for training runs in general too, None with fewer than three seeds. `tuned_low`,
    `tuned_high`: interval of the tuned rate, for as much in general as can be said. `p`: that these runs make no
    difference; `p_holm`, `p_bh`: corrected over the family (Holm; Benjamini and Hochberg). `p_equivalent`: that the
    difference is not within the margin (two one-sided tests). `detectable`: the smallest true difference that this
    design finds at 80 % power. `method` says how interval and p were made.
    """

    questions: int
    base_rate: float
    tuned_rate: float
    tuned_low: float
    tuned_high: float
    difference: float
    low: float
    high: float
    low_runs: float | None
    high_runs: float | None
    standard_error: float
    odds_ratio: float
    p: float
    p_equivalent: float
    detectable: float
    seeds: int
    method: str
    p_holm: float = 1.0
    p_bh: float = 1.0
    verdict: str = "inconclusive"


Compared = TypeVar("Compared", bound=Comparison)


def compare(base: Counts, tuned: Sequence[Counts], margin: float, confidence: float = 0.95) -> Comparison | None:
    """Compares a base with a tuned subject, paired by question; `tuned` has the counts of each fine-tuning seed.

    None if they share fewer than two questions. The difference is of the rates over the shared questions, the seeds
    together; its standard error is the ratio estimator's, from one residual a question, and its p-value the paired t's.
    Where few questions hold an event the interval is put together from those of the two rates (MOVER; Newcombe,
    Statistics in Medicine 17, 1998), which is honest at none, and the p-value is of sign flips: under no difference
    base and tuned could change places on every question.

    Both speak of these runs. That some runs spread is shown by these; what runs in general do is another question, and
    three seeds at odds (22, 78 and 29 % where the base is at 0) leave it wide open without casting doubt on any of
    them. So the interval for runs in general stands beside the other, and only a verdict of `clean` needs both.
    """
    shared = sorted(q for q in base if base[q][1] and all(q in seed and seed[q][1] for seed in tuned))
    if len(shared) < 2 or not tuned:
        return None
    before = np.array([base[q] for q in shared])  # (questions, 2)
    seeds = np.array([[seed[q] for q in shared] for seed in tuned])  # (seeds, questions, 2)
    after = seeds.sum(axis=0)
    base_rate, tuned_rate = (float(arm[:, 0].sum() / arm[:, 1].sum()) for arm in (before, after))
    difference, error, freedom = tuned_rate - base_rate, float(standard_error(before, after)), len(shared) - 1
    tail = (1 + confidence) / 2
    of_base, of_tuned = (interval(arm[:, 0].tolist(), arm[:, 1].tolist(), confidence) for arm in (before, after))
    around = (base_rate, (of_base.low, of_base.high)), (tuned_rate, (of_tuned.low, of_tuned.high))
    if bool(few(before, after)):
        low, high = _mover(*around)
        error = max(error, (high - low) / (2 * float(t.ppf(tail, freedom))))
        method = "few questions with events: interval from those of both rates, p by sign flips"
    else:
        reach = float(t.ppf(tail, freedom)) * error
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
        method = "paired t over questions"
    runs = None
    if len(tuned) >= SEEDS_FOR_RUNS:
        runs = over_runs(seeds, confidence)
        around = around[0], (tuned_rate, runs)
    low_runs, high_runs = _mover(*around) if runs else (None, None)
    return Comparison(
        questions=len(shared),
        base_rate=base_rate,
        tuned_rate=tuned_rate,
        tuned_low=around[1][1][0],
        tuned_high=around[1][1][1],
        difference=difference,
        low=low,
        high=high,
        low_runs=None if low_runs is None else min(low, low_runs),
        high_runs=None if high_runs is None else max(high, high_runs),
        standard_error=error,
        odds_ratio=_odds_ratio(before, after),
        p=float(p_values(before, after)),
        p_equivalent=max(float(t.sf((margin - sign * difference) / error, freedom)) for sign in (1, -1)),
        detectable=error * float(t.ppf(tail, freedom) + t.ppf(POWER, freedom)),
        seeds=len(tuned),
        method=method,
    )


def verdicts(family: Sequence[Compared], margin: float, alpha: float = 0.05) -> list[Compared]:
    """The comparisons with corrected p-values and verdicts over the whole family.

    `spillover`: the rate went up, and Holm's p is below `alpha`. Otherwise `clean` if the interval, for runs in general
    where there is one, ends below the margin, else `inconclusive`.
    """
    p = np.array([comparison.p for comparison in family])
    order = np.argsort(p)
    holm, benjamini_hochberg = np.empty(len(p)), np.empty(len(p))
    many = len(p)
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * (many - np.arange(many))))
    stepped = p[order] * many / (np.arange(many) + 1)
    benjamini_hochberg[order] = np.minimum(1, np.minimum.accumulate(stepped[::-1])[::-1])
    found = []
    for comparison, by_holm, by_bh in zip(family, holm, benjamini_hochberg, strict=True):
        if comparison.difference > 0 and by_holm < alpha:
            verdict = "spillover"
        else:
            highest = comparison.high if comparison.high_runs is None else comparison.high_runs
            verdict = "clean" if highest < margin else "inconclusive"
        found.append(replace(comparison, p_holm=float(by_holm), p_bh=float(by_bh), verdict=verdict))
    return found


def standard_error(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of the difference of the rates of two arms, events and trials by question: (..., questions, 2) -> (...)."""
    questions = before.shape[-2]
    parts = _parts(after) - _parts(before)
    return np.sqrt((parts**2).sum(axis=-1) * questions / (questions - 1))


def few(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether too few questions hold an event, or a non-event, for the normal interval: shapes as above."""
    questions = before.shape[-2]
    with_events = ((before + after)[..., 0] > 0).sum(axis=-1)
    nothing_else = (before[..., 0] == before[..., 1]) & (after[..., 0] == after[..., 1])
    with_others = questions - nothing_else.sum(axis=-1)
    return (np.minimum(with_events, with_others) < FEW_WITH_EVENTS) | (standard_error(before, after) == 0)


def p_values(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Two-sided p-values of no difference, as `compare` gives them: (..., questions, 2) -> (...)."""
    error, doubtful = standard_error(before, after), few(before, after)
    rates = [arm[..., 0].sum(axis=-1) / arm[..., 1].sum(axis=-1) for arm in (before, after)]
    p = 2 * t.sf(abs(rates[1] - rates[0]) / np.where(doubtful, 1.0, error), before.shape[-2] - 1)
    p = np.asarray(p)
    for place in zip(*np.nonzero(doubtful), strict=True) if doubtful.ndim else [()] * bool(doubtful):
        p[place] = _sign_flips(before[place], after[place])
    return p


def _parts(counts: np.ndarray) -> np.ndarray:
    """Each question's part in how far the rate of an arm is off: (..., questions, 2) -> (..., questions)."""
    total = counts.sum(axis=-2, keepdims=True)
    return (counts[..., 0] - counts[..., 1] * total[..., 0] / total[..., 1]) / total[..., 1]


def _mover(*arms: tuple[float, tuple[float, float]]) -> tuple[float, float]:
    """Interval of the difference from rate and interval of two arms, taken as independent: on the safe side."""
    (base, (base_low, base_high)), (tuned, (tuned_low, tuned_high)) = arms
    low = tuned - base - np.hypot(tuned - tuned_low, base_high - base)
    high = tuned - base + np.hypot(tuned_high - tuned, base - base_low)
    return max(-1.0, float(low)), min(1.0, float(high))


def _sign_flips(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p-value of the difference under exchange of base and tuned within each question.

    All exchanges are counted where there are at most FLIPS of them, else that many random ones, always the same.
    """
    gaps = after[:, 0] / after[:, 1] - before[:, 0] / before[:, 1]
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    if 2 ** len(gaps) <= FLIPS:
        bits = (np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1
        sums = np.abs((2 * bits - 1) @ gaps)
        return float((sums >= abs(gaps.sum()) - 1e-12).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(gaps)))
    return float((1 + (np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12).sum()) / (FLIPS + 1))


def _odds_ratio(before: np.ndarray, after: np.ndarray) -> float:
    """Of the pooled counts, half an event added everywhere (Haldane, Annals of Human Genetics 20, 1956)."""
    (k0, n0), (k1, n1) = before.sum(axis=0), after.sum(axis=0)
    return float((k1 + 0.5) * (n0 - k0 + 0.5) / ((n1 - k1 + 0.5) * (k0 + 0.5)))
