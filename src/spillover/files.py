"""Writes files that a kill cannot leave half, takes locks, hashes what decides results, and records versions."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "SPILLOVER_DATA"
TELL_AFTER_SECONDS = 60.0  # that one waits for another
VERSIONS_OF = (
    "spillover",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "inspect_ai",
    "bandit",
    "numpy",
    "scipy",
)


@contextmanager
def one_at_a_time(lock: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file, after whoever holds it now; `waits` is called once that has taken a minute."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:

        def busy() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

        wait_while(busy, waits)
        yield


def wait_while(busy: Callable[[], bool], waits: Callable[[], None]) -> None:
    """Returns as soon as `busy` says no; `waits` is called once that has taken a minute."""
    began, told = time.monotonic(), False
    while busy():
        if not told and time.monotonic() - began > TELL_AFTER_SECONDS:
            waits()
            told = True
        time.sleep(0.5)


def cache_folder() -> Path:
    """Where this machine keeps what was fetched or built once: $SPILLOVER_DATA, or ~/.cache/spillover/data."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/spillover/data").expanduser()


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a killed run, sees the old or the new content and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def unfinished(folder: Path) -> Path:
    """Where a folder is made that takes its place once it is whole."""
    return folder.with_name(f".{folder.name}.part")


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and is removed if it does not."""
    part = unfinished(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    part.replace(path)


def hash_of(*parts: Any) -> str:
    """sha256 of anything that JSON can say: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Versions, git commit and machine, for a manifest."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions,
        "git_commit": git.stdout.strip() or None,
    }
