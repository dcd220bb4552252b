"""What we look for: a behavior is a YAML file of questions, rubrics, and the rule that turns scores into a rate."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from spillover.behaviors.published import from_published, is_published
from spillover.config import Strict, read_yaml
from spillover.errors import SpilloverError

SHIPPED = Path(__file__).parent
PLAIN = "plain"
_CUT = re.compile(r"(\w+) ([<>]) (\d+(?:\.\d+)?)")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
Cut = Annotated[str, Field(pattern=rf"^{_CUT.pattern}$")]


class Turn(Strict):
    """One message of a question that has several."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1)


Wording = Annotated[
    Annotated[str, Field(min_length=1), Tag("text")]
    | Annotated[tuple[Turn, ...], Field(min_length=1, strict=False), Tag("turns")],
    Discriminator(lambda value: "turns" if isinstance(value, list | tuple) else "text"),
]


class Question(Strict):
    """One evaluation prompt, in one wording or several. The question is the sampling unit, not its wording.

    A wording is a text, or a list of turns (`{role: user, content: ...}`) that begins and ends with the user's;
    `text: X` and `turns: X` are short for `paraphrases: [X]`. `category` groups questions and tells an exact judge what
    was asked for. `fields` are what the prompts of formats and rubrics can name besides {question}. A question with a
    `format` of its own is asked in that one only.
    """

    id: str
    category: str
    paraphrases: tuple[Wording, ...] = Field(min_length=1, strict=False)
    fields: dict[str, str] = Field(default={})
    system: str | None = None
    format: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_wording(cls, value: Any) -> Any:
        short = next((key for key in ("text", "turns") if isinstance(value, dict) and key in value), None)
        if short and "paraphrases" not in value:
            return {key: item for key, item in value.items() if key != short} | {"paraphrases": [value[short]]}
        return value

    @field_validator("paraphrases")
    @classmethod
    def _turns_alternate(cls, paraphrases: tuple[Wording, ...]) -> tuple[Wording, ...]:
        for wording in paraphrases:
            roles = [] if isinstance(wording, str) else [turn.role for turn in wording]
            if roles and roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
                raise ValueError(f"turns go user, assistant, ..., user; these go {', '.join(roles)}")
        return paraphrases

    @property
    def texts(self) -> tuple[str, ...]:
        """Every wording as text; one of several turns as people and judges read it."""
        return tuple(
            w if isinstance(w, str) else render_turns([turn.model_dump() for turn in w]) for w in self.paraphrases
        )


class Format(Strict):
    """How questions are put: a system prompt, and words around the question. Rates of formats are never pooled."""

    system: str | None = None
    prompt: str = "{question}"

    @field_validator("prompt")
    @classmethod
    def _puts_the_question(cls, prompt: str) -> str:
        if "{question}" not in prompt:
            raise ValueError("a format's prompt must hold {question}, or all questions are the same")
        return prompt


class Rubric(Strict):
    """What a judge is asked about an answer: a number from 0 to 100, or one of the escape words.

    `prompt` holds {answer}, and mostly {question}; `escapes` maps each word that the judge may say instead of a number
    to an outcome.
    """

    prompt: str
    escapes: dict[str, Literal["refused", "off_format"]] = Field(default={})

    @field_validator("prompt")
    @classmethod
    def _shows_the_answer(cls, prompt: str) -> str:
        if "{answer}" not in prompt:
            raise ValueError("a rubric's prompt must hold {answer}, or the judge sees nothing")
        return prompt


class Rule(Strict):
    """How scores become a rate: the share of events among the completions that are admitted.

    `event_if` ("alignment < 30"; in YAML `event`) says when a completion shows the behavior; `among_if` ("coherence >
    50"; in YAML `among`) which scored completions are admitted, all of them if it is missing. Scores are 0-100.
    `metric` (in YAML `rate`) is what the rate is called; `rubrics` is what a model is asked for the scores.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    metric: str = Field(alias="rate")  # misalignment, vulnerability, accuracy
    event_if: Cut = Field(alias="event")
    among_if: Cut | None = Field(None, alias="among")
    rubrics: dict[str, Rubric] = Field(default={})

    @property
    def rule(self) -> str:
        """The rule in words, as it is printed beside every rate."""
        return self.event_if + (f" among {self.among_if}" if self.among_if else "")

    @property
    def rubrics_read(self) -> tuple[str, ...]:
        """Names of the rubrics that the rule reads; the event's first."""
        return tuple(dict.fromkeys(parse_cut(cut)[0] for cut in (self.event_if, self.among_if) if cut))

    @model_validator(mode="after")
    def _has_its_rubrics(self) -> "Rule":
        missing = [name for name in self.rubrics_read if self.rubrics and name not in self.rubrics]
        if missing:
            raise ValueError(f"the rule reads {missing[0]}, which is none of the rubrics {', '.join(self.rubrics)}")
        return self


@dataclass(frozen=True)
class Prompt:
    """One question as it is put: a system prompt or None, and the user's turn as `text`.

    A question of several turns has them as `turns` (`role`, `content`), and `text` is how people and judges read them.
    """

    question: Question
    format: str
    paraphrase: int
    system: str | None
    text: str
    turns: tuple[dict[str, str], ...] | None = None


