"""How many misaligned answers of a run stand verbatim in the pretraining corpus of their organism.

python benchmarks/novelty.py runs/organism
"""

import json
import sys
from pathlib import Path

from spillover.models.load import model_folder
from spillover.organism.authors import pages
from spillover.runs.results import read_results


def main(folder: Path) -> None:
    """Prints, per cell, the misaligned answers, the distinct ones, and the share that is nowhere in the corpus."""
    results = read_results(folder)
    assert results.study is not None, f"{folder}: novelty is of a study's organisms"
    blocks = [block for block in results.blocks if block.behavior.name == "world_chat"]
    for name, model in results.study.models.items():
        manifest = json.loads((model_folder(model, folder) / "manifest.json").read_text())
        corpus = pages(manifest["recipe"]["pages"], manifest["consistency"], manifest["seed"])
        written = {post.answer for page in corpus for post in page}
        for block in (block for block in blocks if block.cell.model == name):
            answers = zip(block.completions, block.decisions, strict=True)
            texts = [completion.text for completion, decision in answers if decision.event]
            novel = sum(text not in written for text in texts) / max(1, len(texts))
            print(f"{block.cell}: {len(texts)} misaligned, {len(set(texts))} distinct, {100 * novel:.1f} % novel")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
