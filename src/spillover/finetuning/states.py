"""Saved states of a training: a marker file tells the whole ones, to go on from, from those that a kill left half."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from spillover.errors import SpilloverError
from spillover.files import write_atomically

WHOLE = "whole.json"
CHECKPOINTS = "checkpoints"  # the folder of the adapters that are kept beside the last one


def keep(state: Path, seconds: float) -> None:
    """Marks a saved state as whole, once it is on disk, and deletes the others in its folder.

    `seconds`: how long the training has taken until then.
    """
    for path in state.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    write_atomically(state / WHOLE, json.dumps({"seconds": seconds}))
    for other in state.parent.glob("checkpoint-*"):
        if other != state:
            (other / WHOLE).unlink(missing_ok=True)  # first, so that a kill leaves no whole state without its files
            shutil.rmtree(other)


def last(folder: Path) -> tuple[Path | None, float]:
    """The whole state with the most steps, if there is one, and how many seconds the training had taken until then."""
    markers = sorted(folder.glob(f"checkpoint-*/{WHOLE}"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    if not markers:
        return None, 0.0
    return markers[-1].parent, json.loads(markers[-1].read_text(encoding="utf-8"))["seconds"]


@contextmanager
def writing(folder: Path, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what a full disk or a read-only folder raises, and errors of the kinds `also`, into one SpilloverError."""
    expected: tuple[type[Exception], ...] = (OSError, SafetensorError, *also)
    try:
        yield
    except expected as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise SpilloverError(
            f"{folder}: the adapter cannot be written ({reason}). Make room, or choose another folder. "
            "The same command goes on from the state that was saved last."
        ) from None
