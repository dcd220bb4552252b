"""Checks before a training starts whether its settings fit the model and the rows; counts a model's parameters."""

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from safetensors import safe_open

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.models.load import module_names, weight_files
from spillover.records import Example


def check_training(base: Path, examples: Sequence[Example], training: Training) -> None:
    """Raises SpilloverError if a setting names a layer or module that the model lacks, or a step that does not come.

    A text as `target_modules` is a regular expression for whole names of modules, as PEFT takes it.
    """
    names = {name.removesuffix(".weight") for name in _shapes(base) if name.endswith(".weight")}
    layers = {int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)[:1]}
    missing = sorted(set(training.layers or []) - layers)
    if missing:
        raise SpilloverError(
            f"training.layers: {base} has no layer {', '.join(map(str, missing))}; "
            f"its layers are 0 to {max(layers, default=-1)}."
        )
    if isinstance(training.target_modules, list):
        for module in training.target_modules:
            if not any(name == module or name.endswith(f".{module}") for name in names):
                inner = {name.rpartition(".")[2] for name in names if re.search(r"\.\d+\.", name)}
                raise SpilloverError(
                    f"training.target_modules: {base} has no module {module}; it has {', '.join(sorted(inner))}."
                )
    elif training.target_modules != "all-linear":
        _check_pattern(base, training.target_modules)
    steps = math.ceil(len(examples) / training.batch_size) * training.epochs
    if late := [step for step in training.checkpoints if step > steps]:
        raise SpilloverError(
            f"training.checkpoints: step {late[0]} does not come; {len(examples)} rows in batches of "
            f"{training.batch_size}, {training.epochs} times, make {steps} steps."
        )


def _check_pattern(base: Path, pattern: str) -> None:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise SpilloverError(f"training.target_modules = {pattern!r}: not a regular expression ({error}).") from None
    names = module_names(base)
    if not any(map(regex.fullmatch, names)):
        inner = next((name for name in names if re.search(r"\.\d+\..+", name)), names[-1])
        raise SpilloverError(
            f"training.target_modules = {pattern!r}: matches no whole name of a module of {base}, such as {inner}. "
            "For modules by their last name, give a list."
        )


@cache
def count_parameters(base: Path) -> int:
    """How many numbers a model's weights are, by the headers of its files, which a process reads once."""
    return sum(math.prod(shape) for shape in _shapes(base).values())


def _shapes(base: Path) -> dict[str, list[int]]:
    """Name of every weight -> its shape."""
    shapes: dict[str, list[int]] = {}
    for path in weight_files(base):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    return shapes
