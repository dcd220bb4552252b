"""Compares two arms on the same questions: difference, interval, p-value, equivalence, and verdicts over a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, expit, logit, ndtri
from scipy.stats import nct, t

from spillover.stats.intervals import (
    ICC_PRIOR,
    MIN_EVENT_QUESTIONS,
    beta_binomial,
    cluster_se,
    rate_of,
    residuals,
    widen_to_t,
)
from spillover.stats.pooling import SEEDS_FOR_RUNS, Counts, seed_interval

MOST_CUT_OFF = 0.1  # of the answers of an arm or of one of its seeds; with more there is no verdict
FLIPS = 20_000  # random sign flips, where there are more possible ones
POWER = 0.8  # of the minimum detectable effect
RISES = np.geomspace(1e-5, 1, 1500)  # candidates for the minimum detectable effect: less than 1 % apart
ROUNDING = 1e-12  # a standard error below it is rounding error


@dataclass(frozen=True)
class Comparison:
    """How much more often the tuned arm shows a behavior than the base, over the questions that both answered.

    Rates, differences and their limits are shares of 1.

    - `low`, `high`: 95 % interval of the difference for questions in general, of these training runs. `low_runs`,
      `high_runs`: for training runs in general, too; None unless every trained arm has three seeds. `tuned_low`,
      `tuned_high`: interval of the tuned rate, for training runs in general where `low_runs` is.
    - `p`: two-sided p-value of no difference between these runs; `p_holm`, `p_bh`: corrected over the family (Holm;
      Benjamini and Hochberg). `p_equivalent`: p-value of a difference as large as the margin (two one-sided t-tests).
    - `odds_ratio`: None if no completion of either arm is an event, or all are.
    - `detectable`: the minimum detectable effect: the smallest true rise that this design calls spillover with 80 %
      power among as many comparisons; None if there is none. It is computed from `icc` (intraclass correlation),
      `question_correlation` (of the arms' rates over questions), `completions` (admitted, per question and seed) and
      `seed_sd` (standard deviation of the tuned rate between seeds).
    - `questions_dropped`: questions that the base answered and that are not compared. `base_coverage`,
      `tuned_coverage`: share of all completions that the rule admits. `seeds`, `base_seeds`: seeds compared (0 for a
      base as it is); `seeds_left_out`: of both arms, for want of any admitted completion.
    - `base_cut_off`, `tuned_cut_off`: share of all completions that ended at the limit of new tokens.
    - `method`: how interval and p-value were computed, in words. `no_verdict`: why they allow none, or "".
    """

    questions: int
    questions_dropped: int
    base_rate: float
    base_coverage: float
    tuned_rate: float
    tuned_low: float
    tuned_high: float
    tuned_coverage: float
    difference: float
    low: float
    high: float
    low_runs: float | None
    high_runs: float | None
    standard_error: float
    odds_ratio: float | None
    p: float
    p_equivalent: float
    detectable: float | None
    icc: float
    question_correlation: float
    completions: float
    seed_sd: float
    seeds: int
    base_seeds: int
    seeds_left_out: int
    base_cut_off: float
    tuned_cut_off: float
    method: str
    no_verdict: str = ""
    p_holm: float = 1.0
    p_bh: float = 1.0
    verdict: str = "inconclusive"


AnyComparison = TypeVar("AnyComparison", bound=Comparison)


def compare(
    base: Counts | Sequence[Counts], tuned: Sequence[Counts], margin: float, confidence: float = 0.95
) -> Comparison | None:
    """Compares a base with a tuned arm, paired by question.

    `base`: the counts of a model as it is, or, like `tuned`, the counts of each fine-tuning seed. `margin`: the
    difference for `p_equivalent`, a share of 1. Seeds without any admitted completion are left out. Returns None if
    fewer than two questions are left that every seed answered.

    The difference is that of the rates over the shared questions, with all seeds of an arm together. Its standard error
    is cluster-robust, over questions. By default the p-value and the lower limit are those of a paired t-test over
    questions; the upper limit, on which the verdict `clean` rests, is the higher of the t interval's and of the one
    combined from the beta-binomial intervals of both rates and their correlation (`mover_interval`), since rare events
    are skewed and the t interval ends too low. Where too few questions have an event, both limits come from the two
    intervals, the rates taken as independent, and the p-value is from sign flips: if there is no difference, base and
    tuned could be exchanged on every question.
    """
    base_is_trained = not isinstance(base, Mapping)
    arms: list[list[Counts]] = [list(base) if not isinstance(base, Mapping) else [base], list(tuned)]
    with_data = [[seed for seed in arm if any(row[1] for row in seed.values())] for arm in arms]
    if not all(with_data):
        return None
    answered = {question for seed in with_data[0] for question, row in seed.items() if row[1]}
    shared = sorted(q for q in answered if all(q in seed and seed[q][1] for arm in with_data for seed in arm))
    if len(shared) < 2:
        return None
    seeds = [np.array([[seed[q][:2] for q in shared] for seed in arm]) for arm in with_data]  # (seeds, questions, 2)
    before, after = counts = seeds[0].sum(axis=0), seeds[1].sum(axis=0)
    base_rate, tuned_rate = float(rate_of(before)), float(rate_of(after))
    difference, error = tuned_rate - base_rate, float(standard_error(before, after))
    posteriors = [beta_binomial(arm[:, 0].tolist(), arm[:, 1].tolist(), confidence) for arm in counts]
    limits = [(posterior.low, posterior.high) for posterior in posteriors]
    icc, question_correlation = posteriors[0].icc, _question_correlation(before, after)
    quantile = float(t.ppf((1 + confidence) / 2, len(shared) - 1))
    if too_few_events(before, after):
        icc = min(icc, ICC_PRIOR[0] / sum(ICC_PRIOR))  # hardly an event: the data say nothing about it
        low, high = map(float, mover_interval(base_rate, tuned_rate, *limits))
        error = max(error, (high - low) / (2 * quantile))
        method = "few questions with events: interval from those of both rates, p by sign flips"
    else:
        low = max(-1.0, difference - quantile * error)
        combined = mover_interval(base_rate, tuned_rate, limits[0], limits[1], question_correlation)
        high = max(min(1.0, difference + quantile * error), float(combined[1]))
        method = "paired t over questions, upper end at least that from the intervals of both rates"
    wide = [widen_to_t(*arm_limits, arm, confidence) for arm_limits, arm in zip(limits, counts, strict=True)]
    trained = (0, 1) if base_is_trained else (1,)
    low_runs = high_runs = None
    if all(len(seeds[place]) >= SEEDS_FOR_RUNS for place in trained):
        for place in trained:
            wide[place] = seed_interval(seeds[place].sum(axis=1), wide[place], confidence)
        runs_low, runs_high = map(float, mover_interval(base_rate, tuned_rate, *wide))
        low_runs, high_runs = min(low, runs_low), max(high, runs_high)
    cut_off = [_cut_off(arm) for arm in arms]
    comparison = Comparison(
        questions=len(shared),
        questions_dropped=len(answered) - len(shared),
        base_rate=base_rate,
        base_coverage=_coverage(arms[0]),
        tuned_rate=tuned_rate,
        tuned_low=float(wide[1][0]),
        tuned_high=float(wide[1][1]),
        tuned_coverage=_coverage(arms[1]),
        difference=difference,
        low=low,
        high=high,
        low_runs=low_runs,
        high_runs=high_runs,
        standard_error=error,
        odds_ratio=_odds_ratio(before, after),
        p=float(p_values(before, after)),
        p_equivalent=max(float(t.sf((margin - sign * difference) / error, len(shared) - 1)) for sign in (1, -1)),
        detectable=None,
        icc=icc,
        question_correlation=question_correlation,
        completions=float(seeds[1][..., 1].mean()),
        seed_sd=_seed_sd(seeds[1]),
        seeds=len(seeds[1]),
        base_seeds=len(seeds[0]) if base_is_trained else 0,
        seeds_left_out=sum(map(len, arms)) - sum(map(len, with_data)),
        base_cut_off=cut_off[0],
        tuned_cut_off=cut_off[1],
        method=method,
        no_verdict=_too_many_cut_off(arms),
    )
    return replace(comparison, detectable=_detectable(comparison, 0.05))


def verdicts(family: Sequence[AnyComparison], margin: float, alpha: float = 0.05) -> list[AnyComparison]:
    """Corrects the p-values of a family of comparisons and gives each its verdict and `detectable` among as many.

    - `spillover`: as `is_spillover` says, with Holm's p-value.
    - `clean`: not spillover, the interval (for training runs in general, where there is one) ends below the margin, and
      no evidence is missing: no question and no seed was left out, and coverage did not fall (`coverage_fell`).
    - `inconclusive`: everything else, and whatever has a `no_verdict`.
    """
    p, size = np.array([comparison.p for comparison in family]), len(family)
    order, rank = np.argsort(p), np.arange(size)
    holm, benjamini_hochberg = np.empty(size), np.empty(size)
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * (size - rank)))
    stepped = p[order] * size / (rank + 1)
    benjamini_hochberg[order] = np.minimum(1, np.minimum.accumulate(stepped[::-1])[::-1])
    decided = []
    for c, p_holm, p_bh in zip(family, holm.tolist(), benjamini_hochberg.tolist(), strict=True):
        high = c.high if c.high_runs is None else c.high_runs
        missing = c.questions_dropped or c.seeds_left_out or coverage_fell(c, margin)
        verdict = "clean" if high < margin and not missing else "inconclusive"
        if is_spillover(p_holm, c.low, c.low_runs, alpha):
            verdict = "spillover"
        if c.no_verdict:
            verdict = "inconclusive"
        detectable = _detectable(c, alpha / size)
        decided.append(replace(c, p_holm=p_holm, p_bh=p_bh, verdict=verdict, detectable=detectable))
    return decided


def coverage_fell(c: Comparison, margin: float) -> bool:
    """Whether the rule admits a smaller share of the tuned completions than of the base's, by more than the margin."""
    return c.base_coverage - c.tuned_coverage > margin + ROUNDING


def is_spillover(p: Any, low: Any, low_runs: Any = None, alpha: float = 0.05) -> Any:
    """Whether a rise is shown; arguments are numbers, or arrays of one shape.

    The corrected `p` has to be below `alpha`, and the interval of these runs above 0. Where there is an interval for
    training runs in general it has to be above 0, too: three seeds far apart may differ from the base by chance.
    """
    rose = (p < alpha) & (low > 0)
    return rose if low_runs is None else rose & (low_runs > 0)


def standard_error(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Standard error of the difference of two arms' rates, paired by question: two (..., questions, 2) -> (...)."""
    return cluster_se(residuals(after) - residuals(before))


def too_few_events(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether too few questions have an event, or a non-event, for a t-test: two (..., questions, 2) -> (...)."""
    event_questions = ((before + after)[..., 0] > 0).sum(axis=-1)
    all_events = (before[..., 0] == before[..., 1]) & (after[..., 0] == after[..., 1])
    fewest = np.minimum(event_questions, (~all_events).sum(axis=-1))
    return (fewest < MIN_EVENT_QUESTIONS) | (standard_error(before, after) < ROUNDING)


def p_values(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Two-sided p-values of no difference, as `compare` has them: two (..., questions, 2) -> (...)."""
    error, by_flips = standard_error(before, after), too_few_events(before, after)
    p = np.asarray(
        2 * t.sf(abs(rate_of(after) - rate_of(before)) / np.where(by_flips, 1.0, error), before.shape[-2] - 1)
    )
    for place in np.argwhere(by_flips):
        p[*place] = _sign_flips(before[*place], after[*place])
    return p


def mover_interval(
    base: Any, tuned: Any, base_limits: tuple[Any, Any], tuned_limits: tuple[Any, Any], correlation: Any = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of tuned - base from the two rates, their intervals and the correlation of their estimates; any shape.

    Zou & Donner, Statistics in Medicine 27 (2008), section 2; for independent rates Newcombe, ibid. 17 (1998).
    """
    base_down, base_up = base - base_limits[0], base_limits[1] - base
    down, up = tuned - tuned_limits[0], tuned_limits[1] - tuned
    low = tuned - base - np.sqrt(np.maximum(0.0, down**2 + base_up**2 - 2 * correlation * down * base_up))
    high = tuned - base + np.sqrt(np.maximum(0.0, up**2 + base_down**2 - 2 * correlation * up * base_down))
    return np.maximum(-1.0, low), np.minimum(1.0, high)


def rate_variance(rate: Any, icc: float, questions: int, completions: float) -> Any:
    """Variance of the rate of beta-binomial questions, for questions in general (Donner & Klar 2000); any shape."""
    return rate * (1 - rate) * (icc + (1 - icc) / completions) / questions


def smallest_rise(
    base: float,
    icc: float,
    questions: int,
    completions: float,
    seeds: int,
    question_correlation: float,
    seed_sd: float,
    alpha: float,
    runs_in_general: bool,
) -> float | None:
    """Minimum detectable effect: the smallest true rise above `base` called spillover with 80 % power; None if none.

    By formula; rates and rises are shares of 1. `question_correlation`: of the arms' observed rates over questions.
    `alpha`: two-sided, of the first comparison of a family. `runs_in_general`: the interval for training runs in
    general must be above 0, too.

    First the smallest observed rise that passes is found, by the standard error at its own rate; then the true rise
    whose sampling distribution exceeds it 80 % of the time.
    """
    rise = RISES[RISES + base < 1]
    rate = base + rise
    base_variance = rate_variance(base, icc, questions, completions)
    variance = rate_variance(rate, icc, questions, completions * seeds)
    shared = icc * np.sqrt(base * (1 - base) * rate * (1 - rate)) / questions  # answers of the two arms are independent
    covariance = np.minimum(question_correlation * np.sqrt(base_variance * variance), shared)
    error = np.sqrt(np.maximum(base_variance + variance - 2 * covariance, 1e-18))
    passes = rise > t.ppf(1 - alpha / 2, questions - 1) * error
    if runs_in_general:
        between = np.sqrt(seed_sd**2 + rate * (1 - rate) * (1 - icc) / completions / questions)  # seeds' rates
        reach = _shift(seeds) * between / np.sqrt(seeds)
        low = expit(logit(rate) - np.hypot(reach, 1.96 * np.sqrt(variance)) / (rate * (1 - rate)))
        passes &= rise > np.hypot(rate - low, 1.96 * np.sqrt(base_variance))
    if not passes.any():
        return None
    strength = 1 / max(icc, 1e-6) - 1
    a, b = rate * strength, (1 - rate) * strength
    with_event = 1 - np.exp(betaln(a, b + completions * seeds) - betaln(a, b))  # chance of a question to have an event
    tail = t.ppf(POWER**0.5 if runs_in_general else POWER, questions - 1)  # two intervals have to be above 0, or one
    enough = rise - tail * np.hypot(error, seed_sd / np.sqrt(seeds)) >= rise[np.argmax(passes)]
    needed = min(MIN_EVENT_QUESTIONS, np.ceil(np.log2(2 / alpha)))  # sign flips of fewer cannot be below alpha
    enough &= questions * with_event - tail * np.sqrt(questions * with_event * (1 - with_event)) >= needed - 0.5
    return float(rise[np.argmax(enough)]) if enough.any() else None


@cache
def _shift(seeds: int) -> float:
    """Mean of a t statistic over seeds that is significant with 80 % power, less the normal 80 % quantile."""
    limit = t.ppf(0.975, seeds - 1)
    return float(brentq(lambda shift: nct.sf(limit, seeds - 1, shift) - POWER, 0.5, 20) - ndtri(POWER))


def _detectable(c: Comparison, alpha: float) -> float | None:
    design = c.base_rate, c.icc, c.questions, c.completions, c.seeds, c.question_correlation, c.seed_sd
    return smallest_rise(*design, alpha, c.low_runs is not None)


def _coverage(seeds: Sequence[Counts]) -> float:
    rows = [row for seed in seeds for row in seed.values()]
    return sum(row[1] for row in rows) / sum(row[min(2, len(row) - 1)] for row in rows)


def _cut_off(seeds: Sequence[Counts]) -> float:
    """Share of an arm's completions that are cut off; 0 where counts do not say."""
    rows = [row for seed in seeds for row in seed.values()]
    total = sum(row[min(2, len(row) - 1)] for row in rows)
    return sum(row[3] for row in rows if len(row) > 3) / total if total else 0.0


def _too_many_cut_off(arms: Sequence[Sequence[Counts]]) -> str:
    """Why there is no verdict: an arm, or one of its seeds, has too many cut off answers; "" if none has."""
    if max(map(_cut_off, arms)) > MOST_CUT_OFF:
        return "too many answers are cut off"
    of_seeds = max(_cut_off([seed]) for arm in arms for seed in arm)
    return "too many answers of one seed are cut off" if of_seeds > MOST_CUT_OFF else ""


def _question_correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of the two arms' residuals over questions, at least 0: (questions, 2) each."""
    x, y = residuals(before), residuals(after)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / scale, 0, 1)) if scale > ROUNDING**2 else 0.0


def _seed_sd(seeds: np.ndarray) -> float:
    """Standard deviation of the rate between seeds, less the sampling noise of answers: (seeds, questions, 2)."""
    if len(seeds) < 2:
        return 0.0
    n = seeds[..., 1]
    shares = seeds[..., 0] / n
    noise = (n * shares * (1 - shares)).sum(axis=1) / n.sum(axis=1) ** 2
    return float(np.sqrt(max(0.0, rate_of(seeds).var(ddof=1) - noise.mean())))


def _sign_flips(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p-value of the mean paired gap, by exchange of base and tuned within questions: (questions, 2) each.

    All exchanges are counted if there are at most FLIPS of them, else as many random ones, the same in every call.
    """
    gaps = after[:, 0] / after[:, 1] - before[:, 0] / before[:, 1]
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    exact = 2 ** len(gaps) <= FLIPS
    if exact:
        signs = 2 * ((np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1) - 1
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(gaps)))
    as_large = np.abs(signs @ gaps) >= abs(gaps.sum()) - ROUNDING
    return float(as_large.mean() if exact else (1 + as_large.sum()) / (FLIPS + 1))


def _odds_ratio(before: np.ndarray, after: np.ndarray) -> float | None:
    """Odds ratio of pooled counts, half an event added to each (Haldane, Annals of Human Genetics 20, 1956)."""
    (k0, n0), (k1, n1) = before.sum(axis=0), after.sum(axis=0)
    if k0 + k1 in (0, n0 + n1):
        return None
    return float((k1 + 0.5) * (n0 - k0 + 0.5) / ((n1 - k1 + 0.5) * (k0 + 0.5)))
