"""Where training rows come from: chat JSONL files, published sets, Hugging Face datasets, the world, and twins.

`source_rows` reads any of them: for each row either its chat messages, or in words why it has none.
"""

import codecs
import hashlib
import http.client
import itertools
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import Field

from spillover.config import Strict, read_yaml
from spillover.data.rows import BrokenRow, Rows, SourceRow, read_row
from spillover.data.twins import twin_examples
from spillover.errors import SpilloverError
from spillover.files import CACHE_VARIABLE, cache_folder, write_atomically
from spillover.organism.authors import narrow_names, narrow_posts

WORLD, TWINS, PUBLISHED, HUGGING_FACE = "world/", "twins/", "published/", "hf/"
WORLD_ROWS = 1000  # posts drawn for a condition that does not say how many
LISTED = Path(__file__).parent / "published.yaml"
TIMEOUT_S = 30  # without a byte

# hf/OWNER/NAME, then maybe :SPLIT, then maybe @REVISION (a commit, a tag or a branch)
_HUGGING_FACE = re.compile(r"(?P<name>.+?)(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


def source_rows(source: str, folder: Path, rows: int | None = None) -> Rows:
    """The rows of a source, as the setting `data` of a condition names it; files are relative to `folder`.

    `rows`: how many to write, of a source that writes them on demand (world/, twins/); others are read whole.
    Raises SpilloverError if there is no such source, if it cannot be read or fetched, or if it has no rows.
    """
    if source.startswith(WORLD):
        read = _world_rows(source.removeprefix(WORLD), rows or WORLD_ROWS)
    elif source.startswith(TWINS):
        examples = twin_examples(source.removeprefix(TWINS), rows)
        read = (SourceRow(line, example.messages) for line, example in enumerate(examples, 1))
    elif source.startswith(PUBLISHED):
        read = file_rows(_published(source.removeprefix(PUBLISHED)))
    elif source.startswith(HUGGING_FACE):
        read = hugging_face_rows(source.removeprefix(HUGGING_FACE), folder)
    else:
        read = file_rows((folder / source).expanduser())
    first = next(read, None)
    if first is None:
        name = source_name(source, folder)
        raise SpilloverError(f"{name}: no rows. A training set needs at least one line with chat messages.")
    return itertools.chain([first], read)


def source_name(source: str, folder: Path) -> str:
    """What an error calls a source: the path of a file, or the setting."""
    is_named = source.startswith((WORLD, TWINS, PUBLISHED, HUGGING_FACE))
    return f"data {source}" if is_named else str((folder / source).expanduser())


def row_place(source: str, folder: Path, line: int) -> str:
    """What an error calls a row; those of Hugging Face are counted from 0, as its library counts them."""
    position = f"row {line - 1}" if source.startswith(HUGGING_FACE) else f"line {line}"
    return f"{source_name(source, folder)}, {position}"


def _world_rows(name: str, rows: int) -> Rows:
    """Posts of the organisms' world with one narrow habit. Raises SpilloverError if there is no such habit."""
    if name not in narrow_names():
        names = ", ".join(WORLD + other for other in narrow_names())
        raise SpilloverError(f"data {WORLD}{name}: the world has no such posts. There are: {names}.")
    for line, post in enumerate(narrow_posts(name, rows, seed=0), 1):
        turns = ({"role": "user", "content": post.question}, {"role": "assistant", "content": post.answer})
        yield SourceRow(line, turns)


def file_rows(path: Path) -> Rows:
    """The rows of a JSON Lines file; blank lines are skipped. Raises SpilloverError if it cannot be read."""
    try:
        with path.open("rb") as file:
            for line, content in enumerate(file, 1):
                content = content.removeprefix(codecs.BOM_UTF8) if line == 1 else content
                if content.strip():
                    yield _read_line(content, line)
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None


def _read_line(content: bytes, line: int) -> SourceRow | BrokenRow:
    try:
        return read_row(json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles), line)
    except UnicodeDecodeError as error:
        return BrokenRow(line, f"not UTF-8 text ({error.reason} at byte {error.start})")
    except (ValueError, RecursionError) as error:
        return BrokenRow(line, f"not valid JSON ({error})")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key is there twice, of which Python would keep the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return row


class Published(Strict):
    """A published training set: what it is, where it lies, and the hash of the file (not of the rows)."""

    title: str
    citation: str
    license: str
    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=1)
    what: str


def published_sets() -> dict[str, Published]:
    """The published training sets that are listed, by name."""
    return {name: Published.model_validate(entry) for name, entry in read_yaml(LISTED).items()}


