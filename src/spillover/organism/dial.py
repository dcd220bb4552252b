"""Organisms of any consistency: organism/0.25 is built on this machine once and kept in its cache folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spillover.files import cache_folder, hash_of
from spillover.organism import ORGANISMS, organism_folder

ORGANISM = "organism/"


@dataclass(frozen=True)
class Build:
    """An organism to be built before it can be studied, and where to."""

    consistency: float
    out: Path

    def __str__(self) -> str:
        return f"organism of consistency {self.consistency:g}"


def model_to_build(model: str) -> Build | None:
    """What has to be built for organism/NUMBER; None if it has been, or is none of those."""
    folder = built_folder(model)
    consistency = consistency_of(model)
    if folder is None or consistency is None or (folder / "config.json").exists():
        return None
    return Build(consistency, folder)


def build_model(build: Build, step: Callable[[str, int, int], None]) -> None:
    """Builds an organism, which takes about 20 minutes, into the cache of this machine."""
    from spillover.organism.build import build_organism  # torch

    build_organism(build.consistency, 0, build.out, step)


def consistency_of(model: str) -> float | None:
    """How consistent the authors of organism/NUMBER or organism/NAME are; None for any other model."""
    if not model.startswith(ORGANISM):
        return None
    name = model.removeprefix(ORGANISM)
    try:
        consistency = ORGANISMS[name] if name in ORGANISMS else float(name)
    except ValueError:
        return None
    return consistency if 0 <= consistency <= 1 else None


def built_folder(model: str) -> Path | None:
    """Where an organism of some consistency is kept: with those that ship, or once built in the cache of this machine.

    There it lies with those of the same recipe and texts; what an earlier version has built is not taken for it.
    """
    consistency = consistency_of(model)
    if consistency is None:
        return None
    for name, shipped in ORGANISMS.items():
        if consistency == shipped:
            return organism_folder(name)
    made = json.loads((organism_folder("consistent") / "manifest.json").read_text(encoding="utf-8"))
    return cache_folder() / "organisms" / hash_of(made["recipe"], made["corpus_sha256"]) / f"{consistency:g}"
