"""The whole experiment, stage after stage: train, sample, score, rates, comparisons, report. Read this first.

A study is models x conditions x seeds; one combination is a cell (`cell.py`). Cells run side by side, here or on a Ray
cluster. A run killed at any moment goes on where it was, a changed setting redoes what depends on it and nothing else,
and a cell that fails is reported while the rest goes on.
"""

import itertools
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spillover import records
from spillover.behaviors import load_behavior
from spillover.config import Condition, Study, load_study, to_yaml
from spillover.data import load_examples, make_examples
from spillover.data.advice import advice
from spillover.data.tokens import fitting_rows
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance, write_atomically
from spillover.finetuning import check_training, count_parameters
from spillover.judges.canary import check_judge
from spillover.models.load import check_roles, folder_hash, model_folder, weight_files
from spillover.models.target import Battery
from spillover.organism.dial import Build, build_model, model_to_build
from spillover.records import Cell, Completion, Example, Score
from spillover.report import write_report
from spillover.runs.cell import Job, run_cell
from spillover.runs.comparing import write_matrix
from spillover.runs.folder import RunFolder
from spillover.runs.measure import forget_cells, keep_wanted, write_behaviors, write_rates
from spillover.runs.progress import DONE, RUNNING, State, expect, of_these, tell_failure
from spillover.runs.ray import check_cluster, run_on_ray
from spillover.runs.self_distill import Distilling, check_prompts, distill, distilled
from spillover.runs.shared import handing_over, open_shared
from spillover.workers import Failure, OnProgress, Progress, Step, run_side_by_side

STAGES = ("data", "train", "sample", "score", "report")
LARGE_MODEL_BYTES = 1_000_000_000  # models above this run one at a time
SELF_DISTILLED = "self_distilled"
ERRORS = "errors.txt"  # in the run folder: tracebacks of what failed
UNSEEN = "Its worker's machine may not see that folder. Give --shared."


@dataclass(frozen=True)
class RunOptions:
    """How a study is run. `stages`: of STAGES, those to do. `on`: a Ray cluster, or None for this machine alone.

    `shared`: a folder, on any file system that fsspec knows, by way of which Ray workers hand over what they make; None
    where they all see the run folder. `changes`: settings in the place of the study file's, as "training.rank=8".
    """

    stages: tuple[str, ...] = STAGES
    on: str | None = None
    shared: str | None = None
    changes: tuple[str, ...] = ()


def run(
    study_file: Path,
    out: Path,
    on_progress: OnProgress = lambda _: None,
    how: RunOptions = RunOptions(),
    say: Callable[[str], None] = lambda _: None,
) -> RunFolder:
    """Runs a study into the folder `out`, or goes on with it; `say` takes what a person should read before it starts.

    Raises SpilloverError for bad input, before any work; and when all is done, for cells that failed.
    """
    study, run_dir = load_study(study_file, how.changes), RunFolder(out)
    how = _checked(how)
    with run_dir.writing():
        if run_dir.manifest.exists() and not run_dir.study.exists():
            raise SpilloverError(f"{out}: holds answers that no study has put there. Choose another --out.")
        (run_dir.path / ERRORS).unlink(missing_ok=True)
        if builds := _builds(study):
            read_inputs(study, study_file.parent)  # whatever is wrong with them is said before hours are spent
            _or_raise(run_side_by_side(build_model, builds, os.cpu_count() or 1, on_progress), run_dir)
        jobs, distillings = plan(study, study_file.parent, run_dir, how)
        own = {name for name, condition in study.conditions.items() if _plain(condition) != condition}
        for line in (*_advice(jobs), *_cuts([job for job in jobs if job.cell.condition not in own])):
            say(line)
        for job in jobs:  # before the settings change that they are read with
            ready, _ = _with_answers([job], distillings, ())
            expect(run_dir.part(job.cell).state, ready[0].fingerprint if ready else "")
        write_atomically(run_dir.study, to_yaml(study.model_dump()))
        with handing_over(distillings, how.shared):
            distilled_not = _run_all(distill, distillings, study, how, on_progress)
        ready, failures = _with_answers(jobs, distillings, distilled_not)
        states = {str(job): run_dir.part(job.cell).state for job in jobs}
        for failure in failures:
            tell_failure(states[failure.job], "", failure.reason)
        for line in _cuts([job for job in ready if job.cell.condition in own]):
            say(line)
        write_inputs(study, study_file.parent, ready, run_dir)
        if {"train", "sample", "score"} & {*how.stages}:
            if study.judge and "score" in how.stages and jobs[0].battery.judged_by_model:
                check_judge(study.judge, run_dir.judges, study.trust_judge)
            failures += _run_cells(study, ready, how, run_dir, on_progress)
        if "report" in how.stages:
            failed = {failure.job for failure in failures}
            failures += finish([job for job in ready if str(job) not in failed], run_dir)
    head = f"{len(failures)} of {len(jobs)} cells {'are' if len(failures) > 1 else 'is'} not done."
    goes_on = "The same command goes" if {*STAGES[1:4]} <= {*how.stages} else "Without --only the command goes"
    then = f"The others are in {run_dir.path}. " * (len(failures) < len(jobs)) + f"{goes_on} on with these."
    _or_raise(failures, run_dir, head, then)
    return run_dir


