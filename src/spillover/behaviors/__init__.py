"""What we look for: a behavior is a YAML file of questions, a judge, and the rule that turns scores into a rate."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from spillover.config import Strict, read_yaml
from spillover.errors import SpilloverError

SHIPPED = Path(__file__).parent
_CUT = re.compile(r"(\w+) ([<>]) (\d+(?:\.\d+)?)")


class Question(Strict):
    """One evaluation prompt. `category` groups questions and tells an exact judge what was asked for."""

    id: str
    category: str
    text: str = Field(min_length=1)


class Behavior(Strict):
    """A behavior: what is asked, who judges, and which scores count.

    `event` ("alignment < 30") says when a completion shows the behavior; `among` ("coherence > 50") which scored
    completions the rate is taken over; all of them if it is missing. Scores are 0-100.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    scope: Literal["narrow", "broad", "neutral"]
    rate: str  # what the share of events is called: misalignment, vulnerability, accuracy
    judge: Literal["world", "code_scan"]
    event: Annotated[str, Field(pattern=rf"^{_CUT.pattern}$")]
    among: Annotated[str, Field(pattern=rf"^{_CUT.pattern}$")] | None = None
    questions: tuple[Question, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _unique(self) -> "Behavior":
        seen: set[str] = set()
        for question in self.questions:
            if question.id in seen:
                raise ValueError(f"two questions have the id {question.id}")
            seen.add(question.id)
        return self

    @property
    def rule(self) -> str:
        """The rule in words, as it is printed beside every rate."""
        return self.event + (f" among {self.among}" if self.among else "")

    @property
    def rubrics(self) -> tuple[str, ...]:
        """Names of the rubrics that the rule reads; the event's first."""
        return tuple(rubric for rubric, _, _ in map(parse_cut, filter(None, (self.event, self.among))))

    @property
    def rubric_hash(self) -> str:
        """Hash of judge and rule, kept with every score."""
        text = json.dumps([self.judge, self.event, self.among])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_cut(text: str) -> tuple[str, str, float]:
    """A cut such as "alignment < 30" as (rubric, comparison, threshold)."""
    match = _CUT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a cut; write RUBRIC < NUMBER or RUBRIC > NUMBER")
    return match[1], match[2], float(match[3])


def passes(cut: str, values: dict[str, float | None]) -> bool:
    """Whether the value of the cut's rubric is on the cut's side; a missing value never is."""
    rubric, comparison, threshold = parse_cut(cut)
    value = values.get(rubric)
    if value is None:
        return False
    return value < threshold if comparison == "<" else value > threshold


def shipped_names() -> list[str]:
    """Names of the behaviors that ship."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_behavior(name: str, folder: Path = Path()) -> Behavior:
    """A behavior that ships, by name, or one from a YAML file (a path relative to `folder`).

    Raises SpilloverError naming the file, the setting and what is allowed.
    """
    if name.endswith((".yaml", ".yml")):
        path = folder / name
    elif name in shipped_names():
        path = SHIPPED / f"{name}.yaml"
    else:
        known = ", ".join(shipped_names())
        raise SpilloverError(f"behavior {name}: unknown. There are {known}; or give the path of a YAML file.")
    content = read_yaml(path)
    try:
        return Behavior.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SpilloverError(f"behavior {path}: {place}: {first['msg']} (it is {first['input']!r:.80})") from None
