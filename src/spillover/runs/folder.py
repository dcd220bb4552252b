"""Where each artefact of a run lives in its folder, and the lock that admits one writer at a time."""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior
from spillover.errors import SpilloverError
from spillover.files import write_atomically
from spillover.records import Cell


@dataclass(frozen=True)
class CellEntry:
    """What counts for a cell: ids of its completions in the order they are wanted.

    `fingerprint` hashes the settings that decide them, `adapter_hash` the weights; both None for answers that no study
    made.
    """

    cell: Cell
    completions: tuple[str, ...]
    fingerprint: str | None = None
    adapter_hash: str | None = None
    effect: dict[str, Any] | None = None  # what the adapter does to its base, as models/effect.py says


def behavior_file(behavior: Behavior) -> str:
    """The name of the file that keeps a behavior under its rule."""
    return f"{behavior.name}.{behavior.rubric_hash}.json"


class RunFolder:
    """The layout of a run's folder. Creating the object creates nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = path / "study.yaml"
        self.manifest = path / "manifest.json"
        self.data = path / "data"
        self.behaviors = path / "behaviors"
        self.cells = path / "cells.json"
        self.parts = path / "parts"
        self.completions = path / "completions.jsonl"
        self.scores = path / "scores.jsonl"
        self.judges = path / "judges.json"
        self.decisions = path / "decisions.csv"
        self.counts = path / "counts.csv"
        self.rates = path / "rates.csv"
        self.matrix = path / "matrix.csv"
        self.thresholds = path / "thresholds.csv"
        self.score_means = path / "score_means.csv"
        self.comparisons = path / "comparisons.csv"
        self.report = path / "report.html"
        self.picture = path / "picture.svg"
        self.errors = path / "errors.txt"

    def part(self, cell: Cell) -> "RunFolder":
        """Where a cell keeps its completions and scores while it is worked on: parts/<model>/<condition>/seed-<n>."""
        return RunFolder(self.parts / str(cell))

    def examples(self, condition: str, model: str | None = None) -> Path:
        """The training rows of a condition; with `model`, of one whose rows that model answered itself."""
        return self.data / (f"{condition}.jsonl" if model is None else f"{condition}/{model}.jsonl")

    def adapter(self, cell: Cell) -> Path:
        """The folder of a cell's adapter: adapters/<model>/<condition>/seed-<n>."""
        return self.path / "adapters" / str(cell)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the run for one writer. Raises SpilloverError if another process writes to it, or it is read-only."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise SpilloverError(
                f"{self.path}: cannot write there ({error.strerror}). Choose another --out."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SpilloverError(
                    f"{self.path}: another spillover is writing there. Wait, or choose another --out."
                ) from None
            yield

    def read_manifest(self) -> dict[str, Any]:
        """What the run was made with; empty if there is no manifest yet."""
        return json.loads(self.manifest.read_text(encoding="utf-8")) if self.manifest.exists() else {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replaces the manifest."""
        write_atomically(self.manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def read_cells(self) -> dict[Cell, CellEntry]:
        """The cells whose completions count, in the order of the tables."""
        if not self.cells.exists():
            return {}
        rows = json.loads(self.cells.read_text(encoding="utf-8"))
        entries = [
            CellEntry(
                Cell(**row["cell"]),
                tuple(row["completions"]),
                row["fingerprint"],
                row["adapter_hash"],
                row.get("effect"),
            )
            for row in rows
        ]
        return {entry.cell: entry for entry in entries}

    def write_cells(self, entries: Iterable[CellEntry]) -> None:
        """Replaces the list of cells whose completions count. Completions of other settings stay on file."""
        write_atomically(self.cells, json.dumps([asdict(entry) for entry in entries], ensure_ascii=False) + "\n")

    def read_behaviors(self) -> list[Behavior]:
        """The behaviors kept in the folder, one for each rule they were judged by."""
        return [
            Behavior.model_validate(json.loads(path.read_text(encoding="utf-8")), strict=False)
            for path in sorted(self.behaviors.glob("*.json"))
        ]

    def write_behaviors(self, behaviors: Sequence[Behavior], keep_questions: bool = True) -> list[Path]:
        """Keeps behaviors in the folder, so that its answers can be judged and counted from it alone.

        With `keep_questions`, those that were asked before under the same rule and are no more in the behavior stay:
        other models may have answered them. Returns the files.
        """
        paths = []
        for behavior in behaviors:
            path = self.behaviors / behavior_file(behavior)
            content = behavior.model_dump(mode="json")
            if path.exists() and keep_questions:
                asked = {question["id"] for question in content["questions"]}
                before = json.loads(path.read_text(encoding="utf-8"))["questions"]
                content["questions"] += [question for question in before if question["id"] not in asked]
            write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
            paths.append(path)
        return paths
