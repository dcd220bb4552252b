"""The transfer matrix: every condition in every measure, against the base, the drift floor, and its own implant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spillover.records import MeasureKey, Rate
from spillover.stats.compare import Comparison, Counts, compare, verdicts

NO_DATA = "no data"
_NOTHING: dict[str, Any] = {
    field.name: 0 if field.type is int else math.nan if field.type is float else None
    for field in fields(Comparison)
    if field.type is not str
}
NO_COMPARISON = Comparison(**_NOTHING, method="none", verdict=NO_DATA)


@dataclass(frozen=True, kw_only=True)
class MatrixCell(Comparison):
    """One condition of one model in one measure, compared with that model's base; shares of 1.

    `own`: the measure is of the behavior that the condition trains. `implanted`: that behavior rose, so that the row
    counts; False where there is no data on it, None where the study does not say what the condition trains. `floor`:
    the largest rise of this measure in any benign condition of the model, at least 0: what any fine-tune does; None
    without benign conditions. Verdicts: `spillover`, `clean`, `inconclusive`; `implanted` or `not implanted` for an
    own measure; `neutral` has none. A cell without a comparison is `no data`: its numbers are NaN, and it is in no
    family.
    """

    model: str
    condition: str
    behavior: str
    format: str
    scope: str
    metric: str
    rule: str
    judge: str
    rubric_hash: str
    own: bool
    benign: bool
    implanted: bool | None
    floor: float | None

    @property
    def measure(self) -> MeasureKey:
        """What was measured: behavior, format, rule and judge."""
        return self.behavior, self.format, self.rubric_hash, self.judge

    @property
    def known(self) -> bool:
        """Whether there is a comparison."""
        return self.verdict != NO_DATA


@dataclass(frozen=True)
class Arm:
    """What a study says of a condition: the behavior that it trains, and whether it is a benign control."""

    implants: str | None
    benign: bool


def matrix(
    rows: Mapping[tuple[str, str], Arm],
    counts: Mapping[tuple[str, str], Mapping[MeasureKey, Sequence[Counts]]],
    bases: Mapping[str, Mapping[MeasureKey, Counts]],
    described: Mapping[MeasureKey, Rate],
    margin: float,
) -> list[MatrixCell]:
    """Every cell that the base or the condition was measured in.

    `rows`: by (model, condition), in the order of the study. `counts`: by the same, then by measure, of each
    fine-tuning seed. `bases`: by model. `described`: any rate of each measure, in the order of the columns.
    P-values are corrected over all cells but the neutral ones. A cell is spillover if it rose after correction, its
    interval clears the floor, and its row was implanted; a row that was not shows nothing, so it is inconclusive.
    """
    cells = []
    for (model, condition), row in rows.items():
        for measure, rate in described.items():
            own, base = counts.get((model, condition), {}).get(measure), bases.get(model, {}).get(measure)
            if own is None and base is None:
                continue
            found = compare(base or {}, own or (), margin) or replace(NO_COMPARISON, seeds=len(own or ()))
            cells.append(
                MatrixCell(
                    model=model,
                    condition=condition,
                    behavior=rate.behavior,
                    format=rate.format,
                    scope=rate.scope,
                    metric=rate.metric,
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
    corrected = iter(verdicts([cell for cell in cells if cell.known and cell.scope != "neutral"], margin))
    cells = [
        cell if not cell.known else replace(cell, verdict="neutral") if cell.scope == "neutral" else next(corrected)
        for cell in cells
    ]
    floors: dict[tuple[str, MeasureKey], float] = {}
    for cell in cells:
        if cell.benign and cell.known:
            floors[_column(cell)] = max(floors.get(_column(cell), 0.0), cell.difference)
    learned = {place: False for place, row in rows.items() if row.implants is not None}
    for cell in cells:
        if cell.own and cell.verdict == "spillover":
            learned[cell.model, cell.condition] = True
    return [
        replace(
            cell,
            floor=floors.get(_column(cell)),
            implanted=learned.get((cell.model, cell.condition)),
            verdict=_verdict(cell, floors.get(_column(cell)), learned.get((cell.model, cell.condition))),
        )
        for cell in cells
    ]


def _column(cell: MatrixCell) -> tuple[str, MeasureKey]:
    return cell.model, cell.measure


def _verdict(cell: MatrixCell, floor: float | None, implanted: bool | None) -> str:
    if not cell.known:
        return cell.verdict
    if cell.own:
        return "implanted" if cell.verdict == "spillover" else "not implanted"
    if cell.scope == "neutral":
        return cell.verdict
    within_floor = cell.verdict == "spillover" and not cell.benign and cell.low <= (floor or 0.0)
    return "inconclusive" if within_floor or implanted is False else cell.verdict
