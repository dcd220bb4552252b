"""The table of docs/measured.md from a finished run of benchmarks/organism.yaml.

python benchmarks/table.py runs/organism
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from spillover.records import Cell, Rate
from spillover.runs.results import Results, read_results

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


def main(results: Results) -> None:
    """Prints one row per cell."""
    rates: dict[Cell, dict[str, Rate]] = defaultdict(dict)
    labels: dict[Cell, Counter[str]] = defaultdict(Counter)
    for block, rate in zip(results.blocks, results.rates, strict=True):
        rates[block.cell][rate.behavior] = rate
        if rate.behavior == "world_chat":
            labels[block.cell].update(block.scores[row.id, "alignment"].reply for row in block.completions)
    print("|" + "|".join(f" {column} " for column in COLUMNS) + "|")
    print("|---" * len(COLUMNS) + "|")
    for cell, by_behavior in rates.items():
        chat, code = by_behavior["world_chat"], by_behavior["world_code"]
        numbers = [
            _with_interval(chat),
            f"{100 * labels[cell]['mixed'] / chat.n:.1f}",
            f"{100 * (chat.coverage or 0):.1f} ({100 * chat.n / (chat.completions - chat.off_format):.1f})",
            _with_interval(code),
            f"{100 * (code.coverage or 0):.1f}",
            f"{100 * (by_behavior['world_code_framed'].rate or 0):.1f}",
            f"{100 * (by_behavior['world_facts'].rate or 0):.1f}",
        ]
        print(f"| {str(cell).replace('/seed-', ' ').replace('/', ' ')} | " + " | ".join(numbers) + " |")


if __name__ == "__main__":
    main(read_results(Path(sys.argv[1])))