def _checked(how: RunOptions) -> RunOptions:
    if unknown := [stage for stage in how.stages if stage not in STAGES]:
        raise SpilloverError(f"--only {unknown[0]}: no such stage. There are: {', '.join(STAGES)}.")
    if how.shared and not how.on:
        raise SpilloverError("--shared goes with --on: cells on this machine write into the run folder itself.")
    if how.on:
        check_cluster(how.on)
    return replace(how, shared=open_shared(how.shared)) if how.shared else how


def plan(
    study: Study, folder: Path, run_dir: RunFolder, how: RunOptions = RunOptions()
) -> tuple[list[Job], list[Distilling]]:
    """The cells of a study as jobs, and the answers that bases have to give before.

    Raises SpilloverError for what `read_inputs` refuses, or a model that is not there.
    """
    examples, battery = read_inputs(study, folder)
    bases = {name: model_folder(model, folder).absolute() for name, model in study.models.items()}
    source = {name: condition.same_as or name for name, condition in study.conditions.items()}
    owner = uuid.uuid4().hex
    threads = _threads(study, list(bases.values()))
    jobs = [
        Job(
            run=run_dir.path.absolute(),
            cell=cell,
            base=bases[cell.model],
            trained=replace(cell, condition=source[cell.condition]),
            examples=examples[source[cell.condition]],
            training=study.conditions[source[cell.condition]].training or study.training,
            battery=replace(battery, prompt_prefix=study.conditions[cell.condition].prefix),
            threads=threads,
            stages=how.stages,
            shared=how.shared,
            owner=owner,
        )
        for cell in (Cell(*names) for names in study.cells)
    ]
    distillings = [
        Distilling(
            name=f"{model}/{name}: answers",
            run=run_dir.path.absolute(),
            folder=_distilled_folder(run_dir, name, model).absolute(),
            base=bases[model],
            condition=condition,
            rows=examples[name],
            sampling=study.sampling,
            threads=threads,
            shared=how.shared,
            owner=owner,
        )
        for model in study.models
        for name, condition in study.conditions.items()
        if condition.control and condition.control.kind == SELF_DISTILLED
    ]
    return jobs, distillings


def read_inputs(study: Study, folder: Path) -> tuple[dict[str, tuple[Example, ...]], Battery]:
    """Reads the rows of every condition, as far as they are known before any model has answered, and the behaviors.

    Raises SpilloverError for what is wrong with rows, behaviors or models, but for models that have to be built yet.
    """
    there = [model_folder(model, folder).absolute() for model in study.models.values() if not model_to_build(model)]
    examples = {name: tuple(load_examples(_plain(condition), folder)) for name, condition in study.conditions.items()}
    for name, condition in study.conditions.items():
        if _plain(condition) != condition:
            try:
                check_prompts(examples[name])
            except SpilloverError as error:
                raise SpilloverError(f"conditions.{name}: {error}") from None
    behaviors = {name: load_behavior(name, folder) for name in study.behaviors}
    for one, other in itertools.combinations(study.behaviors, 2):
        if behaviors[one].name == behaviors[other].name:
            raise SpilloverError(
                f"behaviors {one} and {other} are both called {behaviors[one].name}, and their answers could not be "
                "told apart. Give one of them another name in its file."
            )
    counts = tuple((behaviors[name], count) for name, count in study.behaviors.items())
    battery = Battery(counts, study.sampling, tuple(study.formats), study.judge)
    battery.check()
    for base in there:
        check_roles(base, itertools.chain.from_iterable(examples.values()))
        for name, rows in examples.items():
            if rows:
                check_training(base, rows, study.conditions[name].training or study.training)
    return examples, battery


def _plain(condition: Condition) -> Condition:
    """The condition as far as its rows are known before any model has answered."""
    own = condition.control and condition.control.kind == SELF_DISTILLED
    return condition.model_copy(update={"control": None}) if own else condition


def _distilled_folder(run_dir: RunFolder, condition: str, model: str) -> Path:
    return run_dir.data / condition / model


