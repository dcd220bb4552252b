"""One target through its battery: the missing completions are sampled, the missing scores asked for."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.judges.scoring import judge_name, score
from spillover.models import Request, Response
from spillover.models.endpoint import CHOICES_PER_CALL, Settings, ask_all
from spillover.models.load import folder_hash, load_model, load_tokenizer
from spillover.records import Cell, Completion, Score
from spillover.runs.store import AnswerStore
from spillover.workers import Step

MOST_ERRORS = 0.05  # a judge that fails on this share of the rows, or more, makes the command fail


@dataclass(frozen=True)
class Target:
    """Who is asked: a cell, and its model as a local folder or by the name that Inspect knows it by."""

    cell: Cell
    model: Path | str
    adapter: Path | None = None


@dataclass(frozen=True)
class Battery:
    """What every target is asked: behaviors with completions per question, in which formats (empty: all), by whom."""

    behaviors: tuple[tuple[Behavior, int], ...]
    sampling: Sampling
    formats: tuple[str, ...] = ()
    judge: str | None = None
    prompt_prefix: str = ""  # put before every prompt

    @property
    def judged_by_model(self) -> bool:
        """Whether the judge is named, and a behavior needs it."""
        return bool(self.judge) and any(behavior.judge == "model" for behavior, _ in self.behaviors)

    def check(self, judge_needed: bool = True) -> None:
        """Raises SpilloverError if a behavior lacks its judge, or a format is asked for that no question has."""
        for behavior, _ in self.behaviors:
            if judge_needed and behavior.judge == "model" and not self.judge:
                raise SpilloverError(
                    f"behavior {behavior.name}: it needs a model as its judge. Name one: --judge MODEL on the command "
                    "line, judge: MODEL in a study file."
                )
            if self.formats and not set(self.formats) & set(behavior.format_names):
                raise SpilloverError(
                    f"behavior {behavior.name}: none of the formats {', '.join(self.formats)}; "
                    f"it has {', '.join(behavior.format_names)}."
                )
        formats = {name for behavior, _ in self.behaviors for name in behavior.format_names}
        if unknown := set(self.formats) - formats:
            raise SpilloverError(f"format {min(unknown)}: no behavior has it; there are {', '.join(sorted(formats))}.")


def wanted_completions(subject: Target, battery: Battery) -> dict[str, Completion]:
    """Every completion that is wanted of a subject, by id, its answer still empty.

    The id is a hash of the cell and of everything that decides the answer, and seeds its random stream: cells with the
    same weights (an adapter that has learned nothing, say) answer each for itself.
    """
    local = isinstance(subject.model, Path)
    origin: dict[str, Any] = {
        "model_hash": folder_hash(subject.model) if isinstance(subject.model, Path) else None,
        "adapter_hash": folder_hash(subject.adapter) if subject.adapter else None,
        "template_hash": hash_of(load_tokenizer(subject.model).chat_template)
        if isinstance(subject.model, Path)
        else None,
    }
    decided_by = [asdict(subject.cell), origin, battery.sampling.model_dump()] + ([] if local else [subject.model])
    wanted = {}
    for behavior, completions_per_question in battery.behaviors:
        for prompt, number in behavior.prompts(completions_per_question, battery.formats):
            text = battery.prompt_prefix + prompt.text
            asked = (behavior.name, prompt.question.id, prompt.format, prompt.system, text, number)
            completion = Completion(
                id=hash_of(*decided_by, asked),
                **asdict(subject.cell),
                behavior=behavior.name,
                question_id=prompt.question.id,
                category=prompt.question.category,
                format=prompt.format,
                paraphrase=prompt.paraphrase,
                number=number,
                system=prompt.system,
                question=text,
                text="",
                stop_reason="",
                tokens=None,
                **origin,
            )
            wanted[completion.id] = completion
    return wanted


def by_prompt(completions: Iterable[Completion]) -> list[Request]:
    """Completions that are answers to the same prompt, together."""
    same: dict[tuple[str | None, str], list[str]] = defaultdict(list)
    for completion in completions:
        same[completion.system, completion.question].append(completion.id)
    return [Request(tuple(ids), system, text) for (system, text), ids in same.items()]


def sample_missing(
    target: Target, battery: Battery, wanted: dict[str, Completion], store: AnswerStore, step: Step
) -> None:
    """Samples the wanted completions that are not in the store yet and adds them as they come.

    Raises SpilloverError if an endpoint kept failing on some, after keeping all the others.
    """
    missing = {id_: completion for id_, completion in wanted.items() if id_ not in store.completions}
    if not missing:
        return
    done = 0
    failed: list[str] = []

    def take(responses: list[tuple[str, Response]]) -> None:
        nonlocal done
        store.add_completions(
            replace(missing[id_], text=response.text, stop_reason=response.stop_reason, tokens=response.tokens)
            for id_, response in responses
            if response.error is None
        )
        failed.extend(response.error for _, response in responses if response.error is not None)
        done += len(responses)
        step("sample", done, len(missing))

    if isinstance(target.model, str):
        sampling = battery.sampling
        ask_all(
            target.model, by_prompt(missing.values()), Settings(sampling.temperature, sampling.max_new_tokens), take
        )
        if failed:
            raise SpilloverError(
                f"model {target.model}: {len(failed)} of {len(missing)} completions could not be had, even after "
                f"retries ({failed[-1]}). The others are in {store.folder.completions}; the same command asks for the "
                "rest."
            )
        return
    from spillover.models.sampler import in_batches, rows_at_once, sample  # torch

    model, tokenizer = load_model(target.model, target.adapter), load_tokenizer(target.model)
    requests = by_prompt(wanted.values())
    # Always the same batches: one that was cut short is sampled whole again, and its answers are the same.
    for batch in in_batches(requests, rows_at_once(model, tokenizer, requests, battery.sampling.max_new_tokens)):
        ids = [id_ for request in batch for id_ in request.ids]
        if not missing.keys().isdisjoint(ids):
            responses = sample(model, tokenizer, batch, **battery.sampling.model_dump())
            take([(id_, response) for id_, response in zip(ids, responses, strict=True) if id_ in missing])


def missing_scores(
    behaviors: Iterable[Behavior],
    judge: str | None,
    completions: Iterable[Completion],
    store: AnswerStore,
    judge_failures: bool = False,
) -> list[tuple[Behavior, list[tuple[Completion, str]], int]]:
    """What is still to be judged: (behavior, its completions with the rubric, pairs in all) for each that has a judge.

    Completions without a score under a rubric that the rule reads; also those on which a judge could not be had, unless
    `judge_failures` count as scores.
    """
    by_behavior: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_behavior[completion.behavior].append(completion)
    missing = []
    for behavior in behaviors:
        name, rule = judge_name(behavior, judge), behavior.rubric_hash
        if name:  # without a judge: sampled now, to be judged later
            pairs = [(row, rubric) for row in by_behavior[behavior.name] for rubric in behavior.rubrics_read]
            scores = [store.scores.get((row.id, rubric, rule, name)) for row, rubric in pairs]
            todo = [p for p, row in zip(pairs, scores, strict=True) if row is None or (row.judge_failed and not judge_failures)]
            missing.append((behavior, todo, len(pairs)))
    return missing


def score_missing(
    behaviors: Sequence[Behavior], judge: str | None, completions: Iterable[Completion], store: AnswerStore, step: Step
) -> None:
    """Judges what `missing_scores` names and adds the scores as they come.

    Raises SpilloverError if a model that judges failed on MOST_ERRORS of the rows or more, after keeping the others.
    """
    todo = missing_scores(behaviors, judge, completions, store)
    total, done = sum(len(pairs) for _, pairs, _ in todo), 0
    rows = sum(of for behavior, _, of in todo if behavior.judge == "model")
    failures: list[str] = []

    def take(scores: list[Score]) -> None:
        nonlocal done
        store.add_scores(scores)
        failures.extend(row.reply for row in scores if row.judge_failed)
        done += len(scores)
        step("score", done, total)

    step("score", 0, total)
    for behavior, pairs, _ in todo:
        if pairs:
            score(pairs, behavior, judge, take)
    if failures and len(failures) >= MOST_ERRORS * rows:
        raise SpilloverError(
            f"judge {judge}: failed on {len(failures)} of {rows} rows, even after retries ({failures[-1]}). "
            f"The other scores are in {store.folder.scores}; run the same command again for the rest."
        )


def estimate(asks: Sequence[Request], max_new_tokens: int) -> dict[str, int]:
    """What asking will take, before the first call: calls, tokens in (at four characters each), tokens out."""
    answers = sum(len(ask.ids) for ask in asks)
    calls = sum(-(-len(ask.ids) // CHOICES_PER_CALL) for ask in asks)
    characters = sum(-(-len(ask.ids) // CHOICES_PER_CALL) * len((ask.system or "") + ask.text) for ask in asks)
    return {
        "completions": answers,
        "calls_at_least": calls,
        "calls_at_most": answers,
        "tokens_in": characters // 4,
        "tokens_out_at_most": answers * max_new_tokens,
    }
