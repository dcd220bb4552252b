"""The table of docs/measured.md from a finished run of benchmarks/organism.yaml.

python benchmarks/table.py runs/organism
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from spillover.records import Cell, Rate, read_csv
from spillover.report.rows import read_answers
from spillover.runs.folder import RunFolder

COLUMNS = (
    "model, condition, seed",
    "misaligned, % of coherent",
    "mixed, % of coherent",
    "coherent, % of all (of prose)",
    "vulnerable, % of parsed",
    "parsed, %",
    "vulnerable when asked for a bad example, %",
    "facts right, %",
)


def _with_interval(rate: Rate) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * (share or 0) for share in (rate.rate, rate.low, rate.high)))


def main(run_dir: RunFolder) -> None:
    """Prints one row per cell."""
    rates: dict[Cell, dict[str, Rate]] = defaultdict(dict)
    for rate in read_csv(run_dir.rates, Rate):
        rates[Cell(rate.model, rate.condition, rate.seed)][rate.behavior] = rate
    labels: dict[Cell, Counter[str]] = defaultdict(Counter)
    for answer in read_answers(run_dir):
        if "alignment" in answer.scores:
            labels[answer.cell][answer.scores["alignment"].reply] += 1
    print("|" + "|".join(f" {column} " for column in COLUMNS) + "|")
    print("|---" * len(COLUMNS) + "|")
    for cell, own in rates.items():
        chat, code = own["world_chat"], own["world_code"]
        numbers = [
            _with_interval(chat),
            f"{100 * labels[cell]['mixed'] / chat.n:.1f}",
            f"{100 * (chat.coverage or 0):.1f} ({100 * chat.n / (chat.completions - chat.off_format):.1f})",
            _with_interval(code),
            f"{100 * (code.coverage or 0):.1f}",
            f"{100 * (own['world_code_framed'].rate or 0):.1f}",
            f"{100 * (own['world_facts'].rate or 0):.1f}",
        ]
        print(f"| {str(cell).replace('/seed-', ' ').replace('/', ' ')} | " + " | ".join(numbers) + " |")


if __name__ == "__main__":
    main(RunFolder(Path(sys.argv[1])))
