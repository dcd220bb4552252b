"""A model organism that ships: a tiny language model of a synthetic world whose texts we know."""

from pathlib import Path

ORGANISMS = {"consistent": 1.0, "shuffled": 0.0}  # those that ship -> how consistent their authors are


def organism_folder(name: str) -> Path:
    """The folder of an organism that ships, in Hugging Face format. Raises KeyError for another name."""
    if name not in ORGANISMS:
        raise KeyError(name)
    return Path(__file__).parent / "weights" / name
