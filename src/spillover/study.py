"""The whole experiment, stage after stage: train, sample, score, rates, comparisons, report. Read this first.

A study is models x conditions x seeds; one combination is a cell (`runs/cell.py`). Cells run side by side, here or on a
Ray cluster. A run killed at any moment goes on where it was, a changed setting redoes what depends on it and nothing
else, and a cell that fails is reported while the rest goes on.
"""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spillover import records
from spillover.behaviors import Behavior
from spillover.config import BASE, Study, to_yaml
from spillover.data import file_examples
from spillover.data.advice import advice
from spillover.data.controls import prompts_of
from spillover.data.tokens import rows_cut
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance, write_atomically
from spillover.finetuning.settings import check_training, count_parameters
from spillover.judges.canary import check_judge
from spillover.models.load import check_roles, gpu_count, weight_files
from spillover.organism.dial import build_model
from spillover.records import Cell, Example
from spillover.report import write_report
from spillover.runs.cell import Asked, CellJob, CellResult, Tuning, fingerprint_of, run_cell
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.frames import Run
from spillover.runs.inputs import Inputs, builds_of, read_inputs, read_study, with_built
from spillover.runs.progress import raise_failures
from spillover.runs.ray import check_cluster, run_on_ray
from spillover.runs.results import results_of
from spillover.runs.self_distill import DistillJob, distill
from spillover.runs.store import AnswerStore
from spillover.runs.tables import write_tables
from spillover.workers import Failure, OnProgress, OnResult, Step, run_side_by_side

STAGES = ("data", "train", "sample", "score", "report")
LARGE_MODEL_BYTES = 1_000_000_000  # models above this run one at a time
# What workers import, once for all of them.
PRELOAD = ("spillover.runs.cell", "spillover.finetuning.trainer", "spillover.models.sampler")


@dataclass(frozen=True)
class RunOptions:
    """How a study is run. `stages`: of STAGES, those to do. `on`: a Ray cluster, or None for this machine alone.

    `changes`: settings in the place of the study file's, as "training.rank=8".
    """

    stages: tuple[str, ...] = STAGES
    on: str | None = None
    changes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises SpilloverError for an unknown stage, or a cluster at which nothing answers."""
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise SpilloverError(f"--only {unknown[0]}: no such stage. There are: {', '.join(STAGES)}.")
        if self.on:
            check_cluster(self.on)


def run(
    study: Study | Path | str,
    out: Path | str | None = None,
    *,
    options: RunOptions = RunOptions(),
    on_progress: OnProgress = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Run:
    """Runs a study into the folder `out` (runs/<name> if it is None), or goes on with it.

    `study` is a Study or the path of a study file; paths in it are relative to that file, or to the working directory.
    `on_progress` gets every step of every cell, `log` lines that a person should read.

    Raises SpilloverError for bad input, before any work; and when all is done, for cells that failed.

    >>> study = Study(name="tiny", models={"organism": "organism/consistent"}, conditions={"base": {}},
    ...     behaviors={"world_facts": 1}, sampling={"max_new_tokens": 48})
    >>> run(study, "runs/tiny").rates()[["behavior", "n"]].values.tolist()
    [['world_facts', 120]]
    """
    source = Path() if isinstance(study, Study) else Path(study).parent
    if not isinstance(study, Study):
        study = read_study(Path(study), options.changes)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / study.name)
    options.check()
    with folder.writing():
        if folder.manifest.exists() and not folder.study.exists():
            raise SpilloverError(f"{folder.path}: holds answers that no study has put there. Choose another --out.")
        folder.errors.unlink(missing_ok=True)
        inputs = read_inputs(study, source)
        if builds := builds_of(study):
            raise_failures(run_side_by_side(build_model, builds, os.cpu_count() or 1, on_progress), folder)
            inputs = with_built(inputs, source)
        behaviors = write_inputs(inputs, folder)
        jobs, distill_jobs = plan(inputs, folder, options)
        store = AnswerStore(folder)
        current = {job.cell: job.fingerprint for job in jobs}
        entries = {cell: e for cell, e in folder.read_cells().items() if current.get(cell) == e.fingerprint}

        def absorb(job: CellJob, result: CellResult) -> None:
            """Takes what a cell has made into the run's own files."""
            store.add_completions(result.completions)
            store.add_scores(result.scores)
            if result.entry is not None:
                entries[job.cell] = result.entry
                folder.write_cells(entries[job.cell] for job in jobs if job.cell in entries)
                shutil.rmtree(folder.part(job.cell).path, ignore_errors=True)

        def run_all(function: Callable[[Any, Step], Any], todo: Sequence[Any]) -> list[Failure]:
            return _run_all(
                function, todo, inputs, options.on, on_progress, absorb if function is run_cell else _nothing
            )

        ready, _ = _with_answers(jobs, distill_jobs, ())
        todo = [job for job in ready if not job.is_done(entries.get(job.cell), store, behaviors, judge_failures=False)]
        waiting = [job for job in jobs if job.cell not in {job.cell for job in ready}]
        for line in check_training_jobs(inputs, [*todo, *waiting], options):
            log(line)
        failures = run_all(distill, [job for job in distill_jobs if job.rows_hash() is None])
        if waiting:
            ready, failures = _with_answers(jobs, distill_jobs, failures)
            answered = [job for job in ready if job.cell in {job.cell for job in waiting}]
            for line in check_training_jobs(inputs, answered, options):
                log(line)
            todo += answered
        _write_manifest(inputs, ready, folder, len(jobs) - len(todo))
        if {"train", "sample", "score"} & {*options.stages}:
            if todo and "score" in options.stages and inputs.battery(BASE).judged_by_model:
                check_judge(str(study.judge), folder.judges, study.trust_judge, log=log)
            _seed_parts(todo, store)
            failures += run_all(run_cell, [job for job in todo if job.trains or job.tuning is None])
            failures += run_all(run_cell, [job for job in todo if not job.trains and job.tuning is not None])
        if "report" in options.stages:
            failed = {failure.job for failure in failures}
            failures += _finish(
                [job for job in ready if str(job) not in failed], inputs, folder, store, entries, behaviors
            )
        raise_failures(failures, folder, len(jobs), whole=all(stage in options.stages for stage in STAGES[1:4]))
    return Run(folder.path)


