"""What a paired comparison can see before it is run: power, the smallest effect, and how many questions it takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from spillover.stats.compare import SEEDS_FOR_RUNS, few, is_spillover, mover, p_values
from spillover.stats.intervals import by_scatter, limits, over_runs

RUNS = 2000  # simulations: a power of a half is known to 1.1 points, one of 80 % to 0.9
MOST_DRAWS = 2_000_000  # simulations times questions; above it there are fewer simulations,
ENOUGH = 2000  # and above so many questions the normal distribution will do
MOST = 1_000_000  # questions or completions that are looked through before the answer is None
TINY = 1e-6  # a correlation that is none, and what is missing of one that is whole
CLOSE = 0.01  # a search ends when what it looks for is known to one part in a hundred
LEAST_STRENGTH = 1e-3  # of a beta distribution
RARE = 30  # events in an arm; with fewer the normal distribution does not do
MOST_COUNTED = 400  # completions to a question
SPLITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times as many questions, with as many fewer completions


@dataclass(frozen=True)
class Design:
    """A comparison of base and tuned on the same questions. Rates, effects and standard deviations are shares of 1.

    `effect`: tuned rate minus base rate, either way. `icc`: intraclass correlation of answers to one question, the same
    in both arms; published batteries have 0.02 to 0.2. `completions`: to each question, from the base and from each of
    `seeds` fine-tuning seeds. `seed_sd`: standard deviation of the tuned rate between seeds. `question_correlation`:
    share of the questions that are as hard for the tuned as for the base; the others have nothing to do with each
    other. `behaviors`: compared together; by Holm's method the first of them must be found at `alpha`, which is
    two-sided, divided by their number.

    Raises ValueError for what cannot be.
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
        limits = {"base_rate": (0, 1), "icc": (0, 1), "seed_sd": (0, 0.5), "question_correlation": (-1, 1)}
        for name, (low, high) in limits.items():
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


