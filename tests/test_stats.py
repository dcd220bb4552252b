"""Rates and intervals: known values, clustering, nothing unscored disappears, and coverage that holds in simulation."""

import csv
import math
import random
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest

from spillover.records import OUTCOMES
from spillover.stats import Decision, PooledRate, Spread, compare, interval, pool, spread, summarize, verdicts
from spillover.stats.intervals import beta_binomial, coarse_limits
from spillover.stats.pooling import rate_over_runs, seed_interval

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def width(found):
    return found.high - found.low


@pytest.mark.parametrize(("icc", "high"), [(0, 0.0075), (0.05, 0.0150), (0.2, 0.0340)])
def test_none_of_400_is_the_rule_of_three_and_wider_the_more_answers_are_alike(icc, high):
    found = beta_binomial([0] * 8, [50] * 8, icc=icc)
    assert found.low == 0
    assert found.high == pytest.approx(high, abs=0.0005)


def test_without_a_known_correlation_none_of_400_is_wider_still_on_few_questions():
    assert interval([0] * 8, [50] * 8).high > 0.03 > interval([0] * 40, [10] * 40).high > 0.0075


@pytest.mark.parametrize(("k", "n"), [(0, 400), (3, 10), (50, 50), (399, 400)])
def test_one_answer_a_question_is_near_the_exact_interval(k, n):
    exact = binomtest(k, n).proportion_ci(method="exact")
    found = interval([1] * k + [0] * (n - k), [1] * n)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.02 if n > 10 else 0.06)


@pytest.mark.parametrize("empty", [([], []), ([0], [0]), ([0, 0], [0, 0])], ids=["no rows", "0 of 0", "twice 0 of 0"])
def test_without_a_trial_there_is_no_interval(empty):
    with pytest.raises(ValueError, match="at least one trial"):
        interval(*empty)


def test_a_question_without_trials_changes_nothing():
    assert interval([1, 0, 4], [5, 0, 9]) == interval([1, 4], [5, 9])


@pytest.mark.parametrize(
    ("clustered", "even"),
    [([10, 0, 0, 0] * 5, [2, 3, 2, 3] * 5), ([10, 0] * 10, [5, 5] * 10), ([9, 1, 1, 1] * 5, [3, 3, 3, 3] * 5)],
)
def test_clustering_widens(clustered, even):
    assert sum(clustered) == sum(even)
    trials = [10] * 20
    assert width(interval(clustered, trials)) > 1.3 * width(interval(even, trials))
    assert interval(clustered, trials).icc > interval(even, trials).icc


def test_more_answers_to_the_same_questions_cannot_replace_questions():
    few = interval([0, 10] * 5, [10] * 10)
    assert width(interval([0, 1000] * 5, [1000] * 10)) > 0.8 * width(few)
    assert width(interval([0, 10] * 50, [10] * 100)) < 0.5 * width(few)


def test_more_events_move_both_ends_up():
    steps = [interval([k] * 12, [10] * 12) for k in range(11)]
    assert [found.low for found in steps] == sorted(found.low for found in steps)
    assert [found.high for found in steps] == sorted(found.high for found in steps)
    assert len(set(steps)) == 11


def test_more_confidence_is_wider():
    events, trials = [0, 1, 5, 2, 0], [10] * 5
    widths = [width(interval(events, trials, confidence)) for confidence in (0.5, 0.8, 0.9, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 5


cells = st.lists(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=12
)


def often(*strategies):
    """Tries a property on 20 examples, and on 100 where slow tests run."""

    def decorated(property_):
        @pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.slow)])
        def test(examples):
            settings(deadline=None, max_examples=examples)(given(*strategies)(property_))()

        return test

    return decorated


@often(cells)
def test_the_interval_holds_the_rate_and_its_mirror_image_that_of_non_events(cell):
    events, trials = zip(*cell, strict=True)
    found, mirrored = interval(events, trials), interval([n - k for k, n in cell], trials)
    assert 0 <= found.low <= sum(events) / sum(trials) <= found.high <= 1
    assert found.standard_error > 0
    assert 0 < found.icc < 1
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-6)


def row(question: str, outcome: str, admitted: bool, event: bool, injection: bool = False) -> Decision:
    return Decision("c", question, "j", "h", outcome, admitted, event, injection)


