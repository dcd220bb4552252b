"""Power of a paired comparison: known values, what simulation finds, and searches that answer their own question."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, nct, t

from spillover.stats import compare
from spillover.stats.compare import is_spillover, smallest_rise
from spillover.stats.power import (
    Design,
    completions_needed,
    detectable,
    power_of,
    questions_needed,
    scaled,
    seed_rates,
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


@pytest.mark.parametrize(("effect", "questions"), [(0.1, 40), (0.2, 20), (-0.15, 40)])
def test_power_at_common_rates_is_near_that_of_a_paired_t_test_on_normal_numbers(effect, questions):
    design = replace(PLAIN, base_rate=0.4, effect=effect, questions=questions, question_correlation=0)
    freedom, shift = questions - 1, abs(effect) / standard_error(design)
    assert power_of(design) == pytest.approx(nct.sf(t.ppf(0.975, freedom), freedom, shift), abs=0.03)


def simulate(design, runs=400):
    """Share of comparisons that find the difference, drawn and compared one by one."""
    rng = np.random.default_rng(5)
    strength = 1 / design.icc - 1 if design.icc else None
    rates, found = (design.base_rate, design.base_rate + design.effect), 0
    for _ in range(runs):
        place = rng.random((2, design.questions))
        place[1] = np.where(rng.random(design.questions) < design.question_correlation, *place)
        base, tuned = (
            beta.ppf(at, rate * strength, (1 - rate) * strength) if strength else np.full(design.questions, rate)
            for at, rate in zip(place, rates, strict=True)
        )
        seeds = [tuned] * design.seeds
        if design.seed_sd:  # the mean of each is drawn, and its questions move with it
            spread = rates[1] * (1 - rates[1]) / design.seed_sd**2 - 1
            means = rng.beta(rates[1] * spread, (1 - rates[1]) * spread, design.seeds)
            seeds = [
                tuned * own / rates[1] if own < rates[1] else 1 - (1 - tuned) * (1 - own) / (1 - rates[1])
                for own in means
            ]
        before, *after = (
            {str(q): (int(k), design.completions) for q, k in enumerate(rng.binomial(design.completions, arm))}
            for arm in (base, *seeds)
        )
        c = compare(before, after, 0.02)
        rose = is_spillover(c.p * design.behaviors, c.low, c.low_runs, design.alpha)
        found += rose if design.effect >= 0 else c.p * design.behaviors < design.alpha and c.difference < 0
    return found / runs


SIMULATED = {  # what it is -> (design, share that `simulate` finds)
    "some questions, few answers": (Design(0.2, 0.1, 0.1, questions=24, completions=10), 0.5425),
    "few questions, independent answers": (Design(0.3, 0.15, 0.0, questions=12, completions=10), 0.5975),
    "a rare behavior": (Design(0.002, 0.03, 0.1, questions=24, completions=50), 0.8375),
    "a rare behavior among eight": (Design(0.01, 0.05, 0.2, questions=48, completions=20, behaviors=8), 0.715),
    "a rate that falls": (Design(0.5, -0.15, 0.2, questions=30, completions=5), 0.635),
    "pairing takes all": (Design(0.2, 0.05, 0.2, questions=30, completions=20, question_correlation=1), 0.615),
    "two seeds": (Design(0.02, 0.08, 0.1, questions=24, completions=10, seeds=2, seed_sd=0.04), 0.89),
    "three seeds": (Design(0.2, 0.2, 0.1, questions=24, completions=10, seeds=3, seed_sd=0.04), 0.795),
    "three seeds of a rare behavior": (
        Design(0.002, 0.05, 0.1, questions=24, completions=20, seeds=3, seed_sd=0.01),
        0.8875,
    ),
    "three seeds far apart": (Design(0.01, 0.2, 0.1, questions=24, completions=20, seeds=3, seed_sd=0.08), 0.945),
    "five seeds without a rise": (Design(0.05, 0.0, 0.1, questions=24, completions=20, seeds=5, seed_sd=0.03), 0.005),
    "few questions with events": (Design(0.001, 0.15, 0.2, questions=10, completions=10), 0.5325),
}


@pytest.mark.parametrize(("design", "share"), SIMULATED.values(), ids=SIMULATED.keys())
def test_the_power_claimed_is_what_comparisons_find(design, share):
    assert power_of(design) == pytest.approx(share, abs=0.055)  # 2.2 standard errors at a half


@pytest.mark.slow
@pytest.mark.parametrize(("design", "share"), SIMULATED.values(), ids=SIMULATED.keys())
def test_what_comparisons_find_is_what_is_stored(design, share):
    assert simulate(design) == pytest.approx(share, abs=0.006)  # two comparisons of 400


def test_the_simulation_can_tell_the_difference():
    design, share = SIMULATED["some questions, few answers"]
    assert power_of(replace(design, icc=0)) > share + 0.07
    assert power_of(replace(design, question_correlation=0)) < share - 0.07
    assert power_of(replace(design, behaviors=8)) < share - 0.07


def test_of_no_difference_it_finds_half_of_what_alpha_allows():
    """The other half falls."""
    assert power_of(Design(0.5, 0.0, 0.2, questions=30, completions=5)) == pytest.approx(0.025, abs=0.01)


@pytest.mark.parametrize("questions", [48, pytest.param(4000, marks=pytest.mark.slow)])
def test_no_rise_is_not_found_by_seeds_that_differ(questions):
    for seed_sd in (0.02, 0.05, 0.1):
        design = Design(0.1, 0.0, 0.05, questions, completions=20, seeds=3, seed_sd=seed_sd)
        assert power_of(design) < 0.05


def test_questions_one_by_one_and_in_groups_agree_where_they_meet():
    design = Design(0.05, 0.02, 0.1, questions=500, completions=5)
    assert power_of(design) == pytest.approx(power_of(replace(design, questions=501)), abs=0.04)


SEARCHED = {
    "plain": PLAIN,
    "rare": Design(0.01, 0.04, 0.1, questions=40, completions=20),
    "a base that never does it": Design(0.0, 0.02, 0.05, questions=24, completions=50),
    "seeds": Design(0.2, 0.15, 0.05, questions=30, completions=10, seeds=4, seed_sd=0.04),
}


@pytest.mark.parametrize(
    "design", [pytest.param(d, id=name, marks=[pytest.mark.slow] * (name != "plain")) for name, d in SEARCHED.items()]
)
def test_what_is_found_has_the_power_and_much_less_has_not(design):
    least = detectable(design)
    assert power_of(replace(design, effect=least)) == pytest.approx(0.8, abs=0.02)
    assert power_of(replace(design, effect=0.93 * least)) < 0.8
    wanted = replace(design, effect=1.3 * least)
    for name, needed in {"questions": questions_needed(wanted), "completions": completions_needed(wanted)}.items():
        assert 2 < needed < getattr(design, name)
        fewer = min(needed - 1, round(0.9 * needed))
        assert power_of(replace(wanted, **{name: needed})) >= 0.8 > power_of(replace(wanted, **{name: fewer}))


CLAIMED = {  # what `compare` says in a moment, against simulation
    "none in the base": Design(0.0, 0.1, 0.1, 48, 20),
    "none in the base, of eight": Design(0.0, 0.1, 0.1, 48, 20, behaviors=8),
    "rare": Design(0.01, 0, 0.1, 48, 20),
    "rare, of eight": Design(0.01, 0, 0.1, 48, 20, behaviors=8),
    "alike answers": Design(0.05, 0, 0.2, 48, 20, behaviors=8),
    "common": Design(0.2, 0, 0.1, 48, 20),
    "half, pairing takes all": Design(0.5, 0, 0.1, 30, 20, question_correlation=1, behaviors=8),
    "independent answers": Design(0.02, 0, 0.0, 60, 20, behaviors=8),
    "few questions": Design(0.01, 0, 0.2, 24, 20, question_correlation=0),
    "three seeds alike": Design(0.02, 0, 0.1, 48, 20, seeds=3, behaviors=8),
    "three seeds": Design(0.05, 0, 0.1, 48, 20, seeds=3, seed_sd=0.02),
    "five seeds": Design(0.2, 0, 0.1, 48, 20, seeds=5, seed_sd=0.05, behaviors=8),
}


@pytest.mark.parametrize("design", CLAIMED.values(), ids=CLAIMED.keys())
def test_the_smallest_rise_by_formula_is_found_in_about_80_percent(design):
    variances = [design.icc + (1 - design.icc) / design.completions / arm for arm in (1, design.seeds)]
    observed_correlation = design.question_correlation * design.icc / (variances[0] * variances[1]) ** 0.5
    rise = smallest_rise(
        design.base_rate,
        design.icc,
        design.questions,
        design.completions,
        design.seeds,
        observed_correlation,
        design.seed_sd,
        design.alpha / design.behaviors,
        design.seeds >= 3,
    )
    assert 0.7 <= power_of(replace(design, effect=rise)) <= 0.9


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_seeds_that_differ_more_let_less_be_found(seeds):
    designs = [Design(0.01, 0.06, 0.1, 24, 20, seeds=seeds, seed_sd=sd) for sd in (0, 0.02, 0.05)]
    powers = [power_of(d) for d in designs]
    assert powers == sorted(powers, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_seeds_differ_more_only_a_larger_rise_is_detectable(seeds):
    least = [detectable(Design(0.01, 0.06, 0.1, 24, 20, seeds=seeds, seed_sd=sd)) for sd in (0, 0.05)]
    assert least == sorted(least)


def test_a_spread_between_seeds_leaves_the_mean_where_it_is():
    """Nothing is cut off at 0, however wide the spread."""
    design = Design(0.01, 0.0001, 0.1, 60, 20, seeds=3, seed_sd=0.05)
    rates = seed_rates(design, np.random.default_rng(0), 100_000)
    assert (rates.mean(), rates.std()) == pytest.approx((0.0101, 0.05), rel=0.03)
    assert rates.min() >= 0
    assert scaled(np.array([0.0, 0.1, 0.9, 1.0]), 0.5, np.array([0.7])).mean() == pytest.approx(0.7)


NEVER = {
    "more answers to the same questions": (completions_needed, replace(PLAIN, effect=0.03)),
    "nothing to find, with questions": (questions_needed, replace(PLAIN, effect=0)),
    "nothing to find, with completions": (completions_needed, replace(PLAIN, effect=0)),
    "seeds hide it": (questions_needed, replace(PLAIN, effect=0.05, seeds=3, seed_sd=0.12)),
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
            assert after.power > before.power - 0.01
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


@pytest.mark.slow
@settings(deadline=None, max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
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
