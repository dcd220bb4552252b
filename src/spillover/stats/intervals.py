"""Intervals of a rate whose completions are clustered in questions, valid also where none is an event, or all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import expit, gammaln, logit
from scipy.stats import beta, t

# Beta prior of the intraclass correlation: mostly small, at times large; its mean is 0.11. Published batteries have
# design effects of 2 to 19 at 50 to 100 completions per question, which are correlations of 0.02 to 0.2.
ICC_PRIOR = (0.5, 4.0)
RATE_PRIOR = 0.5  # Jeffreys' prior of the rate: half an event and half a non-event
LOGITS = np.linspace(-16, 16, 481)  # of the rates at which the likelihood is computed: from 0.1 in a million up
COARSE = 2  # step through LOGITS where speed matters more than the fourth digit
POINTS = 513  # to which the likelihood is interpolated, between the rates that carry weight
NEGLIGIBLE = 40.0  # a rate whose log posterior is lower than the highest by more than this carries no weight
MIN_EVENT_QUESTIONS = 8  # questions with an event, and with a non-event, that a t interval needs


@dataclass(frozen=True)
class Interval:
    """Limits of a rate for questions in general; shares of 1.

    `standard_error` is the posterior standard deviation of the rate. `icc` is the posterior mean of the intraclass
    correlation: 0 if answers to the same question are independent, 1 if they are all the same.
    """

    low: float
    high: float
    standard_error: float
    icc: float


def interval(events: Sequence[int], trials: Sequence[int], confidence: float = 0.95) -> Interval:
    """Interval of the rate sum(events) / sum(trials), for questions in general.

    `events` and `trials` count completions per question, in the same order. The interval is the beta-binomial one,
    widened to the t interval over questions where there is enough data for that (see `widen_to_t`): questions need not
    follow a beta distribution. If one domain always shows a behavior and the others seldom do, the most likely common
    rate is not the observed one. `benchmarks/coverage.py` measures how often the interval covers.

    Raises ValueError if there is no trial.
    """
    posterior = beta_binomial(events, trials, confidence)
    low, high = widen_to_t(posterior.low, posterior.high, _counts(events, trials), confidence)
    return replace(posterior, low=float(low), high=float(high))


def beta_binomial(
    events: Sequence[int], trials: Sequence[int], confidence: float = 0.95, icc: float | None = None
) -> Interval:
    """Beta-binomial interval of a rate, for questions in general; arguments as of `interval`.

    Each question has a rate of its own, drawn from a beta distribution around the common rate. The interval is the
    central posterior one, under Jeffreys' prior on the common rate and ICC_PRIOR on the intraclass correlation (or with
    the correlation fixed at `icc`). If no completion is an event, or all are, it is one-sided under a uniform prior,
    which gives the rule of three: 0 of 400 independent completions are below 0.75 %.

    Raises ValueError if there is no trial.
    """
    return Interval(*(float(of_arm[0]) for of_arm in _posterior(_counts(events, trials)[None], confidence, icc)))


def coarse_limits(counts: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Limits of `interval` for many arms at once: (arms, questions, 2) -> (arms,) each.

    The posterior is summed over fewer rates. For rates with few events, whose posterior is wide, the limits are within
    a hundredth or two of `interval`'s; for rates with many events they are not.
    """
    low, high, *_ = _posterior(counts, confidence, coarse=True)
    return widen_to_t(low, high, counts, confidence)


def rate_of(counts: np.ndarray) -> np.ndarray:
    """Rate of an arm, all questions together, from events and trials by question: (..., questions, 2) -> (...)."""
    return counts[..., 0].sum(axis=-1) / counts[..., 1].sum(axis=-1)


def residuals(counts: np.ndarray) -> np.ndarray:
    """Linearised residual of each question: what it adds to the error of the arm's rate (a ratio estimator).

    `counts`: events and trials by question, (..., questions, 2). Returns (..., questions).
    """
    total = counts.sum(axis=-2, keepdims=True)
    return (counts[..., 0] - counts[..., 1] * total[..., 0] / total[..., 1]) / total[..., 1]


def cluster_se(residuals: np.ndarray) -> np.ndarray:
    """Cluster-robust standard error, for questions in general, from residuals: (..., questions) -> (...)."""
    questions = residuals.shape[-1]
    return np.sqrt((residuals**2).sum(axis=-1) * questions / (questions - 1))


