"""What we train on: rows of files, published sets, Hugging Face, the world and twins, checked, and controls of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spillover.config import Condition
from spillover.data import controls
from spillover.data.rows import Rows, SourceRow, empty_turns, wrong_roles
from spillover.data.sources import file_rows, row_place, source_name, source_rows
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.records import Example


def load_examples(condition: Condition, folder: Path) -> list[Example]:
    """The training rows of a condition, as `make_examples` makes them."""
    return make_examples(condition, folder)[0]


def make_examples(condition: Condition, folder: Path) -> tuple[list[Example], dict[str, Any]]:
    """The training rows of a condition, and how they were made, as `origin_of` says it. The same at every call.

    Files are relative to `folder`. The base, which has no data, has no rows: ([], {}).
    Raises SpilloverError naming file, line and what is wrong with it, or why the control cannot be made.

    >>> from pathlib import Path
    >>> from spillover import Condition
    >>> from spillover.data import make_examples
    >>> examples, how_made = make_examples(Condition(data="twins/speech/callous", rows=3), Path())
    >>> len(examples), how_made["result"]["rows"]
    (3, 3)
    """
    if condition.data is None:
        return [], {}
    control, rows = condition.control, condition.rows
    # Not every row finds a partner of its length, so twice as many are drawn.
    drawn = rows * 2 if rows and control and control.kind == "length_matched" else rows
    sources = {"data": condition.data}
    if control and control.other is not None:
        sources["other"] = control.other
    sets = {
        name: (source, _checked(source_rows(source, folder, drawn), source, folder)) for name, source in sources.items()
    }
    data = sets["data"][1]
    if control is None:
        if rows and rows > len(data):
            name = source_name(condition.data, folder)
            raise SpilloverError(f"{name}: {rows} rows are asked for, the file has {len(data)}.")
        return data[:rows], origin_of(condition, sets, data[:rows], {})
    other = sets["other"][1] if "other" in sets else []
    try:
        examples, counts = controls.make_control(control, data, other, rows)
    except SpilloverError as error:
        names = ", ".join(f"{name} {source}" for name, source in sources.items())
        raise SpilloverError(f"{names}: {error}") from None
    return examples, origin_of(condition, sets, examples, counts)


def file_examples(path: Path) -> list[Example]:
    """The rows of a chat JSONL file, checked. Raises SpilloverError naming file, line and what is wrong with it."""
    return _checked(file_rows(path), str(path.absolute()), Path())


def origin_of(
    condition: Condition,
    sets: Mapping[str, tuple[str, Sequence[Example]]],
    result: Sequence[Example],
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """How the rows of a condition were made, for a JSON file beside them.

    `sets` is what went in: name of the setting -> (source, rows); `result` is what came out, and `counts` is what the
    control tells of it. A hash is that of all messages in their order, as in a run's manifest.
    """
    return {
        "kind": condition.control.kind if condition.control else None,
        "settings": condition.model_dump(include={"data", "rows", "control"}, exclude_none=True),
        "inputs": {name: {"source": source} | _rows_and_hash(examples) for name, (source, examples) in sets.items()},
        "result": _rows_and_hash(result),
        "counts": dict(counts),
    }


def _rows_and_hash(examples: Sequence[Example]) -> dict[str, Any]:
    return {"rows": len(examples), "hash": hash_of([example.messages for example in examples])}


def _checked(rows: Rows, source: str, folder: Path) -> list[Example]:
    """Rows as examples. Raises SpilloverError that says of the first faulty row where it is and what is wrong."""
    examples = []
    for row in rows:
        if isinstance(row, SourceRow):
            fault = wrong_roles(row) or next(iter(empty_turns(row)), None)
            examples.append(Example(row.messages))
        else:
            fault = row.fault
        if fault:
            raise SpilloverError(f"{row_place(source, folder, row.line)}: {fault}.")
    return examples
