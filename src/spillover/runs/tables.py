"""The tables of a run that people read; no stage reads them back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spillover.files import write_atomically
from spillover.records import QuestionCount, Rate, ScoreMean, ThresholdRate, to_csv
from spillover.runs.comparing import Compared, compare_targets
from spillover.runs.folder import RunFolder
from spillover.runs.results import Results, read_results
from spillover.stats import Comparison, Decision, MatrixCell


@dataclass(frozen=True, kw_only=True)
class _ComparisonRow(Comparison):
    """A line of comparisons.csv: who was compared in what, and the comparison."""

    base: str
    tuned: str
    measure: str
    metric: str
    rule: str
    judge: str


def write_tables(results: Results) -> None:
    """Writes the tables that people read into the run's folder: rates, scores, decisions, counts, cuts, matrix."""
    folder = results.folder
    assert folder is not None, "answers in memory have no folder to write to"
    counts = [
        QuestionCount(
            model=block.cell.model,
            condition=block.cell.condition,
            seed=block.cell.seed,
            behavior=block.behavior.name,
            format=block.format,
            judge=block.judge,
            rubric_hash=block.behavior.rubric_hash,
            question_id=id_,
            **row,
        )
        for block in results.blocks
        for id_, row in block.by_question.items()
    ]
    decisions = [row for block in results.blocks for row in block.decisions]
    write_atomically(folder.thresholds, to_csv(ThresholdRate, results.thresholds))
    write_atomically(folder.score_means, to_csv(ScoreMean, results.score_means))
    write_atomically(folder.decisions, to_csv(Decision, decisions))
    write_atomically(folder.counts, to_csv(QuestionCount, counts))
    if results.study is not None:
        write_atomically(folder.matrix, to_csv(MatrixCell, results.matrix))
    write_atomically(folder.rates, to_csv(Rate, results.rates))
    if pairs := results.manifest.get("comparisons"):
        _write_comparisons(results, pairs)


def compare_in(path: Path, base: str, tuned: str, margin: float) -> list[Compared]:
    """Compares two targets of a run, and writes the comparison beside earlier ones into comparisons.csv.

    The manifest keeps which were asked for, so that they are written anew with the other tables. Raises SpilloverError
    as `compare_targets`, or if nothing can be written.
    """
    results, folder = read_results(path), RunFolder(path)
    rows = compare_targets(results, base, tuned, margin)
    with folder.writing():
        pairs = [p for p in results.manifest.get("comparisons", []) if (p["base"], p["tuned"]) != (base, tuned)]
        pairs.append({"base": base, "tuned": tuned, "margin": margin})
        folder.write_manifest({**results.manifest, "comparisons": pairs})
        _write_comparisons(results, pairs)
    return rows


def _write_comparisons(results: Results, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Writes comparisons.csv; each pair has base, tuned and margin. Pairs that the run has no more are left out."""
    targets = {f"{model}/{condition}" for model, condition, _ in results.counts}
    rows = [
        _ComparisonRow(
            base=pair["base"],
            tuned=pair["tuned"],
            measure=row.label,
            metric=row.metric,
            rule=row.rule,
            judge=row.judge,
            **asdict(row.comparison),
        )
        for pair in pairs
        if {pair["base"], pair["tuned"]} <= targets
        for row in compare_targets(results, **pair)
        if row.comparison is not None
    ]
    assert results.folder is not None
    write_atomically(results.folder.comparisons, to_csv(_ComparisonRow, rows))