def t_interval(counts: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Limits of a rate by the t distribution over questions, whatever the distribution of the questions' rates.

    `counts`: events and trials by question, (..., questions, 2). Computed on the logit scale, where an interval cannot
    leave 0 to 1. Returns (...) each.
    """
    rate, error = rate_of(counts), cluster_se(residuals(counts))
    reach = float(t.ppf((1 + confidence) / 2, counts.shape[-2] - 1)) * error / np.maximum(rate * (1 - rate), 1e-12)
    middle = logit(np.clip(rate, 1e-9, 1 - 1e-9))
    return expit(middle - reach), expit(middle + reach)


def widen_to_t(low: Any, high: Any, counts: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Widens limits to those of `t_interval` where at least 8 questions have an event and 8 a non-event.

    `low`, `high`: (...); `counts`: events and trials by question, (..., questions, 2). Returns (...) each.
    """
    if counts.shape[-2] < MIN_EVENT_QUESTIONS:
        return low, high
    events, trials = counts[..., 0], counts[..., 1]
    enough = np.minimum((events > 0).sum(axis=-1), (events < trials).sum(axis=-1)) >= MIN_EVENT_QUESTIONS
    t_low, t_high = t_interval(counts, confidence)
    return np.where(enough, np.minimum(low, t_low), low), np.where(enough, np.maximum(high, t_high), high)


def _counts(events: Sequence[int], trials: Sequence[int]) -> np.ndarray:
    """Events and trials of the questions that have a trial: (questions, 2). Raises ValueError if none has."""
    counts = np.array([row for row in zip(events, trials, strict=True) if row[1]], int)
    if not counts.size:
        raise ValueError("an interval needs at least one trial, and no question has one")
    return counts


def _posterior(
    counts: np.ndarray, confidence: float, icc: float | None = None, *, coarse: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Low, high, posterior standard deviation and intraclass correlation: (arms, questions, 2) -> (arms,) each."""
    iccs, icc_prior = _iccs(icc)
    events, trials = counts.sum(axis=1).T
    none, every = events == 0, events == trials
    prior = np.where(none | every, 1.0, RATE_PRIOR)[:, None] * (np.log(expit(LOGITS)) + np.log(expit(-LOGITS)))
    step = COARSE if coarse else 1
    log = _log_likelihood(counts, icc, step) + prior[:, ::step, None]
    if coarse:
        logits = np.broadcast_to(LOGITS[::step], log.shape[:2])
    else:
        logits, log = map(np.stack, zip(*map(_interpolated, log), strict=True))
    log -= log.max(axis=(1, 2), keepdims=True)
    weight = np.exp(log, out=log) * icc_prior  # (arms, rates, correlations)
    weight /= weight.sum(axis=(1, 2), keepdims=True)
    mass, rates = weight.sum(axis=2), expit(logits)
    cumulative = np.cumsum(mass, axis=1) - mass / 2
    tail = np.where(none | every, 1 - confidence, (1 - confidence) / 2)
    low, high = (
        expit([np.interp(*arm) for arm in zip(share, cumulative, logits, strict=True)]) for share in (tail, 1 - tail)
    )
    low = np.where(none, 0.0, np.minimum(events / trials, low))
    high = np.where(every, 1.0, np.maximum(events / trials, high))
    mean = np.vecdot(mass, rates)[:, None]
    return low, high, np.sqrt(np.vecdot(mass, (rates - mean) ** 2)), np.vecdot(weight.sum(axis=1), iccs)


def _interpolated(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A log posterior on a finer grid, between the rates that carry its weight.

    With many trials all weight lies between two rates of LOGITS; the logarithm is smooth enough to be interpolated.
    `log`: (rates, correlations) at LOGITS. Returns the new logits, (POINTS,), and the logarithm there.
    """
    heavy = np.flatnonzero(log.max(axis=1) > log.max() - NEGLIGIBLE)
    kept = slice(max(heavy[0] - 2, 0), heavy[-1] + 3)
    logits = np.linspace(LOGITS[kept][0], LOGITS[kept][-1], POINTS)
    return logits, CubicSpline(LOGITS[kept], log[kept])(logits)


def _log_likelihood(counts: np.ndarray, icc: float | None, step: int) -> np.ndarray:
    """Beta-binomial log likelihood at every `step`th rate: (arms, questions, 2) -> (arms, rates, correlations).

    It is a sum of logarithms of rising factorials of k, n - k and n. LOGITS are symmetric, so that the factorial of
    n - k is the one of k in reversed order, and one cached table per number serves both.
    """
    strength = 1 / _iccs(icc)[0] - 1
    k, n = counts[..., 0], counts[..., 1]
    log = np.zeros(1)
    for numbers, direction in ((k, 1), (n - k, -1)):
        values, times = _tally(numbers)
        tables = np.stack([_log_rising(int(j), icc)[::step] for j in values])
        log = log + np.tensordot(times, tables, 1)[:, ::direction]
    values, times = _tally(n)
    return log - (times @ (gammaln(values[:, None] + strength) - gammaln(strength)))[:, None]


def _tally(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of (arms, questions) numbers, and how often each arm has each: (values,), (arms, values)."""
    values, places = np.unique(numbers, return_inverse=True)
    arms = len(numbers)
    places = places.reshape(numbers.shape) + len(values) * np.arange(arms)[:, None]
    return values, np.bincount(places.ravel(), minlength=arms * len(values)).reshape(arms, -1).astype(float)


@lru_cache(512)  # 140 kB each
def _log_rising(j: int, icc: float | None) -> np.ndarray:
    """Logarithm of a (a + 1) ... (a + j - 1), where a is the beta distribution's first: (rates, correlations)."""
    a = expit(LOGITS)[:, None] * (1 / _iccs(icc)[0] - 1)
    return gammaln(j + a) - gammaln(a)


@cache
def _iccs(icc: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Intraclass correlations, and the prior weight of each: a grid up to nearly 1, or the given one alone."""
    if icc is not None:
        return np.array([max(icc, 1e-6)]), np.ones(1)
    edges = np.concatenate([[0.0], np.logspace(-4, -1, 16), np.linspace(0.15, 0.95, 17), [0.98, 0.995, 1.0]])
    return (edges[1:] + edges[:-1]) / 2, np.diff(beta.cdf(edges, *ICC_PRIOR))