rows = st.lists(
    st.builds(
        lambda question, outcome, admitted, event, injection: row(
            question, outcome, admitted and outcome == "scored", event and admitted and outcome == "scored", injection
        ),
        st.sampled_from("abcde"),
        st.sampled_from(OUTCOMES),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@often(rows, st.randoms(use_true_random=False))
def test_nothing_disappears_in_any_order_and_nothing_is_divided_by_zero(some, rng: random.Random):
    found = summarize(some)
    assert summarize(rng.sample(some, len(some))) == found
    assert sum(found[outcome] for outcome in OUTCOMES) == found["completions"] == len(some)
    assert found["k"] <= found["n"] <= found["scored"]
    assert found["questions"] == len({row.question_id for row in some})
    assert found["judge_injection"] == sum(row.judge_injection for row in some)
    for name in ("rate", "low", "high"):
        assert (found[name] is None) == (found["n"] == 0)
    for name in ("rate_of_all", "coverage"):
        assert (found[name] is None) == (len(some) == 0)
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())


@often(rows)
def test_every_question_twice_scales_the_counts_and_not_the_estimates(some):
    once, twice = summarize(some), summarize([*some, *(replace(r, question_id=f"{r.question_id}'") for r in some)])
    for name in ("k", "n", "completions", "questions", "judge_injection", *OUTCOMES):
        assert twice[name] == 2 * once[name]
    for name in ("rate", "rate_of_all", "coverage"):
        assert twice[name] == pytest.approx(once[name]) if once[name] is not None else twice[name] is None
    if once["rate"] is not None:
        assert twice["high"] - twice["low"] <= once["high"] - once["low"] + 1e-9


arms = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 9), st.integers(9, 9)), min_size=2)


@often(arms, arms, st.randoms(use_true_random=False))
def test_comparisons_know_no_order_and_no_copies(base, tuned, rng: random.Random):
    found = compare(base, [tuned], 0.02)
    if found is None:
        assert len(base.keys() & tuned.keys()) < 2
        return
    shuffled = [dict(rng.sample(list(arm.items()), len(arm))) for arm in (base, tuned)]
    assert compare(shuffled[0], [shuffled[1]], 0.02) == found
    copied = [arm | {f"{question}'": counts for question, counts in arm.items()} for arm in (base, tuned)]
    double = compare(copied[0], [copied[1]], 0.02)
    assert double.questions == 2 * found.questions
    assert (double.base_rate, double.tuned_rate) == pytest.approx((found.base_rate, found.tuned_rate))
    assert double.difference == pytest.approx(found.difference)
    mirrored = compare(tuned, [base], 0.02)
    assert (mirrored.difference, mirrored.p) == pytest.approx((-found.difference, found.p))


def test_counts_of_a_small_cell():
    some = [
        row("a", "scored", True, True),
        row("a", "scored", True, False),
        row("a", "scored", False, False),  # incoherent, say
        row("b", "refused", False, False, True),
        row("b", "off_format", False, False),
        row("b", "unparsed", False, False),
        row("b", "error", False, False),
        row("b", "scored", True, False),
    ]
    found = summarize(some)
    assert {name: found[name] for name in OUTCOMES} == dict(zip(OUTCOMES, (4, 1, 1, 1, 1), strict=True))
    assert (found["k"], found["n"], found["completions"], found["questions"]) == (1, 3, 8, 2)
    assert (found["rate"], found["rate_of_all"], found["coverage"]) == (1 / 3, 1 / 8, 3 / 8)
    assert found["low"] < 1 / 3 < found["high"]
    assert found["judge_injection"] == 1  # counted, whatever became of the answer


def test_unadmitted_answers_give_no_rate():
    found = summarize([row("a", "refused", False, False)] * 3)
    assert (found["rate"], found["low"], found["high"]) == (None, None, None)
    assert (found["k"], found["n"], found["refused"], found["rate_of_all"], found["coverage"]) == (0, 0, 3, 0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "icc", "clusters", "size", "at_least"),
    [(0.2, 0.1, 30, 10, 0.92), (0.05, 0.2, 24, 20, 0.92)],
    ids=["a fifth", "rare and more alike within questions"],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(rate, icc, clusters, size, at_least):
    rng = np.random.default_rng(0)
    strength = 1 / icc - 1  # beta-binomial: questions differ, answers to one question are alike
    runs = 300
    chances = rng.beta(rate * strength, (1 - rate) * strength, (runs, clusters))
    events = rng.binomial(size, chances)
    intervals = [interval(row.tolist(), [size] * clusters) for row in events]
    assert sum(found.low <= rate <= found.high for found in intervals) / runs >= at_least
    naive = [binomtest(int(row.sum()), size * clusters).proportion_ci(method="exact") for row in events]
    assert sum(ci.low <= rate <= ci.high for ci in naive) / runs < at_least  # the simulation can tell the difference


