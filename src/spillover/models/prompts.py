"""Prompts in a model's chat template: as text, as tokens, and whether every turn reaches the model."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from spillover.errors import SpilloverError
from spillover.models import Request
from spillover.models.thoughts import template_thought

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)  # what a chat template raises that refuses turns, or is wrong
# The day that templates write which write the day: always this one, so that a model is asked the same on every day.
TODAY = datetime(2026, 1, 1)
QUESTION = "{question}"
QUOTED = 60  # characters of a turn that a message quotes

Turns = Sequence[Mapping[str, Any]]


def in_template(tokenizer: Any, turns: Turns, *, prompt: bool = False, tokenize: bool = False) -> Any:
    """A conversation in the model's chat template: text, or token ids with `tokenize`.

    `prompt`: with the generation prompt, after which the model answers. Contents are given as the template wants them:
    as text, or as lists of parts. Raises one of TEMPLATE_ERRORS if the template refuses the turns.
    """
    return _render(tokenizer, turns, _wants_parts(tokenizer), prompt=prompt, tokenize=tokenize)


def _render(tokenizer: Any, turns: Turns, parts: bool, *, prompt: bool, tokenize: bool = False) -> Any:
    messages = [{**turn, "content": _parts(turn["content"])} if parts else dict(turn) for turn in turns]
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=prompt,
        tokenize=tokenize,
        return_dict=False,
    )


def with_fixed_day(template: str) -> str:
    """A chat template that writes the day writes TODAY in its place; any other is as it was.

    Such templates call `strftime_now`, which transformers defines and lets nobody replace, so it is a macro here.
    """
    if "strftime_now" not in template:
        return template
    formats = {text for _, text in re.findall(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", template)}
    days = json.dumps({text: TODAY.strftime(text) for text in formats})
    macro = f"{{%- macro strftime_now(format) %}}{{{{ {days}.get(format, '{TODAY.date()}') }}}}{{% endmacro %}}"
    return macro + "{{ '' }}" + template  # the empty text keeps a line break at the template's beginning


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


@lru_cache(16)
def _wants_parts(tokenizer: Any) -> bool:
    """Whether the template shows the text of a turn only where it is a list of parts, as those of vision models do."""

    def shows(parts: bool) -> bool:
        try:
            return QUESTION in _render(tokenizer, [{"role": "user", "content": QUESTION}], parts, prompt=True)
        except TEMPLATE_ERRORS:
            return False

    return not shows(parts=False) and shows(parts=True)


def encode(tokenizer: Any, request: Request) -> list[int]:
    """Token ids of a prompt in the chat template, with the generation prompt.

    Raises SpilloverError if the template refuses the turns.
    """
    try:
        return in_template(tokenizer, request.messages, prompt=True, tokenize=True)
    except TemplateError as error:
        raise SpilloverError(f"a prompt: {_refused(request.messages, error)}. {_advice(request.messages)}") from None


def check_prompts(model: str, tokenizer: Any, prompts: Iterable[tuple[str, Request]]) -> None:
    """Checks that the text of every turn is in the prompt that the model gets, and is there once.

    `prompts`: pairs of where a prompt comes from, for the message, and the prompt. Raises SpilloverError for the first
    whose text the template drops, changes or writes twice, or whose turns it refuses.
    """
    for place, request in prompts:
        if problem := lost_turn(tokenizer, request.messages, prompt=True):
            raise SpilloverError(f"model {model}: {problem} ({place}). {_advice(request.messages)}")


def lost_turn(tokenizer: Any, turns: Turns, *, prompt: bool = False) -> str | None:
    """What the chat template does wrong with the turns, in words; None if each one's text is there, once."""
    try:
        squashed = _squashed(in_template(tokenizer, turns, prompt=prompt))
        for turn in turns:
            if _squashed(turn["content"]) not in squashed:
                return f"its chat template drops the text of the {turn['role']} turn, {_quoted(turn['content'])}"
        marks = tuple(f"turn-{place}-of-these" for place in range(len(turns)))
        text = _frame(tokenizer, tuple(turn["role"] for turn in turns), marks, prompt)
    except TEMPLATE_ERRORS as error:
        return _refused(turns, error)
    for turn, mark in zip(turns, marks, strict=True):
        if (times := text.count(mark)) != 1:
            return f"its chat template writes the text of the {turn['role']} turn {times} times"
    return None


@lru_cache(256)
def _frame(tokenizer: Any, roles: tuple[str, ...], contents: tuple[str, ...], prompt: bool) -> str:
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return str(in_template(tokenizer, turns, prompt=prompt))


def _refused(turns: Turns, error: Exception) -> str:
    roles = ", ".join(turn["role"] for turn in turns)
    return f"its chat template refuses the turns {roles} ({error})"


def _advice(turns: Turns) -> str:
    if any(turn["role"] == "system" for turn in turns):
        return (
            "Choose formats without a system prompt (--formats plain, or formats: [plain] in a study file), or put the "
            "text into the question."
        )
    return "The model would not see what it is asked. Mend the chat template, or take another model."


def _squashed(text: str) -> str:
    """A text without white space, which templates add and take away."""
    return "".join(text.split())


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= QUOTED else text[:QUOTED] + "...")


def template_record(tokenizer: Any) -> dict[str, Any]:
    """What the chat template adds to a question, for the manifest: a default system prompt, a date, a thought.

    `prompt` is the whole prompt of a question without a system turn. `date`: the day that it is made for, where it
    asks for the day. `thought`: `opened` or `closed`, where it begins or forecloses one.
    """
    asks_for_the_day = "strftime_now" in str(tokenizer.chat_template)
    try:
        text = _frame(tokenizer, ("user",), (QUESTION,), True)
    except TEMPLATE_ERRORS as error:
        return {"refuses": str(error)}
    return {
        "prompt": text,
        "date": TODAY.date().isoformat() if asks_for_the_day else None,
        "thought": template_thought(text),
    }
