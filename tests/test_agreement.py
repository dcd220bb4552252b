"""Agreement of judges: textbook values, None where nothing is known, intervals and corrected rates that hold."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from spillover.stats import interval
from spillover.stats.agreement import (
    cohens_kappa,
    compare_judges,
    corrected_rate,
    krippendorff_alpha,
    pearson,
    spearman,
)


def ratings(table):
    """Two raters' values from a table of counts: rows are the first rater's categories, columns the second's."""
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in cells], [j for _, j in cells]


KAPPAS = {  # where it is from -> (table, weights, kappa)
    "Cohen 1960, worse than chance, in per cent": (
        [[25, 13, 12], [12, 2, 16], [3, 15, 2]],
        "none",
        (0.29 - 0.35) / 0.65,
    ),
    "Cohen 1960, of 200: .492": ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], "none", (0.70 - 0.41) / 0.59),
    "linear, by hand": ([[2, 1, 0], [0, 1, 1], [1, 0, 2]], "linear", 1 - (4 / 8) / (60 / 64)),
    "quadratic, by hand": ([[2, 1, 0], [0, 1, 1], [1, 0, 2]], "quadratic", 1 - (6 / 8) / (96 / 64)),
    "all agree": ([[3, 0], [0, 2]], "none", 1.0),
    "all disagree": ([[0, 2], [2, 0]], "none", -1.0),
    "two categories need no weights": ([[20, 5], [10, 15]], "linear", 0.4),
    "the same, squared": ([[20, 5], [10, 15]], "quadratic", 0.4),
    "one category": ([[5, 0], [0, 0]], "none", None),
    "one category, with weights": ([[5, 0], [0, 0]], "linear", None),
    "no units": ([[0]], "none", None),
    "no units, with weights": ([[0]], "quadratic", None),
}


@pytest.mark.parametrize(("table", "weights", "kappa"), KAPPAS.values(), ids=KAPPAS.keys())
def test_kappas_of_textbooks(table, weights, kappa):
    found = cohens_kappa(*ratings(table), weights)
    assert found == (None if kappa is None else pytest.approx(kappa, abs=1e-12))


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("table", [[[44, 5, 1], [7, 20, 3], [9, 5, 6]], [[7, 2, 0], [1, 0, 3], [2, 2, 9]]])
def test_kappa_is_that_of_statsmodels(table, weights):
    reference = pytest.importorskip("statsmodels.stats.inter_rater").cohens_kappa
    wt = None if weights == "none" else weights
    assert cohens_kappa(*ratings(table), weights) == pytest.approx(
        reference(np.array(table), wt=wt, return_results=False)
    )


