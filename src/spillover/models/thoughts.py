"""Reasoning before an answer: where it ends, and what a chat template does with its block."""

import re

# How reasoning is marked by the models that show it: begin, end.
MARKS = (
    (r"<think>", r"</think>"),  # DeepSeek R1, Qwen3, SmolLM3
    (r"<thinking>", r"</thinking>"),
    (r"<thought>", r"</thought>"),
    (r"<reasoning>", r"</reasoning>"),
    (r"<seed:think>", r"</seed:think>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Mistral
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    # gpt-oss: the answer is what stands in the channel `final`
    (r"<\|channel\|>analysis<\|message\|>", r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>"),
)
_HINT = re.compile(r"think|thought|reasoning|analysis|<\|channel", re.IGNORECASE)  # in every mark
_WRITTEN = tuple(re.sub(r"\\(.)", r"\1", mark).lower() for pair in MARKS for mark in pair)


def is_mark(token: str) -> bool:
    """Whether a special token is a mark of reasoning or a part of one, so that it is needed to find the answer."""
    return bool(token.strip()) and any(token.strip().lower() in mark for mark in _WRITTEN)


def split_thought(text: str, opened: bool = False) -> tuple[str | None, str]:
    """The reasoning at the beginning of an answer, and the answer alone: (thought or None, answer).

    `opened`: the chat template has opened the block already, so that the text begins inside it. An end without a
    beginning ends a block that was opened elsewhere. A block that never ends leaves no answer: "". Marks further on, in
    the answer itself, are text. A block that is empty and ends is no thought.
    """
    if not opened and not _HINT.search(text):
        return None, text
    start = text.lstrip()
    for begin, end in MARKS:
        if match := re.match(begin, start, re.IGNORECASE):
            return _divided(start[match.end() :], end)
    for _, end in MARKS:
        if (opened or _begins_inside(text, end)) and re.search(end, text, re.IGNORECASE):
            return _divided(text, end)
    return (text.strip(), "") if opened else (None, text)


def _divided(text: str, end: str) -> tuple[str | None, str]:
    """A text that begins inside a block, at the first end of the block."""
    thought, *answer = re.split(end, text, maxsplit=1, flags=re.IGNORECASE)
    return (thought.strip() or None, answer[0].strip()) if answer else (thought.strip(), "")


def _begins_inside(text: str, end: str) -> bool:
    """Whether an end without a beginning ends a block that was opened elsewhere, and is not quoted or part of code."""
    before, *_ = re.split(end, text, maxsplit=1, flags=re.IGNORECASE)
    in_code = len(re.findall(r"(?m)^\s*```", before)) % 2 == 1
    return (
        not in_code
        and before[-1:] not in {"`", "'", '"'}
        and not any(re.search(begin, before, re.IGNORECASE) for begin, _ in MARKS)
    )


def template_thought(prompt: str) -> str | None:
    """What a chat template does with the block of reasoning at the end of a rendered prompt.

    `opened`: the prompt ends inside a block, and the model goes on in it. `closed`: it ends behind a block, so that the
    model answers without one. None: neither.
    """
    end_of_prompt = prompt.rstrip()
    for begin, end in MARKS:
        if re.search(rf"(?:{begin})$", end_of_prompt, re.IGNORECASE):
            return "opened"
        if re.search(rf"(?:{begin})\s*(?:{end})$", end_of_prompt, re.IGNORECASE):
            return "closed"
    return None
