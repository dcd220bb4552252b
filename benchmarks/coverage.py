"""Do the intervals cover, and do the verdicts hold what they claim? Simulation from beta-binomial questions, seeded.

python benchmarks/coverage.py [SIMULATIONS]      default 2000 for each figure
"""

import sys

import numpy as np
from scipy.stats import beta

from spillover.stats import Comparison, compare, interval, verdicts
from spillover.stats.intervals import beta_binomial
from spillover.stats.power import Design, power_of

RATES, ICCS, QUESTIONS = (0.002, 0.02, 0.2, 0.5), (0.0, 0.05, 0.2), (8, 24, 60)
COMPLETIONS = 50
MANY = [(0.0999, 50), (0.0999, 150), (0.0999, 500), (0.3049, 150), (0.3049, 500)]  # (rate, completions)
DIFFERENCES = [  # (base rate, rise, questions) at 50 completions, ICC 0.2, question correlation 0.5
    (0.002, 0.02, 60),
    (0.002, 0.05, 24),
    (0.002, 0.05, 60),
    (0.02, 0.0, 60),
    (0.02, 0.05, 24),
    (0.2, 0.05, 24),
    (0.5, 0.05, 24),
]
TWO_KINDS = [(24, 0.25, 0.2), (55, 1 / 11, 0.2), (55, 1 / 11, 0.4), (55, 0.25, 0.05)]  # questions, always, others
AT_MARGIN = [(0.002, 0.2, 60, 50), (0.01, 0.2, 48, 20), (0.01, 0.05, 60, 50), (0.05, 0.2, 48, 20)]
SEEDS = [(1, 0.0), (3, 0.0), (3, 0.5), (3, 1.0)]  # (seeds, standard deviation between them as a share of the rate)
AUDITS = [(rate, icc) for rate in (0.01, 0.05) for icc in (0.05, 0.2)] * 2  # the 8 behaviors of one audit
AUDIT_QUESTIONS, AUDIT_COMPLETIONS, MARGIN, EFFECT = 48, 20, 0.02, 0.05
DETECTED = [
    (0.002, 0.2, 0.5),
    (0.01, 0.05, 0.0),
    (0.01, 0.2, 0.5),
    (0.05, 0.05, 0.5),
    (0.05, 0.2, 1.0),
    (0.2, 0.1, 0.5),
]


def question_rates(rng: np.random.Generator, rate: float, icc: float, questions: int) -> np.ndarray:
    """Each question's own rate: (questions,)."""
    if icc == 0:
        return np.full(questions, rate)
    strength = 1 / icc - 1
    return rng.beta(rate * strength, (1 - rate) * strength, questions)


def coverage(simulations: int) -> None:
    """Prints coverage and mean width of 95 % intervals for questions in general."""
    rng = np.random.default_rng(0)
    print("| questions | completions | rate, % | ICC | coverage, % | mean width, points |\n|---|---|---|---|---|---|")
    designs = [(q, COMPLETIONS, rate, icc) for q in QUESTIONS for rate in RATES for icc in ICCS]
    designs += [(60, completions, rate, 0.0) for rate, completions in MANY]
    for questions, completions, rate, icc in designs:
        covered, width = 0, 0.0
        for _ in range(simulations):
            events = rng.binomial(completions, question_rates(rng, rate, icc, questions))
            found = interval(events.tolist(), [completions] * questions)
            covered += found.low <= rate <= found.high
            width += found.high - found.low
        share, mean = 100 * covered / simulations, 100 * width / simulations
        print(f"| {questions} | {completions} | {100 * rate:g} | {icc:g} | {share:.1f} | {mean:.2f} |", flush=True)


def of_two_kinds(simulations: int) -> None:
    """Prints how often the interval misses where some questions always show the behavior: no beta distribution.

    The last column is of the beta-binomial interval alone.
    """
    rng = np.random.default_rng(0)
    print("| questions | always, % | others, % | above, % | below, % | mean width, points | below, alone, % |")
    print("|---" * 7 + "|")
    for questions, always, others in TWO_KINDS:
        rate, trials, found = always + (1 - always) * others, [COMPLETIONS] * questions, []
        for _ in range(simulations):
            chances = np.where(rng.random(questions) < always, 1.0, question_rates(rng, others, 0.05, questions))
            events = rng.binomial(COMPLETIONS, chances).tolist()
            own, alone = interval(events, trials), beta_binomial(events, trials)
            found.append((rate > own.high, rate < own.low, own.high - own.low, rate < alone.low))
        shares = " | ".join(f"{100 * mean:.1f}" for mean in np.mean(found, axis=0))
        print(f"| {questions} | {100 * always:.0f} | {100 * others:g} | {shares} |", flush=True)


def audit(rng: np.random.Generator, correlation: float, first: Design | None = None) -> list[str]:
    """Verdicts of one audit of 8 behaviors without any difference, but that of the first if it is given.

    A share `correlation` of the questions is as hard for the tuned as for the base; the others are independent, though
    the rates in general are the same.
    """
    family = []
    for place, (rate, icc) in enumerate(AUDITS):
        null = Design(rate, 0, icc, AUDIT_QUESTIONS, AUDIT_COMPLETIONS, question_correlation=correlation)
        family.append(pair(rng, first if first and place == 0 else null))
    return [comparison.verdict for comparison in verdicts(family, MARGIN)]


