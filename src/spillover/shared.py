"""A shared folder, on any file system that fsspec knows: cells run elsewhere leave there what they have made.

A folder with a record (an adapter has training.json) is whole where its record is: that comes last, and goes first when
the folder changes. Without one, a folder holds files that are whole one by one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec

from spillover.errors import SpilloverError
from spillover.rundir import RunDir, write_atomically

RECORDS = ("training.json", "made.json")


def open_shared(shared: str) -> str:
    """Makes the shared folder if it is not there, and returns its whole address.

    Raises SpilloverError if nothing can be written there.
    """
    try:
        system, place = fsspec.core.url_to_fs(shared)
        system.makedirs(place, exist_ok=True)
        system.pipe_file(f"{place}/.spillover", b"")
        system.rm_file(f"{place}/.spillover")
    except Exception as error:  # every file system has errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SpilloverError(f"--shared {shared}: nothing can be written there ({reason}).") from None
    return system.unstrip_protocol(place)


def push(run_dir: RunDir, folder: Path, shared: str) -> None:
    """Puts a folder of the run into the shared folder, unless what is there has the same record."""
    system, place = _there(run_dir, folder, shared)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    record = next((name for name in RECORDS if name in files), None)
    if record and system.exists(f"{place}/{record}"):
        if system.cat_file(f"{place}/{record}") == (folder / record).read_bytes():
            return
        system.rm_file(f"{place}/{record}")
        system.rm(place, recursive=True)
    for name in sorted(files, key=lambda name: (name == record, name)):
        system.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
        system.put_file(str(folder / name), f"{place}/{name}.part")
        system.mv(f"{place}/{name}.part", f"{place}/{name}")


def pull(run_dir: RunDir, folder: Path, shared: str) -> None:
    """Fetches what the shared folder holds of a folder of the run, unless what is here has the same record."""
    system, place = _there(run_dir, folder, shared)
    files = [path[len(place) + 1 :] for path in system.find(place)] if system.exists(place) else []
    record = next((name for name in RECORDS if name in files), None)
    if record and (folder / record).exists():
        if system.cat_file(f"{place}/{record}") == (folder / record).read_bytes():
            return
        (folder / record).unlink()
        shutil.rmtree(folder)
    for name in sorted(files, key=lambda name: (name == record, name)):
        if not name.endswith(".part"):  # of a push that was killed
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{place}/{name}", str(target.with_name(f"{target.name}.part")))
            target.with_name(f"{target.name}.part").replace(target)


def push_state(run_dir: RunDir, state: Path, shared: str) -> None:
    """Puts the state of a cell into the shared folder."""
    system, place = _there(run_dir, state, shared)
    system.makedirs(place.rpartition("/")[0], exist_ok=True)
    system.pipe_file(place, state.read_bytes())


def pull_state(run_dir: RunDir, state: Path, shared: str) -> bool:
    """Fetches the state of a cell; whether there was one."""
    system, place = _there(run_dir, state, shared)
    try:
        text = system.cat_file(place).decode()
        json.loads(text)
    except (FileNotFoundError, ValueError):  # ValueError: it is being written
        return False
    write_atomically(state, text)
    return True


def _there(run_dir: RunDir, path: Path, shared: str) -> tuple[Any, str]:
    """The shared file system, and where in it a file or folder of the run is."""
    system, place = fsspec.core.url_to_fs(shared)
    system.invalidate_cache()  # others write there
    return system, f"{place.rstrip('/')}/{path.relative_to(run_dir.path).as_posix()}"
