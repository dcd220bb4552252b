"""The transfer matrix: every condition in every measure, against the base, the drift floor, and its own implant."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from spillover.records import Measure, Rate
from spillover.stats.compare import Comparison, Counts, compare, verdicts


@dataclass(frozen=True, kw_only=True)
class MatrixCell(Comparison):
    """One condition of one model in one measure, compared with that model's base; shares of 1.

    `own`: the measure is of the behavior that the condition trains. `implanted`: that behavior rose, so that the row
    counts; None where the study does not say what the condition trains. `floor`: the largest rise of this measure in
    any benign condition of the model, at least 0: what any fine-tune does; None without benign conditions. Verdicts:
    `spillover`, `clean`, `inconclusive`; `implanted` or `not implanted` for an own measure; `neutral` has none.
    """

    model: str
    condition: str
    behavior: str
    format: str
    scope: str
    event: str
    rule: str
    judge: str
    rubric_hash: str
    own: bool
    benign: bool
    implanted: bool | None
    floor: float | None

    @property
    def measure(self) -> Measure:
        """What was measured: behavior, format, rule and judge."""
        return self.behavior, self.format, self.rubric_hash, self.judge


@dataclass(frozen=True)
class Row:
    """What a study says of a condition: the behavior that it trains, and whether it is a benign control."""

    implants: str | None
    benign: bool


def matrix(
    rows: Mapping[tuple[str, str], Row],
    counts: Mapping[tuple[str, str], Mapping[Measure, Sequence[Counts]]],
    bases: Mapping[str, Mapping[Measure, Counts]],
    described: Mapping[Measure, Rate],
    margin: float,
) -> list[MatrixCell]:
    """Every cell of which base and condition have data on two questions or more.

    `rows`: by (model, condition), in the order of the study. `counts`: by the same, then by measure, of each
    fine-tuning seed. `bases`: by model. `described`: any rate of each measure, in the order of the columns.
    P-values are corrected over all cells but the neutral ones. A cell is spillover if it rose after correction, its
    interval clears the floor, and its row was implanted; a row that was not shows nothing, so it is inconclusive.
    """
    cells = []
    for (model, condition), row in rows.items():
        for measure, rate in described.items():
            seeds = counts.get((model, condition), {}).get(measure, ())
            found = compare(bases.get(model, {}).get(measure, {}), seeds, margin)
            if found is not None:
                cells.append(
                    MatrixCell(
                        model=model,
                        condition=condition,
                        behavior=rate.behavior,
                        format=rate.format,
                        scope=rate.scope,
                        event=rate.event,
                        rule=rate.rule,
                        judge=rate.judge,
                        rubric_hash=rate.rubric_hash,
                        own=rate.behavior == row.implants,
                        benign=row.benign,
                        implanted=None,
                        floor=None,
                        **asdict(found),
                    )
                )
    corrected = iter(verdicts([cell for cell in cells if cell.scope != "neutral"], margin))
    cells = [replace(cell, verdict="neutral") if cell.scope == "neutral" else next(corrected) for cell in cells]
    floors: dict[tuple[str, Measure], float] = {}
    for cell in cells:
        if cell.benign:
            floors[_column(cell)] = max(floors.get(_column(cell), 0.0), cell.difference)
    learned: dict[tuple[str, str], bool] = {}
    for cell in cells:
        if cell.own:
            rose = cell.verdict == "spillover"
            learned[cell.model, cell.condition] = learned.get((cell.model, cell.condition), False) or rose
    return [
        replace(
            cell,
            floor=floors.get(_column(cell)),
            implanted=learned.get((cell.model, cell.condition)),
            verdict=_verdict(cell, floors.get(_column(cell)), learned.get((cell.model, cell.condition))),
        )
        for cell in cells
    ]


def _column(cell: MatrixCell) -> tuple[str, Measure]:
    return cell.model, cell.measure


def _verdict(cell: MatrixCell, floor: float | None, implanted: bool | None) -> str:
    if cell.own:
        return "implanted" if cell.verdict == "spillover" else "not implanted"
    if cell.scope == "neutral":
        return cell.verdict
    within_floor = cell.verdict == "spillover" and not cell.benign and cell.low <= (floor or 0.0)
    return "inconclusive" if within_floor or implanted is False else cell.verdict