@dataclass(frozen=True)
class Split:
    """One way to spend a budget. `budget`: times that of the design; `answers`: to be sampled, base and all seeds."""

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

    The seeds of an arm answer the same questions, so they share the question effects, and only what differs from
    answer to answer shrinks with S. At r = 0 and S = 1 this is the variance of Donner & Klar, "Design and Analysis of
    Cluster Randomization Trials" (2000), with design effect 1 + (n - 1) icc in each arm.
    """
    rates = np.clip([design.base_rate, design.base_rate + design.effect], 0, 1)
    base, tuned = rates * (1 - rates)
    unlike = (1 - design.icc) / design.completions
    shared = 2 * design.question_correlation * design.icc * np.sqrt(base * tuned)
    of_questions = base * (design.icc + unlike) + tuned * (design.icc + unlike / design.seeds) - shared
    return float(np.sqrt(max(of_questions, 0.0) / design.questions + design.seed_sd**2 / design.seeds))


def power_of(design: Design) -> float:
    """Chance that `compare` finds the difference, by simulation: that the verdict of a rise is spillover.

    Questions are beta-binomial, and so are the rates of seeds; every simulated comparison is put to the very test of
    `compare`. For a fall it is the chance of its p-value alone. The same numbers are drawn at every call. With more
    than 2,000 questions the normal distribution stands in for what questions and answers add.
    """
    rng = np.random.default_rng(0)
    many = design.questions > ENOUGH
    runs = RUNS if many else max(RUNS // 10, min(RUNS, MOST_DRAWS // (design.questions * design.seeds)))
    means = seed_rates(design, rng, runs)
    if many:
        return _normal_power(design, means, rng.standard_normal((runs, 1)), rng.standard_normal(means.shape))
    normal = rng.standard_normal((2, runs, design.questions))
    alike = rng.random((runs, design.questions)) < abs(design.question_correlation)
    normal[1] = np.where(alike, np.sign(design.question_correlation) * normal[0], normal[1])
    rates = design.base_rate, design.base_rate + design.effect
    base, tuned = (_question_rates(rate, design.icc, z) for rate, z in zip(rates, normal, strict=True))
    before = rng.binomial(design.completions, base)
    seeds = np.stack([rng.binomial(design.completions, scaled(tuned, rates[1], own[:, None])) for own in means.T], 1)
    trials = np.full_like(before, design.completions)
    arms = np.stack([before, trials], -1), np.stack([seeds.sum(axis=1), design.seeds * trials], -1)  # (runs, q, 2)
    p = p_values(*arms) * design.behaviors
    rise = arms[1][..., 0].sum(axis=1) / design.seeds - arms[0][..., 0].sum(axis=1)
    if design.effect < 0:
        return float(((p < design.alpha) & (rise < 0)).mean())
    at = np.flatnonzero((p < design.alpha) & (rise > 0))
    if not len(at):
        return 0.0
    low, low_runs = _lows(arms[0][at], arms[1][at], seeds[at].sum(axis=2), design.completions * design.questions)
    return float(is_spillover(p[at], low, low_runs, design.alpha).sum() / runs)


def seed_rates(design: Design, rng: np.random.Generator, runs: int) -> np.ndarray:
    """Rates of the tuned subject by seed, from a beta distribution with the wanted mean and spread: (runs, seeds)."""
    mean = min(max(design.base_rate + design.effect, 0.0), 1.0)
    uniform = rng.random((runs, design.seeds))
    if design.seed_sd < TINY or mean in (0, 1):
        return np.full(uniform.shape, mean)
    strength = mean * (1 - mean) / design.seed_sd**2 - 1
    if strength < LEAST_STRENGTH:  # no spread is as wide at that rate: seeds do it always or never
        return (uniform > 1 - mean).astype(float)
    places = np.linspace(0, 1, len(_GRID))  # of quantiles; their tails matter
    places = ndtr(np.interp(places, [0, 1], [_GRID[0], _GRID[-1]]))
    return np.interp(uniform, places, beta.ppf(places, mean * strength, (1 - mean) * strength))


def scaled(rates: np.ndarray, mean: float, own: np.ndarray) -> np.ndarray:
    """Rates of questions moved so that their mean is `own` in the place of `mean`, and none leaves 0 to 1."""
    down = rates * np.minimum(own / mean if mean else 1.0, 1)
    return 1 - (1 - down) * np.minimum((1 - own) / (1 - mean) if mean < 1 else 1.0, 1)


def _lows(
    before: np.ndarray, after: np.ndarray, of_seeds: np.ndarray, trials: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Lower ends of the intervals for these runs and in general: (runs, questions, 2), (runs, seeds) -> (runs,).

    As `compare` has them, but for the limits of a rate with many events: those are by scatter alone. Where p is
    below 0.05 the lower end of the t interval of the difference is above 0.
    """
    doubtful = few(before, after)
    base, tuned = (arm[..., 0].sum(axis=1) / arm[..., 1].sum(axis=1) for arm in (before, after))
    of_base, of_tuned = (_limits(arm, doubtful | (arm[..., 0].sum(axis=1) < RARE)) for arm in (before, after))
    low = np.where(doubtful, mover(base, tuned, of_base, of_tuned)[0], 1.0)
    if of_seeds.shape[1] < SEEDS_FOR_RUNS:
        return low, None
    of_tuned = over_runs(np.stack([of_seeds, np.full_like(of_seeds, trials)], -1), of_tuned)
    return low, mover(base, tuned, of_base, of_tuned)[0]


