"""Writes run folders as Inspect logs, one per cell and behavior, for `inspect view`."""

import re
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage, StopReason
from inspect_ai.scorer import Score as InspectScore

from spillover.behaviors import Behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.inspect_tasks import CLUSTER, METADATA, TURNS, inspect_score, rate_metrics, sample_id
from spillover.models import Request
from spillover.models.endpoint import inspect_messages
from spillover.records import Cell, Completion
from spillover.runs.results import Block, read_results

FOLDER = "inspect"  # in the run folder
STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}
# Of a completion, kept as a sample's metadata; the rest of it stands where Inspect looks for it.
KEPT = (
    *(CLUSTER, "category", "format", "paraphrase", "stop_reason", "tokens"),
    *("model_hash", "adapter_hash", "template_hash"),
)


def export_inspect(folder: Path) -> list[Path]:
    """Writes the logs of a run, with what every judge and rule made of its answers, and returns their paths.

    Raises SpilloverError if there is nothing to export, or if the run has not sampled all that it wants.
    """
    results = read_results(folder)
    behaviors: dict[str, list[Behavior]] = defaultdict(list)
    for behavior in results.behaviors:
        behaviors[behavior.name].append(behavior)
    blocks: dict[tuple[Cell, str], list[Block]] = defaultdict(list)
    for block in results.blocks:
        blocks[block.cell, block.behavior.name].append(block)
    paths = []
    for cell, ids in results.cells.items():
        if missing := [id_ for id_ in ids if id_ not in results.completions]:
            raise SpilloverError(
                f"{folder}: {len(missing)} of the {len(ids)} answers wanted of {cell} are not there yet. Let the "
                "command that samples them finish, then export."
            )
        completions: dict[str, list[Completion]] = defaultdict(list)
        for id_ in ids:
            completions[results.completions[id_].behavior].append(results.completions[id_])
        for name, rows in completions.items():
            log = _log(cell, behaviors[name], rows, blocks[cell, name], results.manifest["written"])
            paths.append(folder / FOLDER / f"{_file_name(cell)}_{name}.eval")
            _write(log, paths[-1])
    return paths


def _file_name(cell: Cell) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', str(cell)).strip('.-')}_{hash_of(asdict(cell))[:8]}"


def _write(log: EvalLog, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}")
    try:
        write_eval_log(log, part, format="eval")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _log(
    cell: Cell, behaviors: list[Behavior], completions: list[Completion], blocks: list[Block], written: str
) -> EvalLog:
    """The log of one cell on one behavior. Exported again, it keeps its ids.

    `behaviors` is the behavior, once for each rule that judged it; every judge under every rule is a scorer.
    """
    name = behaviors[0].name
    # A base model by its own name, what was trained on it by the cell's. Inspect wants a slash in every name.
    model = cell.model if cell.condition == BASE and "/" in cell.model else str(cell)
    scores: dict[str, dict[str, InspectScore]] = defaultdict(dict)  # completion id -> scorer -> score
    scorers: dict[str, None] = {}  # in order
    for block in blocks:
        rule = "" if len(behaviors) == 1 else f" ({block.behavior.rule}, {block.behavior.rubric_hash[:6]})"
        scorer = block.judge + rule
        scorers[scorer] = None
        for completion, decision in zip(block.completions, block.decisions, strict=True):
            keys = [(completion.id, rubric) for rubric in block.behavior.rubrics_read]
            rows = [block.scores[key] for key in keys if key in block.scores]
            scores[completion.id][scorer] = inspect_score(completion, rows, decision, block.behavior)
    samples = [_sample(completion, model, scores[completion.id]) for completion in completions]
    ids = list(dict.fromkeys(str(sample.id) for sample in samples))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=hash_of("eval", asdict(cell), name),
            run_id=hash_of("run", asdict(cell), written),
            task_id=hash_of("task", name),
            created=written,
            task=f"spillover/{name}",
            tags=[cell.condition],
            dataset=EvalDataset(name=name, samples=len(ids), sample_ids=ids),
            model=model,
            config=EvalConfig(epochs=max(sample.epoch for sample in samples), epochs_reducer=[]),
            metadata={
                METADATA: {
                    "cell": asdict(cell),
                    "behaviors": [behavior.model_dump(mode="json") for behavior in behaviors],
                }
            },
        ),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[_results(scorer, samples) for scorer in scorers],
        ),
        samples=samples,
    )


def _sample(completion: Completion, model: str, scores: dict[str, InspectScore]) -> EvalSample:
    asked = inspect_messages(Request((), completion.system, completion.question, completion.turns).messages)
    answer = ChatMessageAssistant(content=completion.text, source="generate", model=model)
    stop_reason, tokens = STOP_REASONS.get(completion.stop_reason, "unknown"), completion.tokens
    return EvalSample(
        id=sample_id(completion.question_id, completion.format),
        epoch=completion.number + 1,
        input=asked,
        target="",
        messages=[*asked, answer],
        output=ModelOutput(
            model=model,
            choices=[ChatCompletionChoice(message=answer, stop_reason=stop_reason)],
            usage=None if tokens is None else ModelUsage(output_tokens=tokens, total_tokens=tokens),
        ),
        scores=scores,
        metadata={name: getattr(completion, name) for name in KEPT} | {TURNS: [completion.turns]},
    )


def _results(scorer: str, samples: list[EvalSample]) -> EvalScore:
    """The rate by the behavior's rule over a log's samples, as our own tasks compute it."""
    scores = [
        (sample.metadata, sample.scores[scorer]) for sample in samples if sample.scores and scorer in sample.scores
    ]
    metrics = {name: EvalMetric(name=name, group="rate", value=value) for name, value in rate_metrics(scores).items()}
    return EvalScore(name=scorer, scorer=scorer, scored_samples=len(scores), unscored_samples=0, metrics=metrics)
