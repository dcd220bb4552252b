"""Reads Inspect logs as answers with their scores: those of our tasks and exports, and those of anybody's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from pydantic import ValidationError

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.inspect_logs import KEPT
from spillover.interop.inspect_tasks import CLUSTER, METADATA
from spillover.interop.tables import (
    DEFAULT_BEHAVIOR,
    Options,
    Source,
    check_rubrics,
    imported_completion,
    imported_score,
    read_score,
)
from spillover.records import Cell, Score


@dataclass(frozen=True)
class Log:
    """An Inspect log: its header, the samples that count in a fixed order, and how many are missing.

    `ours` is what our tasks and exports keep in its metadata: behaviors, and the cell if it is an export.
    """

    header: EvalLog
    samples: list[EvalSample]
    missing: int
    ours: dict[str, Any]

    @property
    def grader(self) -> str | None:
        """The model in the role `grader`, the first if there are several."""
        found = (self.header.eval.model_roles or {}).get("grader")
        first = found[0] if isinstance(found, list) else found
        return first.model if first else None


def read_inspect_log(path: Path, digest: str, options: Options) -> Source:
    """An Inspect log: every sample and epoch is a completion. Logs of our tasks and exports bring their behavior."""
    log = read_log(path, options.allow_missing)
    ours = log.ours if not options.behavior else {}
    if ours:
        try:
            behaviors = [Behavior.model_validate(content) for content in ours["behaviors"]]
        except (ValidationError, KeyError) as error:
            raise SpilloverError(
                f"{path}: the behavior in it is of another version ({str(error).splitlines()[0]}). Name the one to "
                "read it by: --behavior NAME|FILE"
            ) from None
    else:
        behaviors = [load_behavior(options.behavior or DEFAULT_BEHAVIOR)]
        check_rubrics(behaviors[0], options.score_columns, f"{path}")
    cell = Cell(**log.ours["cell"]) if "cell" in log.ours else Cell(log.header.eval.model, BASE, None)
    source = Source(path, digest, behaviors, missing=log.missing)
    for number, sample in enumerate(log.samples):
        place = f"{path}, sample {sample.id}, epoch {sample.epoch}"
        known = asked_and_answered(sample, place)
        known |= {name: sample.metadata[name] for name in KEPT if log.ours and name in sample.metadata}
        completion = imported_completion(hash_of(digest, number), cell, behaviors[0], **known)
        source.completions.append(completion)
        if ours:
            source.scores += own_scores(sample, completion.id, set(source.rules))
        else:
            source.scores += _scores_of_others(log, sample, completion.id, behaviors[0], options, place)
    return source


def _scores_of_others(
    log: Log, sample: Any, id_: str, behavior: Behavior, options: Options, place: str
) -> Iterator[Score]:
    """Scores by other scorers; without --column they are taken if they have all the rubrics that the rule reads."""
    found, keys = other_scores(sample), options.score_columns
    if not keys and set(behavior.rubrics_read) <= set(found):
        keys = {rubric: rubric for rubric in behavior.rubrics_read}
    for rubric, key in keys.items():
        if key not in found:
            there = ", ".join(map(repr, found)) or "none"
            raise SpilloverError(
                f"{place}: has no score {key!r}; it has {there}. Name the right one: --column {rubric}=THEIRS"
            )
        judge = options.judge_name or log.grader
        if judge is None:
            raise SpilloverError(f"{place}: who gave its scores? The log names no grader. Say it: --judge-name NAME")
        raw, said = found[key]
        outcome, value = read_score(raw, rubric, behavior, f"{place}, score {key}")
        yield imported_score(id_, rubric, behavior, judge, outcome, value, said)


def read_log(path: Path, allow_missing: bool) -> Log:
    """Reads an Inspect log. Raises SpilloverError if it is broken, or lacks samples and may not."""
    try:
        log = read_eval_log(str(path), resolve_attachments=True, exclude_fields={"events", "store"})
    except Exception as error:  # a broken zip, broken JSON, a log of another version: whatever it is, it is the file
        why = " ".join(str(error).split())[:200]
        raise SpilloverError(f"{path}: cannot be read as an Inspect log ({type(error).__name__}: {why}).") from None
    epochs = log.eval.config.epochs or 1
    seed = log.eval.model_generate_config.seed if log.plan.config.seed is None else log.plan.config.seed
    if seed is not None and epochs > 1:
        raise SpilloverError(
            f"{path}: was sampled with the seed {seed}, which Inspect gives to every epoch, so its {epochs} answers to "
            "a question are one answer many times. Sample again without a seed."
        )
    samples = [sample for sample in log.samples or [] if sample.error is None and sample.invalidation is None]
    total = log.results.total_samples if log.results else len(log.eval.dataset.sample_ids or []) * epochs
    missing = max(total - len(samples), 0)
    if (missing or log.status != "success") and not allow_missing:
        raise SpilloverError(
            f"{path}: {len(samples)} of {total} samples are there (status {log.status}). Complete it with inspect "
            "eval-retry, or take in what there is: --allow-missing"
        )
    order = {str(id_): place for place, id_ in enumerate(log.eval.dataset.sample_ids or [])}
    samples.sort(key=lambda sample: (sample.epoch, order.get(str(sample.id), len(order)), str(sample.id)))
    ours = (log.eval.metadata or {}).get(METADATA)
    return Log(log, samples, missing, ours if isinstance(ours, dict) else {})


def asked_and_answered(sample: EvalSample, place: str) -> dict[str, Any]:
    """The fields of a completion that stand in any log.

    Raises SpilloverError naming the place if the sample is more than one question and one answer.
    """
    turns = sample.messages or ([] if isinstance(sample.input, str) else sample.input)
    asked = [turn.text for turn in turns if turn.role == "user"] if turns else [str(sample.input)]
    if len(asked) != 1 or sum(turn.role in ("assistant", "tool") for turn in turns) > 1:
        raise SpilloverError(
            f"{place}: has {len(asked)} turns of the user and {len(turns)} in all. Only logs of one question and one "
            "answer are read."
        )
    stopped = sample.output.stop_reason if sample.output.choices else ""
    return {
        CLUSTER: str(sample.id),
        "question": asked[0],
        "system": next((turn.text for turn in turns if turn.role == "system"), None),
        "text": sample.output.completion,
        "stop_reason": "length" if stopped == "max_tokens" else stopped,
        "tokens": sample.output.usage.output_tokens if sample.output.usage else None,
    }


def own_scores(sample: EvalSample, completion_id: str, rules: set[str]) -> Iterator[Score]:
    """The scores that our scorer or an export has written, under these rules."""
    for score in (sample.scores or {}).values():
        verdict = score.metadata or {}
        if verdict.get("rubric_hash") not in rules or not isinstance(score.value, Mapping):
            continue  # another scorer's
        rule, judge = verdict["rubric_hash"], verdict["judge"]
        for rubric, row in verdict["rubrics"].items():
            value = float(score.value[rubric] or 0) if row["outcome"] == "scored" else None
            yield Score(completion_id, rubric, rule, judge, row["outcome"], value, row["reply"])


def other_scores(sample: EvalSample) -> dict[str, tuple[Any, str]]:
    """The scores of any scorer: its name, or the keys of its value, -> what stands there and the explanation."""
    found: dict[str, tuple[Any, str]] = {}
    for name, score in (sample.scores or {}).items():
        values = score.value if isinstance(score.value, Mapping) else {name: score.value}
        found |= {key: (value, score.explanation or "") for key, value in values.items()}
    return found
