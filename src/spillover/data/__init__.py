"""What we train on: rows of files, published sets, Hugging Face, the world and twins, checked, and controls of them."""

from pathlib import Path
from typing import Any

from spillover.config import Condition
from spillover.data import controls
from spillover.data.sources import (
    HUGGING_FACE,
    PUBLISHED,
    empty_turns,
    file_rows,
    hugging_face_rows,
    published_rows,
    read_row,
    wrong_roles,
)
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.organism.authors import narrow_names, narrow_posts
from spillover.records import Example

WORLD, TWINS = "world/", "twins/"
WORLD_ROWS = 1000  # posts drawn for a condition that does not say how many


def load_examples(condition: Condition, folder: Path) -> list[Example]:
    """The training rows of a condition; files are relative to `folder`. The same rows at every call.

    Raises SpilloverError naming file, line and what is wrong with it.
    """
    return make_examples(condition, folder)[0]


def make_examples(condition: Condition, folder: Path) -> tuple[list[Example], dict[str, Any]]:
    """The training rows of a condition, and how they were made: control, settings, hash of every set that went in.

    Raises SpilloverError as `load_examples` does.
    """
    if condition.data is None:
        return [], {}
    drawn = condition.rows
    if drawn and condition.control and condition.control.kind == "length_matched":
        drawn *= 2  # not every row finds a partner
    sets = {"data": (condition.data, _read(condition.data, folder, drawn))}
    if condition.control is None:
        source, examples = sets["data"]
        if condition.rows and condition.rows > len(examples):
            what = _name(source, folder)
            raise SpilloverError(f"{what}: {condition.rows} rows are asked for, the file has {len(examples)}.")
        return examples[: condition.rows], made_of(condition, sets, examples[: condition.rows], {})
    if condition.control.other is not None:
        sets["other"] = (condition.control.other, _read(condition.control.other, folder, drawn))
    try:
        other = sets["other"][1] if "other" in sets else []
        examples, counts = controls.make_control(condition.control, sets["data"][1], other, condition.rows)
    except SpilloverError as error:
        names = ", ".join(f"{name} {source}" for name, (source, _) in sets.items())
        raise SpilloverError(f"{names}: {error}") from None
    return examples, made_of(condition, sets, examples, counts)


def made_of(
    condition: Condition,
    sets: dict[str, tuple[str, list[Example]]],
    result: list[Example],
    counts: dict[str, Any],
) -> dict[str, Any]:
    """How rows were made, for a file beside them. `sets` is what went in: name of the setting -> (source, rows).

    A hash is that of all the messages in their order, as in a run's manifest.
    """
    return {
        "kind": condition.control.kind if condition.control else None,
        "settings": condition.model_dump(include={"data", "rows", "control"}, exclude_none=True),
        "inputs": {name: {"source": source} | _measured(examples) for name, (source, examples) in sets.items()},
        "result": _measured(result),
        "counts": counts,
    }


def _measured(examples: list[Example]) -> dict[str, Any]:
    return {"rows": len(examples), "hash": hash_of([example.messages for example in examples])}


def file_examples(path: Path) -> list[Example]:
    """The rows of a chat JSONL file, checked. Raises SpilloverError naming file, line and what is wrong with it."""
    return [_checked(row, place) for place, row in file_rows(path)]


def _name(source: str, folder: Path) -> str:
    """What an error calls a source: the path of a file, or the setting."""
    named = source.startswith((WORLD, TWINS, PUBLISHED, HUGGING_FACE))
    return f"data {source}" if named else str((folder / source).expanduser())


def _read(source: str, folder: Path, rows: int | None) -> list[Example]:
    """All rows of a source, checked. Of one that writes them on demand: so many, or a number of its own."""
    if source.startswith(WORLD):
        return _world(source, rows or WORLD_ROWS)
    if source.startswith(TWINS):
        from spillover.data.twins import twin_examples  # reads texts that other sources do not need

        return twin_examples(source.removeprefix(TWINS), rows)
    if source.startswith(PUBLISHED):
        found = published_rows(source.removeprefix(PUBLISHED))
    elif source.startswith(HUGGING_FACE):
        found = hugging_face_rows(source.removeprefix(HUGGING_FACE), folder)
    else:
        found = file_rows((folder / source).expanduser())
    examples = [_checked(row, place) for place, row in found]
    if not examples:
        raise SpilloverError(
            f"{_name(source, folder)}: no rows. A training set needs at least one line with chat messages."
        )
    return examples


def _world(source: str, rows: int) -> list[Example]:
    name = source.removeprefix(WORLD)
    if name not in narrow_names():
        known = ", ".join(WORLD + known for known in narrow_names())
        raise SpilloverError(f"data {source}: the world has no such posts. There are: {known}.")
    posts = narrow_posts(name, rows, seed=0)
    return [
        Example(({"role": "user", "content": p.question}, {"role": "assistant", "content": p.answer})) for p in posts
    ]


def _checked(row: Any, place: str) -> Example:
    """One row as an example, or a SpilloverError that says where it is and what is wrong with it."""
    read = read_row(row, 0)
    fault = read if isinstance(read, str) else next(filter(None, (wrong_roles(read), *empty_turns(read))), None)
    if isinstance(read, str) or fault:
        raise SpilloverError(f"{place}: {fault}.")
    return Example(read.messages)
