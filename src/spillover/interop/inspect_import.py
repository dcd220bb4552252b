"""Reads Inspect logs as answers with their scores: those of our tasks and exports, and those of any other task."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.model import ChatMessageUser
from pydantic import ValidationError

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.inspect_logs import KEPT
from spillover.interop.inspect_tasks import CLUSTER, METADATA, TURNS, question_fields
from spillover.interop.tables import (
    DEFAULT_BEHAVIOR,
    Options,
    Source,
    check_rubrics,
    imported_score,
    partial_completion,
)
from spillover.models.thoughts import split_thought
from spillover.records import Cell, Score


def read_inspect_log(path: Path, digest: str, options: Options) -> Source:
    """Reads an Inspect log: every sample and epoch is a completion.

    A log of our tasks or of an export has its behavior and scores in its metadata; they count unless the options name
    a behavior. Raises SpilloverError if the log is broken, lacks samples and may not, was sampled with a seed, or holds
    anything but one question and one answer in a sample.
    """
    log = _read(path)
    samples, missing = _samples(log, path, options.allow_missing)
    metadata = (log.eval.metadata or {}).get(METADATA)
    ours = metadata if isinstance(metadata, dict) else {}
    has_behavior = bool(ours) and not options.behavior
    if has_behavior:
        behaviors = _behaviors(ours, path)
    else:
        behaviors = [load_behavior(options.behavior or DEFAULT_BEHAVIOR)]
        check_rubrics(behaviors[0], options.score_columns, path)
    cell = Cell(**ours["cell"]) if "cell" in ours else Cell(log.eval.model, BASE, None)
    source = Source(path, digest, behaviors, missing=missing, task=log.eval.task_id)
    ids: dict[tuple[str | None, str], str] = {}  # what was asked -> the id of the first sample that asked it
    judge = options.judge_name or _grader(log)
    for number, sample in enumerate(samples):
        place = f"{path}, sample {sample.id}, epoch {sample.epoch}"
        fields = _question_and_answer(sample, place)
        if not ours:  # samples that ask the same are of one question, whatever their ids
            fields[CLUSTER] = ids.setdefault((fields["system"], fields["question"]), fields[CLUSTER])
        fields |= {name: sample.metadata[name] for name in KEPT if ours and name in sample.metadata}
        completion = partial_completion(hash_of(digest, number), cell, behaviors[0], **fields)
        source.completions.append(completion)
        if has_behavior:
            source.scores += _own_scores(sample, completion.id, source.rubric_hashes)
        else:
            source.scores += _other_scores(sample, completion.id, behaviors[0], options.score_columns, judge, place)
    return source


def _read(path: Path) -> EvalLog:
    try:
        log = read_eval_log(str(path), resolve_attachments=True, exclude_fields={"events", "store"})
    except Exception as error:  # a broken zip, broken JSON, a log of another version: whatever it is, it is the file
        reason = " ".join(str(error).split())[:200]
        raise SpilloverError(f"{path}: cannot be read as an Inspect log ({type(error).__name__}: {reason}).") from error
    epochs = log.eval.config.epochs or 1
    seed = log.eval.model_generate_config.seed if log.plan.config.seed is None else log.plan.config.seed
    if seed is not None and epochs > 1:
        raise SpilloverError(
            f"{path}: was sampled with the seed {seed}, which Inspect gives to every epoch, so its {epochs} answers to "
            "a question are one answer many times. Sample again without a seed."
        )
    return log


def _grader(log: EvalLog) -> str | None:
    """The model in the role `grader`, the first if there are several."""
    grader = (log.eval.model_roles or {}).get("grader")
    if isinstance(grader, list):
        grader = grader[0] if grader else None
    return grader.model if grader else None


def _behaviors(ours: dict[str, Any], path: Path) -> list[Behavior]:
    """The behavior that our tasks and exports keep in a log's metadata, once for each rule."""
    try:
        return [Behavior.model_validate(content) for content in ours["behaviors"]]
    except (ValidationError, KeyError) as error:
        raise SpilloverError(
            f"{path}: the behavior in it is of another version ({str(error).splitlines()[0]}). Name the one to read it "
            "by: --behavior NAME|FILE"
        ) from error


