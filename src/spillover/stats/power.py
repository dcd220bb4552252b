"""What a paired comparison can find before it is run: power, smallest rise, and the questions or completions needed."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from spillover.stats.compare import is_spillover, mover_interval, p_values, rate_variance, too_few_events
from spillover.stats.intervals import coarse_limits, rate_of, t_interval
from spillover.stats.pooling import SEEDS_FOR_RUNS, seed_interval

RUNS = 2000  # simulated comparisons: a power of 50 % is known to 1.1 points, one of 80 % to 0.9
MAX_QUESTIONS = 500  # simulated one by one; more of them are simulated in groups
MAX_SEARCHED = 1_000_000  # questions or completions; if more are needed the answer is None
PRECISION = 0.01  # relative, of searches
TINY = 1e-6  # an effect or a correlation below it is none
FEW_EVENTS = 30  # in an arm; with fewer its t interval does not hold
MAX_COUNTED = 400  # completions to a question that count for an interval; more add nothing
SPLITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors of the number of questions in `trade_off`
NORMALS = np.linspace(-6, 6, 2001)  # standard normal numbers at which quantiles are computed


@dataclass(frozen=True)
class Design:
    """A planned comparison of base and tuned on the same questions; rates and standard deviations are shares of 1.

    - `effect`: tuned rate minus base rate, of either sign.
    - `icc`: intraclass correlation of answers to one question, in both arms; 0.02 to 0.2 in published batteries.
    - `completions`: to each question, from the base and from each of `seeds` fine-tuning seeds.
    - `seed_sd`: standard deviation of the tuned rate between seeds.
    - `question_correlation`: share of the questions that are as hard for the tuned arm as for the base; the other
      questions' rates in the two arms are independent.
    - `behaviors`: compared together. By Holm's method the first must be significant at `alpha` (two-sided) divided by
      their number.

    Raises ValueError if a number is out of its range, or if no answer can vary.
    """

    base_rate: float
    effect: float
    icc: float
    questions: int
    completions: int
    seeds: int = 1
    seed_sd: float = 0.0
    question_correlation: float = 0.5
    behaviors: int = 1
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        ranges = {"base_rate": (0, 1), "icc": (0, 1), "seed_sd": (0, 0.5), "question_correlation": (-1, 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)}: a number from {low} to {high} is needed")
        for name, least in {"questions": 2, "completions": 1, "seeds": 1, "behaviors": 1}.items():
            if not (getattr(self, name) >= least and getattr(self, name) % 1 == 0):
                raise ValueError(f"{name} {getattr(self, name)}: a whole number from {least} up is needed")
        if not 0 <= round(self.base_rate + self.effect, 12) <= 1:
            allowed = f"from {-self.base_rate:g} to {1 - self.base_rate:g}"
            raise ValueError(f"effect {self.effect}: with base_rate {self.base_rate} it can be {allowed}")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha {self.alpha}: a number between 0 and 0.5 is needed")
        if not 0.5 <= self.power < 1:
            raise ValueError(f"power {self.power}: a number from 0.5 to below 1 is needed")
        if standard_error(self) ** 2 * self.questions <= 1e-12 * (self.base_rate + abs(self.effect)):
            raise ValueError("no answer of this design can vary, so there is nothing to test")

    @property
    def tuned_rate(self) -> float:
        """Base rate plus effect, without rounding errors beyond 0 and 1."""
        return min(max(self.base_rate + self.effect, 0.0), 1.0)


@dataclass(frozen=True)
class Split:
    """One way to spend a budget: `budget` times that of the design; `answers` to sample, of base and all seeds."""

    budget: int
    questions: int
    completions: int
    answers: int
    standard_error: float
    power: float


def standard_error(design: Design) -> float:
    """Standard error of tuned rate minus base rate, for questions and seeds in general; a share of 1.

    With Q questions, n completions, S seeds, v0 = p0 (1 - p0), v1 = p1 (1 - p1), and r the question correlation:

        variance = [v0 (icc + (1 - icc) / n) + v1 (icc + (1 - icc) / (n S)) - 2 r icc sqrt(v0 v1)] / Q + seed_sd^2 / S

    The seeds of an arm answer the same questions and share their effects, so S shrinks only what differs from answer to
    answer. At r = 0 and S = 1 this is the variance of Donner & Klar, "Design and Analysis of Cluster Randomization
    Trials" (2000), with design effect 1 + (n - 1) icc in each arm.
    """
    p0, p1, n = design.base_rate, design.tuned_rate, design.completions
    variances = (rate_variance(p, design.icc, design.questions, c) for p, c in ((p0, n), (p1, n * design.seeds)))
    shared = design.question_correlation * design.icc * (p0 * (1 - p0) * p1 * (1 - p1)) ** 0.5 / design.questions
    return float(np.sqrt(max(sum(variances) - 2 * shared, 0.0) + design.seed_sd**2 / design.seeds))


def power_of(design: Design) -> float:
    """Probability that `compare` finds the difference: for a rise, that its verdict is spillover.

    By simulation with the tests of `compare`; for a fall, of the p-value alone. Rates of questions and of seeds follow
    beta distributions. Every call draws the same random numbers. Above 500 questions, groups of them are simulated.
    """
    design = _grouped(design)
    rng = np.random.default_rng(0)
    means = seed_rates(design, rng, RUNS)
    normals = rng.standard_normal((2, RUNS, design.questions))
    equal = rng.random((RUNS, design.questions)) < abs(design.question_correlation)
    normals[1] = np.where(equal, np.sign(design.question_correlation) * normals[0], normals[1])
    base, tuned = map(_beta_rates, (design.base_rate, design.tuned_rate), (design.icc, design.icc), normals)
    events = rng.binomial(design.completions, base)
    seed_events = [
        rng.binomial(design.completions, scaled(tuned, design.tuned_rate, mean[:, None])) for mean in means.T
    ]
    trials = np.full_like(events, design.completions)
    before = np.stack([events, trials], -1)  # (runs, questions, 2)
    after = np.stack([sum(seed_events), design.seeds * trials], -1)
    p = p_values(before, after) * design.behaviors
    difference = rate_of(after) - rate_of(before)
    if design.effect < 0:
        return float(((p < design.alpha) & (difference < 0)).mean())
    rose = np.flatnonzero((p < design.alpha) & (difference > 0))
    if not len(rose):
        return 0.0
    per_seed = np.stack([[seed.sum(axis=1), trials.sum(axis=1)] for seed in seed_events]).transpose(2, 0, 1)
    low, low_runs = _lower_limits(before[rose], after[rose], per_seed[rose])
    return float(is_spillover(p[rose], low, low_runs, design.alpha).sum() / RUNS)


def seed_rates(design: Design, rng: np.random.Generator, runs: int) -> np.ndarray:
    """Tuned rates of seeds, from a beta distribution with the design's mean and standard deviation: (runs, seeds)."""
    mean, normals = design.tuned_rate, rng.standard_normal((runs, design.seeds))
    return _beta_rates(mean, design.seed_sd**2 / max(mean * (1 - mean), 1e-12), normals)