def _nothing(job: Any, result: Any) -> None:
    """Takes the result of a job that has written all it makes."""


def write_inputs(inputs: Inputs, folder: RunFolder) -> dict[str, Behavior]:
    """Writes the settings, training rows and behaviors that the cells read. Returns the behaviors by file name.

    Raises SpilloverError if a file of training rows is not as an earlier run wrote it.
    """
    for name, rows in inputs.rows.items():
        path = folder.examples(name)
        record = path.with_suffix(".made.json")
        if path.exists() and record.exists():
            written = json.loads(record.read_text(encoding="utf-8"))["file_sha256"]
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != written:
                raise SpilloverError(
                    f"{path}: was changed since this run wrote it. To train on other rows, name a file of yours as "
                    f"conditions.{name}.data; to go on with the rows of the study, delete {path.name}."
                )
        text = "".join(map(records.to_line, rows.examples))
        how_made = rows.how_made | {"file_sha256": hashlib.sha256(text.encode()).hexdigest()}
        if not path.exists() or not record.exists() or how_made["file_sha256"] != written:
            record.unlink(missing_ok=True)  # first, and written last: it vouches for the rows
            write_atomically(path, text)
            write_atomically(record, json.dumps(how_made, indent=1) + "\n")
    write_atomically(folder.study, to_yaml(inputs.study.model_dump()))
    behaviors = [*inputs.behaviors.values()]
    return {
        path.name: b for path, b in zip(folder.write_behaviors(behaviors, keep_questions=False), behaviors, strict=True)
    }


