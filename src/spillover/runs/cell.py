"""One cell of a study, from its base model to its scores: an adapter is trained, answers are sampled, then judged.

What a cell has finished lies in files and is found again by hashes of everything that went into it: killed at any
moment it goes on where it was. No two cells write to the same file, so they can run anywhere at once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from spillover import records
from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.files import hash_of, unfinished
from spillover.finetuning import RECORD, finetune
from spillover.models.load import check_here, folder_hash
from spillover.models.target import Battery, Target, wanted_completions
from spillover.records import Cell, Completion, Example
from spillover.runs.folder import RunFolder
from spillover.runs.measure import sample_missing, score_missing
from spillover.runs.progress import DONE, of_these, telling
from spillover.runs.shared import at_work
from spillover.workers import Step


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs for one cell.

    `trained`: the cell whose adapter it asks; another one's, that has been trained before, if it trains none itself.
    `stages`: of train, sample and score, those to do. `shared`: a folder (fsspec) by way of which workers on other
    machines hand over what they make; None where they all see the run folder. `owner`: the run that it belongs to,
    of those that there may be of one study.
    """

    run: Path
    cell: Cell
    base: Path
    trained: Cell
    examples: tuple[Example, ...]
    training: Training
    battery: Battery
    threads: int
    stages: tuple[str, ...]
    shared: str | None = None
    owner: str = ""

    def __str__(self) -> str:
        return str(self.cell)

    @cached_property
    def data_hash(self) -> str:
        """Hash of the training rows."""
        return hash_of([example.messages for example in self.examples])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the cell's results."""
        return hash_of(
            folder_hash(self.base),
            self.data_hash,
            self.training.model_dump() if self.examples else None,
            self.trained.seed,
            repr(self.battery),
        )

    @property
    def trains(self) -> bool:
        """Whether the cell has an adapter of its own."""
        return bool(self.examples) and self.trained == self.cell

    @property
    def folders(self) -> dict[Path, str]:
        """What the cell makes, relative to the run; each with the file without which it counts as not there."""
        here = RunFolder(Path())
        adapter = here.adapter(self.cell)
        trained = {adapter: RECORD, unfinished(adapter): ""} if self.trains else {}
        return trained | {here.part(self.cell).path: ""}

    @property
    def reads(self) -> dict[Path, str]:
        """The adapter of another cell that it takes, in the same way."""
        return {RunFolder(Path()).adapter(self.trained): RECORD} if self.examples and not self.trains else {}

    @property
    def state(self) -> Path:
        """The file in which the cell tells what it does, relative to the run."""
        return RunFolder(Path()).part(self.cell).state

    @property
    def lock(self) -> Path:
        """The file that a worker holds, relative to the run."""
        return RunFolder(Path()).part(self.cell).path / ".lock"

    @property
    def done(self) -> bool:
        """Whether the run's folder says so."""
        return of_these(self.run / self.state, self.fingerprint).state == DONE

    def subject(self, run_dir: RunFolder) -> Target:
        """Who is asked, once trained."""
        return Target(self.cell, self.base, run_dir.adapter(self.trained) if self.examples else None)

    def wanted(self, run_dir: RunFolder) -> dict[str, Completion]:
        """The completions that the study wants of the cell, by id.

        Raises SpilloverError if its adapter is not there, or is one of other rows or settings.
        """
        if self.examples:
            record = run_dir.adapter(self.trained) / RECORD
            fingerprint = json.loads(record.read_text(encoding="utf-8"))["made_from"] if record.exists() else {}
            these = {"data": self.data_hash, "training": self.training.model_dump(), "seed": self.trained.seed or 0}
            if {name: fingerprint.get(name) for name in these} != these:
                raise SpilloverError("no adapter of these rows and settings is there. Run the stage train first.")
        return wanted_completions(self.subject(run_dir), self.battery)


def run_cell(job: Job, step: Step) -> None:
    """Does what is not done yet of a cell's stages, after any other worker that is at it.

    Raises SpilloverError if what an earlier stage makes is missing, or the model is not on this machine.
    """
    check_here(job.base)
    with at_work(job, lambda: step("waits for another run that is at it", 0, 1)) as (run_dir, share):
        _run(job, run_dir, step, share)


def _run(job: Job, run_dir: RunFolder, step: Step, told: Callable[[], None]) -> None:
    torch.set_num_threads(job.threads)
    part = run_dir.part(job.cell)
    with telling(part.state, job.fingerprint, "score" in job.stages, told, job.owner) as tell:

        def both(stage: str, done: int, of: int) -> None:
            tell(stage, done, of)
            step(stage, done, of)

        if "train" in job.stages and job.trains:
            finetune(
                job.base,
                list(job.examples),
                job.training,
                job.cell.seed or 0,
                run_dir.adapter(job.cell),
                lambda done, of: both("train", done, of),
            )
        if "sample" not in job.stages and "score" not in job.stages:
            return
        wanted = job.wanted(run_dir)
        if "sample" in job.stages:
            sample_missing(job.subject(run_dir), job.battery, wanted, part, both)
        if "score" in job.stages:
            answered = [row for row in records.read_appended(part.completions, Completion) if row.id in wanted]
            if len(answered) < len(wanted):
                missing = len(wanted) - len(answered)
                raise SpilloverError(f"{missing} of {len(wanted)} answers are not there. Run the stage sample first.")
            behaviors = [behavior for behavior, _ in job.battery.behaviors]
            score_missing(behaviors, job.battery.judge, answered, part, both)