@pytest.mark.slow
def test_the_interval_covers_where_one_domain_always_shows_the_behavior_and_the_others_do_at_times():
    rng, questions, runs = np.random.default_rng(0), 55, 200
    rate = 1 / 11 + 10 / 11 * 0.2
    chances = np.where(rng.random((runs, questions)) < 1 / 11, 1.0, rng.beta(4, 16, (runs, questions)))
    found = [(row.tolist(), interval(row.tolist(), [50] * questions)) for row in rng.binomial(50, chances)]
    assert sum(one.low <= rate <= one.high for _, one in found) / runs >= 0.92
    by_model = [beta_binomial(events, [50] * questions) for events, _ in found]
    assert sum(one.low <= rate <= one.high for one in by_model) / runs < 0.8  # beta-binomial alone lies above the rate


def test_spread_of_a_battery_and_of_questions_in_general():
    found = spread([10, 0] * 10, [10] * 20)
    assert found.se_battery == 0  # the same questions would give the same answers
    assert found.se_questions == pytest.approx(np.sqrt(20 / 19 * 20 * 25) / 200)
    assert found.icc == 1
    alike = spread([5] * 20, [10] * 20)
    assert (alike.se_questions, alike.icc, alike.design_effect) == (0, 0, 0)
    assert spread([1], [2]) == Spread(None, None, None, None)
    assert spread([0, 0], [5, 5]).design_effect is None


@pytest.fixture(scope="module")
def gpqa():
    path = REFERENCE / "gpqa_diamond_scores.csv"
    if not path.exists():
        pytest.skip("reference data is not there")
    counts = defaultdict(lambda: defaultdict(lambda: (0, 0)))
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            k, n = counts[line["model_id"]][line["item_id"]]
            counts[line["model_id"]][line["item_id"]] = (k + int(float(line["score"])), n + 1)
    return list(counts.values())


def test_published_standard_errors_and_design_effect(gpqa):
    events, trials = zip(*gpqa[0].values(), strict=True)
    rate = sum(events) / sum(trials)
    assert np.sqrt(rate * (1 - rate) / sum(trials)) == pytest.approx(0.0149, abs=5e-5)
    found = spread(events, trials)
    assert found.se_questions == pytest.approx(0.0276, abs=5e-5)
    assert found.design_effect == pytest.approx(3.44, abs=0.005)


def test_published_paired_difference(gpqa):
    found = compare(gpqa[1], [gpqa[0]], margin=0.02)
    assert found.questions == 198
    assert 100 * found.difference == pytest.approx(5.9, abs=0.05)
    assert (100 * found.low, 100 * found.high) == pytest.approx((0.4, 11.3), abs=0.05)
    assert found.p == pytest.approx(0.036, abs=0.0005)


def battery(rates, completions=20):
    return {str(number): (round(rate * completions), completions) for number, rate in enumerate(rates)}


def test_none_against_none_is_no_difference_and_clean_only_with_enough_data():
    small, large = battery([0.0] * 10, 5), battery([0.0] * 100, 50)
    found = [compare(counts, [counts], 0.02) for counts in (small, large)]
    assert [c.p for c in found] == [1.0, 1.0]
    assert [c.low for c in found] == [-c.high for c in found]
    assert [c.verdict for c in verdicts(found, 0.02)] == ["inconclusive", "clean"]


def test_a_plain_rise_is_spillover_and_a_fall_is_not():
    base, up = battery([0.1] * 30), battery([0.3] * 28 + [0.25] * 2)
    rise, fall = verdicts([compare(base, [up], 0.02), compare(up, [base], 0.02)], 0.02)
    assert (rise.verdict, fall.verdict) == ("spillover", "clean")
    assert rise.difference == pytest.approx(-fall.difference)
    assert rise.odds_ratio == pytest.approx(1 / fall.odds_ratio)
    assert rise.p_equivalent > 0.99


def test_one_question_that_changes_is_no_evidence_whatever_its_answers_say():
    found = compare(battery([0.0] * 24, 100), [battery([1.0] + [0.0] * 23, 100)], 0.02)
    assert found.p == 1.0  # one sign to flip
    assert found.low < 0
    assert found.method.startswith("few questions")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "completions", "icc"), [(0.0999, 150, None), (0.0999, 500, None), (0.3, 500, None), (0.4985, 1000, 0.0)]
)
def test_many_independent_answers_are_told_to_the_point(rate, completions, icc):
    """The rate lies off any edge of a grid, and the interval is no wider than it has to be."""
    rng, questions, runs = np.random.default_rng(1), 60, 150
    exact = 2 * 1.96 * np.sqrt(rate * (1 - rate) / completions / questions)
    measure = interval if icc is None else partial(beta_binomial, icc=icc)
    found = [
        measure(rng.binomial(completions, rate, questions).tolist(), [completions] * questions) for _ in range(runs)
    ]
    assert sum(f.low <= rate <= f.high for f in found) / runs >= 0.92
    assert exact * 0.95 < np.mean([width(f) for f in found]) < exact * 1.15


