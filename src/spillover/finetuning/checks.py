"""Finds out before a training starts whether its settings fit the model and the rows."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.records import Example


def check_training(base: Path, examples: Sequence[Example], training: Training) -> None:
    """Raises SpilloverError if a setting names a layer or module that the model lacks, or a step that does not come."""
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
    check_checkpoints(training, len(examples))


def check_checkpoints(training: Training, rows: int) -> None:
    """Raises SpilloverError if there are fewer optimizer steps than `checkpoints` asks for."""
    steps = math.ceil(rows / training.batch_size) * training.epochs
    late = [step for step in training.checkpoints if step > steps]
    if late:
        raise SpilloverError(
            f"training.checkpoints: step {late[0]} does not come; {rows} rows in batches of {training.batch_size}, "
            f"{training.epochs} times, make {steps} steps."
        )


def count_parameters(base: Path) -> int:
    """How many numbers a model's weights are, by the headers of its files."""
    return sum(math.prod(shape) for shape in _shapes(base).values())


def _shapes(base: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    return shapes
