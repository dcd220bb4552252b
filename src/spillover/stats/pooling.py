"""Pools the fine-tuning seeds of a condition: the one rule for a rate over several training runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from spillover.stats.intervals import interval

Counts = Mapping[
    str, Sequence[int]
]  # question id -> events, admitted, and if they are known: completions, cut off ones

SEEDS_FOR_RUNS = 3  # seeds with data from which an interval speaks of training runs in general


@dataclass(frozen=True)
class PooledRate:
    """The rate of one condition over its seeds: `k` events among `n` admitted completions; shares of 1.

    `seeds` counts those with data. `low`, `high`: 95 % interval, for questions in general with one seed, for questions
    and training runs in general from three on; None with two seeds, or with no data. `rate` is None for 0 of 0.
    """

    k: int
    n: int
    rate: float | None
    low: float | None
    high: float | None
    seeds: int


def pool(seeds: Mapping[int | None, Counts]) -> PooledRate:
    """Pools the counts of each fine-tuning seed (None: a model as it is).

    Seeds without any admitted completion are left out. One seed has the `interval` of its counts, two have none, and
    three or more have that of `rate_over_runs`.
    """
    with_data = [counts for counts in seeds.values() if any(row[1] for row in counts.values())]
    events, trials = _by_question(with_data)
    k, n = sum(events), sum(trials)
    low = high = None
    if len(with_data) == 1:
        single_run = interval(events, trials)
        low, high = single_run.low, single_run.high
    elif len(with_data) >= SEEDS_FOR_RUNS:
        low, high = rate_over_runs(with_data)
    return PooledRate(k, n, k / n if n else None, low, high, len(with_data))


def rate_over_runs(seeds: Sequence[Counts], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate for questions and training runs in general, from counts of two or more seeds."""
    for_questions = interval(*_by_question(seeds), confidence)
    per_seed = np.array([[sum(row[place] for row in seed.values()) for place in (0, 1)] for seed in seeds])
    low, high = seed_interval(per_seed, (for_questions.low, for_questions.high), confidence)
    return float(low), float(high)


def seed_interval(
    seeds: np.ndarray, question_limits: tuple[Any, Any], confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a rate for questions and training runs in general, from several fine-tuning seeds.

    `seeds`: events and trials of each seed, (..., seeds, 2). `question_limits`: limits for questions in general of the
    seeds together, (...) each. Returns (...) each, never narrower than `question_limits`.

    Seeds are few and their rates far apart, so they are handled on the logit scale, where an interval cannot leave 0 to
    1: a t interval over the seeds' rates, with half an event added to each. On either side its reach is combined with
    that of the interval for questions by the square root of the sum of squares (MOVER; Newcombe, Statistics in
    Medicine 17, 1998).
    """
    logits = logit((seeds[..., 0] + 0.5) / (seeds[..., 1] + 1.0))
    number = logits.shape[-1]
    middle = logits.mean(axis=-1)
    reach = float(t.ppf((1 + confidence) / 2, number - 1)) * logits.std(axis=-1, ddof=1) / np.sqrt(number)
    with np.errstate(divide="ignore"):
        question_low, question_high = map(logit, question_limits)
    low = middle - np.hypot(np.maximum(0.0, middle - question_low), reach)
    high = middle + np.hypot(np.maximum(0.0, question_high - middle), reach)
    return np.minimum(expit(low), question_limits[0]), np.maximum(expit(high), question_limits[1])


def _by_question(seeds: Sequence[Counts]) -> tuple[list[int], list[int]]:
    """Events and admitted completions of each question, over all seeds, in the order of the questions' ids."""
    questions = sorted({question for seed in seeds for question in seed})
    events, trials = ([sum(seed.get(q, (0, 0))[place] for seed in seeds) for q in questions] for place in (0, 1))
    return events, trials
