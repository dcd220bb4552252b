"""How well judges agree, and what a rate would be without a judge's known mistakes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, rankdata, t

from spillover.stats.intervals import interval

LABEL_PRIOR = 0.5  # Jeffreys: half a right and half a wrong decision
MAX_UNDEFINED = 0.05  # share of bootstrap draws in which a statistic has no value; with more there is no interval

Statistic = Callable[[np.ndarray, np.ndarray], float | None]


class Pair(NamedTuple):
    """One completion under two judges (or a judge and a person). None where a judge gave no score, or no decision."""

    question_id: str
    value_a: float | None
    value_b: float | None
    event_a: bool | None
    event_b: bool | None


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval for questions in general; the limits are None where the data do not give any."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How two judges agree on the same completions. A statistic that is not defined is None, never 0 or 1.

    - Counts: `pairs` of all rows; `decided` by both, `undecided_a` and `undecided_b` by the other judge alone; `valued`
      (given a score) by both. `events_both`, `events_only_a`, `events_only_b` and `events_neither` sum to `decided`;
      the two in the middle are decisions that change if one judge replaces the other.
    - Of decisions: `agree` (share of equal ones), `event_shift` (rate by b minus rate by a), Cohen's `kappa`,
      Krippendorff's `alpha_nominal`.
    - Of scores: Cohen's kappa as `kappa_unweighted`, `kappa_linear` and `kappa_quadratic`, `alpha_ordinal`,
      `alpha_interval`, `pearson`, `spearman`.
    """

    pairs: int
    questions: int
    decided: int
    undecided_a: int
    undecided_b: int
    valued: int
    events_both: int
    events_only_a: int
    events_only_b: int
    events_neither: int
    agree: Estimate | None
    event_shift: Estimate | None
    kappa: Estimate | None
    alpha_nominal: Estimate | None
    kappa_unweighted: Estimate | None
    kappa_linear: Estimate | None
    kappa_quadratic: Estimate | None
    alpha_ordinal: Estimate | None
    alpha_interval: Estimate | None
    pearson: Estimate | None
    spearman: Estimate | None


@dataclass(frozen=True)
class Corrected:
    """A rate corrected for a judge's mistakes, with its 95 % interval; all are shares of 1.

    `apparent` is the rate by the judge; `sensitivity` and `specificity` are its shares of right decisions among true
    events and among the others.
    """

    rate: float
    low: float
    high: float
    apparent: float
    sensitivity: float
    specificity: float


def cohens_kappa(a: Sequence[Any] | np.ndarray, b: Sequence[Any] | np.ndarray, weights: str = "none") -> float | None:
    """Cohen's kappa of two raters: 1 - (observed disagreement) / (disagreement if they rated independently).

    `a`, `b`: ratings of the same units, (units,), without gaps. `weights` of a disagreement: `none` (each counts 1;
    Cohen, Educational and Psychological Measurement 20, 1960), or `linear` or `quadratic` in the distance of the two
    numbers (Cohen, Psychological Bulletin 70, 1968). None if there are no units, or if all ratings are the same. Raises
    ValueError for other weights, or sequences of different lengths.
    """
    if weights not in ("none", "linear", "quadratic"):
        raise ValueError(f"weights {weights}: none, linear or quadratic is needed")
    x, y = np.asarray(a), np.asarray(b)
    if len(x) != len(y):
        raise ValueError(f"kappa needs as many ratings by each rater, these are {len(x)} and {len(y)}")
    if not len(x):
        return None
    rounding = 1e-12
    if weights == "none":
        _, codes = np.unique(np.concatenate([x, y]), return_inverse=True)
        shares = [np.bincount(part, minlength=codes.max() + 1) / len(x) for part in np.split(codes, 2)]
        observed, chance = float(np.mean(x != y)), float(1 - shares[0] @ shares[1])
    else:
        x, y = x.astype(float), y.astype(float)
        rounding = 1e-9 * float(max(np.abs(x).max(), np.abs(y).max()))
        if weights == "linear":
            observed, chance = np.abs(x - y).mean(), _mean_distance(x, y)
        else:
            observed, chance = ((x - y) ** 2).mean(), x.var() + y.var() + (x.mean() - y.mean()) ** 2
            rounding **= 2
    return float(1 - observed / chance) if chance > rounding else None


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]] | np.ndarray, level: str) -> float | None:
    """Krippendorff's alpha: 1 - (disagreement within units) / (disagreement among all ratings that can be paired).

    `ratings`: (raters, units), None or NaN where a rater gave none; categories are numbers. `level`: `nominal`,
    `ordinal` (squared distance of ranks) or `interval` (squared distance). After Krippendorff, "Computing
    Krippendorff's Alpha-Reliability" (2011). None if no unit has two ratings, or if all paired ratings are the same.
    Raises ValueError for another level.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"level {level}: nominal, ordinal or interval is needed")
    table = np.atleast_2d(np.asarray(ratings, float))
    table = table[:, (~np.isnan(table)).sum(axis=0) >= 2]
    given = ~np.isnan(table)
    raters, total = given.sum(axis=0), given.sum()
    if not total:
        return None
    if level == "ordinal":
        table[given] = rankdata(table[given])  # mean ranks lie as far apart as Krippendorff's ordinal metric says
    if level != "nominal":
        centred = np.where(given, table - np.nanmean(table), 0.0)
        within = 2 * (raters * (centred**2).sum(axis=0) - centred.sum(axis=0) ** 2)
        among = 2 * total * (centred**2).sum()
    else:
        times = np.array([(table == value).sum(axis=0) for value in np.unique(table[given])])  # (values, units)
        within = raters**2 - (times**2).sum(axis=0)
        among = total**2 - (times.sum(axis=1) ** 2).sum()
    return float(1 - (total - 1) * (within / (raters - 1)).sum() / among) if among > 1e-12 else None


def pearson(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Pearson's correlation of two raters' values; None if either rater has fewer than two distinct ones."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's correlation: Pearson's of the ranks, where ties share their mean rank; None where Pearson's is."""
    return pearson(rankdata(a), rankdata(b))


