"""Rates and intervals: known values, clustering, nothing unscored disappears, and coverage that holds in simulation."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from spillover.records import OUTCOMES
from spillover.stats import Judged, clustered_interval, summarize

KNOWN = {  # what it is -> (events, trials, low, high)
    "0 of 400": ([0] * 40, [10] * 40, 0.0, 0.00918),
    "400 of 400": ([10] * 40, [10] * 40, 0.99082, 1.0),
    "0 of 1": ([0], [1], 0.0, 0.975),
    "1 of 1": ([1], [1], 0.025, 1.0),
    "one question: Clopper-Pearson": ([3], [10], 0.06674, 0.65245),
    "every question alike: Clopper-Pearson": ([5] * 40, [10] * 40, 0.44991, 0.55009),
    "all or nothing: 20 questions count, not 200 answers": ([0] * 10 + [10] * 10, [10] * 20, 0.25270, 0.74730),
    "two questions at odds say nothing": ([0, 100], [100, 100], 0.0, 1.0),
}


@pytest.mark.parametrize(("events", "trials", "low", "high"), KNOWN.values(), ids=KNOWN.keys())
def test_known_intervals(events, trials, low, high):
    assert clustered_interval(events, trials) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 400), (1, 7), (3, 10), (50, 50), (399, 400)])
def test_one_cluster_is_the_exact_interval(k, n):
    exact = binomtest(k, n).proportion_ci(method="exact")
    assert clustered_interval([k], [n]) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("empty", [([], []), ([0], [0]), ([0, 0], [0, 0])], ids=["no rows", "0 of 0", "twice 0 of 0"])
def test_without_a_trial_there_is_no_interval(empty):
    with pytest.raises(ValueError, match="at least one trial"):
        clustered_interval(*empty)


def test_a_question_without_trials_changes_nothing():
    assert clustered_interval([1, 0, 4], [5, 0, 9]) == clustered_interval([1, 4], [5, 9])


def width(interval):
    return interval[1] - interval[0]


@pytest.mark.parametrize(
    ("clustered", "even"),
    [([10, 0, 0, 0] * 5, [2, 3, 2, 3] * 5), ([10, 0] * 10, [5, 5] * 10), ([9, 1, 1, 1] * 5, [3, 3, 3, 3] * 5)],
)
def test_clustering_widens(clustered, even):
    assert sum(clustered) == sum(even)
    trials = [10] * 20
    assert width(clustered_interval(clustered, trials)) > 1.3 * width(clustered_interval(even, trials))


def test_more_answers_to_the_same_questions_cannot_replace_questions():
    few = clustered_interval([0, 10] * 5, [10] * 10)
    many = clustered_interval([0, 1000] * 5, [1000] * 10)
    assert width(many) == pytest.approx(width(few), rel=0.05)
    assert width(clustered_interval([0, 10] * 50, [10] * 100)) < 0.5 * width(few)


def test_more_events_move_both_ends_up():
    steps = [clustered_interval([k] * 12, [10] * 12) for k in range(11)]
    assert [low for low, _ in steps] == sorted(low for low, _ in steps)
    assert [high for _, high in steps] == sorted(high for _, high in steps)
    assert len(set(steps)) == 11


def test_more_confidence_is_wider():
    events, trials = [0, 1, 5, 2, 0], [10] * 5
    widths = [width(clustered_interval(events, trials, confidence)) for confidence in (0.5, 0.8, 0.9, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 5


cells = st.lists(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=12
)


@settings(deadline=None)
@given(cells)
def test_the_interval_holds_the_rate_and_is_at_least_the_plain_one(cell):
    events, trials = zip(*cell, strict=True)
    low, high = clustered_interval(events, trials)
    rate = sum(events) / sum(trials)
    assert 0 <= low <= rate <= high <= 1
    plain = binomtest(sum(events), sum(trials)).proportion_ci(method="exact")
    assert low <= plain.low + 1e-9
    assert high >= plain.high - 1e-9


@settings(deadline=None)
@given(cells)
def test_events_and_non_events_are_mirror_images(cell):
    events, trials = zip(*cell, strict=True)
    low, high = clustered_interval(events, trials)
    mirrored = clustered_interval([n - k for k, n in cell], trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def row(question: str, outcome: str, admitted: bool, event: bool, injection: bool = False) -> Judged:
    return Judged("c", question, "j", "h", outcome, admitted, event, injection)


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


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters(some, rng: random.Random):
    shuffled = rng.sample(some, len(some))
    assert summarize(shuffled) == summarize(some)


@settings(deadline=None)
@given(rows)
def test_nothing_disappears_and_nothing_is_divided_by_zero(some):
    found = summarize(some)
    assert sum(found[outcome] for outcome in OUTCOMES) == found["completions"] == len(some)
    assert found["k"] <= found["n"] <= found["scored"]
    assert found["questions"] == len({row.question_id for row in some})
    assert found["judge_injection"] == sum(row.judge_injection for row in some)
    for name in ("rate", "low", "high"):
        assert (found[name] is None) == (found["n"] == 0)
    for name in ("rate_of_all", "coverage"):
        assert (found[name] is None) == (len(some) == 0)
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())


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


@pytest.mark.parametrize(
    ("rate", "icc", "clusters", "size", "at_least"),
    [(0.2, 0.1, 30, 10, 0.92), (0.05, 0.2, 24, 20, 0.92)],
    ids=["a fifth", "rare and more alike within questions"],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(rate, icc, clusters, size, at_least):
    rng = np.random.default_rng(0)
    spread = 1 / icc - 1  # beta-binomial: questions differ, answers to one question are alike
    runs = 300
    chances = rng.beta(rate * spread, (1 - rate) * spread, (runs, clusters))
    events = rng.binomial(size, chances)
    intervals = [clustered_interval(row, [size] * clusters) for row in events]
    assert sum(low <= rate <= high for low, high in intervals) / runs >= at_least
    naive = [binomtest(int(row.sum()), size * clusters).proportion_ci(method="exact") for row in events]
    assert sum(ci.low <= rate <= ci.high for ci in naive) / runs < at_least  # the simulation can tell the difference