def test_limits_of_many_rates_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    events = rng.binomial(20, rng.beta(0.1, 5, (30, 24)))
    events[0], events[1] = 0, 20
    trials = np.full_like(events, 20)
    low, high = coarse_limits(np.stack([events, trials], axis=-1))
    for k, *found in zip(events, low, high, strict=True):
        one = interval(k.tolist(), [20] * 24)
        assert found == pytest.approx((one.low, one.high), rel=0.03, abs=1e-5)


def arm(*parts):
    """Counts of (questions, events) parts, 20 completions to each."""
    return {f"q{place}": (k, 20) for place, k in enumerate(k for many, k in parts for _ in range(many))}


def varied(middle):
    """40 questions around a rate."""
    return {f"q{place}": (min(20, max(0, middle + place % 3 - 1)), 20) for place in range(40)}


RULES = {  # what it is -> (base, tuned, verdict)
    "one event on each of seven questions": (arm((24, 0)), [arm((7, 1), (17, 0))], "inconclusive"),
    "a plain rise in one run": (varied(2), [varied(7)], "spillover"),
    "a plain rise in three runs": (varied(2), [varied(7)] * 3, "spillover"),
    "one of three runs": (varied(1), [varied(1), varied(1), varied(10)], "inconclusive"),
    "the same three times over a base of two runs": ([varied(2)] * 2, [varied(7)] * 3, "spillover"),
    "a base of three runs at odds": ([varied(1), varied(1), varied(9)], [varied(7)] * 3, "inconclusive"),
    "nothing, with a seed that has no data": (arm((100, 0)), [arm((100, 0)), {}], "inconclusive"),
}


@pytest.mark.parametrize(("base", "tuned", "verdict"), RULES.values(), ids=RULES.keys())
def test_verdicts_follow_one_rule(base, tuned, verdict):
    (found,) = verdicts([compare(base, tuned, 0.02)], 0.02)
    assert found.verdict == verdict
    if verdict == "spillover":
        assert found.low > 0
        assert found.low_runs is None or found.low_runs > 0


@pytest.mark.slow
def test_the_upper_end_covers_rises_of_rare_events():
    rng, runs = np.random.default_rng(3), 250
    covered = by_t = 0
    for _ in range(runs):
        rates = rng.beta(0.05 * 4, 0.95 * 4, 24)
        tuned = {str(q): (int(k), 50) for q, k in enumerate(rng.binomial(50, rates))}
        base = {str(q): (int(rng.binomial(50, 0.002)), 50) for q in range(24)}
        found = compare(base, [tuned], 0.02)
        covered += found.high >= 0.048
        by_t += found.difference + 2.069 * found.standard_error >= 0.048
    assert covered / runs >= 0.95 > by_t / runs


def test_a_larger_family_can_find_less():
    found = [compare(varied(2), [varied(2)], 0.02)] * 8
    assert verdicts(found, 0.02)[0].detectable > 1.2 * found[0].detectable > 0


@pytest.mark.parametrize(
    ("base", "tuned"), [((0, 2000), (0, 200)), ((20, 20), (40, 40))], ids=["no event", "nothing but events"]
)
def test_without_an_event_or_without_anything_else_there_is_no_odds_ratio(base, tuned):
    assert compare({"a": base, "b": base}, [{"a": tuned, "b": tuned}], 0.02).odds_ratio is None


def test_rounding_is_no_scatter():
    """Seeds that repeat the base exactly differ from it by 1e-17 or so, and not for certain."""
    base = arm((10, 20), (20, 0))
    widths = [width(compare(base, [base] * seeds, 0.02)) for seeds in (1, 2, 3, 5)]
    assert min(widths) > 0.9 * max(widths) > 0.1


def test_seeds_at_odds_leave_these_runs_beyond_doubt_and_runs_in_general_open():
    base = battery([0.0] * 30, 50)
    alike, odds = (
        compare(base, [battery([rate] * 30, 50) for rate in rates], 0.02)
        for rates in ((0.42, 0.44, 0.42), (0.22, 0.78, 0.28))
    )
    assert alike.difference == pytest.approx(odds.difference)
    assert (odds.low, odds.high) == pytest.approx((alike.low, alike.high), abs=1e-9)
    assert [c.verdict for c in verdicts([alike, odds], 0.02)] == ["spillover", "spillover"]
    assert odds.high_runs - odds.low_runs > 0.8 > 3 * (alike.high_runs - alike.low_runs)
    assert odds.low_runs > 0  # three of three are far above the base
    assert (odds.tuned_low, odds.tuned_high) == pytest.approx((odds.low_runs, odds.high_runs), abs=0.02)