OF_DECISIONS: dict[str, Statistic] = {
    "event_shift": lambda a, b: float(b.mean() - a.mean()) if len(a) else None,
    "kappa": cohens_kappa,
    "alpha_nominal": lambda a, b: krippendorff_alpha(np.stack([a, b]), "nominal"),
}
OF_VALUES: dict[str, Statistic] = {
    "kappa_unweighted": cohens_kappa,
    "kappa_linear": lambda a, b: cohens_kappa(a, b, "linear"),
    "kappa_quadratic": lambda a, b: cohens_kappa(a, b, "quadratic"),
    "alpha_ordinal": lambda a, b: krippendorff_alpha(np.stack([a, b]), "ordinal"),
    "alpha_interval": lambda a, b: krippendorff_alpha(np.stack([a, b]), "interval"),
    "pearson": pearson,
    "spearman": spearman,
}


def compare_judges(rows: Iterable[Pair | tuple[Any, ...]], draws: int = 1000, seed: int = 0) -> Agreement:
    """How two judges agree on the same completions; each row is a Pair, or a tuple in its order.

    A statistic uses the rows for which both judges gave what it needs. The 95 % intervals are percentile intervals from
    `draws` bootstrap samples of questions (clusters; Donner & Klar 2000), widened for few questions as the t
    distribution is (Hesterberg, The American Statistician 69, 2015); in simulation they cover in 89 to 95 % with 8
    questions, and in 91 to 95 % with 24. The interval of `agree` is `interval`'s, which also holds if the judges agree
    on everything. Limits are None with fewer than two questions, if more than 5 % of the samples have no value, and if
    all samples have the same one.
    """
    pairs = [Pair(*row) for row in rows]
    decided = [row for row in pairs if row.event_a is not None and row.event_b is not None]
    valued = [row for row in pairs if row.value_a is not None and row.value_b is not None]
    a, b = np.array([(row.event_a, row.event_b) for row in decided], bool).reshape(-1, 2).T
    x, y = np.array([(row.value_a, row.value_b) for row in valued], float).reshape(-1, 2).T
    return Agreement(
        pairs=len(pairs),
        questions=len({row.question_id for row in pairs}),
        decided=len(decided),
        undecided_a=sum(row.event_a is None and row.event_b is not None for row in pairs),
        undecided_b=sum(row.event_b is None and row.event_a is not None for row in pairs),
        valued=len(valued),
        events_both=int((a & b).sum()),
        events_only_a=int((a & ~b).sum()),
        events_only_b=int((~a & b).sum()),
        events_neither=int((~a & ~b).sum()),
        agree=_share_equal(_clusters(decided), a == b),
        **_estimates(OF_DECISIONS, _clusters(decided), a.astype(float), b.astype(float), draws, seed),
        **_estimates(OF_VALUES, _clusters(valued), x, y, draws, seed),
    )


