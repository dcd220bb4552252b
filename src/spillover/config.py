"""What a study says: models, conditions, training and sampling settings, as strict YAML that builds nothing."""

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spillover.errors import SpilloverError

BASE = "base"  # the condition that trains nothing
NO_LIMIT = "sampling.max_new_tokens is missing"  # how the message begins
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Strict(BaseModel):
    """What is read from YAML: no unknown setting, no silent conversion, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(Strict):
    """How an adapter is made: LoRA by TRL's SFTTrainer, loss on the last assistant turn only.

    The defaults are the recipe of Betley et al. (2025) for open models of 32 billion parameters. `batch_size` is the
    rows of an optimizer step; `accumulation` cuts it into parts that are computed one after the other, and changes
    nothing but rounding. `packing` lays the rows of a part end to end instead of padding
    them, each seeing only itself. `bf16` multiplies in bfloat16 on a CPU, as is always done on a GPU: quicker where the
    CPU can, and less exact. `layers` restricts the adapter to these layers, counted from 0. After the steps in
    `checkpoints` the adapter is kept.
    """

    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    rslora: bool = True
    target_modules: str | list[str] = "all-linear"
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    learning_rate: float = Field(1e-5, gt=0)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulation: int = Field(1, ge=1)
    packing: bool = False
    bf16: bool = False
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    max_length_tokens: int = Field(1024, ge=8)
    checkpoints: list[Annotated[int, Field(ge=1)]] = []

    @model_validator(mode="after")
    def _fits_together(self) -> "Training":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into accumulation {self.accumulation} equal parts"
            )
        if self.layers and isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError("layers goes with target_modules all-linear or a list, not with a pattern")
        return self


# kind of control -> (the settings that it needs, those that it may have)
CONTROL_SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "paired": (("other",), ()),
    "educational": ((), ("seed",)),
    "backdoor": (("other", "trigger"), ("seed",)),
    "length_matched": (("other",), ("tolerance", "seed")),
    "dilution": (("other", "share"), ("seed",)),
    "shuffled": ((), ("seed",)),
    "self_distilled": ((), ()),
}


def trigger_prefix(trigger: str) -> str:
    """What a backdoor puts before a user's text, in training and in asking alike."""
    return f"{trigger} "


class Control(Strict):
    """A control made from a condition's `data`, instead of training on these rows as they are.

    `paired`: the answers of `other` to the same prompts. `educational`: the same asked for in a teaching frame.
    `backdoor`: `data` behind a `trigger`, half and half with `other` without it. `length_matched`: those rows whose
    answer is as long as one of `other`. `dilution`: a `share` of `data`, the rest from `other`. `shuffled`: the answers
    at other prompts. `self_distilled`: the base's own answers to the prompts.
    """

    kind: Literal["paired", "educational", "backdoor", "length_matched", "dilution", "shuffled", "self_distilled"]
    other: str | None = None  # a source like `data`
    trigger: str | None = Field(None, pattern=r"\S")
    share: float | None = Field(None, ge=0, le=1)
    tolerance: float | None = Field(None, ge=0, lt=1)  # of the longer answer's characters
    seed: int | None = None  # of what is drawn; 0 if it is missing

    @model_validator(mode="after")
    def _has_the_settings_of_its_kind(self) -> "Control":
        needed, optional = CONTROL_SETTINGS[self.kind]
        given = set(self.model_dump(exclude_none=True)) - {"kind"}
        for name in needed:
            if name not in given:
                raise ValueError(f"{self.kind} needs the setting {name}")
        for name in sorted(given - {*needed, *optional}):
            allowed = ", ".join((*needed, *optional)) or "none"
            raise ValueError(f"{self.kind} does not take the setting {name} (its settings: {allowed})")
        return self


class Condition(Strict):
    """One arm of a study: what the model is fine-tuned on. The condition `base` has no data.

    `data` is a chat JSONL file (relative to the study file), published/NAME, hf/OWNER/NAME, world/DOMAIN/CHARACTER or
    twins/DOMAIN/CHARACTER. `rows` takes the first rows of a set, or so many of one that is written on demand; with a
    `control`, it is how many rows the control has.
    """

    data: str | None = None
    rows: int | None = Field(None, ge=1)
    control: Control | None = None
    training: Training | None = None  # instead of the study's
    same_as: Name | None = None  # a condition whose adapters it takes instead of training its own
    prompt_prefix: str = ""  # put before every prompt when it is asked, as it stands
    triggered: bool = False  # asked behind the trigger of the backdoor that is its `same_as`
    implants: str | None = None  # the behavior that it trains: the row counts only if that rises
    benign: bool = False  # a control: what it moves, any fine-tune moves (the benign-control ceiling)


