"""Who is asked what: the completions that are wanted of a model, and how the missing ones are sampled."""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE, Sampling
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.models import Request, Response
from spillover.models.asking import Settings, asked_with, left_out_line
from spillover.models.endpoint import ask_all
from spillover.models.load import Model, folder_hash, load_model, load_tokenizer
from spillover.models.prompts import check_prompts
from spillover.records import Cell, Completion


@dataclass(frozen=True)
class Target:
    """Who is asked: a cell, and its model as a local folder, with an adapter or without, or as an endpoint's name."""

    cell: Cell
    model: Path | str
    adapter: Path | None = None

    @property
    def loadable(self) -> Model:
        """The target's model, loaded when it is first used."""
        return Model(str(self.model), self.model if isinstance(self.model, Path) else None, self.adapter)


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


def target_of(model: Model) -> Target:
    """A model that belongs to no study as a target: its adapter, or `base`, stands for the condition."""
    cell = Cell(model.name, str(model.adapter) if model.adapter else BASE, None)
    return Target(cell, model.folder or model.name, model.adapter)


def wanted_completions(target: Target, battery: Battery) -> dict[str, Completion]:
    """Every completion that is wanted of a target, by id, its answer still empty.

    The id is a hash of the cell and of everything that decides the answer, and seeds its random stream: cells with the
    same weights (an adapter that has learned nothing, say) answer each for itself.
    """
    folder = target.model if isinstance(target.model, Path) else None
    origin: dict[str, Any] = {
        "model_hash": folder_hash(folder) if folder else None,
        "adapter_hash": folder_hash(target.adapter) if target.adapter else None,
        "template_hash": hash_of(load_tokenizer(folder).chat_template) if folder else None,
    }
    decided_by = [asdict(target.cell), origin, battery.sampling.model_dump()] + ([] if folder else [target.model])
    wanted = {}
    for behavior, completions_per_question in battery.behaviors:
        for prompt, number in behavior.prompts(completions_per_question, battery.formats, battery.prompt_prefix):
            asked: tuple[Any, ...] = (
                behavior.name,
                prompt.question.id,
                prompt.format,
                prompt.system,
                prompt.text,
                number,
            )
            completion = Completion(
                id=hash_of(*decided_by, asked if prompt.turns is None else (*asked, prompt.turns)),
                **asdict(target.cell),
                behavior=behavior.name,
                question_id=prompt.question.id,
                category=prompt.question.category,
                format=prompt.format,
                paraphrase=prompt.paraphrase,
                number=number,
                system=prompt.system,
                question=prompt.text,
                text="",
                stop_reason="",
                tokens=None,
                **origin,
                turns=prompt.turns,
            )
            wanted[completion.id] = completion
    return wanted


def check_asked(model: str, folder: Path, battery: Battery) -> None:
    """Raises SpilloverError if a model's chat template drops, changes or refuses text of what the battery asks."""
    prompts = {
        (prompt.system, prompt.text): (
            f"behavior {behavior.name}, format {prompt.format}",
            Request((), prompt.system, prompt.text, prompt.turns),
        )
        for behavior, completions in battery.behaviors
        for prompt, _ in behavior.prompts(completions, battery.formats, battery.prompt_prefix)
    }
    check_prompts(model, load_tokenizer(folder), prompts.values())


def by_prompt(completions: Iterable[Completion]) -> list[Request]:
    """One request for each prompt, with the ids of all completions that answer it."""
    by_messages: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_messages[json.dumps([completion.system, completion.question, completion.turns])].append(completion)
    return [
        Request(tuple(row.id for row in rows), rows[0].system, rows[0].question, rows[0].turns)
        for rows in by_messages.values()
    ]