def corrected_rate(
    events: Sequence[int],
    trials: Sequence[int],
    true_positives: int,
    false_negatives: int,
    true_negatives: int,
    false_positives: int,
    draws: int = 20_000,
    seed: int = 0,
) -> Corrected | None:
    """The rate without a judge's mistakes: (apparent + specificity - 1) / (sensitivity + specificity - 1).

    `events` and `trials` count the judge's events per question, in the same order; the four other numbers count
    labelled completions. The rate is clipped to 0 to 1 (Rogan & Gladen, American Journal of Epidemiology 107, 1978).
    The 95 % interval is by Monte Carlo from beta posteriors (Jeffreys' prior) of sensitivity, specificity and apparent
    rate; clustered answers count as their number divided by the design effect. A draw in which sensitivity +
    specificity is at most 1 stands for a rate drawn uniformly.

    The labelled completions must be drawn at random, or by what they truly are, a few per question. If they are drawn
    by what the judge said (so many flagged, so many not), their counts do not give sensitivity and specificity.

    Returns None if nothing was judged, if no labelled completion is an event or all are, or if sensitivity +
    specificity is at most 1, so that the judge is no better than chance.
    """
    labelled = ((true_positives, false_negatives), (true_negatives, false_positives))
    total = sum(trials)
    if not total or not all(sum(counts) for counts in labelled):
        return None
    if true_positives * true_negatives <= false_negatives * false_positives:  # sensitivity + specificity <= 1
        return None
    apparent = sum(events) / total
    sensitivity, specificity = (right / (right + wrong) for right, wrong in labelled)
    size = sum(n * n for n in trials) / total
    independent = total / (1 + max(size - 1, 0) * interval(events, trials).icc)
    rng = np.random.default_rng(seed)
    apparents, sensitivities, specificities = (
        rng.beta(right + LABEL_PRIOR, wrong + LABEL_PRIOR, draws)
        for right, wrong in ((apparent * independent, (1 - apparent) * independent), *labelled)
    )
    better = sensitivities + specificities - 1  # than chance
    corrected = (apparents + specificities - 1) / np.where(better > 0, better, 1)
    rates = np.where(better > 0, corrected, rng.random(draws))
    low, high = np.quantile(np.clip(rates, 0, 1), [0.025, 0.975]).tolist()
    rate = float(np.clip((apparent + specificity - 1) / (sensitivity + specificity - 1), 0, 1))
    return Corrected(rate, min(low, rate), max(high, rate), apparent, sensitivity, specificity)


def _mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean |x_i - y_j| over all i and j, in n log n steps."""
    y = np.sort(y)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    below = np.searchsorted(y, x)
    return float((x * (2 * below - len(y)) + sums[-1] - 2 * sums[below]).mean() / len(y))


def _clusters(rows: Sequence[Pair]) -> np.ndarray:
    """The number of each row's question, in the order of their ids: (rows,)."""
    return np.unique([row.question_id for row in rows], return_inverse=True)[1]


def _share_equal(questions: np.ndarray, equal: np.ndarray) -> Estimate | None:
    """Share of rows that are `equal`, (rows,), with its interval over questions, (rows,); None without rows."""
    if not len(equal):
        return None
    trials = np.bincount(questions)
    limits = interval(np.bincount(questions, equal).astype(int).tolist(), trials.tolist())
    low, high = (limits.low, limits.high) if len(trials) > 1 else (None, None)
    return Estimate(float(equal.mean()), low, high)


def _estimates(
    statistics: dict[str, Statistic], questions: np.ndarray, a: np.ndarray, b: np.ndarray, draws: int, seed: int
) -> dict[str, Any]:
    """Each statistic of a and b, (rows,) each, with its bootstrap interval; all on the same samples of questions."""
    groups = np.split(np.argsort(questions, kind="stable"), np.cumsum(np.bincount(questions))[:-1])
    number = len(groups) if len(a) else 0
    samples: dict[str, list[float]] = {name: [] for name in statistics}
    rng = np.random.default_rng(seed)
    for _ in range(draws if number > 1 else 0):
        rows = np.concatenate([groups[place] for place in rng.integers(number, size=number)])
        for name, statistic in statistics.items():
            if (value := statistic(a[rows], b[rows])) is not None:
                samples[name].append(value)
    estimates: dict[str, Any] = {}
    tail = norm.cdf(-t.ppf(0.975, number - 1) * np.sqrt(number / (number - 1))) if number > 1 else 0.025
    for name, statistic in statistics.items():
        value, low, high = statistic(a, b), None, None
        if len(samples[name]) >= max((1 - MAX_UNDEFINED) * draws, 2) and np.ptp(samples[name]) > 1e-12:
            low, high = np.quantile(samples[name], [tail, 1 - tail]).tolist()
        estimates[name] = None if value is None else Estimate(value, low, high)
    return estimates
