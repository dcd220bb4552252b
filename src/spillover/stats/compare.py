"""Two subjects on the same questions: difference, interval, p-value, equivalence, and a verdict over a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, expit, logit, ndtri
from scipy.stats import nct, t

from spillover.stats.intervals import (
    FEW_WITH_EVENTS,
    ICC_PRIOR,
    as_they_come,
    beta_binomial,
    error_of_parts,
    interval,
    over_runs,
    parts,
)

Counts = Mapping[str, Sequence[int]]  # question id -> events, admitted completions, all completions (if they are more)

FLIPS = 20_000  # random sign flips, where all of them are more
SEEDS_FOR_RUNS = 3  # fine-tuning seeds from which something can be said of training runs in general
POWER = 0.8  # at which `detectable` is
RISES = np.geomspace(1e-5, 1, 1500)  # that are looked through for it: less than a hundredth apart
NO_ERROR = 1e-12  # a standard error below it is rounding


@dataclass(frozen=True)
class Comparison:
    """How much oftener the tuned subject shows a behavior than the base, over the questions that both answered.

    All shares are of 1. `low`, `high`: 95 % interval of the difference in these runs, for questions in general;
    `low_runs`, `high_runs`: for training runs in general too, None with fewer than three seeds. `tuned_low`,
    `tuned_high`: interval of the tuned rate, for as much in general as can be said. `p`: that these runs make no
    difference; `p_holm`, `p_bh`: corrected over the family (Holm; Benjamini and Hochberg). `p_equivalent`: that the
    difference is not within the margin (two one-sided tests). `odds_ratio`: None where no answer, or every one, is an
    event. `detectable`: the smallest true rise that this design finds at 80 % power among as many comparisons, None if
    it finds none. `method` says how interval and p were made.

    `questions_dropped`: questions that the base answered and the comparison lacks; `base_coverage`, `tuned_coverage`:
    share of all completions that the rule admits. `seeds`, `base_seeds` (0 for a model as it is): compared;
    `seeds_left_out`: of either arm, without any admitted answer. `icc`, `alike` (correlation of the arms over
    questions), `completions` (admitted, a question and seed) and `seed_sd` are what `detectable` takes the design for.
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
    alike: float
    completions: float
    seed_sd: float
    seeds: int
    base_seeds: int
    seeds_left_out: int
    method: str
    p_holm: float = 1.0
    p_bh: float = 1.0
    verdict: str = "inconclusive"


Kind = TypeVar("Kind", bound=Comparison)


