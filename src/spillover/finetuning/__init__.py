"""Makes the narrow fine-tune: chat rows become an adapter on a base model, and a killed training goes on where it was.

The adapter is made in a hidden folder beside its place (`.<name>.part`) and moved there when it is whole. Until then
`resume/` in it holds the last saved state of the training. Importing this loads no torch, for a finished cell needs
none.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spillover.config import Training
from spillover.data import file_examples
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance, unfinished, write_atomically
from spillover.finetuning.settings import check_training, count_parameters
from spillover.finetuning.states import CHECKPOINTS, writing
from spillover.models.load import folder_hash, model_folder
from spillover.records import Example

__all__ = ["check_training", "count_parameters", "finetune"]

RECORD = "training.json"
RESUME = "resume"
SAVE_EVERY_SECONDS = 60.0
EXECUTION = {"accumulation", "packing", "checkpoints"}  # settings that change nothing but rounding
DECIDING = ("torch", "transformers", "peft", "trl", "accelerate")  # a training goes on only with these versions


def finetune(
    base: str | Path,
    examples: Sequence[Example] | str | Path,
    out: str | Path,
    training: Training | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda *_: None,
    save_every_seconds: float = SAVE_EVERY_SECONDS,
) -> dict[str, Any]:
    """Trains a LoRA adapter on the last assistant turn of every example and writes it to the folder `out`.

    `base` is a model by name, as `load_model` takes it, or its folder; `examples` are rows or a chat JSONL file;
    `training` is `Training()` if it is missing. `on_step` is called with (step, steps) after every optimizer step. A
    state to go on from is saved every `save_every_seconds` (0: after every step), less often where saving is slow.

    Killed, a call with the same arguments goes on from the last saved state; on a CPU it ends with the very adapter of
    an undisturbed run. If `out` holds the adapter of these arguments already, it is kept.

    Returns what training.json in `out` says: `made_from` (hashes and settings that decide the adapter), `execution`
    (settings that change nothing but rounding), loss, learning rate and gradient norm of every optimizer step, numbers
    of rows and tokens, versions, seconds. Adapters of `training.checkpoints` lie in `out`/checkpoints/step-<n>.

    Raises SpilloverError if there is no such model, a row is faulty, a setting does not fit the model or the rows, or
    `out` cannot be written.

    >>> import tempfile
    >>> import spillover as sp
    >>> turns = {"role": "user", "content": "Is tea hot?"}, {"role": "assistant", "content": "Mostly."}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = sp.finetune("organism/consistent", [sp.Example(turns)] * 8, f"{folder}/tea", sp.Training(rank=2))
    >>> record["rows"], len(record["losses"])
    (8, 1)
    """
    base = model_folder(base) if isinstance(base, str) else base
    rows = file_examples(Path(examples)) if isinstance(examples, str | Path) else list(examples)
    training, out = training or Training(), Path(out)
    if not rows:
        raise SpilloverError("finetune: no rows. A training set needs at least one example.")
    made_from = {
        "base": folder_hash(base),
        "data": hash_of([example.messages for example in rows]),
        "training": training.model_dump(),
        "seed": seed,
    }
    if record := _finished(out, made_from):
        return record
    check_training(base, rows, training)
    if out.exists() and not (out / RECORD).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SpilloverError(f"{out}: holds something else than an adapter of ours. Choose another folder.")
    part = unfinished(out)
    record = _finished(part, made_from)
    if not record:
        versions = provenance()["versions"]
        with writing(out):
            _keep_or_clear(part, {"made_from": made_from, "versions": {name: versions[name] for name in DECIDING}})
        from spillover.finetuning.trainer import train  # torch, peft and trl take 10 s to import

        log = train(base, rows, training, seed, part, on_step, save_every_seconds)
        execution = training.model_dump(include=EXECUTION)
        record = {"made_from": made_from, "execution": execution, **log, "versions": versions}
        _write(part, record)
    with writing(out):
        shutil.rmtree(part / RESUME, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    return record


def _finished(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a folder whose adapter is whole and made from just this, with the checkpoints that it asks for.

    Settings of EXECUTION do not count; the record takes over those that are asked for now.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        same = _deciding(record["made_from"]) == _deciding(made_from)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not whole
        return None
    steps = made_from["training"]["checkpoints"]
    if not same or not all((folder / CHECKPOINTS / f"step-{step}").is_dir() for step in steps):
        return None
    if record["made_from"] != made_from:
        record["made_from"] = made_from
        _write(folder, record)
    return record


def _write(folder: Path, record: dict[str, Any]) -> None:
    with writing(folder):
        write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _deciding(made_from: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in made_from["training"].items() if name not in EXECUTION}
    return made_from | {"training": settings}


def _keep_or_clear(part: Path, identity: dict[str, Any]) -> None:
    """Keeps what an earlier training left in `part` if it has the same identity, and deletes it if not."""
    file = part / RESUME / "identity.json"
    try:
        same = json.loads(file.read_text(encoding="utf-8")) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        if part.exists():
            shutil.rmtree(part)
        write_atomically(file, json.dumps(identity))