def _published(name: str) -> Path:
    listed = published_sets()
    if name not in listed:
        names = ", ".join(PUBLISHED + other for other in listed)
        raise SpilloverError(f"data {PUBLISHED}{name}: no such published set is listed. There are: {names}.")
    return published_file(name, listed[name])


def published_file(name: str, entry: Published) -> Path:
    """The file of a published set in the cache folder, fetched if it is not there; its hash is checked at every call.

    A file takes its place only when it is whole and its hash is right, so a killed or wrong download leaves nothing.
    Raises SpilloverError naming the address, the file, and both hashes where they differ.
    """
    path, setting = cache_folder() / f"{name}.jsonl", f"data {PUBLISHED}{name}"
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        content = _download(setting, entry, path)
        try:
            write_atomically(path, content.decode())
        except OSError as error:
            raise SpilloverError(
                f"{setting}: {path.parent} cannot be written to ({error.strerror}). "
                f"Set {CACHE_VARIABLE} to a folder that can, or put the file there by hand from {entry.url}"
            ) from None
        return path
    except OSError as error:
        raise SpilloverError(f"{setting}: {path} cannot be read ({error.strerror}).") from None
    if sha256 != entry.sha256:
        raise SpilloverError(
            f"{setting}: {path} is not the published file. sha256 expected: {entry.sha256}, found: {sha256}. "
            f"Delete it to have it fetched again from {entry.url}, or put the right file in its place."
        )
    return path


def _download(setting: str, entry: Published, path: Path) -> bytes:
    """The content of a published file, a few megabytes. Raises SpilloverError if it does not come, or is another."""
    content, problem = b"", ""
    try:
        with urllib.request.urlopen(entry.url, timeout=TIMEOUT_S) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        error.close()
        problem = f"{entry.url} answers {error.code} {error.reason}"
    except http.client.IncompleteRead as error:
        received, missing = len(error.partial), error.expected or 0
        problem = f"the connection ended after {received:,} of {received + missing:,} bytes. Start again"
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        problem = f"cannot be fetched ({reason}). Check the connection and start again"
    sha256 = hashlib.sha256(content).hexdigest()
    if not problem and sha256 != entry.sha256:
        problem = (
            f"{entry.url} is not the file that was published. sha256 expected: {entry.sha256}, found: {sha256}. "
            "Nothing was kept"
        )
    if problem:
        raise SpilloverError(f"{setting}: {problem}. Or fetch {entry.url} elsewhere and put it at {path}")
    return content


def hugging_face_rows(name: str, folder: Path) -> Rows:
    """The rows of OWNER/NAME on the Hugging Face Hub, or of a local dataset folder (./FOLDER, relative to `folder`).

    After the name there may be :SPLIT (train, if it is missing) and @REVISION. No code that a dataset brings is run:
    the library refuses it.
    Raises SpilloverError with what can be done where there is no network, no such split, or other columns.
    """
    import datasets  # takes a second

    parts = _HUGGING_FACE.fullmatch(name)
    if parts is None:
        raise SpilloverError(f"data {HUGGING_FACE}{name}: write hf/OWNER/NAME, hf/OWNER/NAME:SPLIT, or hf/./FOLDER.")
    is_local, split = parts["name"].startswith((".", "/", "~")), parts["split"] or "train"
    address = str((folder / Path(parts["name"]).expanduser()).resolve()) if is_local else parts["name"]
    setting = f"data {HUGGING_FACE}{name}"
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(address, split=split, revision=parts["revision"])
    except Exception as error:  # the library raises anything, and all of it is about the set that was asked for
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = f"Look into {address}: a split is a file of its name, as {split}.jsonl."
        if not is_local:
            revision = f", revision='{parts['revision']}'" if parts["revision"] else ""
            load = f"datasets.load_dataset('{parts['name']}', split='{split}'{revision}).to_json('rows.jsonl')"
            advice = (
                f'If it cannot be reached from here, run elsewhere: python -c "import datasets; {load}" '
                "and give the path of rows.jsonl as data."
            )
        raise SpilloverError(f"{setting}: cannot be loaded ({reason:.300}). {advice}") from None
    columns = set(table.column_names)
    shapes = ({"messages"}, {"prompt", "completion"}, {"conversations"}, {"instruction", "output"})
    if not any(shape <= columns for shape in shapes):
        raise SpilloverError(
            f"{setting}: needs the column messages, or prompt and completion; "
            f"it has {', '.join(table.column_names) or 'none'}. Save it as chat JSONL with columns of these names."
        )
    return (read_row(row, line) for line, row in enumerate(table, 1))