def scaled(rates: np.ndarray, mean: float, target: np.ndarray) -> np.ndarray:
    """Rates of questions moved so that their mean is `target` in place of `mean`, and none leaves 0 to 1."""
    down = rates * np.minimum(target / mean if mean else 1.0, 1)
    return 1 - (1 - down) * np.minimum((1 - target) / (1 - mean) if mean < 1 else 1.0, 1)


def detectable(design: Design) -> float | None:
    """The smallest rise with the wanted power, to 1 %; a share of 1. None if even a rise to 1 has less.

    The design's `effect` does not matter.
    """
    return _smallest(design, "effect", TINY, (1 - design.base_rate) * (1 - PRECISION))


def questions_needed(design: Design) -> int | None:
    """The smallest number of questions with the wanted power, to 1 %.

    None if a million are too few: with an effect of 0, or if differences between seeds hide the effect.
    """
    return _smallest(design, "questions", 1, MAX_SEARCHED) if design.effect else None


def completions_needed(design: Design) -> int | None:
    """The smallest number of completions per question with the wanted power, to 1 %.

    None if a million are too few. That is common: each further answer to a question adds less, and in the end only more
    questions help.
    """
    return _smallest(design, "completions", 0, MAX_SEARCHED) if design.effect else None


def trade_off(design: Design) -> list[Split]:
    """More questions or more completions? The design's number of answers, and twice it, split in several ways.

    Fewest questions first. Budgets that do not divide evenly are not used up. Splits with fewer than 2 questions or
    without a completion are left out.
    """
    splits = []
    for budget in (1, 2):
        for questions in sorted({round(design.questions * factor) for factor in SPLITS} - {0, 1}):
            completions = budget * design.questions * design.completions // questions
            if completions:
                split = replace(design, questions=questions, completions=completions)
                answers = questions * completions * (1 + design.seeds)
                splits.append(Split(budget, questions, completions, answers, standard_error(split), power_of(split)))
    return splits


