"""Run folders as Inspect logs, one per cell and behavior, for `inspect view`; and Inspect logs read as ours."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from inspect_ai.scorer import SampleScore
from inspect_ai.scorer import Score as InspectScore

from spillover.behaviors import Behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.inspect_tasks import CLUSTER, METADATA, inspect_score, rate, sample_id
from spillover.models import Request
from spillover.models.endpoint import inspect_messages
from spillover.records import Cell, Completion, Score
from spillover.runs.results import read_results

FOLDER = "inspect"  # in the run folder
STOPPED: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}
# Of a completion, kept as a sample's metadata; the rest of it stands where Inspect looks for it.
KEPT = (
    *(CLUSTER, "category", "format", "paraphrase", "stop_reason", "tokens"),
    *("model_hash", "adapter_hash", "template_hash"),
)

Scores = dict[tuple[str, str], dict[tuple[str, str], Score]]  # (judge, rule) -> (completion id, rubric) -> score


def export_inspect(folder: Path) -> list[Path]:
    """Writes the logs of a run, each with what every judge and rule made of its answers, and returns their paths.

    Raises SpilloverError if there is nothing to export, or if the run has not sampled all that it wants.
    """
    results = read_results(folder)
    written = results.manifest["written"]
    completions = results.completions
    scores: Scores = defaultdict(dict)
    for score in results.all_scores:
        scores[score.judge, score.rubric_hash][score.completion_id, score.rubric] = score
    behaviors: dict[str, list[Behavior]] = defaultdict(list)
    for behavior in results.behaviors:
        behaviors[behavior.name].append(behavior)
    paths = []
    for cell, ids in results.cells.items():
        if missing := [id_ for id_ in ids if id_ not in completions]:
            raise SpilloverError(
                f"{folder}: {len(missing)} of the {len(ids)} answers wanted of {cell} are not there yet. Let the "
                "command that samples them finish, then export."
            )
        own: dict[str, list[Completion]] = defaultdict(list)
        for id_ in ids:
            own[completions[id_].behavior].append(completions[id_])
        for name, rows in own.items():
            path = folder / FOLDER / f"{_file_name(cell)}_{name}.eval"
            _write(_log(cell, behaviors[name], rows, scores, written), path)
            paths.append(path)
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


def _log(cell: Cell, behaviors: list[Behavior], completions: list[Completion], scores: Scores, written: str) -> EvalLog:
    """One cell on one behavior, judged by its rules, as a log. Exported again, it keeps its ids."""
    name = behaviors[0].name
    # A base model by its own name, what was trained on it by the cell's. Inspect wants a slash in every name.
    model = cell.model if cell.condition == BASE and "/" in cell.model else str(cell)
    scorers = {
        _scorer_name(judge, behavior, behaviors): (judge, behavior)
        for behavior in behaviors
        for judge in sorted({judge for judge, rule in scores if rule == behavior.rubric_hash})
    }
    samples = []
    for row in completions:
        found = {}
        for key, (judge, behavior) in scorers.items():
            rows = scores[judge, behavior.rubric_hash]
            own = [rows[row.id, rubric] for rubric in behavior.rubrics_read if (row.id, rubric) in rows]
            found[key] = inspect_score(row, own, behavior, judge)
        samples.append(_sample(row, model, found))
    ids = list(dict.fromkeys(str(sample.id) for sample in samples))
    metadata: dict[str, Any] = {
        "cell": asdict(cell),
        "behaviors": [behavior.model_dump(mode="json") for behavior in behaviors],
    }
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
            metadata={METADATA: metadata},
        ),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[_results(key, samples) for key in scorers],
        ),
        samples=samples,
    )


def _scorer_name(judge: str, behavior: Behavior, behaviors: list[Behavior]) -> str:
    return judge if len(behaviors) == 1 else f"{judge} ({behavior.rule}, {behavior.rubric_hash[:6]})"


def _sample(completion: Completion, model: str, scores: dict[str, InspectScore]) -> EvalSample:
    asked = inspect_messages(Request((), completion.system, completion.question, completion.turns).messages)
    answer = ChatMessageAssistant(content=completion.text, source="generate", model=model)
    tokens = completion.tokens
    return EvalSample(
        id=sample_id(completion.question_id, completion.format),
        epoch=completion.number + 1,
        input=asked,
        target="",
        messages=[*asked, answer],
        output=ModelOutput(
            model=model,
            choices=[ChatCompletionChoice(message=answer, stop_reason=STOPPED.get(completion.stop_reason, "unknown"))],
            usage=None if tokens is None else ModelUsage(output_tokens=tokens, total_tokens=tokens),
        ),
        scores=scores,
        metadata={name: getattr(completion, name) for name in KEPT},
    )


def _results(scorer: str, samples: Iterable[EvalSample]) -> EvalScore:
    """The rate by the behavior's rule over a log's samples, as our own tasks compute it."""
    rows = [
        SampleScore(score=sample.scores[scorer], sample_metadata=sample.metadata) for sample in samples if sample.scores
    ]
    values: Any = rate()(rows)  # type: ignore[arg-type]
    metrics = {name: EvalMetric(name=name, group="rate", value=value) for name, value in values.items()}
    return EvalScore(name=scorer, scorer=scorer, scored_samples=len(rows), unscored_samples=0, metrics=metrics)
