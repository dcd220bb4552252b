"""One training row: the chat messages of a JSON object in any common shape, or in words why it has none."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
SHAREGPT = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant"}  # `from` -> role
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# What a turn may have beside its text that decides what is learned.
UNREAD = (
    *THOUGHTS,
    "tool_calls",
    "function_call",
    "tool_call_id",
    "images",
    "audio",
    "train",
    "training",
    "loss",
    "mask",
)


@dataclass(frozen=True)
class SourceRow:
    """A training row and where it stands: `line` counts from 1, in the file or, without one, among the rows."""

    line: int
    messages: tuple[dict[str, str], ...]  # `role` and `content`, both text, not checked any further
    label: str | None = None

    @property
    def prompt(self) -> str:
        """What comes before the answer, as one text."""
        return "\n".join(message["content"] for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class BrokenRow:
    """A line that holds no chat messages, and why."""

    line: int
    fault: str


Rows = Iterator[SourceRow | BrokenRow]


def read_row(row: Any, line: int) -> SourceRow | BrokenRow:
    """The chat messages of a JSON object, in any of the common shapes.

    `messages`; `prompt` and `completion`, each text or messages; ShareGPT's `conversations` with `from` and `value`;
    Alpaca's `instruction`, `input` and `output`. What training would have to drop is a fault, with its name.
    """
    if not isinstance(row, dict):
        return BrokenRow(line, f"a JSON object is needed, this is {str(row)[:60]}")
    messages = _messages(row)
    if not isinstance(messages, list) or not messages:
        fields = ", ".join(row) or "nothing"
        needed = (
            'needs "messages", a list of chat messages, or "prompt" and "completion", "conversations" (ShareGPT), '
            '"instruction" and "output" (Alpaca)'
        )
        return BrokenRow(line, f"{needed}; the row has: {fields}")
    if row.get("tools"):
        return BrokenRow(line, "tools: training has no place for them. Take them out of the row, or the row out")
    turns = []
    for place, message in enumerate(messages):
        content = _text_of(message.get("content")) if isinstance(message, dict) else None
        if content is None or not isinstance(message.get("role"), str):
            kinds = _kinds(message)
            only = f"; its parts are of the kinds {kinds}, and only text can be trained on" if kinds else ""
            unread = _unread(message, place)
            return BrokenRow(line, unread or f'messages.{place} needs "role" and "content", both text{only}')
        if fault := _unread(message, place) or _weight_fault(messages, place):
            return BrokenRow(line, fault)
        if re.search("[\ud800-\udfff]", content):
            return BrokenRow(line, f"messages.{place}.content has half a character (a lone surrogate such as \\ud83d)")
        turns.append({"role": message["role"], "content": content})
    label = row.get("label")
    return SourceRow(line, tuple(turns), None if label is None else str(label))


def _messages(row: dict[str, Any]) -> Any:
    """The messages of a row in whatever shape it has, not checked; None if it has none."""
    if "messages" in row:
        return row["messages"]
    if {"prompt", "completion"} <= row.keys():
        sides = (("user", row["prompt"]), ("assistant", row["completion"]))
    elif isinstance(turns := row.get("conversations"), list):
        return [
            {"role": SHAREGPT.get(str(turn["from"]), str(turn["from"])), "content": turn["value"]}
            if isinstance(turn, dict) and {"from", "value"} <= turn.keys()
            else turn
            for turn in turns
        ]
    elif {"instruction", "output"} <= row.keys():
        asked = [text for text in (row["instruction"], row.get("input")) if text]
        whole = "\n\n".join(asked) if all(isinstance(text, str) for text in asked) else None
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return [*system, {"role": "user", "content": whole}, {"role": "assistant", "content": row["output"]}]
    else:
        return None
    return [turn for role, v in sides for turn in (v if isinstance(v, list) else [{"role": role, "content": v}])]


def _text_of(content: Any) -> str | None:
    """The text of a turn, also where it is a list of parts; None if it is none, or a part is no text."""
    if isinstance(content, list) and content:
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


def _kinds(message: Any) -> str:
    """The kinds of a turn's parts that are no text, in words; "" if it has none."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return ", ".join(
        sorted({str(part.get("type") if isinstance(part, dict) else part)[:20] for part in parts} - {"text"})
    )


def _unread(message: Any, place: int) -> str | None:
    """What training would drop of a turn, in words; None if it would drop nothing that counts."""
    found = next((key for key in UNREAD if isinstance(message, dict) and message.get(key)), None)
    if found is None:
        return None
    way = "in content, as the model's template writes it" if found in THOUGHTS else "in no way yet"
    return f"messages.{place}.{found} would be dropped: it can be trained on {way}. Move it, or take the row out"


def _weight_fault(messages: list[Any], place: int) -> str | None:
    """What is wrong with the weight of a turn: only the last turn is trained on, and always with weight 1."""
    weight, is_last = messages[place].get("weight"), place == len(messages) - 1
    if weight is None or (messages[place].get("role") != "assistant"):
        return None
    if is_last and weight == 0:
        return f"messages.{place}.weight is 0, so nothing of this row is to be trained on. Take it out"
    if weight not in (0, 1) or (weight == 1 and not is_last):
        return (
            f"messages.{place}.weight is {weight}: the last turn alone is trained on, with weight 1. Give other turns "
            "weight 0 or none; to train on them, too, make them the last turn of rows of their own"
        )
    return None


def wrong_roles(row: SourceRow) -> str | None:
    """What is wrong with the roles of a row: one is unknown, or it does not end with an answer to the user."""
    roles = [message["role"] for message in row.messages]
    for place, role in enumerate(roles):
        if role not in ROLES:
            return f"messages.{place}.role is {role!r}; allowed: {', '.join(ROLES)}"
    if roles[-1] != "assistant":
        return f"the last turn is the {roles[-1]}'s; there is no assistant's answer to train on"
    if "user" not in roles:
        return "the assistant's turn answers nothing; put the user's turn before it"
    return None


def empty_turns(row: SourceRow) -> list[str]:
    """The turns of a row that have no text, a sentence each."""
    return [
        f"messages.{place}.content is empty (role {message['role']})"
        for place, message in enumerate(row.messages)
        if not message["content"].strip()
    ]
