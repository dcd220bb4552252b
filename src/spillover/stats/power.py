"""What a paired comparison can see before it is run: power, the smallest effect, and how many questions it takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from spillover.stats.compare import p_values

RUNS = 2000  # simulations: a power of a half is known to 1.1 points, one of 80 % to 0.9
MOST_DRAWS = 2_000_000  # simulations times questions; above it there are fewer simulations,
ENOUGH = 2000  # and above so many questions the normal distribution will do
MOST = 1_000_000  # questions or completions that are looked through before the answer is None
TINY = 1e-6  # a correlation that is none, and what is missing of one that is whole
CLOSE = 0.01  # a search ends when what it looks for is known to one part in a hundred
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
    """Chance that `compare` finds the difference, in its true direction (any, if there is none), by simulation.

    Questions are beta-binomial; every simulated comparison is put to the very test that `compare` makes. The same
    numbers are drawn at every call. With more than 2,000 questions the normal distribution stands in.
    """
    if design.questions > ENOUGH:
        return _normal_power(design)
    rng = np.random.default_rng(0)
    runs = max(RUNS // 10, min(RUNS, MOST_DRAWS // design.questions))
    normal = rng.standard_normal((2, runs, design.questions))
    alike = rng.random((runs, design.questions)) < abs(design.question_correlation)
    normal[1] = np.where(alike, np.sign(design.question_correlation) * normal[0], normal[1])
    base, tuned = (
        _question_rates(rate, design.icc, z)
        for rate, z in zip((design.base_rate, design.base_rate + design.effect), normal, strict=True)
    )
    seeds = np.clip(tuned[:, None] + design.seed_sd * rng.standard_normal((runs, design.seeds, 1)), 0, 1)
    before, after = rng.binomial(design.completions, base), rng.binomial(design.completions, seeds).sum(axis=1)
    trials = np.full_like(before, design.completions)
    p = p_values(np.stack([before, trials], -1), np.stack([after, design.seeds * trials], -1))
    rise = after.sum(axis=1) / design.seeds - before.sum(axis=1)
    right = rise * design.effect > 0 if design.effect else True
    return float(((p < design.alpha / design.behaviors) & right).mean())


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


def _normal_power(design: Design) -> float:
    """Power if the estimated difference were normal, and its variance over questions known."""
    variance, of_seeds = standard_error(design) ** 2, design.seed_sd**2 / design.seeds
    reach = -ndtri(design.alpha / design.behaviors / 2) * np.sqrt(max(variance - of_seeds, 0.0))
    tails = [(sign * abs(design.effect) - reach) / np.sqrt(variance) for sign in (1, -1)]
    return float(ndtr(tails[0]) + (0.0 if design.effect else ndtr(tails[1])))


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
