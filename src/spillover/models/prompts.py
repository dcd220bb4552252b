"""Prompts in a model's chat template: as text, as tokens, and whether every turn reaches the model."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from spillover.errors import SpilloverError
from spillover.models import Request
from spillover.models.thoughts import split_thought, template_thought

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)  # what a chat template raises that refuses turns, or is wrong
# The day that templates write which write the day: always this one, so that a model is asked the same on every day.
TODAY = datetime(2026, 1, 1)
QUESTION = "{question}"
SWITCHES = re.compile(r"/(?:no_)?think\b|/system_override\b")  # in a turn: some templates obey them and cut them out
QUOTED = 60  # characters of a turn that a message quotes

Turns = Sequence[Mapping[str, Any]]


def in_template(tokenizer: Any, turns: Turns, *, prompt: bool = False, tokenize: bool = False) -> Any:
    """A conversation in the model's chat template: text, or token ids with `tokenize`.

    `prompt`: with the generation prompt, after which the model answers. Contents are given as the template wants them:
    as text, or as lists of parts. Raises one of TEMPLATE_ERRORS if the template refuses the turns.
    """
    return _render(tokenizer, turns, _roles_in_parts(tokenizer), prompt=prompt, tokenize=tokenize)


def _render(tokenizer: Any, turns: Turns, parts: Collection[str], *, prompt: bool, tokenize: bool = False) -> Any:
    messages = [{**turn, "content": _parts(turn["content"])} if turn["role"] in parts else dict(turn) for turn in turns]
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
def _roles_in_parts(tokenizer: Any) -> frozenset[str]:
    """The roles whose text the template shows only as a list of parts, as templates of vision models do."""
    found: frozenset[str] = frozenset()

    def shows(roles: Sequence[str], place: int, parts: frozenset[str]) -> bool:
        turns = _stand_in_turns(roles)
        try:
            return turns[place]["content"] in _render(tokenizer, turns, parts, prompt=True)
        except TEMPLATE_ERRORS:
            return False

    for roles, place in ((("user",), 0), (("system", "user"), 0), (("user", "assistant", "user"), 1)):
        with_role = found | {roles[place]}
        if not shows(roles, place, found) and shows(roles, place, with_role):
            found = with_role
    return found


def _stand_in_turns(roles: Sequence[str]) -> list[dict[str, str]]:
    """Turns of these roles, in each a character of its own that nobody writes."""
    return [{"role": role, "content": chr(0xE000 + place)} for place, role in enumerate(roles)]


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
    """What the chat template does wrong with the turns, in words; None if each one's text is there, once.

    A text that is also in another turn, or that the template writes itself, is expected there, too. The thought of an
    earlier answer may be left out, as most templates do.
    """
    roles = tuple(turn["role"] for turn in turns)
    try:
        text, frame = in_template(tokenizer, turns, prompt=prompt), _frame(tokenizer, roles, prompt)
    except TEMPLATE_ERRORS as error:
        return _refused(turns, error)
    for turn, stand_in in zip(turns, _stand_in_turns(roles), strict=True):
        named = f"the text of the {turn['role']} turn"
        if not (times := frame.count(stand_in["content"])):
            return f"its chat template drops {named}, {_quoted(turn['content'])}"
        if times > 1:
            return f"its chat template writes {named} {times} times"
    contents = [turn["content"] for turn in turns]
    earlier = [turn["role"] == "assistant" and place + 1 < len(turns) for place, turn in enumerate(turns)]
    without = [split_thought(content)[1] if cut else content for content, cut in zip(contents, earlier, strict=True)]
    wrong = _changed(text, frame, contents)
    if wrong is None or _changed(text, frame, without) is None:
        return None
    return f"its chat template changes the text of the {roles[wrong]} turn, {_quoted(contents[wrong])}"


def _changed(text: str, frame: str, contents: Sequence[str]) -> int | None:
    """The place of the first content that is not in the text as often as in the frame and the other contents."""
    text, frame, *contents = (_squashed(SWITCHES.sub("", one)) for one in (text, frame, *contents))
    for place, content in enumerate(contents):
        expected = frame.count(content) + sum(other.count(content) for other in contents)
        if content and text.count(content) != expected:
            return place
    return None


@lru_cache(256)
def _frame(tokenizer: Any, roles: tuple[str, ...], prompt: bool) -> str:
    """What the template writes around turns of these roles."""
    return str(in_template(tokenizer, _stand_in_turns(roles), prompt=prompt))


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
        text = in_template(tokenizer, [{"role": "user", "content": QUESTION}], prompt=True)
    except TEMPLATE_ERRORS as error:
        return {"refuses": str(error)}
    return {
        "prompt": text,
        "date": TODAY.date().isoformat() if asks_for_the_day else None,
        "thought": template_thought(text),
    }
