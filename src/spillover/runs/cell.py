"""One cell of a study, from its base model to its scores: an adapter is trained, answers are sampled, then judged.

A job names files of the run's folder and carries no rows. Killed at any moment, a cell goes on from what lies in its
part of the folder. No two cells write to the same file, so they can run anywhere at once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior
from spillover.config import Sampling, Training
from spillover.data import file_examples
from spillover.errors import SpilloverError
from spillover.files import hash_of, one_at_a_time
from spillover.finetuning import RECORD, finetune
from spillover.models.effect import adapter_effect
from spillover.models.load import check_here, folder_hash
from spillover.models.target import Battery, Target, wanted_completions
from spillover.records import Cell, Completion, Example, Score
from spillover.runs.folder import CellEntry, RunFolder, behavior_file
from spillover.runs.measure import missing_scores, sample_missing, score_missing
from spillover.runs.store import AnswerStore
from spillover.workers import Step


@dataclass(frozen=True)
class Asked:
    """What a cell is asked: a Battery whose behaviors are files in the run's folder, with completions per question."""

    behaviors: tuple[tuple[str, int], ...]  # (file in behaviors/, completions per question)
    sampling: Sampling
    formats: tuple[str, ...]
    judge: str | None
    prompt_prefix: str

    @classmethod
    def of(cls, battery: Battery) -> "Asked":
        """References to the behaviors of a battery."""
        names = tuple((behavior_file(behavior), count) for behavior, count in battery.behaviors)
        return cls(names, battery.sampling, battery.formats, battery.judge, battery.prompt_prefix)

    def battery(self, folder: RunFolder) -> Battery:
        """The battery with its behaviors read."""
        behaviors = tuple((read_behavior(folder.behaviors / name), count) for name, count in self.behaviors)
        return Battery(behaviors, self.sampling, self.formats, self.judge, self.prompt_prefix)


@dataclass(frozen=True)
class Tuning:
    """What a cell's adapter is trained on: rows in a file of the run's folder, known by their hash, and settings.

    `cell` is whose adapter it is: under `same_as` another cell's, which has been trained before.
    """

    cell: Cell
    rows: Path  # relative to the run's folder
    rows_hash: str
    training: Training


@dataclass(frozen=True)
class CellJob:
    """Everything that a worker needs to know of one cell. `folder`: the run's folder, where the worker is.

    `fingerprint`: hash of everything that decides the cell's results. `stages`: those to do of train, sample, score.
    """

    folder: Path
    cell: Cell
    base: Path
    tuning: Tuning | None
    asked: Asked
    fingerprint: str
    stages: tuple[str, ...]
    threads: int = 1

    def __str__(self) -> str:
        return str(self.cell)

    @property
    def trains(self) -> bool:
        """Whether the cell has an adapter of its own."""
        return self.tuning is not None and self.tuning.cell == self.cell

    @property
    def inputs(self) -> list[Path]:
        """Files and folders of the run's folder that a worker elsewhere needs a copy of, relative to it."""
        folder = RunFolder(Path())
        behaviors = [folder.behaviors / name for name, _ in self.asked.behaviors]
        tuning = (
            [] if self.tuning is None else [self.tuning.rows] if self.trains else [folder.adapter(self.tuning.cell)]
        )
        adapter = [folder.adapter(self.cell)] if self.trains else []
        return [*behaviors, *tuning, *adapter, *self.unfinished]

    @property
    def outputs(self) -> list[Path]:
        """What the cell makes that its result does not hold, relative to the run's folder."""
        return [RunFolder(Path()).adapter(self.cell)] if self.trains and "train" in self.stages else []

    @property
    def unfinished(self) -> list[Path]:
        """What a job that failed goes on from, relative to the run's folder."""
        return [RunFolder(Path()).part(self.cell).path]

    def adapter(self) -> Path | None:
        """The folder of the adapter that is sampled; None for the base as it is.

        Raises SpilloverError if it is not there, or is one of other rows or settings.
        """
        if self.tuning is None:
            return None
        path = RunFolder(self.folder).adapter(self.tuning.cell)
        record = path / RECORD
        made_from = json.loads(record.read_text(encoding="utf-8"))["made_from"] if record.exists() else {}
        settings = {
            "data": self.tuning.rows_hash,
            "training": self.tuning.training.model_dump(),
            "seed": self.tuning.cell.seed or 0,
        }
        if {name: made_from.get(name) for name in settings} != settings:
            raise SpilloverError("no adapter of these rows and settings is there. Run the stage train first.")
        return path

    @property
    def is_trained(self) -> bool:
        """Whether the adapter is there, made from the rows and settings of the job."""
        try:
            self.adapter()
        except SpilloverError:
            return False
        return True

    def is_done(
        self,
        entry: CellEntry | None,
        store: AnswerStore,
        behaviors: Mapping[str, Behavior],
        judge_failures: bool = True,
    ) -> bool:
        """Whether the run holds all that is wanted of the cell: its adapter, its completions and their scores.

        `behaviors`: those of its files, by file name. `judge_failures`: whether a call of the judge that failed counts
        as a score.
        """
        if entry is None or entry.fingerprint != self.fingerprint:
            return False
        if not self.is_trained:
            return False
        adapter = self.adapter()
        if entry.adapter_hash != (folder_hash(adapter) if adapter else None):
            return False
        if not all(id_ in store.completions for id_ in entry.completions):
            return False
        rows = [store.completions[id_] for id_ in entry.completions]
        asked = [behaviors[name] for name, _ in self.asked.behaviors]
        missing = missing_scores(asked, self.asked.judge, rows, store, judge_failures)
        return not any(pairs for _, pairs, _ in missing)


