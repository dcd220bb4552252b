"""Intervals of a rate whose completions come in questions: beta-binomial, honest at none and at all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit, gammaln, logit
from scipy.stats import beta, t

# Prior of the intraclass correlation: mostly small, at times large. Its mean is 0.11. Published batteries have design
# effects of 2 to 19 at 50 to 100 completions a question, which are correlations of 0.02 to 0.2.
ICC_PRIOR = (0.5, 4.0)
RATE_PRIOR = 0.5  # Jeffreys: half an event and half a non-event
LOGITS = np.linspace(-16, 16, 481)  # of the rates where the likelihood is computed: from 0.1 in a million up
POINTS = 513  # where it is interpolated, between those that matter
NOTHING = 40.0  # logarithm of how much less than the most likely rate a rate has to be to matter no more
FEW_WITH_EVENTS = 8  # questions with an event; with fewer, or as few with none but events, no t interval is believed


@dataclass(frozen=True)
class Interval:
    """An interval for questions in general, with what the same data say about how alike the answers to one are.

    `icc` is the posterior mean of the intraclass correlation; `standard_error` the posterior standard deviation.
    """

    low: float
    high: float
    standard_error: float
    icc: float


@cache
def _iccs(icc: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Correlations up to nearly 1 and what the prior gives to each, or the one given: (points,) each."""
    if icc is not None:
        return np.array([max(icc, 1e-6)]), np.ones(1)
    edges = np.concatenate([[0.0], np.logspace(-4, -1, 16), np.linspace(0.15, 0.95, 17), [0.98, 0.995, 1.0]])
    return (edges[1:] + edges[:-1]) / 2, np.diff(beta.cdf(edges, *ICC_PRIOR))


@lru_cache(512)  # 140 kB each
def _rising(j: int, icc: float | None) -> np.ndarray:
    """Logarithm of a (a + 1) ... (a + j - 1), where a is the beta distribution's: (rates, correlations)."""
    a = expit(LOGITS)[:, None] * (1 / _iccs(icc)[0] - 1)
    return gammaln(j + a) - gammaln(a)


def _log_likelihood(k: np.ndarray, n: np.ndarray, icc: float | None, step: int = 1) -> np.ndarray:
    """Of k events in n completions by question, (runs, questions) each, at every `step`th rate: (runs, rates, iccs).

    The beta-binomial's is a sum of logarithms of rising factorials of k, n - k and n; by the symmetry of LOGITS that
    of n - k is that of k turned round, so one row for each number is all that is kept.
    """
    strength = 1 / _iccs(icc)[0] - 1
    found = np.zeros(1)
    for counts, turn in ((k, 1), (n - k, -1)):
        values, times = _times(counts)
        rows = np.stack([_rising(int(j), icc)[::step] for j in values])
        found = found + np.tensordot(times, rows, 1)[:, ::turn]
    values, times = _times(n)
    return found - (times @ (gammaln(values[:, None] + strength) - gammaln(strength)))[:, None]