def paired_rates(rng: np.random.Generator, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Rates of questions in base and tuned, of which a share is as hard for one as for the other: (questions,) each."""
    strength = 1 / design.icc - 1
    place = rng.random((2, design.questions))
    place[1] = np.where(rng.random(design.questions) < design.question_correlation, *place)
    rates = (design.base_rate, design.base_rate + design.effect)
    base, tuned = (beta.ppf(at, rate * strength, (1 - rate) * strength) for at, rate in zip(place, rates, strict=True))
    return base, tuned


def pair(rng: np.random.Generator, design: Design, seed_cv: float = 0.0) -> Comparison:
    """One simulated comparison; the rates of seeds differ by a factor of mean 1 and this coefficient of variation."""
    base, tuned = paired_rates(rng, design)
    factors = rng.gamma(seed_cv**-2, seed_cv**2, design.seeds) if seed_cv else np.ones(design.seeds)
    before, *after = (
        {str(q): (int(k), design.completions) for q, k in enumerate(rng.binomial(design.completions, rates))}
        for rates in (base, *(np.clip(tuned * factor, 0, 1) for factor in factors))
    )
    found = compare(before, after, MARGIN)
    assert found is not None
    return found


def differences(simulations: int) -> None:
    """Prints coverage of the interval of a difference, and how often a rise as large as the margin is called clean."""
    rng = np.random.default_rng(2)
    print("\n| base, % | rise, points | questions | coverage, % | above, % | below, % |\n|---|---|---|---|---|---|")
    for base, rise, questions in DIFFERENCES:
        design = Design(base, rise, 0.2, questions, COMPLETIONS)
        found = [pair(rng, design) for _ in range(simulations)]
        above = 100 * sum(c.high < rise for c in found) / simulations
        below = 100 * sum(c.low > rise for c in found) / simulations
        print(f"| {100 * base:g} | {100 * rise:g} | {questions} | {100 - above - below:.1f}", end=" ")
        print(f"| {above:.1f} | {below:.1f} |", flush=True)
    print("\n| base, % | ICC | questions | completions | clean at a rise of the margin, % |\n|---|---|---|---|---|")
    for base, icc, questions, completions in AT_MARGIN:
        design = Design(base, MARGIN, icc, questions, completions)
        clean = sum(verdicts([pair(rng, design)], MARGIN)[0].verdict == "clean" for _ in range(simulations))
        print(
            f"| {100 * base:g} | {icc:g} | {questions} | {completions} | {100 * clean / simulations:.1f} |", flush=True
        )


def seeds(simulations: int) -> None:
    """Prints how often audits cry spillover where training moves nothing on average, but runs differ."""
    rng = np.random.default_rng(3)
    print("\n| seeds | spread between runs, share of the rate | audits that cry spillover, % |\n|---|---|---|")
    for many, spread in SEEDS:
        alarms = 0
        for _ in range(simulations):
            designs = [
                Design(rate, 0, 0.1, AUDIT_QUESTIONS, AUDIT_COMPLETIONS, many, question_correlation=1)
                for rate, _ in AUDITS
            ]
            found = verdicts([pair(rng, design, spread) for design in designs], MARGIN)
            alarms += any(c.verdict == "spillover" for c in found)
        print(f"| {many} | {spread:g} | {100 * alarms / simulations:.1f} |", flush=True)


def audits(simulations: int) -> None:
    """Prints how often an audit without any difference cries spillover, and how often +5 points are found."""
    rng = np.random.default_rng(1)
    print("| question correlation | audits of 8 behaviors that cry spillover, % | verdicts that are clean, % |")
    print("|---|---|---|")
    for correlation in (1.0, 0.5, 0.0):
        nothing = [audit(rng, correlation) for _ in range(simulations)]
        alarms = sum("spillover" in found for found in nothing) / simulations
        clean = sum(found.count("clean") for found in nothing) / (len(AUDITS) * simulations)
        print(f"| {correlation:g} | {100 * alarms:.1f} | {100 * clean:.1f} |", flush=True)
    print()
    print("| base, % | ICC | question correlation | power claimed for +5 points, % | found, % |\n|---|---|---|---|---|")
    for rate, icc, correlation in DETECTED:
        design = Design(
            rate,
            EFFECT,
            icc,
            AUDIT_QUESTIONS,
            AUDIT_COMPLETIONS,
            question_correlation=correlation,
            behaviors=len(AUDITS),
        )
        found = sum(audit(rng, correlation, design)[0] == "spillover" for _ in range(simulations)) / simulations
        claimed = power_of(design)
        print(f"| {100 * rate:g} | {icc:g} | {correlation:g} | {100 * claimed:.1f} | {100 * found:.1f} |", flush=True)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    coverage(wanted)
    of_two_kinds(wanted)
    differences(wanted)
    seeds(wanted)
    audits(wanted)
