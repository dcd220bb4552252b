"""The whole experiment, stage after stage: train, sample, score, rates, report. Read this first.

A study is models x conditions x seeds; one combination is a cell. What a cell has finished lies in files and is found
again by hashes of everything that went into it: a run killed at any moment goes on where it was, and a changed setting
redoes what depends on it and nothing else.
"""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from spillover import records
from spillover.behaviors import load_behavior
from spillover.compute import Progress, run_side_by_side
from spillover.config import BASE, Study, Training, load_study
from spillover.datasets import load_examples
from spillover.evaluation.canary import check_judge
from spillover.evaluation.measuring import (
    Questioning,
    Subject,
    check,
    forget_cells,
    keep_wanted,
    sample_missing,
    score_missing,
    wanted_completions,
    write_behaviors,
    write_rates,
)
from spillover.models import check_roles, folder_hash, model_folder
from spillover.records import Cell, Completion, Example
from spillover.report import write_report
from spillover.rundir import RunDir, folder_atomically, hash_of, provenance, write_atomically

LARGE_MODEL_BYTES = 1_000_000_000  # models above this run one at a time

Step = Callable[[str, int, int], None]  # (stage, done, of)


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to take one cell from its base model to its scores."""

    run: Path
    cell: Cell
    base: Path
    examples: tuple[Example, ...]
    training: Training
    questioning: Questioning
    threads: int

    def __str__(self) -> str:
        return str(self.cell)

    @property
    def data_hash(self) -> str:
        """Hash of the training rows."""
        return hash_of([example.messages for example in self.examples])

    @property
    def subject(self) -> Subject:
        """Who is asked, once trained."""
        return Subject(self.cell, self.base, RunDir(self.run).adapter(self.cell) if self.examples else None)

    def wanted(self) -> dict[str, Completion]:
        """The completions that the study wants of the cell, by id."""
        return wanted_completions(self.subject, self.questioning)


def run(study_file: Path, out: Path, on_progress: Callable[[Progress], None] = lambda _: None) -> RunDir:
    """Runs a study into the folder `out`, or goes on with it. Raises SpilloverError for bad input, before any work."""
    study = load_study(study_file)
    jobs = plan(study, study_file.parent, out)
    run_dir = RunDir(out)
    with run_dir.writing():
        write_inputs(study, jobs, run_dir)
        if study.judge and jobs[0].questioning.judged_by_model:
            check_judge(study.judge, run_dir)
        workers = max(1, (os.cpu_count() or 1) // jobs[0].threads)
        run_side_by_side(run_cell, jobs, workers, on_progress)
        forget_cells(run_dir)
        for job in jobs:
            keep_wanted(job.cell, job.wanted(), run_dir)
        write_rates([job.cell for job in jobs], run_dir)
        write_report(run_dir)
    return run_dir


def plan(study: Study, folder: Path, out: Path) -> list[Job]:
    """The cells of a study as jobs. Reads and checks every input: models, chat templates, rows, behaviors."""
    bases = {name: model_folder(model, folder) for name, model in study.models.items()}
    examples = {name: tuple(load_examples(condition, folder)) for name, condition in study.conditions.items()}
    for base in bases.values():
        check_roles(base, itertools.chain.from_iterable(examples.values()))
    behaviors = tuple((load_behavior(name, folder), count) for name, count in study.behaviors.items())
    questioning = Questioning(behaviors, study.sampling, tuple(study.formats), study.judge)
    check(questioning)
    cells = [
        Cell(model, condition, seed)
        for model in study.models
        for condition in study.conditions
        for seed in ([None] if condition == BASE else study.seeds)
    ]
    large = any(
        sum(f.stat().st_size for f in base.glob("*.safetensors")) > LARGE_MODEL_BYTES for base in bases.values()
    )
    cpus = os.cpu_count() or 1
    workers = 1 if large or torch.cuda.is_available() else min(cpus, len(cells))
    return [
        Job(
            run=out,
            cell=cell,
            base=bases[cell.model],
            examples=examples[cell.condition],
            training=study.conditions[cell.condition].training or study.training,
            questioning=questioning,
            threads=cpus // workers,
        )
        for cell in cells
    ]


def write_inputs(study: Study, jobs: list[Job], run_dir: RunDir) -> None:
    """Writes what the run is made from: the resolved study, the training rows, versions and hashes."""
    for condition, job in {job.cell.condition: job for job in jobs if job.examples}.items():
        write_atomically(run_dir.examples(condition), "".join(map(records.to_line, job.examples)))
    write_atomically(run_dir.study, yaml.safe_dump(study.model_dump(), sort_keys=False, allow_unicode=True))
    manifest = provenance() | {
        "name": study.name,
        "description": study.description,
        "models": {job.cell.model: folder_hash(job.base) for job in jobs},
        "data": {job.cell.condition: job.data_hash for job in jobs if job.examples},
        "behaviors": {behavior.name: hash_of(behavior.model_dump()) for behavior, _ in jobs[0].questioning.behaviors},
    }
    write_behaviors([behavior for behavior, _ in jobs[0].questioning.behaviors], run_dir)
    write_atomically(run_dir.manifest, json.dumps(manifest, indent=2) + "\n")


def run_cell(job: Job, step: Step) -> None:
    """One cell from base model to scores. Each stage does what is not done yet."""
    torch.set_num_threads(job.threads)
    if job.examples:
        train(job, step)
    run_dir, wanted = RunDir(job.run), job.wanted()
    sample_missing(job.subject, job.questioning, wanted, run_dir, step)
    answered = [row for row in records.read_appended(run_dir.completions, Completion) if row.id in wanted]
    score_missing(
        [behavior for behavior, _ in job.questioning.behaviors], job.questioning.judge, answered, run_dir, step
    )


def train(job: Job, step: Step) -> None:
    """Makes the cell's adapter unless there is one made from the same base, rows, settings and seed."""
    folder = RunDir(job.run).adapter(job.cell)
    made_from = {
        "base": folder_hash(job.base),
        "data": job.data_hash,
        "training": job.training.model_dump(),
        "seed": job.cell.seed,
    }
    record = folder / "training.json"
    if record.exists() and json.loads(record.read_text())["made_from"] == made_from:
        return
    from spillover.finetuning import finetune  # peft and trl take 10 s to import, a finished cell needs neither

    with folder_atomically(folder) as part:
        log = finetune(
            job.base, list(job.examples), job.training, job.cell.seed or 0, part, lambda n, of: step("train", n, of)
        )
        write_atomically(part / "training.json", json.dumps({"made_from": made_from} | log, indent=1) + "\n")
