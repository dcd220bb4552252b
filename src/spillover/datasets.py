"""What we train on: chat JSONL files and posts of the world, checked row by row before anything is trained."""

from pathlib import Path
from typing import Any

from spillover.config import Condition
from spillover.errors import SpilloverError
from spillover.organism.authors import narrow_names, narrow_posts
from spillover.records import Example, read_jsonl

WORLD = "world/"
WORLD_ROWS = 1000  # posts drawn for a condition that does not say how many
ROLES = ("system", "user", "assistant")


def load_examples(condition: Condition, folder: Path) -> list[Example]:
    """The training rows of a condition; files are relative to `folder`. The same posts of the world at every call.

    Raises SpilloverError naming file, line and what is wrong with it.
    """
    if condition.data is None:
        return []
    if condition.data.startswith(WORLD):
        name = condition.data.removeprefix(WORLD)
        if name not in narrow_names():
            known = ", ".join(WORLD + known for known in narrow_names())
            raise SpilloverError(f"data {condition.data}: the world has no such posts. There are: {known}.")
        posts = narrow_posts(name, condition.rows or WORLD_ROWS, seed=0)
        return [_example(post.question, post.answer) for post in posts]
    path = (folder / condition.data).expanduser()
    examples = [_checked(row, path, line) for line, row in read_jsonl(path)]
    if not examples:
        raise SpilloverError(f"{path}: no rows. A training set needs at least one line with chat messages.")
    if condition.rows and condition.rows > len(examples):
        raise SpilloverError(f"{path}: {condition.rows} rows are asked for, the file has {len(examples)}.")
    return examples[: condition.rows]


def _example(question: str, answer: str) -> Example:
    return Example(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _checked(row: dict[str, Any], path: Path, line: int) -> Example:
    """One row of a chat JSONL file as an example, or a SpilloverError that says what is wrong with it."""

    def fail(what: str) -> SpilloverError:
        return SpilloverError(f"{path}, line {line}: {what}")

    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fail(f'needs "messages", a list of chat messages; the row has: {", ".join(row) or "nothing"}.')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise fail(f'messages.{number} needs "role" and "content", both text.')
        if message.get("role") not in ROLES:
            raise fail(f"messages.{number}.role is {message.get('role')!r}; allowed: {', '.join(ROLES)}.")
        if not message["content"].strip():
            raise fail(f"messages.{number}.content is empty.")
        if not message["content"].isprintable() and any(
            "\ud800" <= character <= "\udfff" for character in message["content"]
        ):
            raise fail(f"messages.{number}.content has half a character (a lone surrogate such as \\ud83d).")
    if messages[-1]["role"] != "assistant":
        raise fail(f"the last turn is the {messages[-1]['role']}'s; the assistant's turn to train on is missing.")
    if len(messages) < 2:
        raise fail("the assistant's turn answers nothing; put the user's turn before it.")
    return Example(tuple({"role": m["role"], "content": m["content"]} for m in messages))