def _samples(log: EvalLog, path: Path, allow_missing: bool) -> tuple[list[EvalSample], int]:
    """The samples of a log that count, in the order of its data set, epoch by epoch, and how many are missing."""
    samples = [sample for sample in log.samples or [] if sample.error is None and sample.invalidation is None]
    ids = log.eval.dataset.sample_ids or []
    total = log.results.total_samples if log.results else len(ids) * (log.eval.config.epochs or 1)
    missing = max(total - len(samples), 0)
    if (missing or log.status != "success") and not allow_missing:
        raise SpilloverError(
            f"{path}: {len(samples)} of {total} samples are there (status {log.status}). Complete it with inspect "
            "eval-retry, or take in what there is: --allow-missing"
        )
    order = {str(id_): place for place, id_ in enumerate(ids)}
    samples.sort(key=lambda sample: (sample.epoch, order.get(str(sample.id), len(order)), str(sample.id)))
    return samples, missing


def _question_and_answer(sample: EvalSample, place: str) -> dict[str, Any]:
    """The fields of a completion that stand in the samples of any log."""
    messages = sample.messages or (
        [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
    )
    roles = [message.role for message in messages if message.role != "system"]
    allowed = [[turn["role"] for turn in turns] for turns in sample.metadata.get(TURNS, []) if turns] + [["user"]]
    if not any(roles in (asked, [*asked, "assistant"]) for asked in allowed):
        raise SpilloverError(
            f"{place}: has {roles.count('user')} turns of the user and {len(messages)} in all. Only logs of one "
            "question and one answer are read."
        )
    stop_reason = sample.output.stop_reason if sample.output.choices else ""
    content = sample.output.message.content if sample.output.choices else ""
    thoughts = [] if isinstance(content, str) else [part.reasoning for part in content if part.type == "reasoning"]
    thought, answer = "\n".join(thoughts) if thoughts else None, sample.output.completion
    if thought is None:
        thought, answer = split_thought(answer)
    return {
        CLUSTER: str(sample.id),
        **question_fields(messages),
        "text": answer,
        "thought": thought,
        "stop_reason": "length" if stop_reason == "max_tokens" else stop_reason,
        "tokens": sample.output.usage.output_tokens if sample.output.usage else None,
    }


def _own_scores(sample: EvalSample, completion_id: str, rubric_hashes: list[str]) -> Iterator[Score]:
    """The scores that our scorer or an export has written, under these rules."""
    for score in (sample.scores or {}).values():
        kept = score.metadata or {}
        if kept.get("rubric_hash") not in rubric_hashes or not isinstance(score.value, Mapping):
            continue  # another scorer's
        for rubric, row in kept["rubrics"].items():
            value = float(score.value[rubric] or 0) if row["outcome"] == "scored" else None
            yield Score(completion_id, rubric, kept["rubric_hash"], kept["judge"], row["outcome"], value, row["reply"])


def _keys(scorer: str, value: Any) -> list[str]:
    return [*value] if isinstance(value, Mapping) else [scorer]


def _other_scores(
    sample: EvalSample, completion_id: str, behavior: Behavior, columns: dict[str, str], judge: str | None, place: str
) -> Iterator[Score]:
    """The scores of any scorer.

    A score's key is its scorer's name, or the keys of its value; SCORER.KEY where several scorers have it. `columns`
    maps rubrics to keys; without it, scores count if the rubrics that the rule reads are all among the keys.
    """
    values: dict[str, tuple[Any, str]] = {}  # key -> value, explanation
    named = Counter(key for scorer, score in (sample.scores or {}).items() for key in _keys(scorer, score.value))
    shared = {key for key, times in named.items() if times > 1}
    for scorer, score in (sample.scores or {}).items():
        by_key = score.value if isinstance(score.value, Mapping) else {scorer: score.value}
        for key, value in by_key.items():
            keys = [f"{scorer}.{key}"] if key in shared else [key]  # scorers may have keys in common
            values |= dict.fromkeys(keys, (value, score.explanation or ""))
    if not columns and set(behavior.rubrics_read) <= set(values):
        columns = {rubric: rubric for rubric in behavior.rubrics_read}
    for rubric, key in columns.items():
        if key not in values:
            raise SpilloverError(
                f"{place}: has no score {key!r}; it has {', '.join(map(repr, values)) or 'none'}. Name the right one: "
                f"--column {rubric}=THEIRS"
            )
        if judge is None:
            raise SpilloverError(f"{place}: who gave its scores? The log names no grader. Name it: --judge-name NAME")
        value, explanation = values[key]
        yield imported_score(completion_id, rubric, behavior, judge, value, f"{place}, score {key}", explanation)
