"""One model through behaviors without any training; and stored answers judged again, without any sampling."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spillover import records
from spillover.behaviors import Behavior, load_behavior, load_rule
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.files import provenance, write_atomically
from spillover.judges.canary import check_judge
from spillover.models.load import folder_hash, load_model
from spillover.models.target import Battery, Target, by_prompt, target_of, wanted_completions
from spillover.records import Cell, Completion
from spillover.report import write_report
from spillover.runs.comparing import write_matrix
from spillover.runs.folder import RunFolder
from spillover.runs.measure import (
    estimate,
    keep_wanted,
    missing_completions,
    read_behaviors,
    read_wanted,
    sample_missing,
    score_missing,
    write_behaviors,
    write_rates,
)
from spillover.workers import BEGUN, DONE, OnProgress, Progress, Step


@dataclass(frozen=True)
class Evaluation:
    """What `spillover evaluate` is asked for. `model`: a local folder, organism/NAME, or a name that Inspect knows."""

    model: str
    behaviors: tuple[str, ...]
    completions_per_question: int
    sampling: Sampling
    adapter: Path | None = None
    formats: tuple[str, ...] = ()
    judge: str | None = None
    force: bool = False  # believe a judge that fails its canary


def evaluate(
    wanted: Evaluation, out: Path, on_progress: OnProgress, on_estimate: Callable[[dict[str, int]], None]
) -> RunFolder:
    """Samples a model, judges it, writes rates and report into the folder `out`, beside the models already there.

    Without a judge, what needs one is sampled only, for `score` to judge later. Raises SpilloverError for bad input
    before any work, and for an endpoint or a judge that keeps failing after everything else is kept.
    """
    if not wanted.behaviors:
        raise SpilloverError("--behaviors: names none. There are: spillover behaviors")
    subject = target_of(load_model(wanted.model, wanted.adapter))
    behaviors = tuple((load_behavior(name), wanted.completions_per_question) for name in wanted.behaviors)
    battery = Battery(behaviors, wanted.sampling, wanted.formats, wanted.judge)
    battery.check(judge_needed=False)
    run_dir = RunFolder(out)
    with run_dir.writing():
        if run_dir.study.exists():
            raise SpilloverError(f"{out}: holds a study, which measures its own models. Choose another --out.")
        completions = wanted_completions(subject, battery)
        if isinstance(subject.model, str):
            on_estimate(
                estimate(by_prompt(missing_completions(completions, run_dir).values()), wanted.sampling.max_new_tokens)
            )
        step = _step(str(subject.cell), on_progress)
        step(BEGUN, 0, 0)
        if wanted.judge and battery.judged_by_model:
            check_judge(wanted.judge, run_dir.judges, wanted.force, step)
        sample_missing(subject, battery, completions, run_dir, step)
        _write_inputs(wanted, subject, battery, run_dir)
        keep_wanted(subject.cell, _other_behaviors(subject.cell, wanted.behaviors, run_dir) | completions, run_dir)
        _judge([behavior for behavior, _ in behaviors], wanted.judge, {*completions}, run_dir, step)
        step(DONE, 1, 1)
    return run_dir


def rescore(
    folder: Path, judge: str, rubric: Path | None, names: tuple[str, ...], force: bool, on_progress: OnProgress
) -> RunFolder:
    """Judges the stored answers of a run, or of the behaviors in `names`, by the model `judge`; nothing is sampled.

    `rubric` is a file with rubrics and a rule of its own, instead of those of the behaviors.
    """
    run_dir = RunFolder(folder)
    wanted = read_wanted(run_dir)
    if not wanted:
        raise SpilloverError(f"{folder}: there are no answers to judge. See: spillover evaluate --help")
    behaviors = read_behaviors(run_dir)
    there = sorted({behavior.name for behavior in behaviors})
    if unknown := set(names) - set(there):
        raise SpilloverError(f"{folder}: has no behavior {min(unknown)}; it has {', '.join(there)}.")
    own = [behavior for behavior in behaviors if not names or behavior.name in names]
    if rubric is not None:
        measure = load_rule(rubric).model_dump() | {"judge": "model"}
        named = {behavior.name: behavior for behavior in own}
        own = [_judged_by(measure, behavior, rubric) for behavior in named.values()]
    own = [behavior for behavior in own if behavior.judge == "model"]
    if not own:
        raise SpilloverError(
            f"{folder}: its behaviors ({', '.join(there)}) are judged by programs and have no rubrics. "
            "Give rubrics of your own: --rubric FILE"
        )
    with run_dir.writing():
        step = _step(folder.name, on_progress)
        step(BEGUN, 0, 0)
        check_judge(judge, run_dir.judges, force, step)
        write_behaviors(own, run_dir)
        _judge(own, judge, set(itertools.chain(*wanted.values())), run_dir, step)
        step(DONE, 1, 1)
    return run_dir


def _judged_by(measure: dict[str, Any], behavior: Behavior, rubric: Path) -> Behavior:
    try:
        return Behavior.model_validate(behavior.model_dump() | measure)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpilloverError(f"rubric {rubric}: does not fit behavior {behavior.name}: {reason}.") from None


def _other_behaviors(cell: Cell, names: tuple[str, ...], run_dir: RunFolder) -> dict[str, Completion]:
    """What counts for a cell of behaviors that it was asked in an earlier run, and is not asked now."""
    counted = set(read_wanted(run_dir).get(cell, []))
    own = {load_behavior(name).name for name in names}
    rows = records.read_appended(run_dir.completions, Completion)
    return {row.id: row for row in rows if row.id in counted and row.behavior not in own}


def _judge(behaviors: list[Behavior], judge: str | None, ids: set[str], run_dir: RunFolder, step: Any) -> None:
    """Scores what is not scored yet. Rates and report are written even if the judge fails on too many."""
    answered = [row for row in records.read_appended(run_dir.completions, Completion) if row.id in ids]
    try:
        score_missing(behaviors, judge, answered, run_dir, step)
    finally:
        write_rates(read_wanted(run_dir), run_dir)
        write_matrix(run_dir)
        write_report(run_dir)


def _write_inputs(wanted: Evaluation, subject: Target, battery: Battery, run_dir: RunFolder) -> None:
    """Adds the subject to what the folder's manifest says was measured, and how."""
    before = json.loads(run_dir.manifest.read_text(encoding="utf-8")) if run_dir.manifest.exists() else {}
    if "imported" in before:
        raise SpilloverError(f"{run_dir.path}: holds imported answers. Choose another --out.")
    settings = {
        "model": wanted.model,
        "adapter": str(wanted.adapter) if wanted.adapter else None,
        "model_hash": folder_hash(subject.model) if isinstance(subject.model, Path) else None,
        "adapter_hash": folder_hash(subject.adapter) if subject.adapter else None,
        "behaviors": dict.fromkeys(wanted.behaviors, wanted.completions_per_question),
        "formats": list(wanted.formats),
        "sampling": wanted.sampling.model_dump(),
        "judge": wanted.judge,
    }
    manifest = provenance() | {
        "name": run_dir.path.resolve().name,
        "description": "",
        "evaluations": before.get("evaluations", {}) | {str(subject.cell): settings},
    }
    write_behaviors([behavior for behavior, _ in battery.behaviors], run_dir)
    write_atomically(run_dir.manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _step(job: str, on_progress: OnProgress) -> Step:
    return lambda stage, done, total: on_progress(Progress(job, 1, stage, done, total))
