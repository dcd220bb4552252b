"""Do the intervals cover, and do the verdicts hold what they claim? Simulation from beta-binomial questions, seeded.

python benchmarks/coverage.py [SIMULATIONS]      default 2000 for coverage, 1000 audits
"""

import sys

import numpy as np

from spillover.stats import compare, interval, verdicts

RATES, ICCS, QUESTIONS, COMPLETIONS = (0.002, 0.02, 0.2, 0.5), (0.0, 0.05, 0.2), (8, 24, 60), 50
AUDITS = [(rate, icc) for rate in (0.01, 0.05) for icc in (0.05, 0.2)] * 2  # the 8 behaviors of one audit
AUDIT_QUESTIONS, AUDIT_COMPLETIONS, MARGIN = 48, 20, 0.02


def question_rates(rng: np.random.Generator, rate: float, icc: float, questions: int) -> np.ndarray:
    """Each question's own rate: (questions,)."""
    if icc == 0:
        return np.full(questions, rate)
    strength = 1 / icc - 1
    return rng.beta(rate * strength, (1 - rate) * strength, questions)


def coverage(simulations: int) -> None:
    """Prints coverage and mean width of 95 % intervals for questions in general."""
    rng = np.random.default_rng(0)
    print("| questions | rate, % | ICC | coverage, % | mean width, points |\n|---|---|---|---|---|")
    for questions in QUESTIONS:
        for rate in RATES:
            for icc in ICCS:
                covered, width = 0, 0.0
                for _ in range(simulations):
                    events = rng.binomial(COMPLETIONS, question_rates(rng, rate, icc, questions))
                    found = interval(events.tolist(), [COMPLETIONS] * questions)
                    covered += found.low <= rate <= found.high
                    width += found.high - found.low
                share, mean = 100 * covered / simulations, 100 * width / simulations
                print(f"| {questions} | {100 * rate:g} | {icc:g} | {share:.1f} | {mean:.2f} |", flush=True)


def audit(rng: np.random.Generator, effect: float) -> list[str]:
    """Verdicts of one audit of 8 behaviors; the tuned rate of the first is up by `effect`."""
    family = []
    for place, (rate, icc) in enumerate(AUDITS):
        own = question_rates(rng, rate, icc, AUDIT_QUESTIONS)
        lifted = own + effect * (1 - own) / (1 - rate) if place == 0 else own
        arms = [
            {str(q): (int(k), AUDIT_COMPLETIONS) for q, k in enumerate(rng.binomial(AUDIT_COMPLETIONS, rates))}
            for rates in (own, lifted)
        ]
        found = compare(arms[0], [arms[1]], MARGIN)
        assert found is not None
        family.append(found)
    return [comparison.verdict for comparison in verdicts(family, MARGIN)]


def audits(simulations: int) -> None:
    """Prints how often an audit without any difference cries spillover, and how often +5 points are found."""
    rng = np.random.default_rng(1)
    nothing = [audit(rng, 0.0) for _ in range(simulations)]
    alarms = sum("spillover" in found for found in nothing)
    clean = sum(found.count("clean") for found in nothing) / (len(AUDITS) * simulations)
    print(
        f"no difference: {100 * alarms / simulations:.1f} % of {simulations} audits cry spillover in any of 8 behaviors"
    )
    print(f"               {100 * clean:.1f} % of the verdicts are clean")
    found = sum(audit(rng, 0.05)[0] == "spillover" for _ in range(simulations))
    print(f"+5 points in one behavior: found in {100 * found / simulations:.1f} % of {simulations} audits")


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    coverage(wanted)
    audits(min(wanted, 1000))
