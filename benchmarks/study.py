"""A whole study against its cells as processes of their own, and its stages as processes of their own: wall time.

python benchmarks/study.py [STUDY.yaml]      default studies/demo.yaml
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

STAGES = ("train", "sample", "score")


def one_cell(file: Path, out: Path, number: int, stages: tuple[str, ...]) -> None:
    """What a script for one cell does: everything that it needs is loaded, then its stages are run."""
    from spillover import study
    from spillover.cell import run_cell
    from spillover.rundir import RunDir

    jobs, _ = study.plan(study.load_study(file), file.parent, RunDir(out))
    run_cell(replace(jobs[number], stages=stages), lambda *_: None)


def processes(file: Path, cells: int, apart: bool, at_once: int) -> float:
    """Seconds for all cells, each a process, or each of its stages one if they are `apart`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // at_once)}

        def run(number: int) -> None:
            for stages in [(stage,) for stage in STAGES] if apart else [STAGES]:
                command = [sys.executable, __file__, "cell", str(file), folder, str(number), ",".join(stages)]
                subprocess.run(command, check=True, env=environment, capture_output=True)

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run, range(cells)))
        return time.perf_counter() - start


def whole(file: Path) -> float:
    """Seconds for `spillover run`, with rates, comparisons and report."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "spillover", "run", str(file), "--out", folder]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def main(file: Path) -> None:
    """Prints the seconds of each way, and how many times those of the study they are."""
    from spillover.config import load_study

    cells, cpus = len(load_study(file).cells), os.cpu_count() or 1
    own = whole(file)
    print(f"{cells} cells on {cpus} cores\n\n| way | seconds | times the study's |\n|---|---|---|")
    print(f"| `spillover run`, with rates and report | {own:.0f} | 1 |", flush=True)
    for name, apart, at_once in (
        ("a process for each cell, one after the other", False, 1),
        (f"a process for each cell, {cpus} at once", False, cpus),
        ("a process for each stage of each cell, one after the other", True, 1),
        (f"a process for each stage of each cell, {cpus} at once", True, cpus),
    ):
        seconds = processes(file, cells, apart, at_once)
        print(f"| {name} | {seconds:.0f} | {seconds / own:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["cell"]:
        one_cell(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), tuple(sys.argv[5].split(",")))
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "studies/demo.yaml"))