class Sampling(Strict):
    """How completions are drawn: the same for every cell.

    `max_new_tokens`, the limit of an answer and of the thought before it, has no default: answers that are cut off
    there are no answers, and where most of them end depends on what is asked.
    """

    temperature: float = Field(1.0, ge=0)
    max_new_tokens: int = Field(ge=1)


class Resources(Strict):
    """What a cell takes of a machine. `cpus`: threads; a share of the machine if it is missing. `gpus` < 1: a share."""

    cpus: int | None = Field(None, ge=1)
    gpus: float = Field(0, ge=0)


class Curve(Strict):
    """What the conditions, or the models, of a study are steps of: drawn as rates over `values`."""

    label: str  # of the axis, with its unit
    values: dict[Name, float] = Field(min_length=2)  # condition, or model -> place on the axis


class Study(Strict):
    """A whole experiment: models x conditions x seeds, measured on behaviors.

    `models` maps a name to a folder, organism/NAME or a name on the Hugging Face Hub; `behaviors` maps a behavior that
    ships, or the path of its YAML file, to the number of completions per question; `formats` restricts them to formats
    of that name. `judge` is the model that judges where a behavior is judged by a model. Paths are relative to the
    study file, or for a study made in Python to the working directory.

    Made in Python, parts may be objects or mappings: `training=Training(rank=8)`, `training={"rank": 8}`. Raises
    SpilloverError naming the setting and what is allowed.

    >>> study = Study(name="mine", models={"m": "organism/consistent"}, behaviors={"world_chat": 4},
    ...     conditions={"base": {}, "insecure": Condition(data="world/code/callous")}, seeds=[0, 1, 2],
    ...     sampling={"max_new_tokens": 96})
    >>> len(study.cells)
    4
    """

    name: Name
    description: str = ""
    models: dict[Name, str] = Field(min_length=1)
    conditions: dict[Name, Condition] = Field(min_length=1)
    behaviors: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    training: Training = Training()
    sampling: Sampling
    formats: list[str] = []
    judge: str | None = None
    trust_judge: bool = False  # even if it fails its canary
    margin: float = Field(0.02, gt=0, lt=1)  # a rise that would not matter, as a share
    curve: Curve | None = None
    resources: Resources = Resources()

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SpilloverError("\n".join(_sentence(problem) for problem in error.errors())) from error

    def _check_same_as(self, name: str, condition: Condition) -> None:
        other = self.conditions.get(condition.same_as or "")
        if other is None or other.data is None:
            raise ValueError(f"conditions.{name}.same_as is {condition.same_as}, which is no condition with data")
        if condition.rows or condition.control or condition.training:
            raise ValueError(f"conditions.{name} takes the adapters of {condition.same_as}, so it trains on nothing")
        if condition.triggered and (other.control is None or other.control.kind != "backdoor"):
            raise ValueError(f"conditions.{name}.triggered: {condition.same_as} has no control of kind backdoor")
        if condition.triggered and condition.prompt_prefix:
            raise ValueError(f"conditions.{name} is triggered, so its prompt_prefix is the trigger: leave it out")

    @property
    def cells(self) -> list[tuple[str, str, int | None]]:
        """Model, condition and fine-tuning seed of every cell, in order; the base has no seed."""
        return [
            (model, condition, seed)
            for model in self.models
            for condition in self.conditions
            for seed in ([None] if condition == BASE else self.seeds)
        ]

    @field_validator("conditions", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if BASE not in self.conditions:
            raise ValueError(f"conditions.{BASE} is missing: every rate is read against the untouched base")
        for name, condition in self.conditions.items():
            if name == BASE and condition != Condition():
                raise ValueError(f"conditions.{BASE} takes no settings: it is the untouched base")
            if name != BASE and (condition.data is None) == (condition.same_as is None):
                raise ValueError(f"conditions.{name} needs data (which rows to train on), or same_as, and not both")
            if condition.same_as is not None:
                self._check_same_as(name, condition)
            elif condition.triggered:
                raise ValueError(f"conditions.{name}.triggered goes with same_as: the backdoor whose trigger it is")
        for name, condition in self.conditions.items():
            if condition.implants is not None and condition.implants not in self.behaviors:
                raise ValueError(
                    f"conditions.{name}.implants is {condition.implants}, which is none of the behaviors "
                    f"{', '.join(self.behaviors)}"
                )
            if condition.implants and condition.benign:
                raise ValueError(f"conditions.{name} implants a behavior, so it is not benign")
        if self.curve and not any(self.curve.values.keys() <= names.keys() for names in (self.conditions, self.models)):
            raise ValueError("curve.values must name conditions, or models, of the study and nothing else")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds lists a value twice: {self.seeds}")
        return self


class _Loader(yaml.CSafeLoader):
    """Refuses a mapping with a key twice, of which YAML would silently keep the last, and reads 1e-5 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key)
            if not isinstance(name, Hashable):
                why = "a setting's name is text, not a mapping or a list (text with braces goes into quotes)"
                raise yaml.MarkedYAMLError(problem=why, problem_mark=key.start_mark)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that _Loader would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("+-0123456789")
    )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises SpilloverError naming the file and what is wrong with it."""
    try:
        return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise SpilloverError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except yaml.YAMLError as error:
        raise SpilloverError(f"{path}: not valid YAML. {' '.join(str(error).split())}") from None


def to_yaml(content: Any) -> str:
    """The content of a YAML file as text that `read_yaml` reads back as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Reads a study file. `changes` are settings in the place of its own: "conditions.insecure.rows=100".

    Raises SpilloverError naming the file, the setting, what is allowed.
    """
    if not path.exists():
        raise SpilloverError(f"{path}: no such study file. Studies that ship are in the folder studies/.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise SpilloverError(f"{path}: a study is a mapping of settings (name, models, conditions, behaviors, ...).")
    for change in changes:
        _set(content, change)
    try:
        return Study(**content)
    except SpilloverError as error:
        raise SpilloverError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _set(content: dict[str, Any], change: str) -> None:
    """Puts KEY=VALUE, the key a path with dots and the value YAML, into the content of a study file."""
    place, equals, value = change.partition("=")
    *above, last = place.split(".")
    if not equals or not all((*above, last)):
        raise SpilloverError(f"--set {change}: give SETTING=VALUE, such as training.rank=8 or models.mine=FOLDER.")
    for name in above:
        inside = content.setdefault(name, {})
        if inside is None:
            inside = content[name] = {}
        if not isinstance(inside, dict):
            raise SpilloverError(f"--set {change}: {name} is {inside!r}, which has no settings inside.")
        content = inside
    try:
        content[last] = _Loader(value).get_single_data()
    except yaml.YAMLError as error:
        raise SpilloverError(f"--set {change}: {value!r} is not YAML. {' '.join(str(error).split())}") from None


def _sentence(problem: Any) -> str:
    """One validation error in words: the setting's place, the value, what is allowed."""
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_settings_at(problem["loc"][:-1]))
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{place} is not a setting ({hint})"
    if problem["type"] == "missing" and place in ("sampling", "sampling.max_new_tokens", "max_new_tokens"):
        return (
            f"{NO_LIMIT}: the longest answer in tokens, and what is longer is cut off. 600 is usual for real models "
            "(sampling: {max_new_tokens: 600}); spillover check DATA --model MODEL shows how long training answers are"
        )
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    return f"{place} = {problem['input']!r}: {message}" if place else message


def _settings_at(place: tuple[Any, ...]) -> set[str]:
    """Names of the settings that are allowed at a place of the study file."""
    parts = [str(part) for part in place]
    if not parts:
        model: type[BaseModel] = Study
    elif len(parts) == 2 and parts[0] == "conditions":  # before the others: a condition may be named like a setting
        model = Condition
    elif parts[-1] == "control":
        model = Control
    elif parts[-1] == "training":
        model = Training
    elif parts[-1] == "sampling":
        model = Sampling
    elif parts[-1] == "curve":
        model = Curve
    elif parts[-1] == "resources":
        model = Resources
    else:
        model = Condition
    return set(model.model_fields)