def _smallest(design: Design, field: str, low: float, high: float) -> Any:
    """The smallest value of a field, above `low` and up to `high`, with the wanted power, to 1 %; None if none has.

    By bisection on a logarithmic scale. Values are whole if `high` is.
    """

    def enough(value: Any) -> bool:
        return power_of(replace(design, **{field: value})) >= design.power

    if high <= low or not enough(high):
        return None
    whole = isinstance(high, int)
    while high - low > max(PRECISION * high, whole):
        middle = max(int(np.sqrt(low * high)), low + 1) if whole else float(np.sqrt(low * high))
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _grouped(design: Design) -> Design:
    """A design of at most 500 questions with the same standard error: each stands for a group of questions."""
    size = -(-design.questions // MAX_QUESTIONS)
    icc = design.icc / size
    completions = size * design.completions * (1 - icc) / max(1 - design.icc, TINY)
    return replace(design, questions=design.questions // size, icc=icc, completions=round(completions))


def _lower_limits(before: np.ndarray, after: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Lower limits of significant rises, of these training runs and for runs in general; (runs,), None below 3 seeds.

    `before`, `after`: (runs, questions, 2); `seeds`: events and trials of each seed, (runs, seeds, 2). As in `compare`,
    except that the interval of a rate with many events is the t interval alone. A significant paired t-test has a lower
    limit above 0, for which 1 stands.
    """
    by_flips, rates = too_few_events(before, after), (rate_of(before), rate_of(after))
    in_general = seeds.shape[1] >= SEEDS_FOR_RUNS
    limits = []
    for counts in (before, after):
        rare = by_flips | in_general & (counts[..., 0].sum(axis=1) < FEW_EVENTS)
        low, high = t_interval(counts)
        if rare.any():
            size = min(1.0, MAX_COUNTED / counts[..., 1].max())
            counted = np.sort(np.round(counts[rare] * size).astype(int), axis=1)  # the order of questions is nothing
            distinct, places = np.unique(counted, axis=0, return_inverse=True)
            low[rare], high[rare] = (limit[places] for limit in coarse_limits(distinct))
        limits.append((low, high))
    low = np.where(by_flips, mover_interval(*rates, *limits)[0], 1.0)
    if not in_general:
        return low, None
    return low, mover_interval(*rates, limits[0], seed_interval(seeds, limits[1]))[0]


def _beta_rates(mean: float, icc: float, normals: np.ndarray) -> np.ndarray:
    """Quantiles of the beta distribution with this mean and intraclass correlation at standard normal numbers.

    The variance is icc mean (1 - mean). Returns the shape of `normals`.
    """
    if icc < TINY or mean in (0, 1):
        return np.full(normals.shape, mean)
    if icc > 1 - TINY:
        return (normals > ndtri(1 - mean)).astype(float)
    return np.interp(normals, NORMALS, _quantiles(mean, icc))


@cache
def _quantiles(mean: float, icc: float) -> np.ndarray:
    strength = 1 / icc - 1
    return beta.ppf(ndtr(NORMALS), mean * strength, (1 - mean) * strength)
