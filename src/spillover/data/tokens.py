"""Training rows as tokens: the chat template's text, and which of its tokens the loss covers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.models.load import folder_hash, load_tokenizer, max_positions, stop_ids
from spillover.models.prompts import TEMPLATE_ERRORS, in_template
from spillover.records import Example

TokenRow = tuple[list[int], list[bool]]  # token ids, and for each whether the loss covers it

MARK = "\ue000"  # a character that nobody writes
_TOKENIZED: dict[tuple[str, str], list[TokenRow]] = {}  # (hash of the model, hash of the rows) -> the last rows


def common_prefix_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of what two sequences, texts or lists of tokens, have in common at their beginning."""
    length = min(len(one), len(other))
    return next((place for place in range(length) if one[place] != other[place]), length)


def trained_tokens(base: Path, examples: Sequence[Example], training: Training) -> list[TokenRow]:
    """The token ids of every example as they are trained on, cut to `max_length_tokens`, and which the loss covers.

    Those are the tokens of the last assistant turn, up to and with the token at which sampling stops. The ids begin
    with the prompt as the model is asked it. Where the prompt alone fills `max_length_tokens`, nothing is covered.

    Raises SpilloverError if the chat template refuses a row, or writes the turns before the answer otherwise once the
    answer is there.
    """
    limit = training.max_length_tokens
    return [(ids[:limit], trained[:limit]) for ids, trained in whole_rows(base, examples)]


def fitting_rows(base: Path, examples: Sequence[Example], training: Training) -> tuple[list[TokenRow], int]:
    """The rows of `trained_tokens`, and how many of them are cut, so that they lose the end of their answer.

    Raises SpilloverError as it does, and if a row loses its whole answer, or is longer than the model has positions.
    """
    limit, rows = training.max_length_tokens, whole_rows(base, examples)
    cut = _count_cut(base, rows, limit, len(rows))
    return [(ids[:limit], trained[:limit]) for ids, trained in rows], cut


def rows_cut(base: Path, examples: Sequence[Example], training: Training) -> int:
    """How many rows training will cut at `max_length_tokens`; only rows that could be so long are tokenized.

    No token is shorter than a byte, so a row whose text in the chat template has at most so many bytes fits.
    Raises SpilloverError as `fitting_rows` does.
    """
    limit = min(training.max_length_tokens, max_positions(base) or training.max_length_tokens)
    try:
        tokenizer = load_tokenizer(base)
        texts = [in_template(tokenizer, example.messages) for example in examples]
        sizes = [len(text.encode()) + len(e.messages) for e, text in zip(examples, texts, strict=True)]
        long = [example for example, size in zip(examples, sizes, strict=True) if size > limit]
        rows = whole_rows(base, long) if long else []
    except (*TEMPLATE_ERRORS, SpilloverError):
        whole_rows(base, examples)  # names the row by its number among all
        raise
    return _count_cut(base, rows, training.max_length_tokens, len(examples))


def _count_cut(base: Path, rows: Sequence[TokenRow], limit: int, total: int) -> int:
    """How many of these rows, of `total` in all, are cut at `limit` tokens. Raises SpilloverError if that cannot be."""
    positions = max_positions(base)
    cut = sum(len(ids) > limit for ids, _ in rows)
    lost = sum(not any(trained[:limit]) for _, trained in rows)
    if lost:
        raise SpilloverError(
            f"training.max_length_tokens = {limit}: the prompts alone are longer in {lost:,} of {total:,} rows, so "
            f"that nothing is left to train on; {cut:,} are cut. Raise it (the longest row has "
            f"{max(len(ids) for ids, _ in rows):,} tokens), or take these rows out."
        )
    beyond = [min(len(ids), limit) for ids, _ in rows if positions and min(len(ids), limit) > positions]
    if beyond:
        raise SpilloverError(
            f"training.max_length_tokens = {limit}: {len(beyond):,} of {total:,} rows are longer than the "
            f"{positions:,} positions of model {base} (the longest has {max(beyond):,} tokens). Lower it to "
            f"{positions:,}, or train another model."
        )
    return cut


def whole_rows(base: Path, examples: Sequence[Example]) -> list[TokenRow]:
    """The rows of `trained_tokens` before they are cut. Raises SpilloverError as it does.

    The last rows of a process are kept, so that those of another seed are not tokenized again.
    """
    key = folder_hash(base), hash_of([example.messages for example in examples])
    if key not in _TOKENIZED:
        rows = _tokenize(base, examples)
        _TOKENIZED.clear()
        _TOKENIZED[key] = rows
    return _TOKENIZED[key]


def _tokenize(base: Path, examples: Sequence[Example]) -> list[TokenRow]:
    tokenizer = load_tokenizer(base)
    stops = stop_ids(tokenizer, base)
    rows = []
    for number, example in enumerate(examples, 1):
        place = f"model {base}, row {number}"
        try:
            ids, start = _ids_and_start(tokenizer, list(example.messages), place)
        except TEMPLATE_ERRORS as error:
            raise SpilloverError(
                f"{place}: its chat template refuses the row ({error}). Take it out, or train another model."
            ) from None
        end = _end(tokenizer, ids, start, stops)
        rows.append((ids, [start <= position < end for position in range(len(ids))]))
    return rows


def _end(tokenizer: Any, ids: list[int], start: int, stops: set[int]) -> int:
    """The place after the token at which sampling stops: the last one, or the first of several with no word between.

    (Phi-3 writes a second one at the end of a conversation. An answer may speak of one.)
    """
    places = [place for place in range(start, len(ids)) if ids[place] in stops]
    while len(places) > 1 and not tokenizer.decode(ids[places[-2] + 1 : places[-1]]).strip():
        places.pop()
    return places[-1] + 1 if places else len(ids)


def _ids_and_start(tokenizer: Any, messages: list[dict[str, str]], place: str) -> tuple[list[int], int]:
    """The ids of a conversation, and where its last turn starts: where they part from those of the prompt."""
    ids = in_template(tokenizer, messages, tokenize=True)
    prompt = in_template(tokenizer, messages[:-1], prompt=True, tokenize=True)
    start = common_prefix_length(ids, prompt)
    if start < len(prompt):
        # Tokens may merge over the border, and some templates prompt for thinking that the answer lacks. The user's
        # words must be the same in both, or the loss would cover them. What a template writes after that, as a token
        # for the end of a conversation, need not.
        whole = in_template(tokenizer, messages)
        *before, last = messages[:-1]
        marked = [*before, last | {"content": last["content"].rstrip() + MARK}]
        asked = in_template(tokenizer, marked).partition(MARK)[0]
        if not whole.startswith(asked):
            raise SpilloverError(
                f"{place}: its chat template writes {', '.join(turn['role'] for turn in messages[:-1])} otherwise once "
                "the answer is there, so that the model would not be trained on what it is asked. Take the turns that "
                "it drops out of the rows (usually the system's), or train another model."
            )
    return ids, start
