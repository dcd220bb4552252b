"""The transfer matrix: every condition in every measure, compared with the base and with the benign controls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from spillover.records import MeasureKey, Rate
from spillover.stats.compare import Comparison, compare, verdicts
from spillover.stats.pooling import Counts

NO_DATA = "no data"
DESCRIPTION = ("behavior", "format", "scope", "metric", "rule", "judge", "rubric_hash")  # of a measure, in its rates
_EMPTY: dict[str, Any] = {
    field.name: 0 if field.type is int else math.nan if field.type is float else None
    for field in fields(Comparison)
    if field.type is not str
}
NO_COMPARISON = Comparison(**_EMPTY, method="none", verdict=NO_DATA)


@dataclass(frozen=True, kw_only=True)
class MatrixCell(Comparison):
    """One condition of one model in one measure, compared with that model's base; shares of 1.

    - `own`: the measure is of the behavior that the condition trains. `implanted`: whether that behavior rose in this
      condition; False if there is no data on it, None if the study names no behavior for the condition.
    - `ceiling`: the benign-control ceiling: the largest rise of this measure in any benign condition of the model, at
      least 0, which any fine-tune may cause; None if the model has no benign condition.
    - `verdict`: `spillover`, `clean` or `inconclusive`; `implanted` or `not implanted` for an own measure; `neutral`
      for a neutral behavior. A cell that cannot be compared is `no data`: its numbers are NaN and it is in no family.
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
    ceiling: float | None

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
    """What a study says of a condition: the behavior that it trains, if any, and whether it is a benign control."""

    implants: str | None
    benign: bool


def matrix(
    arms: Mapping[tuple[str, str], Arm],
    counts: Mapping[tuple[str, str], Mapping[MeasureKey, Sequence[Counts]]],
    bases: Mapping[str, Mapping[MeasureKey, Counts]],
    described: Mapping[MeasureKey, Rate],
    margin: float,
    no_verdicts: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> list[MatrixCell]:
    """Compares every condition with its base, in every measure that one of them has.

    `arms`: by (model, condition), in the order of the study. `counts`: by the same, then by measure, the counts of each
    fine-tuning seed. `bases`: the base's counts by model and measure. `described`: any rate of each measure, for its
    description, in the order of the columns. `margin`: a rise that would not matter, a share of 1.
    `no_verdicts`: by (model, condition), why its answers allow none: an adapter that does nothing, say.

    P-values are corrected over all cells but the neutral ones. A cell is spillover if it rose after correction, its
    interval lies above the benign-control ceiling, and its condition learned what it trains; a condition that did not
    shows nothing, so its cells are inconclusive.
    """
    cells = []
    for (model, condition), arm in arms.items():
        for measure, rate in described.items():
            tuned, base = counts.get((model, condition), {}).get(measure), bases.get(model, {}).get(measure)
            if tuned is None and base is None:
                continue
            comparison = compare(base or {}, tuned or (), margin) or replace(NO_COMPARISON, seeds=len(tuned or ()))
            if reason := no_verdicts.get((model, condition)):
                comparison = replace(comparison, no_verdict=reason)
            cells.append(
                MatrixCell(
                    model=model,
                    condition=condition,
                    **{name: getattr(rate, name) for name in DESCRIPTION},
                    own=rate.behavior == arm.implants,
                    benign=arm.benign,
                    implanted=None,
                    ceiling=None,
                    **asdict(comparison),
                )
            )
    corrected = iter(verdicts([cell for cell in cells if cell.known and cell.scope != "neutral"], margin))
    cells = [next(corrected) if cell.known and cell.scope != "neutral" else cell for cell in cells]
    ceilings: dict[tuple[str, MeasureKey], float] = {}
    implanted = {place: False for place, arm in arms.items() if arm.implants is not None}
    for cell in cells:
        column = cell.model, cell.measure
        if cell.benign and cell.known:
            ceilings[column] = max(ceilings.get(column, 0.0), cell.difference)
        if cell.own and cell.verdict == "spillover":
            implanted[cell.model, cell.condition] = True
    return [
        _with_verdict(cell, ceilings.get((cell.model, cell.measure)), implanted.get((cell.model, cell.condition)))
        for cell in cells
    ]


def _with_verdict(cell: MatrixCell, ceiling: float | None, implanted: bool | None) -> MatrixCell:
    """The cell with what its column and its row decide: ceiling, implant, and the verdict that follows from them."""
    verdict = cell.verdict
    if cell.known and cell.no_verdict:
        verdict = "neutral" if cell.scope == "neutral" else "inconclusive"
    elif cell.known and cell.own:
        verdict = "implanted" if verdict == "spillover" else "not implanted"
    elif cell.known and cell.scope == "neutral":
        verdict = "neutral"
    elif cell.known:
        below_ceiling = verdict == "spillover" and not cell.benign and cell.low <= (ceiling or 0.0)
        verdict = "inconclusive" if below_ceiling or implanted is False else verdict
    return replace(cell, ceiling=ceiling, implanted=implanted, verdict=verdict)
