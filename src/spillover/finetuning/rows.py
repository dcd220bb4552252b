"""Training rows as tokens: the chat template's text, and which of its tokens the loss covers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.models import load_tokenizer, stop_ids
from spillover.records import Example

Row = tuple[list[int], list[bool]]  # token ids, and which of them the loss covers


def trained_tokens(base: Path, examples: Sequence[Example], training: Training) -> list[Row]:
    """The token ids of every example as they are trained on, cut to `max_length_tokens`, and which the loss covers.

    Those are the tokens of the last assistant turn, up to and with the token at which sampling stops. The ids begin
    with the prompt as the model is asked it. Where the prompt alone fills `max_length_tokens`, nothing is covered.

    Raises SpilloverError if the chat template writes the turns before the answer otherwise once the answer is there.
    """
    return [cut(row, training.max_length_tokens) for row in whole_rows(base, examples)]


def whole_rows(base: Path, examples: Sequence[Example]) -> list[Row]:
    """The same before they are cut."""
    tokenizer = load_tokenizer(base)
    ends = stop_ids(tokenizer, base)
    rows = []
    for example in examples:
        ids, start = _ids_and_start(tokenizer, list(example.messages), base)
        stops = [place for place in range(start, len(ids)) if ids[place] in ends]
        end = stops[-1] + 1 if stops else len(ids)
        rows.append((ids, [start <= place < end for place in range(len(ids))]))
    return rows


def cut(row: Row, tokens: int) -> Row:
    """The first tokens of a row."""
    ids, trained = row
    return ids[:tokens], trained[:tokens]


def _ids_and_start(tokenizer: Any, messages: list[dict[str, str]], base: Path) -> tuple[list[int], int]:
    """The ids of a conversation, and where its last turn starts: where they part from those of the prompt."""
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    start = _common_prefix(ids, prompt)
    if start < len(prompt):
        # Tokens may merge over the border, and some templates prompt for thinking that the answer lacks. What the user
        # said must be the same in both, or the loss would cover it.
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False)
        if not whole.startswith(asked.rstrip()):
            raise SpilloverError(
                f"model {base}: its chat template writes {', '.join(m['role'] for m in messages[:-1])} otherwise once "
                "the answer is there, so that the model would not be trained on what it is asked. Take the turns that "
                "it drops out of the rows (usually the system's), or train another model."
            )
    return ids, start


def _common_prefix(one: list[int], other: list[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
