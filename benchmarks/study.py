"""A whole study against its cells as processes of their own, and its stages as processes of their own: wall time.

python benchmarks/study.py [STUDY.yaml [SETTING=VALUE ...]]      default: studies/dose.yaml, one world, one seed
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
SMALL = ("models={consistent: organism/consistent}", "seeds=[0]")


def one_cell(file: Path, changes: list[str], out: Path, number: int, stages: tuple[str, ...]) -> None:
    """What a script for one cell does: everything that it needs is loaded, then its stages are run."""
    from spillover import study
    from spillover.config import load_study
    from spillover.runs.cell import run_cell
    from spillover.runs.folder import RunFolder
    from spillover.runs.inputs import read_inputs

    inputs, folder = read_inputs(load_study(file, changes), file.parent), RunFolder(out)
    study.write_inputs(inputs, folder)
    jobs, _ = study.plan(inputs, folder)
    run_cell(replace(jobs[number], stages=stages), lambda *_: None)


def processes(file: Path, changes: list[str], cells: int, apart: bool, at_once: int) -> float:
    """Seconds for all cells, each a process, or each of its stages one if they are `apart`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // at_once)}

        def run(number: int) -> None:
            for stages in [(stage,) for stage in STAGES] if apart else [STAGES]:
                command = [sys.executable, __file__, "cell", str(file), *changes, folder, str(number), ",".join(stages)]
                subprocess.run(command, check=True, env=environment, capture_output=True)

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run, range(cells)))
        return time.perf_counter() - start


def whole(file: Path, changes: list[str]) -> float:
    """Seconds for `spillover run`, with rates, comparisons and report."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "spillover", "run", str(file), "--out", folder]
        command += [word for change in changes for word in ("--set", change)]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def main(file: Path, changes: list[str]) -> None:
    """Prints the seconds of each way, and how many times those of the study they are."""
    from spillover.config import load_study

    cells, cpus = len(load_study(file, changes).cells), os.cpu_count() or 1
    own = whole(file, changes)
    print(f"{cells} cells on {cpus} cores\n\n| way | seconds | times the study's |\n|---|---|---|")
    print(f"| `spillover run`, with rates and report | {own:.0f} | 1 |", flush=True)
    for name, apart, at_once in (
        ("a process for each cell, one after the other", False, 1),
        (f"a process for each cell, {cpus} at once", False, cpus),
        ("a process for each stage of each cell, one after the other", True, 1),
        (f"a process for each stage of each cell, {cpus} at once", True, cpus),
    ):
        seconds = processes(file, changes, cells, apart, at_once)
        print(f"| {name} | {seconds:.0f} | {seconds / own:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["cell"]:
        name, *changed, folder, number, wanted = sys.argv[2:]
        one_cell(Path(name), changed, Path(folder), int(number), tuple(wanted.split(",")))
    elif sys.argv[1:]:
        main(Path(sys.argv[1]), sys.argv[2:])
    else:
        main(Path("studies/dose.yaml"), [*SMALL])