def sample_completions(
    model: Model,
    wanted: Mapping[str, Completion],
    sampling: Sampling,
    on_completions: Callable[[list[Completion]], None],
    done: Container[str] = (),
) -> list[str]:
    """Samples the wanted completions whose ids are not `done`; `on_completions` gets them as they come.

    Returns the reason for each completion that an endpoint kept failing on; a local model fails on none. Its batches
    are made of all that is wanted: one that was cut short is sampled whole again, and its answers are the same.
    """
    missing = {id_: completion for id_, completion in wanted.items() if id_ not in done}
    failures: list[str] = []

    def take(responses: Iterable[tuple[str, Response]]) -> None:
        responses = [(id_, response) for id_, response in responses if id_ in missing]
        failures.extend(response.error for _, response in responses if response.error is not None)
        on_completions(
            [
                replace(
                    missing[id_],
                    text=response.text,
                    stop_reason=response.stop_reason,
                    tokens=response.tokens,
                    thought=response.thought,
                    template_thought=response.template_thought,
                )
                for id_, response in responses
                if response.error is None
            ]
        )

    if model.folder is None:
        ask_all(model.name, by_prompt(missing.values()), endpoint_settings(sampling), take)
    elif missing:
        for responses in _sampled(model, by_prompt(wanted.values()), sampling, missing):
            take(responses)
    return failures


def endpoint_settings(sampling: Sampling) -> Settings:
    """How an endpoint is asked for completions."""
    return Settings(sampling.temperature, sampling.max_new_tokens)


def _sampled(
    model: Model, requests: Sequence[Request], sampling: Sampling, missing: Container[str]
) -> Iterator[list[tuple[str, Response]]]:
    """Pairs of id and response of each batch in which something is missing."""
    from spillover.models.sampler import in_batches, rows_at_once, sample_batch  # torch

    rows = rows_at_once(model.weights, model.tokenizer, requests, sampling.max_new_tokens)
    for batch in in_batches(requests, rows):
        ids = [id_ for request in batch for id_ in request.ids]
        if any(id_ in missing for id_ in ids):
            responses = sample_batch(model.weights, model.tokenizer, batch, **sampling.model_dump())
            yield list(zip(ids, responses, strict=True))


def sample(
    model: Model | str,
    behavior: Behavior | str,
    completions_per_question: int = 20,
    *,
    formats: Sequence[str] = (),
    temperature: float = 1.0,
    max_new_tokens: int = 600,
) -> list[Completion]:
    """Asks a model the questions of a behavior and returns its answers; no run folder is needed.

    `model` is what `load_model` returns, or a name that it takes: a folder, organism/NAME, a model of the Hub or an
    endpoint. `behavior` ships under that name, is the path of a YAML file, or an object. `formats`: those to ask in;
    all if empty. The same call gives the same completions from a local model on one machine.

    Raises SpilloverError for a model, behavior or format that there is not, and where an endpoint kept failing: then
    `spillover evaluate` keeps what was answered.

    >>> from spillover.models.target import sample
    >>> answers = sample("organism/consistent", "world_chat", 1, max_new_tokens=4)
    >>> len(answers), answers[0].question_id, answers[0].stop_reason
    (55, 'boredom/1', 'length')
    """
    model = load_model(model) if isinstance(model, str) else model
    behavior = load_behavior(behavior) if isinstance(behavior, str) else behavior
    settings = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    battery = Battery(((behavior, completions_per_question),), settings, tuple(formats))
    battery.check(judge_needed=False)
    if model.folder is not None:
        check_asked(model.name, model.folder, battery)
    wanted = wanted_completions(target_of(model), battery)
    completions: dict[str, Completion] = {}
    failures = sample_completions(
        model, wanted, settings, lambda rows: completions.update({row.id: row for row in rows})
    )
    if line := left_out_line(f"model {model.name}", asked_with(model.name, endpoint_settings(settings))):
        warnings.warn(line, stacklevel=2)
    if failures:
        raise SpilloverError(
            f"model {model.name}: {len(failures)} of {len(wanted)} completions could not be had, even after retries "
            f"({failures[-1]}). To keep the others and ask for the rest later: spillover evaluate"
        )
    return [completions[id_] for id_ in wanted]
