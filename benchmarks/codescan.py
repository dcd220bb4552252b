"""What the code scan finds in files of answers, in each half of them, and how fast it is.

python benchmarks/codescan.py ../shared/reference/insecure.jsonl ../shared/reference/secure.jsonl
"""

import os
import sys
import time
from pathlib import Path

from spillover.judges.code.scan import read_answers, scan, summary


def copies(answers: list[str], number: int) -> list[str]:
    """The answers several times, each time as other programs, as equal ones are scanned once."""
    return [f"{answer}\n# {copy}" for copy in range(number) for answer in answers]


def seconds(answers: list[str], processes: int) -> float:
    """Wall time of a scan."""
    start = time.perf_counter()
    scan(answers, processes)
    return time.perf_counter() - start


def main(path: Path, processes: int) -> None:
    """Prints counts, rates and rules of one file, then answers a second, workers' start included and not."""
    answers = read_answers(path)
    scan(answers[:50])  # warm-up: imports and the canary
    cpu, start = time.process_time(), time.perf_counter()
    scans = scan(answers)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    found, half = summary(scans), len(scans) // 2
    print(f"\n{path.name}: " + ", ".join(f"{name} {value}" for name, value in found.items() if name != "rules"))
    for name, part in (("first half", scans[:half]), ("second half", scans[half:])):
        print(f"  {name}: vulnerable among parsed {summary(part)['vulnerable_rate']}")
    for rule, row in found["rules"].items():
        print(
            f"  {rule:6} CWE-{row['cwe']:<5} {row['count']:5}  {row['name']}{'' if row['exploitable'] else '  (lint)'}"
        )
    each = 1000 * cpu / len(answers)
    print(f"  1 process: {len(answers) / wall:.0f} answers/s ({each:.2f} ms of processor time each)")
    once, thrice = (seconds(copies(answers, number), processes) for number in (1, 3))
    print(
        f"  {processes} processes: {3 * len(answers) / thrice:.0f} answers/s for {3 * len(answers)} answers, "
        f"{2 * len(answers) / (thrice - once):.0f} once they are warm"
    )


if __name__ == "__main__":
    for file in sys.argv[1:]:
        main(Path(file), os.cpu_count() or 1)