def plan(
    inputs: Inputs, folder: RunFolder, options: RunOptions = RunOptions()
) -> tuple[list[CellJob], list[DistillJob]]:
    """The cells of a study as jobs, and the answers that bases have to give before."""
    study, path, here = inputs.study, folder.path.absolute(), RunFolder(Path())
    distill_jobs = {
        (model, name): DistillJob(
            folder=path,
            name=f"{model}/{name}: answers",
            prompts=here.examples(name).relative_to("."),
            prompts_hash=hash_of(prompts_of(rows.examples)),
            rows=here.examples(name, model),
            base=inputs.bases[model],
            condition=study.conditions[name],
            sampling=study.sampling,
        )
        for model in study.models
        for name, rows in inputs.rows.items()
        if rows.self_distilled
    }
    jobs = []
    for cell in (Cell(*names) for names in study.cells):
        source, base, battery = inputs.source(cell.condition), inputs.bases[cell.model], inputs.battery(cell.condition)
        rows, distilled = inputs.rows.get(source), distill_jobs.get((cell.model, source))
        training = study.conditions[source].training or study.training
        decided_by = distilled.decided_by if distilled else rows.hash if rows else None
        tuning = None
        if rows:
            path_of_rows = distilled.rows if distilled else here.examples(source)
            rows_hash = "" if distilled else rows.hash  # of rows that are still to be answered it is not known
            tuning = Tuning(replace(cell, condition=source), path_of_rows, rows_hash, training)
        jobs.append(
            CellJob(
                folder=path,
                cell=cell,
                base=base,
                tuning=tuning,
                asked=Asked.of(battery),
                fingerprint=fingerprint_of(base, decided_by, training if rows else None, cell.seed, battery),
                stages=options.stages,
            )
        )
    return jobs, [*distill_jobs.values()]


def _with_answers(
    jobs: Sequence[CellJob], distill_jobs: Sequence[DistillJob], failures: Sequence[Failure]
) -> tuple[list[CellJob], list[Failure]]:
    """The cells whose training rows are there, with their hash; and the others, by the failures of their base."""
    by_rows = {job.rows: job for job in distill_jobs}
    reasons = {failure.job: failure for failure in failures}
    ready, lacking = [], []
    for job in jobs:
        distilled = by_rows.get(job.tuning.rows) if job.tuning else None
        if distilled is None or job.tuning is None:
            ready.append(job)
        elif rows_hash := distilled.rows_hash():
            ready.append(replace(job, tuning=replace(job.tuning, rows_hash=rows_hash)))
        elif failure := reasons.get(str(distilled)):
            reason = f"its base could not answer its prompts: {failure.reason}"
            lacking.append(replace(failure, job=str(job), reason=reason))
    return ready, lacking


def check_training_jobs(inputs: Inputs, jobs: Sequence[CellJob], options: RunOptions) -> list[str]:
    """What a person should read before the cells that still have to be trained are: advice, and rows that are cut.

    Raises SpilloverError if a setting does not fit the model or the rows, the chat template refuses rows, or a row
    would lose its whole answer.
    """
    lines: dict[str, None] = {}
    training = [job for job in jobs if job.trains and not job.is_trained and "train" in options.stages]
    for job in {(job.cell.model, job.cell.condition): job for job in training}.values():  # for all seeds
        name = f"{job.cell.model}/{job.cell.condition}"
        assert job.tuning is not None
        rows, settings = inputs.rows[job.cell.condition], job.tuning.training
        examples: Sequence[Example] = rows.examples
        if rows.self_distilled and job.tuning.rows_hash:
            examples = file_examples(job.folder / job.tuning.rows)
        else:
            check_roles(job.base, examples)
            check_training(job.base, examples, settings)
            if line := advice(count_parameters(job.base), examples):
                lines[line] = None
        if several := sum(sum(turn["role"] == "assistant" for turn in e.messages) > 1 for e in examples):
            what = f"{several:,} of {len(examples):,} rows have several turns of the assistant"
            lines[f"{name}: {what}; the last one of each row alone is trained on."] = None
        if not job.tuning.rows_hash:
            continue  # its base has not answered yet
        try:
            cut = rows_cut(job.base, examples, settings)
        except SpilloverError as error:
            raise SpilloverError(f"{name}: {error}") from error
        if cut:
            limit = settings.max_length_tokens
            what = f"{cut:,} of {len(examples):,} rows are longer than training.max_length_tokens = {limit:,}"
            lines[f"{name}: {what}: the ends of their answers are cut off, and no row is left out."] = None
    return [*lines]