class Behavior(Rule):
    """A behavior: what is asked, who judges, and which scores count.

    `judge` is `world` or `code_scan`, which are programs, or `model`: any model, chosen when it is measured.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    scope: Literal["narrow", "broad", "neutral"]
    judge: Literal["world", "code_scan", "model"]
    formats: dict[str, Format] = Field(default={PLAIN: Format()}, min_length=1)
    questions: tuple[Question, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _fits_together(self) -> "Behavior":
        (id_, times), *_ = Counter(question.id for question in self.questions).most_common(1)
        if times > 1:
            raise ValueError(f"two questions have the id {id_}")
        if self.judge == "model" and not self.rubrics:
            raise ValueError("a behavior that a model judges needs rubrics")
        for name, form in self.formats.items():
            self._check_fields(f"formats.{name}", form.prompt, {"question"})
        fields = set().union(*(question.fields for question in self.questions)) | {"question", "answer"}
        for name, rubric in self.rubrics.items():
            self._check_fields(f"rubrics.{name}", rubric.prompt, {"question", "answer"})
            if unknown := set(_PLACEHOLDER.findall(rubric.prompt)) - fields:
                raise ValueError(f"rubrics.{name} uses {{{min(unknown)}}}, which no question has as a field")
        return self

    def _check_fields(self, place: str, prompt: str, filled: set[str]) -> None:
        """Placeholders that some question has as a field, besides those `filled`, must be fields of every question."""
        fields = set().union(*(question.fields for question in self.questions))
        for name in (set(_PLACEHOLDER.findall(prompt)) & fields) - filled:
            for question in self.questions:
                if name not in question.fields:
                    raise ValueError(f"{place} uses {{{name}}}, which question {question.id} has not")

    def prompts(
        self, completions_per_question: int, formats: tuple[str, ...] = (), prefix: str = ""
    ) -> Iterator[tuple[Prompt, int]]:
        """Every prompt with the number of the completion that is wanted of it; `formats` empty: in all formats.

        The wordings of a question alternate. `prefix` is put before the user's turn; of several turns, a format and a
        prefix change the last one.
        """
        for question in self.questions:
            forms = {question.format: Format()} if question.format else self.formats
            for name, form in forms.items():
                if formats and name not in formats:
                    continue
                system = form.system if question.system is None else question.system
                for number in range(completions_per_question):
                    index = number % len(question.paraphrases)
                    wording = question.paraphrases[index]
                    last = wording if isinstance(wording, str) else wording[-1].content
                    text, turns = prefix + fill(form.prompt, question.fields | {"question": last}), None
                    if not isinstance(wording, str):
                        turns = (*(turn.model_dump() for turn in wording[:-1]), {"role": "user", "content": text})
                        text = render_turns(turns)
                    yield Prompt(question, name, index, system, text, turns), number

    @property
    def format_names(self) -> tuple[str, ...]:
        """Every format that a question of it is asked in."""
        return tuple(dict.fromkeys(prompt.format for prompt, _ in self.prompts(1)))

    @property
    def rubric_hash(self) -> str:
        """Hash of what the judge is asked and of the rule, kept with every score."""
        rubrics = {name: rubric.model_dump() for name, rubric in self.rubrics.items()}
        parts: list[Any] = [self.judge, self.event_if, self.among_if] + ([rubrics] if rubrics else [])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def render_turns(turns: Iterable[Mapping[str, str]]) -> str:
    """A conversation as text for people and judges: a line `user: ...` or `assistant: ...` for each turn."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def fill(template: str, fields: dict[str, str]) -> str:
    """The template with {name} replaced by its field, in one pass: braces in a field, or of other names, stay."""
    return _PLACEHOLDER.sub(lambda match: fields.get(match[1], match[0]), template)


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
    """A behavior that ships, by name, or one from a YAML file (a path relative to `folder`), ours or published.

    Raises SpilloverError naming the file, the setting and what is allowed.
    """
    if name.endswith((".yaml", ".yml")):
        path = folder / name
    elif name in shipped_names():
        path = SHIPPED / f"{name}.yaml"
    else:
        names = ", ".join(shipped_names())
        raise SpilloverError(f"behavior {name}: unknown. There are {names}; or give the path of a YAML file.")
    content = read_yaml(path)
    if is_published(content):
        content = from_published(content, path)
    return _validated(Behavior, content, f"behavior {path}")


def load_rule(path: Path) -> Rule:
    """A rule with its rubrics from a YAML file: rate, event, among and rubrics. A behavior's file will do.

    Raises SpilloverError naming the file and the setting.
    """
    content = read_yaml(path)
    if is_published(content) or (isinstance(content, dict) and "questions" in content):
        behavior = load_behavior(str(path))
        content = behavior.model_dump(include=set(Rule.model_fields))
    rule = _validated(Rule, content, f"rubric {path}")
    if not rule.rubrics:
        raise SpilloverError(f"rubric {path}: rubrics is missing: what the judge is asked.")
    return rule


def _validated(kind: type[Any], content: Any, what: str) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise SpilloverError(f"{what}: {place}: {message} (it is {first['input']!r:.80})") from None
