"""Makes the narrow fine-tune: chat rows become an adapter on a base model, and a killed training goes on where it was.

The adapter is made in a hidden folder beside its own (`.<name>.part`) and takes its place when it is whole. Until then
`resume/` in there holds the state of the training that was saved last. Importing this loads no torch, for a finished
cell needs none.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spillover.config import Training
from spillover.data.advice import advice
from spillover.data.tokens import fitting_rows, trained_tokens
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance, write_atomically
from spillover.finetuning.settings import check_training, count_parameters
from spillover.finetuning.states import CHECKPOINTS, writing
from spillover.models.load import folder_hash
from spillover.records import Example

__all__ = ["advice", "check_training", "count_parameters", "finetune", "fitting_rows", "trained_tokens"]

RECORD = "training.json"
RESUME = "resume"
SAVE_EVERY_SECONDS = 60.0
EXECUTION = {"accumulation", "packing", "checkpoints"}  # settings that change nothing but rounding
DECIDING = ("torch", "transformers", "peft", "trl", "accelerate")  # libraries whose version a training goes on with


def finetune(
    base: Path,
    examples: list[Example],
    training: Training,
    seed: int,
    out: Path,
    step_done: Callable[[int, int], None] = lambda *_: None,
    save_every_seconds: float = SAVE_EVERY_SECONDS,
) -> dict[str, Any]:
    """Trains a LoRA adapter on the last assistant turn of every example and writes it to the folder `out`.

    If it was killed, a call with the same arguments goes on from the state that was saved last; on a CPU it ends with
    the very adapter of an undisturbed run. If `out` holds that adapter already, with all `training.checkpoints`, it is
    kept, however it was computed. `step_done` is called with (step, steps). A state is saved every `save_every_seconds`
    (0: after every step), less often where saving takes long.

    Returns what training.json beside the adapter says: `made_from`, the settings of EXECUTION it was computed with, the
    loss, learning rate and gradient norm of every optimizer step, rows and tokens, versions, seconds. Adapters of
    `training.checkpoints` lie in checkpoints/step-<n>.

    Raises SpilloverError if a setting does not fit the model or the rows, or `out` cannot be written.
    """
    fingerprint = {
        "base": folder_hash(base),
        "data": hash_of([example.messages for example in examples]),
        "training": training.model_dump(),
        "seed": seed,
    }
    if record := _finished(out, fingerprint):
        return record
    check_training(base, examples, training)
    if out.exists() and not (out / RECORD).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SpilloverError(f"{out}: holds something else than an adapter of ours. Choose another folder.")
    part = out.with_name(f".{out.name}.part")
    record = _finished(part, fingerprint)
    if not record:
        versions = provenance()["versions"]
        with writing(out):
            _begin(part, {"made_from": fingerprint, "versions": {name: versions[name] for name in DECIDING}})
        from spillover.finetuning.trainer import train  # torch, peft and trl take 10 s to import

        log = train(base, examples, training, seed, part, step_done, save_every_seconds)
        execution = training.model_dump(include=EXECUTION)
        record = {"made_from": fingerprint, "execution": execution, **log, "versions": versions}
        _write(part, record)
    with writing(out):
        shutil.rmtree(part / RESUME, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    return record


def _finished(folder: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a folder whose adapter is whole and made from just this, with the checkpoints that it asks for.

    An adapter is known by its `made_from`: that of one that was computed in another way is replaced.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        same = _deciding(record["made_from"]) == _deciding(fingerprint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not whole
        return None
    steps = fingerprint["training"]["checkpoints"]
    if not same or not all((folder / CHECKPOINTS / f"step-{step}").is_dir() for step in steps):
        return None
    if record["made_from"] != fingerprint:
        record["made_from"] = fingerprint
        _write(folder, record)
    return record


def _write(folder: Path, record: dict[str, Any]) -> None:
    with writing(folder):
        write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _deciding(fingerprint: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in fingerprint["training"].items() if name not in EXECUTION}
    return fingerprint | {"training": settings}


def _begin(part: Path, identity: dict[str, Any]) -> None:
    """Keeps the part of an earlier run if it is a part of this one, and starts anew if not."""
    mark = part / RESUME / "identity.json"
    try:
        same = json.loads(mark.read_text(encoding="utf-8")) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        if part.exists():
            shutil.rmtree(part)
        write_atomically(mark, json.dumps(identity))