def _limits(arm: np.ndarray, rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rates of many runs, by scatter where they are not `rare`: (runs, questions, 2), (runs,) -> (runs,) each."""
    low, high = by_scatter(arm)
    if rare.any():
        size = min(1.0, MOST_COUNTED / arm[..., 1].max())  # more answers to one question say nothing new
        counted = np.round(arm[rare] * size).astype(int)
        low[rare], high[rare] = limits(counted[..., 0], counted[..., 1])
    return low, high


def _question_rates(rate: float, icc: float, normal: np.ndarray) -> np.ndarray:
    """Beta-distributed rates of questions from standard normal numbers; the same shape."""
    rate = min(max(rate, 0.0), 1.0)
    if icc < TINY or rate in (0, 1):
        return np.full(normal.shape, rate)
    if icc > 1 - TINY:
        return (normal > ndtri(1 - rate)).astype(float)
    return np.interp(normal, _GRID, _quantiles(rate, icc))


_GRID = np.linspace(-6, 6, 2001)  # of the standard normal distribution


@cache
def _quantiles(rate: float, icc: float) -> np.ndarray:
    strength = 1 / icc - 1
    return beta.ppf(ndtr(_GRID), rate * strength, (1 - rate) * strength)


def _normal_power(design: Design, means: np.ndarray, question: np.ndarray, own: np.ndarray) -> float:
    """Power if what questions and answers add were normal, its variance known; `means`: rates of seeds (runs, seeds).

    `question`, (runs, 1), and `own`, like `means`: standard normal numbers, of the questions that all seeds share and
    of each seed's answers.
    """
    error = standard_error(replace(design, seed_sd=0.0))
    rate = np.clip(means.mean(axis=1, keepdims=True), 1e-12, 1 - 1e-12)
    answers = np.sqrt(rate * (1 - rate) * (1 - design.icc) / design.completions / design.questions)
    shared = np.sqrt(np.maximum(error**2 - answers**2 / design.seeds, 0.0))
    seeds = np.clip(means + shared * question + answers * own, 0, 1)
    rise = seeds.mean(axis=1) - design.base_rate
    p = 2 * ndtr(-np.abs(rise) / error) * design.behaviors
    if design.effect < 0:
        return float(((p < design.alpha) & (rise < 0)).mean())
    low_runs = None
    if design.seeds >= SEEDS_FOR_RUNS:
        size = float(design.questions * design.completions)
        tuned = seeds.mean(axis=1)
        span = tuple(np.clip(tuned + sign * 1.96 * error, 0, 1) for sign in (-1, 1))
        low = over_runs(np.stack([seeds * size, np.full_like(seeds, size)], -1), span)
        base = (design.base_rate,) * 2  # its part of the error is in that of the tuned
        low_runs = mover(design.base_rate, tuned, base, low)[0]
    return float(is_spillover(p, rise, low_runs, design.alpha).mean())


def detectable(design: Design) -> float | None:
    """The smallest rise of the rate that is found with the wanted power, to one part in a hundred; a share of 1.

    None if there is none below 1 - base_rate. `effect` does not matter.
    """
    low, high = 0.0, 1 - design.base_rate

    def enough(effect: float) -> bool:
        return power_of(replace(design, effect=effect)) >= design.power

    if high <= 0 or not enough(high * (1 - CLOSE)):
        return None
    while high - low > CLOSE * high:
        middle = (low + high) / 2 if low else high / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def questions_needed(design: Design) -> int | None:
    """The smallest number of questions with the wanted power, to one part in a hundred.

    None if a million is too few: with an effect of 0, and where differences between seeds hide the effect.
    """
    return _smallest(2, lambda questions: power_of(replace(design, questions=questions)) >= design.power, design)


def completions_needed(design: Design) -> int | None:
    """The smallest number of completions per question with the wanted power, to one part in a hundred.

    None if a million is too few. That is common: answers to the same questions say less and less that is new, and then
    only more questions help.
    """
    return _smallest(1, lambda completions: power_of(replace(design, completions=completions)) >= design.power, design)


def _smallest(least: int, enough: Callable[[int], bool], design: Design) -> int | None:
    """The smallest whole number from `least` to MOST that is enough, to one part in a hundred; None if none is."""
    if not design.effect or not enough(MOST):
        return None
    low, high = least - 1, least
    while not enough(high):
        low, high = high, min(2 * high, MOST)
    while high - low > max(1, CLOSE * high):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def trade_off(design: Design) -> list[Split]:
    """More questions or more completions? The design's budget of answers, and twice it, spent in several ways.

    Few questions first. Where a budget does not divide evenly less is spent; ways with under 2 questions or under one
    completion are left out.
    """
    rows = []
    for budget in (1, 2):
        for questions in sorted({round(design.questions * split) for split in SPLITS} - {0, 1}):
            completions = budget * design.questions * design.completions // questions
            if completions:
                way = replace(design, questions=questions, completions=completions)
                answers = questions * completions * (1 + design.seeds)
                rows.append(Split(budget, questions, completions, answers, standard_error(way), power_of(way)))
    return rows
