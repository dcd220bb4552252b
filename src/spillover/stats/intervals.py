"""Intervals of a rate whose completions come in questions: beta-binomial, honest at none and at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy.special import betaln, expit, logit
from scipy.stats import beta, t

# Prior of the intraclass correlation: mostly small, at times large. Its mean is 0.11. Published batteries have design
# effects of 2 to 19 at 50 to 100 completions a question, which are correlations of 0.02 to 0.2.
ICC_PRIOR = (0.5, 4.0)
RATE_PRIOR = 0.5  # Jeffreys: half an event and half a non-event


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
def _rates() -> tuple[np.ndarray, np.ndarray]:
    """Edges and middles of a grid over rates, finer towards 0 and 1: (edges,), (middles,)."""
    tail = np.logspace(-5.5, -1, 160, endpoint=False)
    edges = np.concatenate([[0.0], tail, np.linspace(0.1, 0.9, 81), 1 - tail[::-1], [1.0]])
    return edges, (edges[1:] + edges[:-1]) / 2


@cache
def _iccs(icc: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Correlations up to nearly 1 and what the prior gives to each, or the one given: (points,) each."""
    if icc is not None:
        return np.array([max(icc, 1e-6)]), np.ones(1)
    edges = np.concatenate([[0.0], np.logspace(-4, -1, 16), np.linspace(0.15, 0.95, 17), [0.98, 0.995, 1.0]])
    return (edges[1:] + edges[:-1]) / 2, np.diff(beta.cdf(edges, *ICC_PRIOR))


@lru_cache(2048)  # 100 kB each
def _log_likelihood(k: int, n: int, icc: float | None) -> np.ndarray:
    """Of k events in n completions of one question, over the grid: (rates, correlations)."""
    _, rate = _rates()
    strength = 1 / _iccs(icc)[0] - 1
    a, b = rate[:, None] * strength, (1 - rate)[:, None] * strength
    return betaln(k + a, n - k + b) - betaln(a, b)


def interval(
    events: Sequence[int], trials: Sequence[int], confidence: float = 0.95, icc: float | None = None
) -> Interval:
    """Beta-binomial interval of a rate, for questions in general.

    `events` and `trials` count per question, aligned. Each question has a rate of its own, drawn from a beta
    distribution around the common rate; the interval is the central posterior one, with Jeffreys' prior on the common
    rate and ICC_PRIOR on the intraclass correlation (or the correlation `icc`, if it is known). Where there is no
    event, or nothing but events, it is one-sided under a uniform prior, which is the rule of three: 0 of 400
    independent completions are below 0.75 %. Chosen by coverage: `benchmarks/coverage.py`.
    Raises ValueError without any trial.
    """
    counts = [(int(k), int(n)) for k, n in zip(events, trials, strict=True) if n]
    if not counts:
        raise ValueError("an interval needs at least one trial")
    edges, rate = _rates()
    log = sum(_log_likelihood(k, n, icc) for k, n in counts)
    total, every = sum(k for k, _ in counts), sum(n for _, n in counts)
    prior, tail = (1.0, 1 - confidence) if total in (0, every) else (RATE_PRIOR, (1 - confidence) / 2)
    log = log + ((prior - 1) * (np.log(rate) + np.log1p(-rate)) + np.log(np.diff(edges)))[:, None]
    weight = np.exp(log - log.max()) * _iccs(icc)[1]
    weight /= weight.sum()
    mass = weight.sum(axis=1)
    cumulative = np.concatenate([[0.0], np.cumsum(mass)])
    seen = total / every
    low = 0.0 if total == 0 else min(seen, float(np.interp(tail, cumulative, edges)))
    high = 1.0 if total == every else max(seen, float(np.interp(1 - tail, cumulative, edges)))
    mean = float(mass @ rate)
    return Interval(low, high, float(np.sqrt(mass @ (rate - mean) ** 2)), float(weight.sum(axis=0) @ _iccs(icc)[0]))


def over_runs(seeds: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate for training runs and questions in general, from several fine-tuning seeds.

    `seeds`: events and trials, (seeds, questions, 2). Seeds are few and their rates far apart, so seeds are dealt with
    on the logit scale, where an interval can't leave 0 to 1: t over the seeds' rates, half an event added to each. Its
    reach on either side is put together with that of the interval for questions in general of the seeds together
    (MOVER; Newcombe, Statistics in Medicine 17, 1998), so it is never narrower than that.
    """
    together = seeds.sum(axis=0)
    of_questions = interval(together[:, 0].tolist(), together[:, 1].tolist(), confidence)
    events, trials = (seeds.sum(axis=1) + np.array([0.5, 1.0])).T  # (seeds,) each
    logits = logit(events / trials)
    middle = logits.mean()
    reach = float(t.ppf((1 + confidence) / 2, len(logits) - 1)) * logits.std(ddof=1) / np.sqrt(len(logits))
    low = middle - np.hypot(max(0.0, middle - logit(of_questions.low)), reach)
    high = middle + np.hypot(max(0.0, logit(of_questions.high) - middle), reach)
    return min(float(expit(low)), of_questions.low), max(float(expit(high)), of_questions.high)
