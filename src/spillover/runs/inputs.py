"""What a study is made from, read once before anything is trained or sampled: models, training rows, behaviors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE, NO_LIMIT, Study, load_study, trigger_prefix
from spillover.data import make_examples
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.models.load import folder_hash, load_tokenizer, model_folder, pinned
from spillover.models.prompts import template_record
from spillover.models.target import Battery, check_asked
from spillover.organism.dial import Build, model_to_build
from spillover.records import Example
from spillover.runs.self_distill import check_prompts

SELF_DISTILLED = "self_distilled"


@dataclass(frozen=True)
class Rows:
    """The training rows of a condition, how they were made, and the hash of their messages.

    Of a self-distilled condition they are the rows whose prompts its base is to answer: `self_distilled` is True.
    """

    examples: tuple[Example, ...]
    how_made: dict[str, Any]
    self_distilled: bool

    @cached_property
    def hash(self) -> str:
        """Hash of all messages in their order: 16 hex digits."""
        return hash_of([example.messages for example in self.examples])


@dataclass(frozen=True)
class Inputs:
    """A study with all that it names: its paths resolved, its rows made, its behaviors loaded."""

    study: Study
    bases: Mapping[str, Path]  # name of the model in the study -> its folder
    rows: Mapping[str, Rows]  # condition -> its rows; none for the base, and for one that takes another's adapters
    behaviors: Mapping[str, Behavior]  # as the study names it -> the behavior

    def battery(self, condition: str) -> Battery:
        """What the cells of a condition are asked."""
        study = self.study
        asked: dict[str, tuple[Behavior, int]] = {}
        for setting, count in study.behaviors.items():  # one that is named twice is asked once, the larger number
            behavior = self.behaviors[setting]
            asked[behavior.name] = (behavior, max(count, asked.get(behavior.name, (behavior, 0))[1]))
        prefix = self.prompt_prefix(condition)
        return Battery(tuple(asked.values()), study.sampling, tuple(study.formats), study.judge, prefix)

    def prompt_prefix(self, condition: str) -> str:
        """What is put before every prompt: the setting, or the trigger of the control whose adapters it takes."""
        settings = self.study.conditions[condition]
        control = self.study.conditions[self.source(condition)].control
        trigger = control.trigger if settings.triggered and control else None
        return settings.prompt_prefix if trigger is None else trigger_prefix(trigger)

    def source(self, condition: str) -> str:
        """The condition whose adapters it takes: itself, unless it is the `same_as` of another."""
        return self.study.conditions[condition].same_as or condition

    @property
    def hashes(self) -> dict[str, Any]:
        """Hashes of every input, and commits of the models that come from the Hub, for the manifest."""
        return {
            "models": {name: folder_hash(base) for name, base in self.bases.items()},
            "revisions": {name: commit for name, base in self.bases.items() if (commit := pinned(base))},
            "templates": {name: template_record(load_tokenizer(base)) for name, base in self.bases.items()},
            "data": {name: rows.hash for name, rows in self.rows.items()},
            "behaviors": {
                behavior.name: {
                    "setting": setting,
                    "also": [other for other, same in self.behaviors.items() if same == behavior and other != setting],
                    "hash": hash_of(behavior.model_dump()),
                }
                for setting, behavior in self.behaviors.items()
            },
        }


def read_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """The study in a file, by `load_study`. Where it does not say `max_new_tokens`, the error proposes a number.

    Raises SpilloverError as `load_study`.
    """
    try:
        return load_study(path, changes)
    except SpilloverError as error:
        if NO_LIMIT not in str(error):
            raise
        with_any = load_study(path, (*changes, "sampling.max_new_tokens=1"))  # raises what else is wrong
        length = usual_length(read_inputs(with_any, path.parent))
        if length is None:
            raise
        raise SpilloverError(f"{error}. {length} tokens hold 99 % of the training answers of this study.") from None


def usual_length(inputs: Inputs) -> int | None:
    """Tokens that hold 99 % of every condition's training answers in every model, rounded up to tens; None of none."""
    longest = [0]
    for base in inputs.bases.values():
        tokenizer = load_tokenizer(base)
        for rows in inputs.rows.values():
            if not rows.self_distilled:
                answers = [example.messages[-1]["content"] for example in rows.examples]
                sizes = sorted(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))
                longest.append(sizes[math.ceil(0.99 * len(sizes)) - 1] + 1)  # 1: the end of the turn
    return math.ceil(max(longest) / 10) * 10 or None


def builds_of(study: Study) -> list[Build]:
    """The organisms that a study names and that have not been built yet, each once, however it is written."""
    builds = dict.fromkeys(map(model_to_build, study.models.values()))
    return [build for build in builds if build is not None]


def read_inputs(study: Study, folder: Path) -> Inputs:
    """Reads everything that a study names; its paths are relative to `folder`.

    Organisms that are still to be built are left out of `bases`. Raises SpilloverError for what is wrong with rows,
    behaviors or models.
    """
    bases = {
        name: model_folder(model, folder).absolute()
        for name, model in study.models.items()
        if model_to_build(model) is None
    }
    rows = {}
    for name, condition in study.conditions.items():
        if condition.data is not None:
            own_answers = condition.control is not None and condition.control.kind == SELF_DISTILLED
            source = condition.model_copy(update={"control": None}) if own_answers else condition
            examples, how_made = make_examples(source, folder)
            rows[name] = Rows(tuple(examples), how_made, own_answers)
            if own_answers:
                _check_prompts(name, rows[name])
    inputs = Inputs(study, bases, rows, {name: load_behavior(name, folder) for name in study.behaviors})
    for one, other in itertools.combinations(inputs.behaviors, 2):
        behavior, same = inputs.behaviors[one], inputs.behaviors[other]
        if behavior.name == same.name and behavior != same:
            raise SpilloverError(
                f"behaviors {one} and {other} are both called {inputs.behaviors[one].name}, and their answers could "
                "not be told apart. Give one of them another name in its file."
            )
    inputs.battery(BASE).check()
    _check_prompts_arrive(inputs)
    return inputs


def with_built(inputs: Inputs, folder: Path) -> Inputs:
    """The inputs once all organisms are built."""
    bases = {n: model_folder(m, folder).absolute() for n, m in inputs.study.models.items()}
    whole = replace(inputs, bases=bases)
    _check_prompts_arrive(whole)
    return whole


def _check_prompts_arrive(inputs: Inputs) -> None:
    """Raises SpilloverError if a model's chat template loses text of what a condition is asked, its prefix as well."""
    batteries = {inputs.prompt_prefix(condition): inputs.battery(condition) for condition in inputs.study.conditions}
    for name, base in inputs.bases.items():
        for battery in batteries.values():
            check_asked(f"{name} ({inputs.study.models[name]})", base, battery)


def _check_prompts(condition: str, rows: Rows) -> None:
    try:
        check_prompts(rows.examples)
    except SpilloverError as error:
        raise SpilloverError(f"conditions.{condition}: {error}") from error
