"""The rows of a table in the formats that people have: CSV with any delimiter, JSON Lines, JSON and Parquet."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spillover.errors import SpilloverError

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # each also with .gz, but for the last
DELIMITERS = (",", "\t", ";")
Rows = Iterator[tuple[int, dict[str, Any]]]


def ending_of(path: Path) -> str:
    """The ending that says how a file is read, in lower case, without .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def table_rows(path: Path) -> Rows:
    """The rows of a table as (line or row number, object), in the order of the file.

    Raises SpilloverError naming file and line if it cannot be read, or is not what its ending says.
    """
    ending = ending_of(path)
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise SpilloverError(f"{path}: its ending is none of {known} (also with .gz), so its format is unknown.")
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise SpilloverError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if ending == ".parquet":
        return _parquet(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        raise SpilloverError(f"{path}: not UTF-8 text ({place}). Save it as UTF-8.") from error
    return {".jsonl": _json_lines, ".json": _json}.get(ending, _csv)(path, text)


def _json_lines(path: Path, text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                advice = "Every line must be one JSON object; mend or delete this line."
                raise SpilloverError(f"{path}, line {number}: not valid JSON ({error}). {advice}") from None
            yield number, _object(path, f"line {number}", row)


def _json(path: Path, text: str) -> Rows:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpilloverError(
            f"{path}: not valid JSON ({error}). With an object on each line, call it .jsonl."
        ) from None
    if not isinstance(content, list):
        raise SpilloverError(f"{path}: a list of objects is needed, this is {text.strip()[:60]}")
    for number, row in enumerate(content, 1):
        yield number, _object(path, f"row {number}", row)


def _object(path: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SpilloverError(f"{path}, {place}: a JSON object is needed, this is {json.dumps(row)[:60]}")
    return row


def _parquet(path: Path, content: bytes) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise SpilloverError(f"{path}: not a whole Parquet file ({error}).") from None
    yield from enumerate(rows, 1)


def _csv(path: Path, text: str) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an answer may be long
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)  # of the header, in which no text stands
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    line, header = 1, list[str]()
    try:
        for row in reader:
            if line == 1:
                header = row
                if len(set(header)) < len(header):
                    raise SpilloverError(
                        f"{path}, line 1: two columns have the same name. Rename one: {', '.join(header)}"
                    )
            elif row and len(row) != len(header):
                raise SpilloverError(
                    f"{path}, line {line}: has {len(row)} fields, and the header {len(header)}. A field with a "
                    f"{'tab' if delimiter == chr(9) else repr(delimiter)} or a line break in it needs quotes around it."
                )
            elif row:
                yield line, dict(zip(header, row, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise SpilloverError(f"{path}, line {line}: not valid CSV ({error}). Mend the row or its quotes.") from error