def _times(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers in `counts`, (runs, questions), and how often each run has each: (runs, numbers)."""
    values, places = np.unique(counts, return_inverse=True)
    runs = len(counts)
    places = places.reshape(counts.shape) + len(values) * np.arange(runs)[:, None]
    return values, np.bincount(places.ravel(), minlength=runs * len(values)).reshape(runs, -1).astype(float)


def interval(events: Sequence[int], trials: Sequence[int], confidence: float = 0.95) -> Interval:
    """Interval of a rate, for questions in general: `beta_binomial`'s, and at least as far as `by_scatter` reaches.

    Questions need not be as a beta distribution has them: if one domain always shows a behavior and the others do at
    times, the likeliest common rate is not the one observed. So it reaches as far as the interval that takes questions
    as they come, where they are enough for that. Chosen by coverage: `benchmarks/coverage.py`. `events` and `trials`
    count per question, aligned. Raises ValueError without any trial.
    """
    found = beta_binomial(events, trials, confidence)
    arm = np.array([[k, n] for k, n in zip(events, trials, strict=True) if n])
    low, high = as_they_come(found.low, found.high, arm, confidence)
    return replace(found, low=float(low), high=float(high))


def beta_binomial(
    events: Sequence[int], trials: Sequence[int], confidence: float = 0.95, icc: float | None = None
) -> Interval:
    """Beta-binomial interval of a rate, for questions in general.

    `events` and `trials` count per question, aligned. Each question has a rate of its own, drawn from a beta
    distribution around the common rate; the interval is the central posterior one, with Jeffreys' prior on the common
    rate and ICC_PRIOR on the intraclass correlation (or the correlation `icc`, if it is known). Where there is no
    event, or nothing but events, it is one-sided under a uniform prior, which is the rule of three: 0 of 400
    independent completions are below 0.75 %. Raises ValueError without any trial.
    """
    k, n = (np.array([[*counts]], int) for counts in (events, trials))
    k, n = k[:, n[0] > 0], n[:, n[0] > 0]
    if not n.size:
        raise ValueError("an interval needs at least one trial")
    total, every = int(k.sum()), int(n.sum())
    prior, tail = (1.0, 1 - confidence) if total in (0, every) else (RATE_PRIOR, (1 - confidence) / 2)
    log = _log_likelihood(k, n, icc)[0] + prior * (np.log(expit(LOGITS)) + np.log(expit(-LOGITS)))[:, None]
    # With many trials all the weight lies between two rates of the grid; the logarithm is smooth enough to interpolate.
    kept = np.flatnonzero(log.max(axis=1) > log.max() - NOTHING)
    kept = np.arange(max(kept[0] - 2, 0), min(kept[-1] + 3, len(LOGITS)))
    at = np.linspace(LOGITS[kept[0]], LOGITS[kept[-1]], POINTS)
    fine = CubicSpline(LOGITS[kept], log[kept])(at)
    weight = np.exp(fine - fine.max()) * _iccs(icc)[1]
    weight /= weight.sum()
    mass, rate = weight.sum(axis=1), expit(at)
    cumulative = np.cumsum(mass) - mass / 2
    seen = total / every
    low = 0.0 if total == 0 else min(seen, float(expit(np.interp(tail, cumulative, at))))
    high = 1.0 if total == every else max(seen, float(expit(np.interp(1 - tail, cumulative, at))))
    mean = float(mass @ rate)
    return Interval(low, high, float(np.sqrt(mass @ (rate - mean) ** 2)), float(weight.sum(axis=0) @ _iccs(icc)[0]))


def limits(events: np.ndarray, trials: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Limits of `interval` for many runs at once, by a coarser grid: (runs, questions) each -> (runs,) each.

    For rates of few events, which are within a hundredth or two of `interval`'s: their weight is spread over many rates
    of the grid. That of many events is not.
    """
    at = LOGITS[::2]
    log = _log_likelihood(events, trials, None, 2)
    total, every = events.sum(axis=1), trials.sum(axis=1)
    none, all_ = total == 0, total == every
    prior = np.where(none | all_, 1.0, RATE_PRIOR)[:, None]
    with np.errstate(under="ignore"):
        weight = np.exp(log - log.max(axis=(1, 2), keepdims=True)) @ _iccs(None)[1]
    mass = weight * (expit(at) * expit(-at)) ** prior
    mass /= mass.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(mass, axis=1) - mass / 2
    tails = np.where(none | all_, 1 - confidence, (1 - confidence) / 2)
    low, high = (
        expit(np.array([np.interp(tail, own, at) for tail, own in zip(side, cumulative, strict=True)]))
        for side in (tails, 1 - tails)
    )
    seen = total / every
    low, high = np.where(none, 0.0, np.minimum(seen, low)), np.where(all_, 1.0, np.maximum(seen, high))
    return as_they_come(low, high, np.stack([events, trials], axis=-1), confidence)


def parts(counts: np.ndarray) -> np.ndarray:
    """Each question's part in how far the rate of an arm is off: (..., questions, 2) -> (..., questions)."""
    total = counts.sum(axis=-2, keepdims=True)
    return (counts[..., 0] - counts[..., 1] * total[..., 0] / total[..., 1]) / total[..., 1]


def error_of_parts(own: np.ndarray) -> np.ndarray:
    """Standard error of what the `parts` of questions are of, for questions in general: (..., questions) -> (...)."""
    questions = own.shape[-1]
    return np.sqrt((own**2).sum(axis=-1) * questions / (questions - 1))


def by_scatter(arm: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Limits of a rate from how questions differ, however they are distributed: (..., questions, 2) -> (...) each.

    t over questions, of the ratio estimator's error, on the logit scale, where an interval can't leave 0 to 1.
    """
    rate = arm[..., 0].sum(axis=-1) / arm[..., 1].sum(axis=-1)
    error = error_of_parts(parts(arm))
    reach = float(t.ppf((1 + confidence) / 2, arm.shape[-2] - 1)) * error / np.maximum(rate * (1 - rate), 1e-12)
    middle = logit(np.clip(rate, 1e-9, 1 - 1e-9))
    return expit(middle - reach), expit(middle + reach)


def as_they_come(low: Any, high: Any, arm: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """The limits, out to those by scatter where enough questions hold an event and enough hold something else."""
    if arm.shape[-2] < FEW_WITH_EVENTS:
        return low, high
    events, trials = arm[..., 0], arm[..., 1]
    enough = np.minimum((events > 0).sum(axis=-1), (events < trials).sum(axis=-1)) >= FEW_WITH_EVENTS
    below, above = by_scatter(arm, confidence)
    return np.where(enough, np.minimum(low, below), low), np.where(enough, np.maximum(high, above), high)


def over_runs(
    seeds: np.ndarray, of_questions: tuple[Any, Any], confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a rate for training runs and questions in general, from several fine-tuning seeds.

    `seeds`: events and trials of each seed, (..., seeds, 2); `of_questions`: limits for questions in general of the
    seeds together, (...) each. Seeds are few and their rates far apart, so they are dealt with on the logit scale,
    where an interval can't leave 0 to 1: t over the seeds' rates, half an event added to each. Its reach on either side
    is put together with that of the interval for questions (MOVER; Newcombe, Statistics in Medicine 17, 1998), so it is
    never narrower than that.
    """
    events, trials = seeds[..., 0] + 0.5, seeds[..., 1] + 1.0
    logits = logit(events / trials)
    many = logits.shape[-1]
    middle = logits.mean(axis=-1)
    reach = float(t.ppf((1 + confidence) / 2, many - 1)) * logits.std(axis=-1, ddof=1) / np.sqrt(many)
    with np.errstate(divide="ignore"):
        below, above = logit(of_questions[0]), logit(of_questions[1])
    low = middle - np.hypot(np.maximum(0.0, middle - below), reach)
    high = middle + np.hypot(np.maximum(0.0, above - middle), reach)
    return np.minimum(expit(low), of_questions[0]), np.maximum(expit(high), of_questions[1])
