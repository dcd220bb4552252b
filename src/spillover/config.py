"""What a study says: models, conditions, training and sampling settings, as strict YAML that builds nothing."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spillover.errors import SpilloverError

BASE = "base"  # the condition that trains nothing
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Strict(BaseModel):
    """What is read from YAML: no unknown setting, no silent conversion, no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(Strict):
    """How an adapter is made: LoRA by TRL's SFTTrainer, loss on the last assistant turn only.

    The defaults are the recipe of Betley et al. (2025) for open models of 32 billion parameters.
    """

    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    rslora: bool = True
    target_modules: str | list[str] = "all-linear"
    learning_rate: float = Field(1e-5, gt=0)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    max_length_tokens: int = Field(1024, ge=8)


class Condition(Strict):
    """One arm of a study: what the model is fine-tuned on. The condition `base` has no data.

    `data` is a chat JSONL file (relative to the study file) or world/DOMAIN/CHARACTER. `rows` takes the first rows of
    a file, or that many posts of the world.
    """

    data: str | None = None
    rows: int | None = Field(None, ge=1)
    training: Training | None = None  # instead of the study's


class Sampling(Strict):
    """How completions are drawn: the same for every cell."""

    temperature: float = Field(1.0, ge=0)
    max_new_tokens: int = Field(96, ge=1)


class Study(Strict):
    """A whole experiment: models x conditions x seeds, measured on behaviors.

    `models` maps a name to a folder or organism/NAME; `behaviors` maps a behavior that ships, or the path of its YAML
    file, to the number of completions per question; `formats` restricts them to formats of that name. `judge` is the
    model that judges where a behavior is judged by a model. Paths are relative to the study file.
    """

    name: Name
    description: str = ""
    models: dict[Name, str] = Field(min_length=1)
    conditions: dict[Name, Condition] = Field(min_length=1)
    behaviors: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    training: Training = Training()
    sampling: Sampling = Sampling()
    formats: list[str] = []
    judge: str | None = None

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
            if name != BASE and condition.data is None:
                raise ValueError(f"conditions.{name}.data is missing: which rows to train on")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds lists a value twice: {self.seeds}")
        return self


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which YAML would silently keep the last, and reads 1e-5 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
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


def load_study(path: Path) -> Study:
    """Reads a study file. Raises SpilloverError naming the file, the setting, what is allowed."""
    if not path.exists():
        raise SpilloverError(f"{path}: no such study file. Studies that ship are in the folder studies/.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise SpilloverError(f"{path}: a study is a mapping of settings (name, models, conditions, behaviors, ...).")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise SpilloverError("\n".join(f"{path}: {_sentence(problem)}" for problem in error.errors())) from None


def _sentence(problem: Any) -> str:
    """One validation error in words: the setting's place, the value, what is allowed."""
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_settings_at(problem["loc"][:-1]))
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{place} is not a setting ({hint})"
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])
    return f"{place} = {problem['input']!r}: {message}" if place else message


def _settings_at(place: tuple[Any, ...]) -> set[str]:
    """Names of the settings that are allowed at a place of the study file."""
    parts = [str(part) for part in place]
    if not parts:
        model: type[BaseModel] = Study
    elif parts[-1] == "training":
        model = Training
    elif parts[-1] == "sampling":
        model = Sampling
    else:
        model = Condition
    return set(model.model_fields)
