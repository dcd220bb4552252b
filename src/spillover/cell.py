"""One cell of a study, from its base model to its scores: an adapter is trained, answers are sampled, then judged.

What a cell has finished lies in files and is found again by hashes of everything that went into it: killed at any
moment it goes on where it was. No two cells write to the same file, so they can run anywhere at once.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from spillover import records
from spillover.compute import Step
from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.evaluation.measuring import Questioning, Subject, sample_missing, score_missing, wanted_completions
from spillover.finetuning import RECORD, finetune
from spillover.models import folder_hash
from spillover.records import Cell, Completion, Example
from spillover.rundir import RunDir, hash_of
from spillover.shared import pull, push, push_state
from spillover.status import telling


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs for one cell.

    `trained`: the cell whose adapter it asks; another one's, that has been trained before, if it trains none itself.
    `stages`: of train, sample and score, those to do. `shared`: a folder (fsspec) by way of which workers on other
    machines hand over what they make; None where they all see the run folder.
    """

    run: Path
    cell: Cell
    base: Path
    trained: Cell
    examples: tuple[Example, ...]
    training: Training
    questioning: Questioning
    threads: int
    stages: tuple[str, ...]
    shared: str | None = None

    def __str__(self) -> str:
        return str(self.cell)

    @cached_property
    def data_hash(self) -> str:
        """Hash of the training rows."""
        return hash_of([example.messages for example in self.examples])

    @cached_property
    def made_from(self) -> str:
        """Hash of everything that decides the cell's results."""
        return hash_of(
            folder_hash(self.base),
            self.data_hash,
            self.training.model_dump() if self.examples else None,
            self.trained.seed,
            repr(self.questioning),
        )

    def subject(self, run_dir: RunDir) -> Subject:
        """Who is asked, once trained."""
        return Subject(self.cell, self.base, run_dir.adapter(self.trained) if self.examples else None)

    def wanted(self, run_dir: RunDir) -> dict[str, Completion]:
        """The completions that the study wants of the cell, by id.

        Raises SpilloverError if its adapter is not there, or is one of other rows or settings.
        """
        if self.examples:
            record = run_dir.adapter(self.trained) / RECORD
            made_from = json.loads(record.read_text(encoding="utf-8"))["made_from"] if record.exists() else {}
            these = {"data": self.data_hash, "training": self.training.model_dump(), "seed": self.trained.seed or 0}
            if {name: made_from.get(name) for name in these} != these:
                raise SpilloverError("no adapter of these rows and settings is there. Run the stage train first.")
        return wanted_completions(self.subject(run_dir), self.questioning)


def run_cell(job: Job, step: Step) -> None:
    """Does what is not done yet of a cell's stages, in the run folder, or in one of its own and then shares it.

    Raises SpilloverError if what an earlier stage makes is missing, or the model is not on this machine.
    """
    if not job.base.is_dir():
        raise SpilloverError(f"{job.base} is not on {platform.node()}. The model must be there on every machine.")
    if job.shared is None:
        _run(job, RunDir(job.run), step)
        return
    shared = job.shared
    with TemporaryDirectory(prefix="spillover-") as folder:
        run_dir = RunDir(Path(folder))
        own = run_dir.part(job.cell).path, run_dir.adapter(job.cell)
        for path in {*own, run_dir.adapter(job.trained)}:
            pull(run_dir, path, shared)

        def share() -> None:
            for path in own:
                push(run_dir, path, shared)

        try:
            _run(job, run_dir, step, lambda: push_state(run_dir, run_dir.part(job.cell).state, shared), share)
        finally:
            share()


def _run(
    job: Job,
    run_dir: RunDir,
    step: Step,
    told: Callable[[], None] = lambda: None,
    stage_done: Callable[[], None] = lambda: None,
) -> None:
    torch.set_num_threads(job.threads)
    part = run_dir.part(job.cell)
    with telling(part.state, job.made_from, "score" in job.stages, told) as tell:

        def both(stage: str, done: int, of: int) -> None:
            tell(stage, done, of)
            step(stage, done, of)

        if "train" in job.stages and job.examples and job.trained == job.cell:
            finetune(
                job.base,
                list(job.examples),
                job.training,
                job.cell.seed or 0,
                run_dir.adapter(job.cell),
                lambda done, of: both("train", done, of),
            )
            stage_done()
        if "sample" not in job.stages and "score" not in job.stages:
            return
        wanted = job.wanted(run_dir)
        if "sample" in job.stages:
            sample_missing(job.subject(run_dir), job.questioning, wanted, part, both)
            stage_done()
        if "score" in job.stages:
            answered = [row for row in records.read_appended(part.completions, Completion) if row.id in wanted]
            if len(answered) < len(wanted):
                missing = len(wanted) - len(answered)
                raise SpilloverError(f"{missing} of {len(wanted)} answers are not there. Run the stage sample first.")
            behaviors = [behavior for behavior, _ in job.questioning.behaviors]
            score_missing(behaviors, job.questioning.judge, answered, part, both)
