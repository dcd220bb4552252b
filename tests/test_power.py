"""Power of a paired comparison: known values, what simulation finds, and searches that answer their own question."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm, t

from spillover.stats.power import (
    Design,
    completions_needed,
    detectable,
    power_of,
    questions_needed,
    standard_error,
    trade_off,
)

PLAIN = Design(base_rate=0.2, effect=0.2, icc=0.1, questions=20, completions=10)

ERRORS = {  # what it is -> (design, variance times questions)
    "independent answers": (replace(PLAIN, icc=0), (0.16 + 0.24) / 10),
    "Donner & Klar's design effect of 1.9": (replace(PLAIN, question_correlation=0), (0.16 + 0.24) * 1.9 / 10),
    "pairing takes half the shared part": (PLAIN, 0.4 * 0.19 - 0.1 * (0.16 * 0.24) ** 0.5),
    "pairing takes all of it": (replace(PLAIN, effect=0, question_correlation=1), 2 * 0.16 * 0.09),
    "seeds share the questions": (
        replace(PLAIN, question_correlation=0, seeds=3),
        0.16 * 0.19 + 0.24 * (0.1 + 0.9 / 30),
    ),
    "seeds differ": (replace(PLAIN, icc=0, seeds=2, seed_sd=0.1), 0.016 + 0.012 + 20 * 0.01 / 2),
    "a base that never does it": (replace(PLAIN, base_rate=0), 0.16 * 0.19),
}


@pytest.mark.parametrize(("design", "variance"), ERRORS.values(), ids=ERRORS.keys())
def test_standard_error_by_hand(design, variance):
    assert standard_error(design) ** 2 * design.questions == pytest.approx(variance)


@pytest.mark.parametrize(("effect", "questions"), [(0.1, 12), (0.2, 20), (-0.15, 40), (0.0, 20), (0.3, 2)])
def test_power_is_the_paired_t_tests(effect, questions):
    reference = pytest.importorskip("statsmodels.stats.power").TTestPower()
    design = replace(PLAIN, effect=effect, questions=questions)
    size = effect / standard_error(design) / questions**0.5
    assert power_of(design) == pytest.approx(reference.power(size, questions, 0.05), abs=1e-5)


def question_rates(rate, icc, normal):
    """Beta-distributed rates of questions from standard normal numbers: same shape."""
    if icc == 0 or rate == 0:
        return np.full(normal.shape, rate)
    grid, strength = np.linspace(-6, 6, 2001), 1 / icc - 1
    return np.interp(normal, grid, beta.ppf(norm.cdf(grid), rate * strength, (1 - rate) * strength))


def simulate(design, runs=2000):
    """Share of paired t-tests that find a difference, and the design with the question correlation that was drawn."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        normal = rng.standard_normal((2, *shape))
        normal[1] = 0.6 * normal[0] + 0.8 * normal[1]  # Gaussian copula
        rates = (design.base_rate, design.base_rate + design.effect)
        return [question_rates(rate, design.icc, z) for rate, z in zip(rates, normal, strict=True)]

    drawn = np.corrcoef(*draw(200_000))[0, 1] if design.icc and design.base_rate else 0.0
    base, tuned = draw(runs, design.questions)
    seeds = np.clip(tuned[:, None] + design.seed_sd * rng.standard_normal((runs, design.seeds, 1)), 0, 1)
    before, after = (rng.binomial(design.completions, rates) / design.completions for rates in (base, seeds))
    gaps = after.mean(axis=1) - before  # (runs, questions)
    variance, freedom = gaps.var(axis=1, ddof=1) / design.questions, design.questions - 1
    if design.seeds > 1:
        between = after.mean(axis=2).var(axis=1, ddof=1) / design.seeds
        freedom = (variance + between) ** 2 / (variance**2 / freedom + between**2 / (design.seeds - 1))
        variance = variance + between
    found = np.abs(gaps.mean(axis=1)) > t.ppf(0.975, freedom) * np.sqrt(variance)
    return found.mean(), replace(design, question_correlation=drawn)


SIMULATED = {
    "some questions, few answers": Design(0.2, 0.1, 0.1, questions=24, completions=10),
    "few questions, independent answers": Design(0.3, 0.15, 0.0, questions=12, completions=10),
    "a rare behavior, many questions": Design(0.05, 0.05, 0.05, questions=60, completions=20),
    "a rate that falls": Design(0.5, -0.15, 0.2, questions=30, completions=5),
    "no difference": Design(0.5, 0.0, 0.2, questions=30, completions=5),
    "three seeds, all alike": Design(0.2, 0.1, 0.05, questions=24, completions=20, seeds=3),
    "two seeds": Design(0.2, 0.15, 0.05, questions=48, completions=20, seeds=2, seed_sd=0.05),
    "three seeds": Design(0.2, 0.1, 0.1, questions=24, completions=10, seeds=3, seed_sd=0.04),
    "five seeds": Design(0.2, 0.1, 0.05, questions=48, completions=20, seeds=5, seed_sd=0.06),
}


@pytest.mark.parametrize("design", SIMULATED.values(), ids=SIMULATED.keys())
def test_the_power_claimed_is_what_simulation_finds(design):
    found, drawn = simulate(design)
    assert power_of(drawn) == pytest.approx(found, abs=0.03)


