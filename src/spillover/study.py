"""The whole experiment, stage after stage: train, sample, score, rates, report. Read this first.

A study is models x conditions x seeds; one combination is a cell. What a cell has finished lies in files and is found
again by hashes of everything that went into it: a run killed at any moment goes on where it was, and a changed setting
redoes what depends on it and nothing else.
"""

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from spillover import records
from spillover.behaviors import Behavior, load_behavior
from spillover.compute import Progress, run_side_by_side
from spillover.config import BASE, Sampling, Study, Training, load_study
from spillover.datasets import load_examples
from spillover.evaluation.judging import judged, score
from spillover.evaluation.sample import Request, in_batches, sample
from spillover.models import check_roles, folder_hash, load_model, load_tokenizer, model_folder
from spillover.records import Cell, Completion, Example, Rate, Score
from spillover.report import write_report
from spillover.rundir import RunDir, folder_atomically, hash_of, provenance, write_atomically
from spillover.stats import Judged, summarize

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
    sampling: Sampling
    behaviors: tuple[tuple[Behavior, int], ...]  # with completions per question
    threads: int

    def __str__(self) -> str:
        return str(self.cell)

    @property
    def data_hash(self) -> str:
        """Hash of the training rows."""
        return hash_of([example.messages for example in self.examples])


def run(study_file: Path, out: Path, on_progress: Callable[[Progress], None] = lambda _: None) -> RunDir:
    """Runs a study into the folder `out`, or goes on with it. Raises SpilloverError for bad input, before any work."""
    study = load_study(study_file)
    jobs = plan(study, study_file.parent, out)
    run_dir = RunDir(out)
    with run_dir.writing():
        write_inputs(study, jobs, run_dir)
        workers = max(1, (os.cpu_count() or 1) // jobs[0].threads)
        run_side_by_side(run_cell, jobs, workers, on_progress)
        write_rates(jobs, run_dir)
        write_report(run_dir)
    return run_dir


def plan(study: Study, folder: Path, out: Path) -> list[Job]:
    """The cells of a study as jobs. Reads and checks every input: models, chat templates, rows, behaviors."""
    bases = {name: model_folder(model, folder) for name, model in study.models.items()}
    examples = {name: tuple(load_examples(condition, folder)) for name, condition in study.conditions.items()}
    for base in bases.values():
        check_roles(base, itertools.chain.from_iterable(examples.values()))
    behaviors = tuple((load_behavior(name, folder), count) for name, count in study.behaviors.items())
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
            sampling=study.sampling,
            behaviors=behaviors,
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
        "models": {job.cell.model: folder_hash(job.base) for job in jobs},
        "data": {job.cell.condition: job.data_hash for job in jobs if job.examples},
        "behaviors": {behavior.name: hash_of(behavior.model_dump()) for behavior, _ in jobs[0].behaviors},
    }
    write_atomically(run_dir.manifest, json.dumps(manifest, indent=2) + "\n")


def run_cell(job: Job, step: Step) -> None:
    """One cell from base model to scores. Each stage does what is not done yet."""
    torch.set_num_threads(job.threads)
    adapter = train(job, step) if job.examples else None
    wanted = wanted_completions(job, adapter)
    sample_missing(job, adapter, wanted, step)
    score_missing(job, wanted, step)


def train(job: Job, step: Step) -> Path:
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
        return folder
    from spillover.finetuning import finetune  # peft and trl take 10 s to import, a finished cell needs neither

    with folder_atomically(folder) as part:
        log = finetune(
            job.base, list(job.examples), job.training, job.cell.seed or 0, part, lambda n, of: step("train", n, of)
        )
        write_atomically(part / "training.json", json.dumps({"made_from": made_from} | log, indent=1) + "\n")
    return folder


