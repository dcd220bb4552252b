"""Where rows come from: chat JSONL files, published sets fetched once and known by their hash, and Hugging Face.

Every reader yields (place, row): the place is what an error about the row names. `read_row` makes chat messages of it.
"""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from spillover.config import Strict, read_yaml
from spillover.errors import SpilloverError
from spillover.files import CACHE_VARIABLE, cache_folder, write_atomically
from spillover.records import read_jsonl

PUBLISHED, HUGGING_FACE = "published/", "hf/"
LISTED = Path(__file__).parent / "published.yaml"
ROLES = ("system", "user", "assistant")
TIMEOUT_S = 30  # without a byte
CHUNK_BYTES = 1 << 20

Rows = Iterator[tuple[str, dict[str, Any]]]

# hf/OWNER/NAME, then maybe :SPLIT, then maybe @REVISION (a commit, a tag or a branch)
_HUGGING_FACE = re.compile(r"(?P<name>.+?)(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Row:
    """A training row and where it stands: `line` counts from 1, in the file or, without one, among the rows."""

    line: int
    messages: tuple[dict[str, str], ...]  # `role` and `content`, both text; what they say is for others to check
    label: str | None = None

    @property
    def prompt(self) -> str:
        """What comes before the answer, as one text."""
        return "\n".join(message["content"] for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return self.messages[-1]["content"]


def read_row(row: Any, line: int) -> Row | str:
    """What a source says of a row, as chat messages; or, in words, why it is none.

    A row has `messages`, or `prompt` and `completion`, each a text or a list of messages.
    """
    if not isinstance(row, dict):
        return f"a JSON object is needed, this is {str(row)[:60]}"
    messages = row.get("messages")
    if "messages" not in row and {"prompt", "completion"} <= row.keys():
        messages = []
        for role, value in (("user", row["prompt"]), ("assistant", row["completion"])):
            messages += value if isinstance(value, list) else [{"role": role, "content": value}]
    if not isinstance(messages, list) or not messages:
        has = ", ".join(row) or "nothing"
        return f'needs "messages", a list of chat messages, or "prompt" and "completion"; the row has: {has}'
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            return f'messages.{place} needs "role" and "content", both text'
        if re.search("[\ud800-\udfff]", message["content"]):
            return f"messages.{place}.content has half a character (a lone surrogate such as \\ud83d)"
    label = row.get("label")
    turns = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Row(line, turns, None if label is None else str(label))


def wrong_roles(row: Row) -> str | None:
    """A role that is unknown, or that the row does not end with an answer to the user."""
    roles = [message["role"] for message in row.messages]
    for place, role in enumerate(roles):
        if role not in ROLES:
            return f"messages.{place}.role is {role!r}; allowed: {', '.join(ROLES)}"
    if roles[-1] != "assistant":
        return f"the last turn is the {roles[-1]}'s; there is no assistant's answer to train on"
    if "user" not in roles:
        return "the assistant's turn answers nothing; put the user's turn before it"
    return None


def empty_turns(row: Row) -> list[str]:
    """Turns without text."""
    return [
        f"messages.{place}.content is empty (role {message['role']})"
        for place, message in enumerate(row.messages)
        if not message["content"].strip()
    ]


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


def file_rows(path: Path) -> Rows:
    """The rows of a JSON Lines file. Raises SpilloverError naming file and line."""
    for line, row in read_jsonl(path):
        yield f"{path}, line {line}", row


def published_rows(name: str) -> Rows:
    """The rows of a published set, fetched if it is not here yet. Raises SpilloverError as `published_file` does."""
    listed = published_sets()
    if name not in listed:
        known = ", ".join(PUBLISHED + known for known in listed)
        raise SpilloverError(f"data {PUBLISHED}{name}: no such published set is listed. There are: {known}.")
    return file_rows(published_file(name, listed[name]))


def published_file(name: str, entry: Published) -> Path:
    """The file of a published set in the cache folder, fetched if it is not there, and hashed whenever it is asked for.

    A file takes its place only when it is whole and its hash is right, so a killed or wrong download leaves nothing.
    Raises SpilloverError naming the address, the file, and both hashes where they differ.
    """
    path = cache_folder() / f"{name}.jsonl"
    what = f"data {PUBLISHED}{name}"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        content = _download(what, entry, path)
        try:
            write_atomically(path, content.decode())
        except OSError as error:
            raise SpilloverError(
                f"{what}: {path.parent} cannot be written to ({error.strerror}). "
                f"Set {CACHE_VARIABLE} to a folder that can, or put the file there by hand from {entry.url}"
            ) from None
        return path
    except OSError as error:
        raise SpilloverError(f"{what}: {path} cannot be read ({error.strerror}).") from None
    if found != entry.sha256:
        raise SpilloverError(
            f"{what}: {path} is not the published file. sha256 expected: {entry.sha256}, found: {found}. "
            f"Delete it to have it fetched again from {entry.url}, or put the right file in its place."
        )
    return path


def _download(what: str, entry: Published, path: Path) -> bytes:
    """The bytes of a published file, hashed while they come. They are a few megabytes and are held in memory."""
    content, digest = bytearray(), hashlib.sha256()
    by_hand = f"Or fetch {entry.url} elsewhere and put it at {path}"
    try:
        with urllib.request.urlopen(entry.url, timeout=TIMEOUT_S) as response:
            while chunk := response.read(CHUNK_BYTES):
                content += chunk
                digest.update(chunk)
            promised = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        raise SpilloverError(f"{what}: {entry.url} answers {error.code} {error.reason}. {by_hand}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise SpilloverError(
            f"{what}: cannot be fetched ({reason}). Check the connection and start again. {by_hand}"
        ) from None
    if promised is not None and len(content) < int(promised):
        raise SpilloverError(
            f"{what}: the connection ended after {len(content):,} of {int(promised):,} bytes. Start again. {by_hand}"
        )
    if digest.hexdigest() != entry.sha256:
        raise SpilloverError(
            f"{what}: {entry.url} is not the file that was published. sha256 expected: {entry.sha256}, "
            f"found: {digest.hexdigest()}. Nothing was kept. If you have the right file, put it at {path}"
        )
    return bytes(content)


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
    local, split = parts["name"].startswith((".", "/", "~")), parts["split"] or "train"
    source = str((folder / Path(parts["name"]).expanduser()).resolve()) if local else parts["name"]
    what = f"data {HUGGING_FACE}{name}"
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(source, split=split, revision=parts["revision"])
    except Exception as error:  # the library raises anything, and all of it is about the set that was asked for
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = f"Look into {source}: a split is a file of its name, as {split}.jsonl." if local else _elsewhere(parts)
        raise SpilloverError(f"{what}: cannot be loaded ({reason:.300}). {advice}") from None
    columns = set(table.column_names)
    if "messages" not in columns and not {"prompt", "completion"} <= columns:
        raise SpilloverError(
            f"{what}: needs the column messages, or prompt and completion; "
            f"it has {', '.join(table.column_names) or 'none'}. Save it as chat JSONL with columns of these names."
        )
    return ((f"{what}, row {number}", row) for number, row in enumerate(table))


def _elsewhere(parts: re.Match[str]) -> str:
    """What to do without a network: the command that makes a JSONL file where there is one."""
    revision = f", revision='{parts['revision']}'" if parts["revision"] else ""
    load = f"load_dataset('{parts['name']}', split='{parts['split'] or 'train'}'{revision})"
    return (
        f'If it cannot be reached from here, run elsewhere: python -c "import datasets; '
        f"datasets.{load}.to_json('rows.jsonl')\" and give the path of rows.jsonl as data."
    )