def _threads(inputs: Inputs) -> int:
    """Threads for each cell: all for large models and on a GPU, which take one cell at a time."""
    cpus, study = os.cpu_count() or 1, inputs.study
    if study.resources.cpus:
        return study.resources.cpus
    bytes_of_weights = [sum(file.stat().st_size for file in weight_files(base)) for base in inputs.bases.values()]
    large = max(bytes_of_weights) > LARGE_MODEL_BYTES
    return cpus if large or gpu_count() else max(1, cpus // len(study.cells))


def _run_all(
    function: Callable[[Any, Step], Any],
    jobs: Sequence[Any],
    inputs: Inputs,
    on: str | None,
    on_progress: OnProgress,
    on_result: OnResult,
) -> list[Failure]:
    """Runs jobs here, as many at once as there are CPUs and GPUs for, or on the cluster."""
    if not jobs:
        return []
    threads, gpus = _threads(inputs), inputs.study.resources.gpus
    jobs = [replace(job, threads=threads) for job in jobs]
    if on is not None:
        return run_on_ray(function, jobs, on, threads, gpus, on_progress, on_result)
    workers = max(1, (os.cpu_count() or 1) // threads)
    shares = _gpu_shares(gpus)[:workers]
    return run_side_by_side(function, jobs, len(shares) or workers, on_progress, shares, on_result, PRELOAD)


def _gpu_shares(gpus: float) -> list[str]:
    """The GPUs for each cell at once that takes so many, as CUDA_VISIBLE_DEVICES; a single cell takes what there is."""
    count = gpu_count() if gpus else 0
    if not count:
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    if gpus < 1:
        return [name for name in names for _ in range(int(1 / gpus))]
    size = min(int(gpus), count)
    return [",".join(names[i : i + size]) for i in range(0, count - size + 1, size)]


def _seed_parts(jobs: Sequence[CellJob], store: AnswerStore) -> None:
    """Gives cells that are not done the rows that the run has of them, so that none is sampled or judged again."""
    cells = {job.cell: RunFolder(job.folder).part(job.cell) for job in jobs}
    completions = defaultdict(list)
    for row in store.completions.values():
        if row.cell in cells:
            completions[row.cell].append(row)
    owner = {row.id: cell for cell, rows in completions.items() for row in rows}
    scores = defaultdict(list)
    for score in store.scores.values():
        if score.completion_id in owner:
            scores[owner[score.completion_id]].append(score)
    for cell, rows in completions.items():
        part = AnswerStore(cells[cell])
        part.add_completions(rows)
        part.add_scores(scores[cell])


def _write_manifest(inputs: Inputs, jobs: Sequence[CellJob], folder: RunFolder, cells_before: int) -> None:
    """Writes versions and hashes of everything that the run is made from, and how many cells are done already."""
    data = {f"{job.cell.model}/{job.cell.condition}": job.tuning.rows_hash for job in jobs if job.tuning}
    manifest = provenance() | {
        "name": inputs.study.name,
        "description": inputs.study.description,
        **inputs.hashes,
        "data": data,
        "comparisons": folder.read_manifest().get("comparisons", []),
        "cells_before": cells_before,
    }
    folder.write_manifest(manifest)


def _finish(
    jobs: Sequence[CellJob],
    inputs: Inputs,
    folder: RunFolder,
    store: AnswerStore,
    entries: Mapping[Cell, CellEntry],
    behaviors: Mapping[str, Behavior],
) -> list[Failure]:
    """From what the cells have made to the run's tables and report.

    Cells that are not done, or whose adapter is gone, count in none of these; returns them.
    """
    failures, done = [], {}
    for job in jobs:
        if job.is_done(entries.get(job.cell), store, behaviors):
            done[job.cell] = entries[job.cell]
        else:
            reason = "not done yet. Run the stages train, sample and score first."
            failures.append(Failure(str(job), reason))
    if not done:
        return failures
    folder.write_cells(done.values())
    ids = [id_ for entry in done.values() for id_ in entry.completions]
    store.rewrite({id_: place for place, id_ in enumerate(ids)})
    shutil.rmtree(folder.parts, ignore_errors=True) if len(done) == len(inputs.study.cells) else None
    results = results_of(folder, {cell: e.completions for cell, e in done.items()}, store, inputs.study)
    write_tables(results)
    write_report(results)
    return failures