def wanted_completions(job: Job, adapter: Path | None) -> dict[str, Completion]:
    """Every completion that the study wants of a cell, by id, its answer still empty.

    The id is a hash of everything that decides the answer, and seeds its random stream.
    """
    origin: dict[str, Any] = {
        "model_hash": folder_hash(job.base),
        "adapter_hash": folder_hash(adapter) if adapter else None,
        "template_hash": hash_of(load_tokenizer(job.base).chat_template),
    }
    wanted = {}
    for behavior, completions_per_question in job.behaviors:
        for question in behavior.questions:
            for number in range(completions_per_question):
                asked = (behavior.name, question.id, question.text, number)
                completion = Completion(
                    id=hash_of(origin, job.sampling.model_dump(), asked),
                    **asdict(job.cell),
                    behavior=behavior.name,
                    question_id=question.id,
                    category=question.category,
                    number=number,
                    question=question.text,
                    text="",
                    stop_reason="",
                    tokens=0,
                    **origin,
                )
                wanted[completion.id] = completion
    return wanted


def sample_missing(job: Job, adapter: Path | None, wanted: dict[str, Completion], step: Step) -> None:
    """Samples the completions that are not on disk yet and appends them, batch after batch."""
    path = RunDir(job.run).completions
    missing = wanted.keys() - {completion.id for completion in records.read_appended(path, Completion)}
    if not missing:
        return
    streams: dict[str, list[str]] = defaultdict(list)  # question -> ids
    for completion in wanted.values():
        streams[completion.question].append(completion.id)
    model, tokenizer = load_model(job.base, adapter), load_tokenizer(job.base)
    done = 0
    # Always the same batches: one that was cut short is sampled whole again, and its answers are the same.
    for batch in in_batches([Request(question, tuple(ids)) for question, ids in streams.items()]):
        ids = [id_ for request in batch for id_ in request.streams]
        if not missing.isdisjoint(ids):
            answers = itertools.chain.from_iterable(sample(model, tokenizer, batch, **job.sampling.model_dump()))
            sampled = dict(zip(ids, answers, strict=True))
            records.append(path, [replace(wanted[id_], **asdict(sampled[id_])) for id_ in ids if id_ in missing])
            done += len(missing.intersection(ids))
            step("sample", done, len(missing))


def score_missing(job: Job, wanted: dict[str, Completion], step: Step) -> None:
    """Judges the cell's completions that have no scores yet under their behavior's rubrics."""
    run_dir = RunDir(job.run)
    known = {(row.completion_id, row.rubric_hash) for row in records.read_appended(run_dir.scores, Score)}
    completions = [c for c in records.read_appended(run_dir.completions, Completion) if c.id in wanted]
    for number, (behavior, _) in enumerate(job.behaviors, 1):
        own = [c for c in completions if c.behavior == behavior.name and (c.id, behavior.rubric_hash) not in known]
        records.append(run_dir.scores, score(own, behavior))
        step("score", number, len(job.behaviors))


def write_rates(jobs: list[Job], run_dir: RunDir) -> None:
    """Writes what the rules make of every completion (judged.csv), and one row per cell and behavior (rates.csv)."""
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion)}
    scores = {
        (row.completion_id, row.rubric, row.rubric_hash): row for row in records.read_appended(run_dir.scores, Score)
    }
    all_judged: list[Judged] = []
    rates: list[Rate] = []
    for job in jobs:
        wanted = wanted_completions(job, run_dir.adapter(job.cell) if job.examples else None)
        for behavior, _ in job.behaviors:
            own = [completions[id_] for id_, completion in wanted.items() if completion.behavior == behavior.name]
            rows = judged(own, scores, behavior)
            all_judged += rows
            rates.append(
                Rate(
                    **asdict(job.cell),
                    behavior=behavior.name,
                    scope=behavior.scope,
                    event=behavior.rate,
                    rule=behavior.rule,
                    judge=behavior.judge,
                    **summarize(rows),
                )
            )
    write_atomically(run_dir.judged, records.to_csv(Judged, all_judged))
    write_atomically(run_dir.rates, records.to_csv(Rate, rates))