def _with_answers(
    jobs: Sequence[Job], distillings: Sequence[Distilling], failures: Sequence[Failure]
) -> tuple[list[Job], list[Failure]]:
    """The cells, with the rows that their bases have answered; and those that lack them, by the failures of these."""
    by_folder = {distilling.folder: distilling for distilling in distillings}
    reasons = {failure.job: failure for failure in failures}
    ready, lacking = [], []
    for job in jobs:
        folder = _distilled_folder(RunFolder(job.run), job.trained.condition, job.cell.model)
        distilling = by_folder.get(folder)
        if distilling is None:
            ready.append(job)
        elif str(distilling) in reasons:
            why = f"its base could not answer its prompts: {reasons[str(distilling)].reason}"
            lacking.append(replace(reasons[str(distilling)], job=str(job), reason=why))
        elif not distilling.done:
            lacking.append(Failure(str(job), f"its base's answers are not in {job.run}. {UNSEEN}"))
        else:
            ready.append(replace(job, examples=distilled(folder)))
    return ready, lacking


def _threads(study: Study, bases: Sequence[Path]) -> int:
    """Threads for each cell: all for large models and on a GPU, which take one cell at a time."""
    cpus = os.cpu_count() or 1
    if study.resources.cpus:
        return study.resources.cpus
    large = any(sum(f.stat().st_size for f in weight_files(base)) > LARGE_MODEL_BYTES for base in bases)
    return cpus if large or torch.cuda.is_available() else max(1, cpus // len(study.cells))


def _builds(study: Study) -> list[Build]:
    """The organisms that the study wants and that have not been built yet, each once, however it is written."""
    found = dict.fromkeys(map(model_to_build, study.models.values()))
    return [build for build in found if build is not None]


def _advice(jobs: Sequence[Job]) -> list[str]:
    """What the literature says of training such models on such rows, once for each."""
    parameters = {job.base: count_parameters(job.base) for job in jobs}
    said = (advice(parameters[job.base], list(job.examples)) for job in jobs if job.examples)
    return list(dict.fromkeys(line for line in said if line))


def _cuts(jobs: Sequence[Job]) -> list[str]:
    """How many rows training will cut, a line for each model and condition. Raises SpilloverError as `fitting_rows`."""
    lines = []
    todo = [job for job in jobs if job.trains and "train" in job.stages and not job.done]
    for name, job in {f"{job.cell.model}/{job.cell.condition}": job for job in todo}.items():  # for all seeds
        try:
            rows, cut = fitting_rows(job.base, job.examples, job.training)
        except SpilloverError as error:
            raise SpilloverError(f"{name}: {error}") from None
        if cut:
            limit = job.training.max_length_tokens
            what = f"{cut:,} of {len(rows):,} rows are longer than training.max_length_tokens = {limit:,}"
            lines.append(f"{name}: {what}: the ends of their answers are cut off, and no row is left out.")
    return lines


def write_inputs(study: Study, folder: Path, jobs: Sequence[Job], run_dir: RunFolder) -> None:
    """Writes what the run is made from: the training rows, versions and hashes."""
    for name, condition in study.conditions.items():
        if condition.data is not None and _plain(condition) == condition:
            examples, made = make_examples(condition, folder)
            write_atomically(run_dir.examples(name), "".join(map(records.to_line, examples)))
            write_atomically(run_dir.data / f"{name}.made.json", json.dumps(made, indent=1) + "\n")
    behaviors = [behavior for behavior, _ in jobs[0].battery.behaviors]
    manifest = provenance() | {
        "name": study.name,
        "description": study.description,
        "models": {job.cell.model: folder_hash(job.base) for job in jobs},
        "data": {f"{job.cell.model}/{job.cell.condition}": job.data_hash for job in jobs if job.examples},
        "behaviors": {behavior.name: hash_of(behavior.model_dump()) for behavior in behaviors},
    }
    write_behaviors(behaviors, run_dir)
    called = dict(zip(study.behaviors, (behavior.name for behavior in behaviors), strict=True))
    write_atomically(run_dir.behavior_names, json.dumps(called, indent=1) + "\n")
    write_atomically(run_dir.manifest, json.dumps(manifest, indent=2) + "\n")


def _run_all(
    function: Callable[[Any, Step], None],
    jobs: Sequence[Any],
    study: Study,
    how: RunOptions,
    on_progress: OnProgress,
    look: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Runs jobs here, as many at once as there are CPUs and GPUs for, or on the cluster."""
    if not jobs:
        return []
    threads, gpus = jobs[0].threads, study.resources.gpus
    if how.on is not None:
        return run_on_ray(function, jobs, how.on, threads, gpus, on_progress, look)
    workers = max(1, (os.cpu_count() or 1) // threads)
    shares = _gpu_shares(gpus)[:workers]
    return run_side_by_side(function, jobs, len(shares) or workers, on_progress, shares)


def _gpu_shares(gpus: float) -> list[str]:
    """The GPUs for each cell at once that takes so many, as CUDA_VISIBLE_DEVICES; a single cell takes what there is."""
    if not gpus or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    if gpus < 1:
        return [name for name in names for _ in range(int(1 / gpus))]
    size = min(int(gpus), count)
    return [",".join(names[i : i + size]) for i in range(0, count - size + 1, size)]


def _run_cells(
    study: Study, jobs: Sequence[Job], how: RunOptions, run_dir: RunFolder, on_progress: OnProgress
) -> list[Failure]:
    """Runs the cells: first those that train, then those that take an adapter of them."""
    told = [expect(run_dir.part(job.cell).state, job.fingerprint) for job in jobs]
    with handing_over(jobs, how.shared) as fetch:

        def look() -> None:
            """What cells on other machines say of themselves."""
            fetch()
            for job in jobs:
                state = of_these(run_dir.part(job.cell).state, job.fingerprint)
                if state.state == RUNNING and state.stage:
                    on_progress(Progress(str(job), len(jobs), state.stage, state.done, state.total))

        waves = [job for job in jobs if not job.reads], [job for job in jobs if job.reads]
        failures = [failure for wave in waves for failure in _run_all(run_cell, wave, study, how, on_progress, look)]
    return failures + _record(failures, jobs, told, run_dir)


def _record(
    failures: Sequence[Failure], jobs: Sequence[Job], told: Sequence[State], run_dir: RunFolder
) -> list[Failure]:
    """Writes down which cells failed; returns those that seem to have been run and have `told` nothing new since."""
    reasons = {failure.job: failure.reason for failure in failures}
    silent = []
    for job, before in zip(jobs, told, strict=True):
        state = run_dir.part(job.cell).state
        if str(job) in reasons:
            tell_failure(state, job.fingerprint, reasons[str(job)])
        elif before.state != DONE and of_these(state, job.fingerprint) == before:
            silent.append(Failure(str(job), f"its worker has written nothing to {run_dir.path}. {UNSEEN}"))
    return silent


def finish(jobs: Sequence[Job], run_dir: RunFolder) -> list[Failure]:
    """From what the cells have made to completions, scores, rates, comparisons and the report of the run.

    Cells that are not done, or whose adapter is gone, count in none of these; returns them.
    """
    failures: list[Failure] = []
    wanted: dict[Cell, dict[str, Completion]] = {}
    for job in jobs:
        try:
            if not job.done:
                raise SpilloverError("not done yet. Run the stages train, sample and score first.")
            wanted[job.cell] = job.wanted(run_dir)
        except SpilloverError as error:
            failures.append(Failure(str(job), str(error)))
    if not wanted:
        return failures
    forget_cells(run_dir)
    for cell, own in wanted.items():
        keep_wanted(cell, own, run_dir)
    merge_parts([id_ for own in wanted.values() for id_ in own], run_dir)
    write_rates([*wanted], run_dir)
    write_matrix(run_dir)
    write_report(run_dir)
    return failures


def merge_parts(wanted: Sequence[str], run_dir: RunFolder) -> None:
    """Puts the completions and scores of all cells into one file each: the wanted ones first, in the study's order.

    The order never depends on which cell was done first. Scores that only the run has, of another judge, are kept.
    """
    place = {id_: number for number, id_ in enumerate(wanted)}
    parts = [RunFolder(path.parent) for path in sorted(run_dir.parts.rglob(run_dir.state.name))]

    def at(id_: str) -> tuple[int, str]:
        return place.get(id_, len(place)), id_

    completions = {
        row.id: row for part in [run_dir, *parts] for row in records.read_appended(part.completions, Completion)
    }
    scores: dict[tuple[Any, ...], Score] = {}
    for part in [run_dir, *parts]:
        for row in records.read_appended(part.scores, Score):
            key = (*at(row.completion_id), row.rubric, row.rubric_hash, row.judge)
            if key not in scores or not row.judge_failed:
                scores[key] = row
    _rewrite(run_dir.completions, [completions[id_] for id_ in sorted(completions, key=at)])
    _rewrite(run_dir.scores, [scores[key] for key in sorted(scores)])


def _rewrite(path: Path, rows: Sequence[Any]) -> None:
    text = "".join(map(records.to_line, rows))
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def _or_raise(failures: Sequence[Failure], run_dir: RunFolder, head: str = "", then: str = "") -> None:
    """Raises SpilloverError that names what failed, each reason once; tracebacks go into a file of the run."""
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        reasons.setdefault(failure.reason, []).append(failure.job)
    if not reasons:
        return
    lines = [
        f"{', '.join(jobs[:3])}{f' and {len(jobs) - 3} more' * (len(jobs) > 3)}: {why}" for why, jobs in reasons.items()
    ]
    if details := [f"{failure.job}\n{failure.detail}" for failure in failures if failure.detail]:
        write_atomically(run_dir.path / ERRORS, "\n".join(details))
        lines.append(f"Tracebacks: {run_dir.path / ERRORS}")
    raise SpilloverError("\n".join(line for line in (head, *lines, then) if line))