@dataclass(frozen=True)
class CellResult:
    """What a cell has made: its completions in the order they are wanted, their scores, and its entry for the run.

    `entry` is None where no stage after training was asked for.
    """

    completions: tuple[Completion, ...] = ()
    scores: tuple[Score, ...] = ()
    entry: CellEntry | None = None


def run_cell(job: CellJob, step: Step) -> CellResult:
    """Does what is not done yet of a cell's stages, after any other worker that is at it.

    Raises SpilloverError if what an earlier stage makes is missing, or the model is not on this machine.
    """
    check_here(job.base)
    part = RunFolder(job.folder).part(job.cell)
    with one_at_a_time(part.path / ".lock", lambda: step("waits for another run that is at it", 0, 1)):
        return _run(job, part, step)


def _run(job: CellJob, part: RunFolder, step: Step) -> CellResult:
    import torch

    torch.set_num_threads(job.threads)
    folder = RunFolder(job.folder)
    if "train" in job.stages and job.trains:
        assert job.tuning is not None
        finetune(
            job.base,
            _rows(folder, job.tuning),
            folder.adapter(job.cell),
            job.tuning.training,
            job.cell.seed or 0,
            lambda done, of: step("train", done, of),
        )
    if "sample" not in job.stages and "score" not in job.stages:
        return CellResult()
    adapter = job.adapter()
    battery = job.asked.battery(folder)
    target = Target(job.cell, job.base, adapter)
    wanted = wanted_completions(target, battery)
    store = AnswerStore(part)
    effect = adapter_effect(job.base, adapter, _rows(folder, job.tuning)).record if adapter and job.tuning else None
    if "sample" in job.stages:
        sample_missing(target, battery, wanted, store, step)
    completions = tuple(store.completions[id_] for id_ in wanted if id_ in store.completions)
    entry = CellEntry(job.cell, tuple(wanted), job.fingerprint, folder_hash(adapter) if adapter else None, effect)
    if "score" in job.stages:
        if len(completions) < len(wanted):
            missing = len(wanted) - len(completions)
            raise SpilloverError(f"{missing} of {len(wanted)} answers are not there. Run the stage sample first.")
        score_missing([behavior for behavior, _ in battery.behaviors], battery.judge, completions, store, step)
    return CellResult(completions, tuple(store.scores.values()), entry)


def _rows(folder: RunFolder, tuning: Tuning) -> list[Example]:
    """The rows that the adapter is trained on. Raises SpilloverError if the file is not as the run has written it."""
    path = folder.path / tuning.rows
    examples = _examples(path, path.stat().st_mtime_ns if path.exists() else 0)
    if hash_of([example.messages for example in examples]) != tuning.rows_hash:
        raise SpilloverError(f"{path}: was changed while the run was going on. Start the run again.")
    return examples


@lru_cache(8)
def _examples(path: Path, _changed: int) -> list[Example]:
    """The rows of a file, read once for all cells of a process. `_changed`: when it was last written, in ns."""
    return file_examples(path)


def read_behavior(path: Path) -> Behavior:
    """A behavior as the run's folder keeps it, read once for all cells of a process."""
    return _behavior(path, path.stat().st_mtime_ns)


@lru_cache(64)
def _behavior(path: Path, _changed: int) -> Behavior:
    return Behavior.model_validate(json.loads(path.read_text(encoding="utf-8")), strict=False)


def fingerprint_of(base: Path, rows: Any, training: Training | None, seed: int | None, battery: Battery) -> str:
    """Hash of everything that decides a cell's results. `rows`: what decides its training rows, None without any."""
    behaviors = [
        [behavior.rubric_hash, behavior.model_dump(mode="json", include={"name", "formats", "questions"}), count]
        for behavior, count in battery.behaviors
    ]
    return hash_of(
        {
            "base": folder_hash(base),
            "rows": rows,
            "training": training.model_dump(mode="json") if training else None,
            "seed": seed,
            "behaviors": behaviors,
            "formats": battery.formats,
            "sampling": battery.sampling.model_dump(mode="json"),
            "judge": battery.judge,
            "prompt_prefix": battery.prompt_prefix,
        }
    )