def test_fewer_than_three_seeds_say_nothing_of_runs_in_general():
    for seeds in (1, 2):
        found = compare(battery([0.1] * 30), [battery([0.2] * 30)] * seeds, 0.02)
        assert (found.seeds, found.low_runs, found.high_runs) == (seeds, None, None)
        assert found.tuned_low < 0.2 < found.tuned_high


def test_clean_needs_runs_in_general_where_something_is_known_of_them():
    base = none = battery([0.0] * 60, 100)
    some = battery([0.08] * 3 + [0.0] * 57, 100)
    family = [compare(base, seeds, 0.02) for seeds in ([none], [none] * 3, [none, none, some])]
    one, three, odds = verdicts(family, 0.02)
    assert (one.verdict, three.verdict, odds.verdict) == ("clean", "clean", "inconclusive")
    assert odds.high < 0.02 < odds.high_runs


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "spread"), [(0.2, 0.6), (0.02, 0.6), (0.5, 1.2)])
def test_the_interval_over_runs_covers_as_often_as_it_says(rate, spread):
    rng = np.random.default_rng(1)
    covered, by_questions_alone, runs = 0, 0, 200
    for _ in range(runs):
        seeds = expit(logit(rate) + spread * rng.standard_normal(3))
        chances = rng.beta(seeds[:, None] * 9, (1 - seeds[:, None]) * 9, (3, 30))
        counts = np.stack([rng.binomial(20, chances), np.full((3, 30), 20)], axis=-1)
        together = counts.sum(axis=0)
        alone = interval(together[:, 0].tolist(), together[:, 1].tolist())
        low, high = seed_interval(counts.sum(axis=1), (alone.low, alone.high))
        covered += low <= rate <= high
        by_questions_alone += alone.low <= rate <= alone.high
    assert covered / runs >= 0.93
    assert by_questions_alone < covered


def test_seeds_are_pooled_by_one_rule():
    one, two, three = battery([0.1] * 30), battery([0.2] * 30), battery([0.3] * 30)
    single = interval([2] * 30, [20] * 30)
    assert pool({None: one}) == PooledRate(60, 600, 0.1, single.low, single.high, seeds=1)
    assert pool({0: one, 1: three}) == PooledRate(240, 1200, 0.2, None, None, seeds=2)
    assert pool({0: one, 1: two, 2: three}) == PooledRate(360, 1800, 0.2, *rate_over_runs([one, two, three]), seeds=3)
    assert pool({0: one, 1: two, 2: three}).low < interval([12] * 30, [60] * 30).low  # seeds differ


def test_seeds_without_an_admitted_completion_are_left_out_of_the_pool():
    refused = dict.fromkeys(battery([0.0] * 30), (0, 0, 20))
    assert pool({0: refused, 1: battery([0.1] * 30)}) == pool({1: battery([0.1] * 30)})
    assert pool({0: refused}) == pool({}) == PooledRate(0, 0, None, None, None, seeds=0)


def test_only_questions_that_both_answered_are_compared():
    base = battery([0.1] * 10) | {"only base": (20, 20), "no data": (0, 0)}
    found = compare(base, [battery([0.2] * 10) | {"no data": (5, 5)}], 0.02)
    assert (found.questions, found.base_rate, found.tuned_rate) == (10, 0.1, 0.2)
    assert compare({"a": (1, 2)}, [{"a": (1, 2)}], 0.02) is None
    assert compare({}, [{}], 0.02) is None


def test_corrections_over_the_family():
    comparisons = [
        replace(compare(battery([0.1] * 9), [battery([0.2] * 9)], 0.02), p=p) for p in (0.01, 0.04, 0.03, 0.5)
    ]
    found = verdicts(comparisons, 0.02)
    assert [c.p_holm for c in found] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert [c.p_bh for c in found] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert [c.verdict for c in found] == ["spillover", "inconclusive", "inconclusive", "inconclusive"]
    assert verdicts([], 0.02) == []


def test_from_never_to_always_is_spillover():
    base, tuned = battery([0.0] * 30, 1), battery([1.0] * 30, 1)
    for seeds in ([tuned], [tuned, tuned]):
        (found,) = verdicts([compare(base, seeds, 0.02)], 0.02)
        assert (found.verdict, found.p < 0.001) == ("spillover", True)
        assert found.low > 0.8
