"""Two subjects on the same questions: difference, interval, p-value, equivalence, and a verdict over a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from spillover.stats.intervals import interval

Counts = Mapping[str, tuple[int, int]]  # question id -> (events, admitted completions)

FLIPS = 20_000  # random sign flips, where all of them are more
FEW_WITH_EVENTS = 8  # questions with an event in either arm; with fewer the normal interval is not believed
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """How much oftener the tuned subject shows a behavior than the base, over the questions that both answered.

    All shares are of 1. `low`, `high`: 95 % interval of the difference, for questions in general. `p`: that there is no
    difference; `p_holm`, `p_bh`: corrected over the family (Holm; Benjamini and Hochberg). `p_equivalent`: that the
    difference is not within the margin (two one-sided tests). `detectable`: the smallest true difference that this
    design finds at 80 % power. `method` says how interval and p were made.
    """

    questions: int
    base_rate: float
    tuned_rate: float
    difference: float
    low: float
    high: float
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


def compare(base: Counts, tuned: Sequence[Counts], margin: float, confidence: float = 0.95) -> Comparison | None:
    """Compares a base with a tuned subject, paired by question; `tuned` has the counts of each fine-tuning seed.

    None if they share fewer than two questions. The difference is of the rates over the shared questions; its standard
    error is the ratio estimator's, from one residual a question. With several seeds the variance between their rates is
    added, and degrees of freedom are Satterthwaite's. Where few questions hold an event the interval is put together
    from those of the two rates (MOVER; Newcombe, Statistics in Medicine 17, 1998), which is honest at none, and the
    p-value of one seed is of sign flips: under no difference base and tuned could change places on every question.
    """
    shared = sorted(q for q in base if base[q][1] and all(q in seed and seed[q][1] for seed in tuned))
    if len(shared) < 2 or not tuned:
        return None
    before = np.array([base[q] for q in shared], float)  # (questions, 2)
    seeds = np.array([[seed[q] for q in shared] for seed in tuned], float)  # (seeds, questions, 2)
    after = seeds.sum(axis=0)
    base_rate, tuned_rate = (float(arm[:, 0].sum() / arm[:, 1].sum()) for arm in (before, after))
    difference = tuned_rate - base_rate
    parts = _parts(after, tuned_rate) - _parts(before, base_rate)
    many = len(shared)
    variance, freedom = float((parts**2).sum() / (many * (many - 1))), many - 1.0
    if len(tuned) > 1:
        rates = seeds[:, :, 0].sum(axis=1) / seeds[:, :, 1].sum(axis=1)
        between = float(rates.var(ddof=1) / len(tuned))
        if variance + between > 0:
            freedom = (variance + between) ** 2 / (variance**2 / (many - 1) + between**2 / (len(tuned) - 1))
        variance += between
    error = float(np.sqrt(variance))
    tail = (1 + confidence) / 2
    with_events = int(((before[:, 0] + after[:, 0]) > 0).sum())
    every = int(((before[:, 0] == before[:, 1]) & (after[:, 0] == after[:, 1])).sum())
    few = min(with_events, many - every) < FEW_WITH_EVENTS or error == 0  # no scatter at all says nothing of scatter
    if few:
        low, high = _mover(before, after, base_rate, tuned_rate, confidence)
        error = max(error, (high - low) / (2 * float(t.ppf(tail, many - 1))))
        method = "few questions with events: interval from those of both rates"
    else:
        reach = float(t.ppf(tail, freedom)) * error
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
        method = "paired t over questions" + (" and seeds" if len(tuned) > 1 else "")
    if few and (len(tuned) == 1 or variance == 0):
        p = _sign_flips(before, after)
        method += ", p by sign flips"
    else:
        p = _two_sided(difference / error, freedom) if error > 0 else 1.0
    outside = [_upper((margin - sign * difference) / error, freedom) if error > 0 else 0.0 for sign in (1, -1)]
    return Comparison(
        questions=many,
        base_rate=base_rate,
        tuned_rate=tuned_rate,
        difference=difference,
        low=low,
        high=high,
        standard_error=error,
        odds_ratio=_odds_ratio(before, after),
        p=p,
        p_equivalent=max(outside),
        detectable=error * float(t.ppf(tail, freedom) + t.ppf(POWER, freedom)),
        seeds=len(tuned),
        method=method,
    )


def verdicts(family: Sequence[Comparison], margin: float, alpha: float = 0.05) -> list[Comparison]:
    """The comparisons with corrected p-values and verdicts over the whole family.

    `spillover`: the rate went up, and Holm's p is below `alpha`. Otherwise `clean` if the interval ends below the
    margin, else `inconclusive`.
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
            verdict = "clean" if comparison.high < margin else "inconclusive"
        found.append(replace(comparison, p_holm=float(by_holm), p_bh=float(by_bh), verdict=verdict))
    return found


def _parts(counts: np.ndarray, rate: float) -> np.ndarray:
    """Each question's part in how far the rate of an arm is off, times the number of questions: (questions,)."""
    return len(counts) * (counts[:, 0] - rate * counts[:, 1]) / counts[:, 1].sum()


def _two_sided(statistic: float, freedom: float) -> float:
    return float(2 * t.sf(abs(statistic), freedom))


def _upper(statistic: float, freedom: float) -> float:
    return float(t.sf(statistic, freedom))


def _mover(
    before: np.ndarray, after: np.ndarray, base_rate: float, tuned_rate: float, confidence: float
) -> tuple[float, float]:
    """Interval of the difference from those of the two rates, taken as independent, which is on the safe side."""
    a, b = (
        interval(arm[:, 0].astype(int).tolist(), arm[:, 1].astype(int).tolist(), confidence) for arm in (before, after)
    )
    difference = tuned_rate - base_rate
    low = difference - np.hypot(tuned_rate - b.low, a.high - base_rate)
    high = difference + np.hypot(b.high - tuned_rate, base_rate - a.low)
    return float(max(-1, low)), float(min(1, high))


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
