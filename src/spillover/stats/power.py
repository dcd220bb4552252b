"""What a paired comparison can see before it is run: power, the smallest effect, and how many questions it takes."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

MOST = 1_000_000  # questions or completions that are looked through before the answer is None
SPLITS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times as many questions, with as many fewer completions


@dataclass(frozen=True)
class Design:
    """A comparison of base and tuned on the same questions. Rates, effects and standard deviations are shares of 1.

    `effect`: tuned rate minus base rate, either way. `icc`: intraclass correlation of answers to one question, the same
    in both arms; published batteries have 0.02 to 0.2. `completions`: to each question, from the base and from each of
    `seeds` fine-tuning seeds. `seed_sd`: standard deviation of the tuned rate between seeds. `question_correlation`: of
    the questions' true rates in base and tuned. 1: what is hard for one is as hard for the other, and pairing removes
    it; 0: pairing gains nothing. `alpha` is two-sided.

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
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        limits = {"base_rate": (0, 1), "icc": (0, 1), "seed_sd": (0, 0.5), "question_correlation": (-1, 1)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)}: a number from {low} to {high} is needed")
        for name, least in {"questions": 2, "completions": 1, "seeds": 1}.items():
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
    detectable: float | None


def standard_error(design: Design) -> float:
    """Standard error of tuned rate minus base rate, for questions and seeds in general; a share of 1.

    With Q questions, n completions, S seeds, v0 = p0 (1 - p0), v1 = p1 (1 - p1), and r the question correlation:

        variance = [v0 (icc + (1 - icc) / n) + v1 (icc + (1 - icc) / (n S)) - 2 r icc sqrt(v0 v1)] / Q + seed_sd^2 / S

    The seeds of an arm answer the same questions, so they share the question effects, and only what differs from
    answer to answer shrinks with S. At r = 0 and S = 1 this is the variance of Donner & Klar, "Design and Analysis of
    Cluster Randomization Trials" (2000), with design effect 1 + (n - 1) icc in each arm.
    """
    of_questions, of_seeds, _ = _parts(design, design.effect, design.questions, design.completions)
    return float(np.sqrt(of_questions + of_seeds))


def power_of(design: Design) -> float:
    """Chance that `compare` finds a difference at all, in either direction, at the design's alpha.

    For the paired t-test over questions that `compare` makes: the noncentral t distribution with Q - 1 degrees of
    freedom. With several seeds that test adds the variance between their rates, estimated even if seed_sd is 0, and
    takes Satterthwaite's degrees of freedom from the data; the power is averaged over both estimates. With one seed a
    seed_sd is taken as known, though the data of a single run cannot show it.

    Where it holds: against 2,000 simulations (beta-binomial questions, rates of 0.1 and more, 12 to 60 questions, one
    to five seeds) it is within 3 points. Where it is off: at lower rates most questions have no event and differences
    are skewed. There the t-test finds more than is claimed (6 points at a base rate of 0.05 and 12 questions, 8 to 17
    at 0.01 and below), or up to 3 points less where power is below a half; of no difference it finds less than alpha.
    """
    return float(_power(design, design.effect, design.questions, design.completions))


def detectable(design: Design) -> float | None:
    """The smallest rise of the rate that is found with the wanted power; a share of 1, whatever `effect` is.

    None if there is none below 1 - base_rate.
    """
    room = 1 - design.base_rate
    grid = room * np.linspace(0, 1, 401)[1:-1] ** 2
    found = np.flatnonzero(_power(design, grid, design.questions, design.completions) >= design.power)
    if not len(found):
        return None
    below = grid[found[0] - 1] if found[0] else 1e-9 * room

    def lack(effect: float) -> float:
        return float(_power(design, effect, design.questions, design.completions)) - design.power

    return float(brentq(lack, below, grid[found[0]]))


def questions_needed(design: Design) -> int | None:
    """The smallest number of questions with the wanted power, all else as designed; None if a million is too few.

    None with an effect of 0, and where differences between seeds hide the effect.
    """
    return _smallest(2, lambda questions: _power(design, design.effect, questions, design.completions) >= design.power)


def completions_needed(design: Design) -> int | None:
    """The smallest number of completions per question with the wanted power; None if a million is too few.

    None is common: answers to the same questions say less and less that is new, and then only more questions help.
    """
    return _smallest(
        1, lambda completions: _power(design, design.effect, design.questions, completions) >= design.power
    )


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
                found = standard_error(way), power_of(way), detectable(way)
                rows.append(Split(budget, questions, completions, answers, *found))
    return rows


def _parts(
    design: Design, effect: float | np.ndarray, questions: float | np.ndarray, completions: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance from questions and their answers, that from seeds, and what answers add to the latter's estimate."""
    base = design.base_rate * (1 - design.base_rate)
    rate = np.clip(design.base_rate + np.asarray(effect, float), 0, 1)
    tuned = rate * (1 - rate)
    unlike = (1 - design.icc) / np.asarray(completions, float)
    shared = 2 * design.question_correlation * design.icc * np.sqrt(base * tuned)
    of_answers = tuned * unlike / design.seeds
    of_questions = (base * (design.icc + unlike) + tuned * design.icc + of_answers - shared) / questions
    return np.maximum(of_questions, 0), np.asarray(design.seed_sd**2 / design.seeds), of_answers / questions


def _power(
    design: Design, effect: float | np.ndarray, questions: float | np.ndarray, completions: float | np.ndarray
) -> np.ndarray:
    """Power for arrays that broadcast against each other.

    A normal tail, averaged over the distribution of the estimated variance: the definition of the noncentral t (that of
    `scipy.stats.nct` is NaN at few degrees of freedom). With several seeds there are two estimates to average over.
    """
    of_questions, of_seeds, of_answers = _parts(design, effect, questions, completions)
    variance = np.maximum(of_questions + of_seeds, 1e-300)
    shift, variance, of_questions, between, freedom = (
        np.asarray(part)[..., None, None]
        for part in (
            np.abs(effect) / np.sqrt(variance),
            variance,
            of_questions,
            of_seeds + of_answers,
            np.subtract(questions, 1),
        )
    )
    if design.seeds == 1:
        nodes, weights, between_weights = *_nodes(200), np.ones(1)
        estimated = variance * chdtri(freedom, nodes) / freedom
    else:
        others = design.seeds - 1
        (nodes, weights), (between_nodes, between_weights) = _nodes(32), _nodes(48)
        found = of_questions * chdtri(freedom, nodes) / freedom
        found_between = between * chdtri(others, between_nodes)[:, None] / others
        estimated = found + found_between
        freedom = estimated**2 / (found**2 / freedom + found_between**2 / others)
    reach = stdtrit(freedom, 1 - design.alpha / 2) * np.sqrt(estimated / variance)
    return np.clip((ndtr(shift - reach) + ndtr(-shift - reach)) @ weights @ between_weights, 0, 1)


@cache
def _nodes(many: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights of the interval from 0 to 1: (many,), (many,)."""
    nodes, weights = np.polynomial.legendre.leggauss(many)
    return (nodes + 1) / 2, weights / 2


def _smallest(least: int, enough: Callable[[int | np.ndarray], np.ndarray]) -> int | None:
    """The smallest whole number from `least` to MOST that is enough; None if none is."""
    grid = np.unique(np.geomspace(least, MOST, 300).astype(int))
    found = np.flatnonzero(enough(grid))
    if not len(found):
        return None
    if not found[0]:
        return least
    between = range(int(grid[found[0] - 1]) + 1, int(grid[found[0]]) + 1)
    return between[bisect_left(between, True, key=lambda number: bool(enough(number)))]