def compare(
    base: Counts | Sequence[Counts], tuned: Sequence[Counts], margin: float, confidence: float = 0.95
) -> Comparison | None:
    """Compares a base with a tuned subject, paired by question.

    `base` has the counts of a model as it is, or like `tuned` those of each fine-tuning seed. Seeds without any
    admitted answer are left out and counted. None if fewer than two questions are left that all seeds answered. The
    difference is of the rates over the shared questions, the seeds together; its standard error is the ratio
    estimator's, from one residual a question, and its p-value and lower end the paired t's. The upper end, on which
    `clean` rests, is the higher of the t's and that put together from the beta-binomial intervals of both rates with
    their correlation (MOVER; Newcombe, Statistics in Medicine 17, 1998; Zou & Donner, Statistics in Medicine 27, 2008):
    rare events are skewed, and the t interval ends too low. Where few questions hold an event both ends are MOVER's,
    the rates taken as independent, which is honest at none, and the p-value is of sign flips: under no difference base
    and tuned could change places on every question.

    All of these speak of these runs. The interval for runs in general stands beside them where every arm that was
    trained has three seeds.
    """
    as_it_is = isinstance(base, Mapping)
    arms = [[base] if isinstance(base, Mapping) else list(base), list(tuned)]
    kept = [[seed for seed in arm if any(row[1] for row in seed.values())] for arm in arms]
    if not all(kept):
        return None
    answered = {question for seed in kept[0] for question, row in seed.items() if row[1]}
    shared = sorted(q for q in answered if all(q in seed and seed[q][1] for arm in kept for seed in arm))
    if len(shared) < 2:
        return None
    before_seeds, after_seeds = (  # seeds by questions by 2
        np.array([[seed[q][:2] for q in shared] for seed in arm]) for arm in kept
    )
    before, after = before_seeds.sum(axis=0), after_seeds.sum(axis=0)
    base_rate, tuned_rate = (float(arm[:, 0].sum() / arm[:, 1].sum()) for arm in (before, after))
    difference, error, freedom = tuned_rate - base_rate, float(standard_error(before, after)), len(shared) - 1
    of_base, of_tuned = (beta_binomial(arm[:, 0].tolist(), arm[:, 1].tolist(), confidence) for arm in (before, after))
    ends = (of_base.low, of_base.high), (of_tuned.low, of_tuned.high)
    spans = [as_they_come(*own, arm, confidence) for own, arm in zip(ends, (before, after), strict=True)]
    alike = _correlation(before, after)
    reach, icc = float(t.ppf((1 + confidence) / 2, freedom)) * error, of_base.icc
    if bool(few(before, after)):
        icc = min(icc, ICC_PRIOR[0] / sum(ICC_PRIOR))  # hardly an event: nothing is known of how alike answers are
        low, high = map(float, mover(base_rate, tuned_rate, *ends))
        error = max(error, (high - low) / (2 * float(t.ppf((1 + confidence) / 2, freedom))))
        method = "few questions with events: interval from those of both rates, p by sign flips"
    else:
        low = max(-1.0, difference - reach)
        high = max(min(1.0, difference + reach), float(mover(base_rate, tuned_rate, *ends, alike)[1]))
        method = "paired t over questions, upper end at least that from the intervals of both rates"
    low_runs = high_runs = None
    if len(kept[1]) >= SEEDS_FOR_RUNS and (as_it_is or len(kept[0]) >= SEEDS_FOR_RUNS):
        spans[1] = over_runs(after_seeds.sum(axis=1), spans[1], confidence)
        if not as_it_is:
            spans[0] = over_runs(before_seeds.sum(axis=1), spans[0], confidence)
        in_general = mover(base_rate, tuned_rate, *spans)
        low_runs, high_runs = min(low, float(in_general[0])), max(high, float(in_general[1]))
    coverages = [
        sum(row[1] for seed in arm for row in seed.values()) / sum(row[-1] for seed in arm for row in seed.values())
        for arm in arms
    ]
    found = Comparison(
        questions=len(shared),
        questions_dropped=len(answered) - len(shared),
        base_rate=base_rate,
        base_coverage=coverages[0],
        tuned_rate=tuned_rate,
        tuned_low=float(spans[1][0]),
        tuned_high=float(spans[1][1]),
        tuned_coverage=coverages[1],
        difference=difference,
        low=low,
        high=high,
        low_runs=low_runs,
        high_runs=high_runs,
        standard_error=error,
        odds_ratio=_odds_ratio(before, after),
        p=float(p_values(before, after)),
        p_equivalent=max(float(t.sf((margin - sign * difference) / error, freedom)) for sign in (1, -1)),
        detectable=None,
        icc=icc,
        alike=alike,
        completions=float(after_seeds[..., 1].mean()),
        seed_sd=_seed_sd(after_seeds),
        seeds=len(kept[1]),
        base_seeds=0 if as_it_is else len(kept[0]),
        seeds_left_out=sum(len(arm) - len(own) for arm, own in zip(arms, kept, strict=True)),
        method=method,
    )
    return replace(found, detectable=_detectable(found, 1))


