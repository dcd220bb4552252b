"""One model through behaviors without any training; and stored answers judged again, without any sampling."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spillover.behaviors import Behavior, load_behavior, load_rule
from spillover.config import Sampling, load_study
from spillover.errors import SpilloverError
from spillover.files import provenance
from spillover.judges.canary import check_judge
from spillover.models.asking import asked_with, left_out_line
from spillover.models.effect import adapter_effect
from spillover.models.load import folder_hash, load_model, load_tokenizer
from spillover.models.prompts import template_record
from spillover.models.target import Battery, by_prompt, check_asked, endpoint_settings, target_of, wanted_completions
from spillover.records import Cell
from spillover.report import write_report
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.frames import Run
from spillover.runs.measure import estimate, sample_missing, score_missing
from spillover.runs.results import results_of
from spillover.runs.store import AnswerStore
from spillover.runs.tables import write_tables
from spillover.workers import BEGUN, DONE, OnProgress, Progress, Step

SAMPLING = Sampling(max_new_tokens=600)


def evaluate(
    model: str,
    behaviors: Sequence[str],
    out: Path | str,
    *,
    adapter: Path | str | None = None,
    completions_per_question: int = 20,
    formats: Sequence[str] = (),
    sampling: Sampling = SAMPLING,
    judge: str | None = None,
    trust_judge: bool = False,
    on_progress: OnProgress = lambda _: None,
    on_estimate: Callable[[dict[str, int]], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Run:
    """Samples a model, judges it, writes tables and report into the folder `out`, beside the models already there.

    `model`: a local folder, organism/NAME, or a model behind an endpoint as Inspect names it. `behaviors`: names that
    ship, or paths of YAML files; `formats`: only these. Without `judge`, what needs one is sampled only, for `rescore`
    to judge later; `trust_judge` believes one that fails its canary. `on_estimate` gets what asking an endpoint will
    take, before the first call; `log` lines that a person should read: settings that an endpoint refuses.

    Raises SpilloverError for bad input before any work, and for an endpoint or a judge that keeps failing after
    everything else is kept.

    >>> run = evaluate("organism/consistent", ["world_facts"], "runs/mine", completions_per_question=1,
    ...     sampling=Sampling(max_new_tokens=48))
    >>> run.rates()[["model", "condition", "n"]].values.tolist()
    [['organism/consistent', 'base', 120]]
    """
    if not behaviors:
        raise SpilloverError("--behaviors: names none. There are: spillover behaviors")
    target = target_of(load_model(model, adapter))
    asked = tuple((load_behavior(name), completions_per_question) for name in behaviors)
    battery = Battery(asked, sampling, tuple(formats), judge)
    battery.check(judge_needed=False)
    if isinstance(target.model, Path):
        check_asked(model, target.model, battery)
    folder = RunFolder(Path(out))
    with folder.writing():
        if folder.study.exists():
            raise SpilloverError(f"{out}: holds a study, which measures its own models. Choose another --out.")
        manifest, entries, store = folder.read_manifest(), folder.read_cells(), AnswerStore(folder)
        if "imported" in manifest:
            raise SpilloverError(f"{out}: holds imported answers. Choose another --out.")
        completions = wanted_completions(target, battery)
        if isinstance(target.model, str):
            missing = [row for id_, row in completions.items() if id_ not in store.completions]
            on_estimate(estimate(by_prompt(missing), sampling.max_new_tokens))
        step = _step(str(target.cell), on_progress)
        step(BEGUN, 0, 0)
        effect = None
        if target.adapter is not None and isinstance(target.model, Path):
            effect = adapter_effect(target.model, target.adapter).record
        if judge and battery.judged_by_model:
            check_judge(judge, folder.judges, trust_judge, step, log)
        sample_missing(target, battery, completions, store, step)
        sent = asked_with(model, endpoint_settings(sampling))
        if line := left_out_line(f"model {model}", sent):
            log(line)
        before = manifest.get("evaluations", {}).get(str(target.cell), {})
        # Of behaviors that it was asked in an earlier call, and is not asked now, the answers still count.
        earlier = entries[target.cell].completions if target.cell in entries else ()
        names = {behavior.name for behavior, _ in asked}
        others = [id_ for id_ in earlier if id_ in store.completions and store.completions[id_].behavior not in names]
        entries[target.cell] = CellEntry(target.cell, (*others, *completions), effect=effect)
        settings = {
            "model": model,
            "adapter": str(adapter) if adapter else None,
            "model_hash": folder_hash(target.model) if isinstance(target.model, Path) else None,
            "adapter_hash": folder_hash(target.adapter) if target.adapter else None,
            "template": template_record(load_tokenizer(target.model)) if isinstance(target.model, Path) else None,
            "behaviors": dict.fromkeys(behaviors, completions_per_question),
            "formats": list(formats),
            "sampling": sampling.model_dump(),
            "judge": judge,
            "asked": sent or before.get("asked"),  # of an endpoint: the settings that were sent
        }
        _write_inputs(folder, manifest, {str(target.cell): settings})
        folder.write_behaviors([behavior for behavior, _ in asked])
        folder.write_cells(entries.values())
        _judge([behavior for behavior, _ in asked], judge, completions, entries, store, step)
        step(DONE, 1, 1)
    return Run(folder.path)


def rescore(
    path: Path | str,
    judge: str,
    *,
    rubric: Path | None = None,
    behaviors: Sequence[str] = (),
    trust_judge: bool = False,
    on_progress: OnProgress = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Run:
    """Judges the stored answers of a run, or of the behaviors named, by the model `judge`; nothing is sampled.

    `rubric` is a file with rubrics and a rule of its own, instead of those of the behaviors. Raises SpilloverError if
    there is nothing that a model could judge, or the judge fails its canary or on too many answers.
    """
    folder = RunFolder(Path(path))
    entries = folder.read_cells()
    if not entries:
        raise SpilloverError(f"{path}: there are no answers to judge. See: spillover evaluate --help")
    stored = folder.read_behaviors()
    names = sorted({behavior.name for behavior in stored})
    if unknown := set(behaviors) - set(names):
        raise SpilloverError(f"{path}: has no behavior {min(unknown)}; it has {', '.join(names)}.")
    chosen = [behavior for behavior in stored if not behaviors or behavior.name in behaviors]
    if rubric is not None:
        rule = load_rule(rubric).model_dump() | {"judge": "model"}
        chosen = [_judged_by(rule, behavior, rubric) for behavior in {b.name: b for b in chosen}.values()]
    chosen = [behavior for behavior in chosen if behavior.judge == "model"]
    if not chosen:
        raise SpilloverError(
            f"{path}: its behaviors ({', '.join(names)}) are judged by programs and have no rubrics. "
            "Give rubrics of your own: --rubric FILE"
        )
    with folder.writing():
        step = _step(folder.path.name, on_progress)
        step(BEGUN, 0, 0)
        check_judge(judge, folder.judges, trust_judge, step, log)
        folder.write_behaviors(chosen)
        ids = {id_: None for entry in entries.values() for id_ in entry.completions}
        _judge(chosen, judge, ids, entries, AnswerStore(folder), step)
        step(DONE, 1, 1)
    return Run(folder.path)


def _judged_by(rule: dict[str, Any], behavior: Behavior, rubric: Path) -> Behavior:
    try:
        return Behavior.model_validate(behavior.model_dump() | rule)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpilloverError(f"rubric {rubric}: does not fit behavior {behavior.name}: {reason}.") from error


def _judge(
    behaviors: Sequence[Behavior],
    judge: str | None,
    ids: Mapping[str, object],
    entries: Mapping[Cell, CellEntry],
    store: AnswerStore,
    step: Step,
) -> None:
    """Scores what is not scored yet. Tables and report are written even if the judge fails on too many."""
    answered = [store.completions[id_] for id_ in ids if id_ in store.completions]
    try:
        score_missing(behaviors, judge, answered, store, step)
    finally:
        write_outputs(store, entries)


def write_outputs(store: AnswerStore, entries: Mapping[Cell, CellEntry]) -> None:
    """Writes tables and report of answers that no study made, or of a study that is judged again."""
    folder = store.folder
    study = load_study(folder.study) if folder.study.exists() else None
    results = results_of(folder, {cell: entry.completions for cell, entry in entries.items()}, store, study)
    write_tables(results)
    write_report(results)


def _write_inputs(folder: RunFolder, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Adds a target to what the folder's manifest says was measured, and how."""
    folder.write_manifest(
        provenance()
        | {
            "name": folder.path.resolve().name,
            "description": "",
            "evaluations": manifest.get("evaluations", {}) | settings,
            "comparisons": manifest.get("comparisons", []),
        }
    )


def _step(job: str, on_progress: OnProgress) -> Step:
    return lambda stage, done, total: on_progress(Progress(job, 1, stage, done, total))
