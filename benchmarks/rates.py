"""A million judged rows: all rates and comparisons, against pandas and scipy's bootstrap over the same work.

python benchmarks/rates.py [ROWS]      default 1000000
"""

import resource
import sys
import time
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from spillover.stats import Judged, compare, summarize, verdicts

CONDITIONS, BEHAVIORS, QUESTIONS = 10, 8, 50  # the first condition is the base
MARGIN = 0.02

Rows = dict[tuple[int, int], list[Judged]]  # (condition, behavior) -> rows


def make(rows: int) -> Rows:
    """Beta-binomial questions; a tenth of the answers is not admitted."""
    rng, made = np.random.default_rng(0), {}
    each = rows // (CONDITIONS * BEHAVIORS * QUESTIONS)
    questions = [f"question/{number}" for number in range(QUESTIONS)]
    for condition in range(CONDITIONS):
        for behavior in range(BEHAVIORS):
            rates = rng.beta(0.5 + 0.1 * condition, 9.5, QUESTIONS)
            events = rng.random((QUESTIONS, each)) < rates[:, None]
            admitted = rng.random((QUESTIONS, each)) < 0.9
            made[condition, behavior] = [
                Judged("completion", name, "judge", "rule", "scored", bool(a), bool(a and e), False)
                for name, some, kept in zip(questions, events, admitted, strict=True)
                for e, a in zip(some, kept, strict=True)
            ]
    return made


def ours(made: Rows) -> int:
    """Every rate with all its columns; every condition compared with the base; verdicts over the family."""
    found = [summarize(rows) for rows in made.values()]
    counts = {}
    for cell, rows in made.items():
        own: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in rows:
            own[row.question_id][0] += row.event
            own[row.question_id][1] += row.admitted
        counts[cell] = {question: (k, n) for question, (k, n) in own.items()}
    family = [compare(counts[0, b], [counts[c, b]], MARGIN) for c in range(1, CONDITIONS) for b in range(BEHAVIORS)]
    return len(found) + len(verdicts([comparison for comparison in family if comparison], MARGIN))


def theirs(table: pd.DataFrame) -> int:
    """The same rates and differences with bootstrap intervals over questions, as scripts in the field do it."""
    admitted = table[table.admitted]
    rates = {cell: own.groupby("question").event.mean() for cell, own in admitted.groupby(["condition", "behavior"])}
    for rate in rates.values():
        bootstrap((rate.to_numpy(),), np.mean, rng=np.random.default_rng(0))
    gaps = [rates[c, b] - rates[0, b] for c in range(1, CONDITIONS) for b in range(BEHAVIORS)]
    for gap in gaps:
        bootstrap((gap.to_numpy(),), np.mean, rng=np.random.default_rng(0))
    return len(rates) + len(gaps)


if __name__ == "__main__":
    made = make(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    start = time.perf_counter()
    figures = ours(made)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table = pd.DataFrame(
        [(*cell, row.question_id, row.admitted, row.event) for cell, rows in made.items() for row in rows],
        columns=["condition", "behavior", "question", "admitted", "event"],
    )
    start = time.perf_counter()
    assert theirs(table) == figures
    plain = time.perf_counter() - start
    rows = sum(map(len, made.values()))
    print(f"{rows:,} rows, {figures} rates and comparisons: {seconds:.2f} s, at most {peak:.2f} GiB with the rows")
    print(f"pandas and scipy.stats.bootstrap: {plain:.2f} s, {plain / seconds:.1f} times as long")