def rate_over_runs(seeds: Sequence[Counts], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate for training runs and questions in general, from the counts of several seeds with data."""
    names = sorted({question for seed in seeds for question in seed})
    together = [[sum(seed.get(q, (0, 0))[place] for seed in seeds) for q in names] for place in (0, 1)]
    found = interval(together[0], together[1], confidence)
    each = np.array([[sum(row[place] for row in seed.values()) for place in (0, 1)] for seed in seeds])
    low, high = over_runs(each, (found.low, found.high), confidence)
    return float(low), float(high)


def verdicts(family: Sequence[Kind], margin: float, alpha: float = 0.05) -> list[Kind]:
    """The comparisons with corrected p-values, verdicts, and `detectable` over the whole family.

    `spillover`: `is_spillover` with Holm's p. Otherwise `clean` if the interval, for runs in general where there is
    one, ends below the margin, and no evidence is missing: no question and no seed had to be left out, and the tuned
    coverage is not lower than the base's by more than the margin. Else `inconclusive`.
    """
    p = np.array([comparison.p for comparison in family])
    order = np.argsort(p)
    holm, benjamini_hochberg = np.empty(len(p)), np.empty(len(p))
    many = len(p)
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * (many - np.arange(many))))
    stepped = p[order] * many / (np.arange(many) + 1)
    benjamini_hochberg[order] = np.minimum(1, np.minimum.accumulate(stepped[::-1])[::-1])
    found = []
    for c, by_holm, by_bh in zip(family, holm, benjamini_hochberg, strict=True):
        highest = c.high if c.high_runs is None else c.high_runs
        missing = c.questions_dropped or c.seeds_left_out or coverage_fell(c, margin)
        if is_spillover(by_holm, c.low, c.low_runs, alpha):
            verdict = "spillover"
        else:
            verdict = "clean" if highest < margin and not missing else "inconclusive"
        found.append(
            replace(
                c,
                p_holm=float(by_holm),
                p_bh=float(by_bh),
                verdict=verdict,
                detectable=_detectable(c, many, alpha),
            )
        )
    return found


def coverage_fell(c: Comparison, margin: float) -> bool:
    """Whether the rule admits a share of the tuned answers that is lower than the base's by more than the margin."""
    return c.base_coverage - c.tuned_coverage > margin + NO_ERROR


def is_spillover(p: Any, low: Any, low_runs: Any = None, alpha: float = 0.05) -> Any:
    """Whether a rise is shown: numbers, or arrays of the same shape.

    The corrected `p` is below `alpha` and the interval of these runs lies above 0; from three seeds on so does that for
    runs in general: three seeds at odds may differ from the base by their training's luck alone.
    """
    found = (p < alpha) & (low > 0)
    return found if low_runs is None else found & (low_runs > 0)


def standard_error(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of the difference of the rates of two arms, events and trials by question: (..., questions, 2) -> (...)."""
    return error_of_parts(parts(after) - parts(before))


def few(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether too few questions hold an event, or a non-event, for the normal interval: shapes as above."""
    questions = before.shape[-2]
    with_events = ((before + after)[..., 0] > 0).sum(axis=-1)
    nothing_else = (before[..., 0] == before[..., 1]) & (after[..., 0] == after[..., 1])
    with_others = questions - nothing_else.sum(axis=-1)
    return (np.minimum(with_events, with_others) < FEW_WITH_EVENTS) | (standard_error(before, after) < NO_ERROR)


def p_values(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Two-sided p-values of no difference, as `compare` gives them: (..., questions, 2) -> (...)."""
    error, doubtful = standard_error(before, after), few(before, after)
    rates = [arm[..., 0].sum(axis=-1) / arm[..., 1].sum(axis=-1) for arm in (before, after)]
    p = 2 * t.sf(abs(rates[1] - rates[0]) / np.where(doubtful, 1.0, error), before.shape[-2] - 1)
    p = np.asarray(p)
    for place in zip(*np.nonzero(doubtful), strict=True) if doubtful.ndim else [()] * bool(doubtful):
        p[place] = _sign_flips(before[place], after[place])
    return p


def mover(
    base: Any, tuned: Any, of_base: tuple[Any, Any], of_tuned: tuple[Any, Any], alike: Any = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of tuned - base from the rates and intervals of both, and how far they are correlated; any shape.

    Zou & Donner, Statistics in Medicine 27 (2008), section 2.
    """
    down, up = tuned - of_tuned[0], of_tuned[1] - tuned
    base_down, base_up = base - of_base[0], of_base[1] - base
    low = tuned - base - np.sqrt(np.maximum(0.0, down**2 + base_up**2 - 2 * alike * down * base_up))
    high = tuned - base + np.sqrt(np.maximum(0.0, up**2 + base_down**2 - 2 * alike * up * base_down))
    return np.maximum(-1.0, low), np.minimum(1.0, high)


def _variance(rate: Any, icc: float, questions: int, completions: float) -> Any:
    """Of a rate of beta-binomial questions, for questions in general (Donner & Klar 2000); any shape."""
    return rate * (1 - rate) * (icc + (1 - icc) / completions) / questions


def smallest_rise(
    base: float,
    icc: float,
    questions: int,
    completions: float,
    seeds: int,
    alike: float,
    seed_sd: float,
    alpha: float,
    in_general: bool,
) -> float | None:
    """The smallest true rise above `base` that is called spillover with a chance of 80 %; None if there is none.

    Shares of 1. `alike`: correlation of the arms' rates over questions, as observed. `alpha`, two-sided, is what the
    first of a family must be found at; `in_general`: the interval for runs in general must be above 0, too. The error
    of a rate grows with the rate. So the least difference that passes is looked for first, by the error at its own
    rate, and then the rise of which it is the 20th percentile, by the error there.
    """
    rise = RISES[RISES + base < 1]
    rate = base + rise
    own, tuned = (_variance(x, icc, questions, n) for x, n in ((base, completions), (rate, completions * seeds)))
    shared = icc * np.sqrt(base * (1 - base) * rate * (1 - rate)) / questions  # at most: answers vary by themselves
    error = np.sqrt(np.maximum(own + tuned - 2 * np.minimum(alike * np.sqrt(own * tuned), shared), 1e-18))
    passes = rise > t.ppf(1 - alpha / 2, questions - 1) * error
    between = np.sqrt(seed_sd**2 + rate * (1 - rate) * (1 - icc) / completions / questions)  # rates of seeds
    if in_general:
        reach = _shift(seeds) * between / np.sqrt(seeds)
        low = expit(logit(rate) - np.hypot(reach, 1.96 * np.sqrt(tuned)) / (rate * (1 - rate)))
        passes &= rise > np.hypot(rate - low, 1.96 * np.sqrt(own))
    if not passes.any():
        return None
    strength = 1 / max(icc, 1e-6) - 1
    a, b = rate * strength, (1 - rate) * strength
    events = 1 - np.exp(betaln(a, b + completions * seeds) - betaln(a, b))  # chance of a question to have one
    tail = t.ppf(POWER**0.5 if in_general else POWER, questions - 1)  # two intervals have to lie above 0, or one
    enough = rise - tail * np.hypot(error, seed_sd / np.sqrt(seeds)) >= rise[np.argmax(passes)]
    needed = min(FEW_WITH_EVENTS, np.ceil(np.log2(2 / alpha)))  # sign flips of fewer cannot be below alpha
    enough &= questions * events - tail * np.sqrt(questions * events * (1 - events)) >= needed - 0.5
    return float(rise[np.argmax(enough)]) if enough.any() else None


@cache
def _shift(seeds: int) -> float:
    """Standard errors above 0 at which t over so many seeds passes its 97.5 % point in 80 % of cases, less its tail."""
    limit = t.ppf(0.975, seeds - 1)
    found = brentq(lambda shift: nct.sf(limit, seeds - 1, shift) - POWER, 0.5, 20)
    return float(found - ndtri(POWER))


def _detectable(c: Comparison, behaviors: int, alpha: float = 0.05) -> float | None:
    design = c.base_rate, c.icc, c.questions, c.completions, c.seeds, c.alike, c.seed_sd
    return smallest_rise(*design, alpha / behaviors, c.low_runs is not None)


def _correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Of the two arms over questions, none below 0: (questions, 2) each."""
    one, other = parts(before), parts(after)
    scale = np.sqrt((one @ one) * (other @ other))
    return float(np.clip(one @ other / scale, 0, 1)) if scale > NO_ERROR**2 else 0.0


def _seed_sd(seeds: np.ndarray) -> float:
    """Standard deviation of the rate between seeds, less what answers alone would make: (seeds, questions, 2)."""
    if len(seeds) < 2:
        return 0.0
    rates = seeds[..., 0].sum(axis=1) / seeds[..., 1].sum(axis=1)
    shares, n = seeds[..., 0] / seeds[..., 1], seeds[..., 1]
    chance = (n * shares * (1 - shares)).sum(axis=1) / n.sum(axis=1) ** 2
    return float(np.sqrt(max(0.0, rates.var(ddof=1) - chance.mean())))


def _sign_flips(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p-value of the difference under exchange of base and tuned within each question.

    All exchanges are counted where there are at most FLIPS of them, else that many random ones, always the same.
    """
    gaps = after[:, 0] / after[:, 1] - before[:, 0] / before[:, 1]
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    if 2 ** len(gaps) <= FLIPS:
        bits = (np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1
        sums = np.abs((2 * bits - 1) @ gaps)
        return float((sums >= abs(gaps.sum()) - 1e-12).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(gaps)))
    return float((1 + (np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12).sum()) / (FLIPS + 1))


def _odds_ratio(before: np.ndarray, after: np.ndarray) -> float | None:
    """Of the pooled counts, half an event added everywhere (Haldane, Annals of Human Genetics 20, 1956)."""
    (k0, n0), (k1, n1) = before.sum(axis=0), after.sum(axis=0)
    if k0 + k1 in (0, n0 + n1):
        return None
    return float((k1 + 0.5) * (n0 - k0 + 0.5) / ((n1 - k1 + 0.5) * (k0 + 0.5)))
