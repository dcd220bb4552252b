"""A million judged rows: all rates and comparisons, against pandas and scipy's bootstrap over the same work.

python benchmarks/rates.py [ROWS]      default 1000000
"""

import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from spillover import records
from spillover.records import Cell, QuestionCount, Rate
from spillover.stats import Decision, compare, count, summarize_counts, verdicts

CONDITIONS, BEHAVIORS, QUESTIONS = 10, 8, 50  # the first condition is the base
MARGIN = 0.02

Rows = dict[tuple[int, int], list[Decision]]  # (condition, behavior) -> rows


def simulate(rows: int) -> Rows:
    """Beta-binomial questions; a tenth of the answers is not admitted."""
    rng, decisions = np.random.default_rng(0), {}
    each = rows // (CONDITIONS * BEHAVIORS * QUESTIONS)
    questions = [f"question/{number}" for number in range(QUESTIONS)]
    for condition in range(CONDITIONS):
        for behavior in range(BEHAVIORS):
            rates = rng.beta(0.5 + 0.1 * condition, 9.5, QUESTIONS)
            events = rng.random((QUESTIONS, each)) < rates[:, None]
            admitted = rng.random((QUESTIONS, each)) < 0.9
            decisions[condition, behavior] = [
                Decision("completion", name, "judge", "rule", "scored", bool(a), bool(a and e), False)
                for name, some, kept in zip(questions, events, admitted, strict=True)
                for e, a in zip(some, kept, strict=True)
            ]
    return decisions


def ours(decisions: Rows, folder: Path) -> int:
    """From judged rows to rates.csv and counts.csv, and every condition compared with the base, as one family."""
    rates, lines = [], []
    counts = {}
    for (condition, behavior), rows in decisions.items():
        by_question = count(rows)
        cell = Cell("m", "base" if condition == 0 else f"t{condition}", None if condition == 0 else 0)
        place: dict[str, Any] = asdict(cell) | {"behavior": f"b{behavior}", "format": "plain", "judge": "judge"}
        place["rubric_hash"] = f"rule {behavior}"
        totals = summarize_counts(by_question)
        rates.append(Rate(**place, scope="broad", metric="e", rule="r", **totals))
        lines += [QuestionCount(**(place | {"question_id": question} | of)) for question, of in by_question.items()]
        counts[condition, behavior] = {
            question: (of["k"], of["n"], of["completions"]) for question, of in by_question.items()
        }
    (folder / "rates.csv").write_text(records.to_csv(Rate, rates))
    (folder / "counts.csv").write_text(records.to_csv(QuestionCount, lines))
    family = [compare(counts[0, b], [counts[c, b]], MARGIN) for c in range(1, CONDITIONS) for b in range(BEHAVIORS)]
    return len(rates) + len(verdicts([comparison for comparison in family if comparison], MARGIN))


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


def peak() -> float:
    """Most memory that this process has had so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    decisions = simulate(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    rows = sum(map(len, decisions.values()))
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        figures = ours(decisions, Path(folder))
        seconds = time.perf_counter() - start
    print(f"{rows:,} rows, {figures} rates and comparisons: {seconds:.2f} s, at most {peak():.2f} GiB with the rows")
    table = pd.DataFrame(
        [(*cell, row.question_id, row.admitted, row.event) for cell, own in decisions.items() for row in own],
        columns=["condition", "behavior", "question", "admitted", "event"],
    )
    start = time.perf_counter()
    assert theirs(table) == figures
    plain = time.perf_counter() - start
    print(f"pandas and scipy.stats.bootstrap: {plain:.2f} s, {plain / seconds:.1f} times as long")
