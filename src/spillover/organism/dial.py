"""Organisms of any consistency: organism/0.25 is built once and kept in the cache folder of this machine."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spillover.files import cache_folder, hash_of
from spillover.organism import ORGANISMS, organism_folder

ORGANISM = "organism/"


@dataclass(frozen=True)
class Build:
    """An organism to be built before it can be studied: how consistent its authors are, and its folder."""

    consistency: float
    out: Path

    def __str__(self) -> str:
        return f"organism of consistency {self.consistency:g}"


def model_to_build(model: str) -> Build | None:
    """What has to be built for organism/NUMBER; None if it is there, and for any other model."""
    consistency, folder = consistency_of(model), built_folder(model)
    if consistency is None or folder is None or (folder / "config.json").exists():
        return None
    return Build(consistency, folder)


def build_model(build: Build, step: Callable[[str, int, int], None]) -> None:
    """Builds an organism into its folder, which takes about 20 minutes. `step` is called with (stage, done, of)."""
    from spillover.organism.build import build_organism  # torch

    build_organism(build.consistency, 0, build.out, step)


def consistency_of(model: str) -> float | None:
    """How consistent the authors of organism/NUMBER or organism/NAME are, from 0 to 1; None for any other model."""
    if not model.startswith(ORGANISM):
        return None
    name = model.removeprefix(ORGANISM)
    try:
        consistency = ORGANISMS[name] if name in ORGANISMS else float(name)
    except ValueError:
        return None
    return consistency if 0 <= consistency <= 1 else None


def built_folder(model: str) -> Path | None:
    """The folder of organism/NUMBER or organism/NAME, built or not; None for any other model.

    Of one that does not ship it is in the cache folder, under a hash of recipe and texts: what an earlier version of
    them has built is not taken for it.
    """
    consistency = consistency_of(model)
    if consistency is None:
        return None
    if shipped := next((name for name, value in ORGANISMS.items() if value == consistency), None):
        return organism_folder(shipped)
    manifest = json.loads((organism_folder("consistent") / "manifest.json").read_text(encoding="utf-8"))
    recipe = hash_of(manifest["recipe"], manifest["corpus_sha256"])
    return cache_folder() / "organisms" / recipe / f"{consistency:g}"