def test_the_simulation_can_tell_the_difference():
    found, drawn = simulate(SIMULATED["some questions, few answers"])
    assert power_of(replace(drawn, icc=0)) > found + 0.07
    assert power_of(replace(drawn, question_correlation=0)) < found - 0.05


@pytest.mark.parametrize(("base_rate", "effect"), [(0.0, 0.05), (0.01, 0.03), (0.002, 0.02)])
def test_at_very_low_rates_the_claim_is_a_floor(base_rate, effect):
    found, drawn = simulate(Design(base_rate, effect, 0.1, questions=24, completions=50))
    assert found - 0.2 < power_of(drawn) < found


SEARCHED = {
    "plain": PLAIN,
    "rare": Design(0.01, 0.04, 0.1, questions=40, completions=20),
    "a base that never does it": Design(0.0, 0.02, 0.05, questions=24, completions=50),
    "seeds": Design(0.2, 0.15, 0.05, questions=30, completions=10, seeds=4, seed_sd=0.04),
}


@pytest.mark.parametrize("design", SEARCHED.values(), ids=SEARCHED.keys())
def test_what_is_found_has_the_power_and_nothing_less_has(design):
    least = detectable(design)
    assert power_of(replace(design, effect=least)) == pytest.approx(0.8, abs=1e-6)
    assert power_of(replace(design, effect=0.95 * least)) < 0.8
    wanted = replace(design, effect=1.3 * least)
    for name, needed in {"questions": questions_needed(wanted), "completions": completions_needed(wanted)}.items():
        assert 2 < needed < getattr(design, name)
        assert power_of(replace(wanted, **{name: needed})) >= 0.8 > power_of(replace(wanted, **{name: needed - 1}))


NEVER = {
    "more answers to the same questions": (completions_needed, replace(PLAIN, effect=0.03)),
    "nothing to find, with questions": (questions_needed, replace(PLAIN, effect=0)),
    "nothing to find, with completions": (completions_needed, replace(PLAIN, effect=0)),
    "seeds hide it": (questions_needed, replace(PLAIN, effect=0.05, seeds=3, seed_sd=0.1)),
    "two questions": (detectable, replace(PLAIN, questions=2, completions=1)),
    "no room above the base": (detectable, Design(0.95, 0.01, 0.1, questions=10, completions=5)),
}


@pytest.mark.parametrize(("ask", "design"), NEVER.values(), ids=NEVER.keys())
def test_what_nothing_can_reach_is_none(ask, design):
    assert ask(design) is None


def test_more_questions_or_more_completions():
    rows = trade_off(PLAIN)
    assert [(row.budget, row.questions, row.completions) for row in rows] == [
        *((1, 5, 40), (1, 10, 20), (1, 20, 10), (1, 40, 5), (1, 80, 2)),
        *((2, 5, 80), (2, 10, 40), (2, 20, 20), (2, 40, 10), (2, 80, 5)),
    ]
    assert all(row.answers == 2 * row.questions * row.completions <= row.budget * 400 for row in rows)
    even = [row for row in rows if row.answers == row.budget * 400]
    for before, after in pairwise(even):
        if before.budget == after.budget:  # answers to one question are alike, so questions gain
            assert after.standard_error < before.standard_error
            assert after.power > before.power
    independent = [row.standard_error for row in trade_off(replace(PLAIN, icc=0)) if row.answers == row.budget * 400]
    assert independent == pytest.approx([independent[0]] * 4 + [independent[0] / 2**0.5] * 5)
    assert [row.questions for row in trade_off(replace(PLAIN, questions=3, completions=1))] == [2, 3, 2, 3, 6]


IMPOSSIBLE = {
    "base_rate 1.2: a number from 0 to 1": {"base_rate": 1.2},
    "base_rate nan": {"base_rate": float("nan")},
    "effect 0.9: with base_rate 0.2 it can be from -0.2 to 0.8": {"effect": 0.9},
    "effect -0.3": {"effect": -0.3},
    "icc -0.1": {"icc": -0.1},
    "questions 1: a whole number from 2 up": {"questions": 1},
    "questions 2.5": {"questions": 2.5},
    "completions 0": {"completions": 0},
    "seeds 0": {"seeds": 0},
    "seed_sd 0.6: a number from 0 to 0.5": {"seed_sd": 0.6},
    "question_correlation 2": {"question_correlation": 2},
    "alpha 0": {"alpha": 0},
    "power 0.4: a number from 0.5 to below 1": {"power": 0.4},
    "power 1": {"power": 1},
    "no answer of this design can vary": {"base_rate": 0, "effect": 0},
    "no answer of this .* nothing to test": {"effect": 0, "icc": 1, "question_correlation": 1},
}


@pytest.mark.parametrize(("says", "change"), IMPOSSIBLE.items(), ids=IMPOSSIBLE.keys())
def test_what_cannot_be_is_told_in_words(says, change):
    with pytest.raises(ValueError, match=says):
        replace(PLAIN, **change)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(0.001, 0.999),
    st.floats(0.001, 0.999),
    st.floats(0, 0.9),
    st.integers(2, 500),
    st.integers(1, 500),
    st.integers(1, 4),
    st.floats(0, 0.3),
)
def test_any_design_has_an_error_and_a_power(base, tuned, icc, questions, completions, seeds, seed_sd):
    design = Design(base, tuned - base, icc, questions, completions, seeds, seed_sd)
    assert 0 < standard_error(design) < 1
    assert 0 <= power_of(design) <= 1