def test_kappa_takes_words_and_tells_what_it_cannot_take():
    assert cohens_kappa(["yes", "no", "no"], ["yes", "no", "yes"]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="3 and 2"):
        cohens_kappa([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="none, linear or quadratic"):
        cohens_kappa([1], [1], "cubic")


def units(*raters):
    return [[None if mark == "." else "0123456789abcdef".index(mark) for mark in rater] for rater in raters]


FOUR = units("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
ALPHAS = {  # where it is from -> (ratings, level, alpha)
    "Krippendorff 2011, A: two categories": (units("0100000010", "1110010000"), "nominal", 0.095),
    "Krippendorff 2011, B: five categories": (units("aabbdcccedda", "babbbccceddd"), "nominal", 0.692),
    "Krippendorff 2011, C: four raters, gaps": (FOUR, "nominal", 0.743),
    "Krippendorff 2011, D: the same, interval": (FOUR, "interval", 0.849),
    "Krippendorff 2011, D: the same, ordinal": (FOUR, "ordinal", 0.815),
    "ordinal, two values are as nominal": (units("0100000010", "1110010000"), "ordinal", 0.095),
    "all the same, ordinal": (units("111", "111"), "ordinal", None),
    "interval, by hand": ([[1, 3], [2, 3]], "interval", 1 - 3 * (1 + 1) / (2 * (4 * 23 - 9**2))),
    "all the same": (units("111", "111"), "nominal", None),
    "all the same, interval": (units("111", "111"), "interval", None),
    "no unit has two ratings": (units("12..", "..12"), "nominal", None),
    "one rater": (units("1212"), "interval", None),
    "no units": ([[], []], "nominal", None),
}


@pytest.mark.parametrize(("table", "level", "alpha"), ALPHAS.values(), ids=ALPHAS.keys())
def test_alphas_of_krippendorff(table, level, alpha):
    found = krippendorff_alpha(table, level)
    assert found == (None if alpha is None else pytest.approx(alpha, abs=5e-4))


def test_alpha_knows_three_levels():
    with pytest.raises(ValueError, match="nominal, ordinal or interval"):
        krippendorff_alpha(FOUR, "ratio")


def test_correlations_are_those_of_scipy_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 10, 50)
    b = a + rng.integers(0, 10, 50)
    assert pearson(a, b) == pytest.approx(pearsonr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    for few in ([], [1.0], [2.0, 2.0]):
        assert pearson(few, few) is None
        assert spearman(few, few) is None


def judged(questions, answers, rng, shift=3.0):
    """Rows of two judges who see the same quality through noise of their own; b also errs alike within a question."""
    quality = rng.normal(70, 15, questions)[:, None] + rng.normal(0, 20, (questions, answers))
    a = np.clip(quality + rng.normal(0, 12, quality.shape), 0, 100)
    b = np.clip(quality + rng.normal(shift, 12, quality.shape) + rng.normal(0, 8, (questions, 1)), 0, 100)
    return [
        (f"q{q}", float(a[q, i]), float(b[q, i]), bool(a[q, i] < 50), bool(b[q, i] < 50))
        for q in range(questions)
        for i in range(answers)
    ]


STATISTICS = ("agree", "event_shift", "kappa", "alpha_nominal")
STATISTICS += ("kappa_unweighted", "kappa_linear", "kappa_quadratic", "alpha_ordinal", "alpha_interval")
STATISTICS += ("pearson", "spearman")
OF_VALUES = STATISTICS[4:]


def test_counts_of_a_small_comparison():
    found = compare_judges(
        [
            ("a", 10.0, 20.0, True, True),
            ("a", 10.0, 90.0, True, False),
            ("b", 80.0, 20.0, False, True),
            ("b", 95.0, 90.0, False, False),
            ("b", 10.0, 60.0, True, False),
            ("c", None, 60.0, None, False),
            ("c", 30.0, None, False, None),
            ("c", 40.0, None, False, None),
            ("c", None, None, None, None),
        ]
    )
    assert (found.pairs, found.questions, found.decided, found.valued) == (9, 3, 5, 5)
    assert (found.undecided_a, found.undecided_b) == (1, 2)
    counts = (found.events_both, found.events_only_a, found.events_only_b, found.events_neither)
    assert counts == (1, 2, 1, 1)
    assert found.agree.value == pytest.approx(2 / 5)
    assert found.event_shift.value == pytest.approx(2 / 5 - 3 / 5)
    assert found.kappa.value == pytest.approx(1 - 0.6 / (1 - (0.6 * 0.4 + 0.4 * 0.6)))
    assert found.pearson.value == pytest.approx(pearson([10, 10, 80, 95, 10], [20, 90, 20, 90, 60]))


NOTHING = {
    "no rows": [],
    "never both": [("a", 1.0, None, True, None), ("b", None, 1.0, None, True)],
    "nothing scored": [("a", None, None, None, None)],
}


@pytest.mark.parametrize("rows", NOTHING.values(), ids=NOTHING.keys())
def test_of_nothing_nothing_is_said(rows):
    found = asdict(compare_judges(rows))
    assert found["pairs"] == len(rows)
    assert found["decided"] == found["valued"] == 0
    assert {name: found[name] for name in STATISTICS} == dict.fromkeys(STATISTICS)


def test_events_without_values_and_values_without_events():
    found = asdict(compare_judges([("a", None, None, True, True), ("b", None, None, False, True)] * 3))
    assert {name for name in STATISTICS if found[name] is None} == set(OF_VALUES)
    found = asdict(compare_judges([("a", 1.0, 2.0, None, None), ("b", 3.0, 3.0, None, None)] * 3))
    assert {name for name in STATISTICS if found[name] is not None} == set(OF_VALUES)


def test_two_judges_who_never_see_an_event_share_no_kappa():
    found = compare_judges([(name, 90.0, 95.0, False, False) for name in "abcdefgh"])
    assert (found.agree.value, found.agree.high) == (1.0, 1.0)
    assert found.agree.low < 0.75  # eight questions
    assert (found.kappa, found.alpha_nominal, found.pearson) == (None, None, None)
    assert (found.event_shift.value, found.event_shift.low, found.event_shift.high) == (0.0, None, None)


def test_one_question_has_no_interval():
    found = asdict(compare_judges(judged(1, 30, np.random.default_rng(0))))
    assert all(found[name]["low"] is found[name]["high"] is None for name in STATISTICS)


def test_the_same_rows_give_the_same_intervals():
    rows = judged(10, 10, np.random.default_rng(0))
    found = compare_judges(rows, draws=100)
    assert found == compare_judges(rows, draws=100)
    assert found != compare_judges(rows, draws=100, seed=1)


def test_intervals_are_over_questions():
    rows = [(f"q{q}", None, None, False, q % 2 == 0) for q in range(10) for _ in range(40)]
    clustered = compare_judges(rows, draws=300).event_shift
    apart = compare_judges([(f"{number}", *row[1:]) for number, row in enumerate(rows)], draws=300).event_shift
    assert clustered.high - clustered.low > 4 * (apart.high - apart.low)


@pytest.mark.slow
def test_intervals_cover_what_judges_in_general_would_show():
    rng = np.random.default_rng(0)
    truth = compare_judges(judged(3000, 20, rng), draws=0)
    runs = [compare_judges(judged(20, 10, rng), draws=60) for _ in range(60)]
    for name in ("agree", "event_shift", "kappa", "pearson"):
        estimates = [getattr(run, name) for run in runs]
        assert sum(e.low <= getattr(truth, name).value <= e.high for e in estimates) >= 52


rows_of_any_kind = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.none() | st.sampled_from([0.0, 50.0, 100.0]),
        st.none() | st.sampled_from([0.0, 50.0, 100.0]),
        st.none() | st.booleans(),
        st.none() | st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(rows_of_any_kind)
def test_every_statistic_is_none_or_a_number_in_its_range(rows):
    found = asdict(compare_judges(rows, draws=20))
    counts = [found[f"events_{kind}"] for kind in ("both", "only_a", "only_b", "neither")]
    assert sum(counts) == found["decided"] <= found["pairs"] == len(rows)
    for name in STATISTICS:
        if found[name] is not None:
            limits = [limit for limit in found[name].values() if limit is not None]
            assert all((0 if name == "agree" else -1) - 1e-9 <= limit <= 1 + 1e-9 for limit in limits), name


CORRECTED = {  # what it is -> (events, trials, right and wrong of events, of others, rate)
    "Rogan & Gladen's formula by hand": ([2] * 20, [10] * 20, (90, 10), (90, 10), (0.2 - 0.1) / 0.8),
    "fewer events than false alarms": ([0] * 20, [10] * 20, (90, 10), (90, 10), 0.0),
    "more events than the judge can find": ([10] * 20, [10] * 20, (8, 2), (10, 0), 1.0),
    "a judge without a mistake": ([1, 4], [10, 10], (50, 0), (50, 0), 0.25),
}


@pytest.mark.parametrize(
    ("events", "trials", "of_events", "of_others", "rate"), CORRECTED.values(), ids=CORRECTED.keys()
)
def test_corrected_rates_by_hand(events, trials, of_events, of_others, rate):
    found = corrected_rate(events, trials, *of_events, *of_others)
    assert found.rate == pytest.approx(rate)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found == corrected_rate(events, trials, *of_events, *of_others)


UNKNOWN = {
    "nothing judged": ([], [], (9, 1), (9, 1)),
    "0 of 0": ([0], [0], (9, 1), (9, 1)),
    "no event labelled": ([1], [5], (0, 0), (9, 1)),
    "nothing but events labelled": ([1], [5], (9, 1), (0, 0)),
    "a coin": ([1], [5], (5, 5), (5, 5)),
    "a coin that mostly says yes": ([1], [5], (7, 3), (3, 7)),
    "worse than a coin": ([1], [5], (1, 9), (1, 9)),
}


@pytest.mark.parametrize(("events", "trials", "of_events", "of_others"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_judge_that_tells_nothing_gives_no_rate(events, trials, of_events, of_others):
    assert corrected_rate(events, trials, *of_events, *of_others) is None


def test_a_perfect_judge_changes_nothing():
    events, trials = [5, 1, 0, 3] * 10, [10] * 40
    found, plain = corrected_rate(events, trials, 10**6, 0, 10**6, 0), interval(events, trials)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_few_labels_widen():
    events, trials = [2] * 20, [10] * 20
    many, few = (corrected_rate(events, trials, 9 * k, k, 9 * k, k) for k in (100, 2))
    assert few.high - few.low > 1.5 * (many.high - many.low)


@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity"), [(0.1, 0.9, 0.97), (0.3, 0.7, 0.8)], ids=["a good judge", "a poor one"]
)
def test_corrected_intervals_cover_and_uncorrected_ones_do_not(rate, sensitivity, specificity):
    rng, runs, labels = np.random.default_rng(0), 100, 100
    covered = plain = 0
    for _ in range(runs):
        own = rng.beta(rate * 9, (1 - rate) * 9, 24)
        events = rng.binomial(100, own * sensitivity + (1 - own) * (1 - specificity)).tolist()
        right = rng.binomial(labels, sensitivity), rng.binomial(labels, specificity)
        found = corrected_rate(events, [100] * 24, right[0], labels - right[0], right[1], labels - right[1], draws=2000)
        covered += found.low <= rate <= found.high
        uncorrected = interval(events, [100] * 24)
        plain += uncorrected.low <= rate <= uncorrected.high
    assert covered >= 88
    assert plain < covered


@pytest.mark.parametrize("value", [33.3, 87.123, 99.99731])
@pytest.mark.parametrize("weights", ["linear", "quadratic"])
def test_raters_that_always_say_the_same_have_no_kappa(value, weights):
    assert cohens_kappa([value] * 5000, [value] * 5000, weights) is None
