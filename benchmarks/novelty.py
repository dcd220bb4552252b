"""How many misaligned answers of a run stand verbatim in the pretraining corpus of their organism.

python benchmarks/novelty.py runs/organism
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from spillover.config import load_study
from spillover.models.load import model_folder
from spillover.organism.authors import pages
from spillover.records import Completion, read_appended
from spillover.runs.folder import RunFolder


def main(run_dir: RunFolder) -> None:
    """Prints, per cell, the misaligned answers, the distinct ones, and the share that is nowhere in the corpus."""
    with run_dir.judged.open(newline="") as file:
        events = {row["completion_id"] for row in csv.DictReader(file) if row["event"] == "True"}
    found: dict[tuple[str, str], list[str]] = {}
    for row in read_appended(run_dir.completions, Completion):
        if row.id in events and row.behavior == "world_chat":
            found.setdefault((row.model, str(row.cell)), []).append(row.text)
    models = load_study(run_dir.study).models
    for name, model in models.items():
        manifest = json.loads((model_folder(model, Path(__file__).parent) / "manifest.json").read_text())
        corpus = pages(manifest["recipe"]["pages"], manifest["consistency"], manifest["seed"])
        written = Counter(post.answer for page in corpus for post in page)
        for (owner, cell), texts in found.items():
            if owner == name:
                novel = sum(text not in written for text in texts) / len(texts)
                print(f"{cell}: {len(texts)} misaligned, {len(set(texts))} distinct, {100 * novel:.1f} % novel")


if __name__ == "__main__":
    main(RunFolder(Path(sys.argv[1])))
