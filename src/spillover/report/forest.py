"""Forest plots: the rate of every condition with its seeds, and its difference from the base, one line for each."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import MeasureKey
from spillover.report.figures import WIDTH, marker, percent, style_index, ticks
from spillover.report.matrix import points
from spillover.report.rows import Point
from spillover.runs.results import Place
from spillover.stats import MatrixCell

SIDE, HEAD = 20, 28  # px: margin at the sides, and above the first line
LINE, BAR = 43, 27  # px: height of a line, and how far below its top its bar is
WIDE = WIDTH - 2 * SIDE
LONGEST_NAME = 18  # characters of a condition beside a difference and its verdict; the whole name is in the hover
SIGNED_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def forests(
    measure: MeasureKey,
    pooled: Mapping[Place, Point],
    cells: Mapping[Place, MatrixCell],
    conditions: Sequence[str],
    margin: float,
) -> list[tuple[str, int, Markup, Markup]]:
    """(model, height, rates, differences) for every model with cells of this measure, all on the same two axes."""
    models = list(dict.fromkeys(model for model, _, of in cells if of == measure))
    shown = [point for (model, _, of), point in pooled.items() if of == measure and model in models]
    across = ticks(max((max(point.high or 0, *(rate.rate or 0 for rate in point.seeds)) for point in shown), default=1))
    own = [cell for (_, _, of), cell in cells.items() if of == measure and cell.known]
    lows = (low for cell in own for low in (cell.low, cell.low_runs) if low is not None)
    highs = (high for cell in own for high in (cell.high, cell.high_runs) if high is not None)
    signed = signed_ticks([*lows, *highs, margin])
    found = []
    for model in models:
        names = [name for name in conditions if (model, name, measure) in pooled]
        rates = [(name, pooled[model, name, measure]) for name in names]
        compared = [(name, cells.get((model, name, measure))) for name in names]
        height = HEAD + LINE * len(names)
        found.append(
            (
                model,
                height + 24,
                _rates(model, rates, across, conditions, height),
                _differences(model, compared, signed, conditions, margin, height),
            )
        )
    return found


def signed_ticks(values: Sequence[float]) -> list[float]:
    """Round tick values around 0 that no value is outside of: six steps or fewer."""
    low, high = min(0.0, *values), max(0.0, *values)
    for step in SIGNED_STEPS:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [step * place for place in range(first, last + 1)]


def _frame(title: str, values: Iterable[tuple[float, str]], bottom: int) -> list[Markup]:
    """Title, grid lines at x and their labels."""
    parts = [Markup('<text class="name" x="0" y="15">{}</text>').format(title)]
    for x, text in values:
        parts.append(
            Markup('<path class="grid" d="M{0:.1f} {1}V{2}"/><text class="mid" x="{0:.1f}" y="{3}">{4}</text>').format(
                x, HEAD, bottom, bottom + 17, text
            )
        )
    return parts


def _line(number: int, name: str, told: str, strong: str = "") -> Markup:
    """The words of one line: its condition on the left, its numbers on the right."""
    top = HEAD + LINE * number
    return Markup(
        '<path class="grid" d="M{0} {1}H{2}"/><text class="key halo" x="{0}" y="{3}">{4}</text>'
        '<text class="end halo" x="{2}" y="{3}">{5}{6}</text>'
    ).format(
        SIDE,
        top + BAR,
        WIDTH - SIDE,
        top + 14,
        name,
        told,
        Markup('<tspan class="said">  {}</tspan>').format(strong) if strong else "",
    )


def _rates(
    model: str, rates: Sequence[tuple[str, Point]], across: Sequence[float], conditions: Sequence[str], bottom: int
) -> Markup:
    def right(share: float) -> float:
        return SIDE + WIDE * share / across[-1]

    parts = _frame(f"{model}: rate", [(right(value), percent(value, 0)) for value in across], bottom)
    for number, (name, point) in enumerate(rates):
        style, y = style_index(name, conditions), HEAD + LINE * number + BAR
        if point.rate is None:
            parts.append(_line(number, name, "no data"))
            continue
        known = point.low is not None and point.high is not None
        told = f"{percent(point.rate)} [{_span(point.low, point.high)}]" if known else percent(point.rate)
        parts.append(_line(number, name, told))
        if point.low is not None and point.high is not None:
            parts.append(_bar(style, right(point.low), right(point.high), y))
        several = [rate for rate in point.seeds if rate.rate is not None] if len(point.seeds) > 1 else []
        if several:
            ends = Markup("").join(Markup("M{:.1f} {}v9").format(right(rate.rate or 0), y - 4.5) for rate in several)
            parts.append(Markup('<path class="seed s{}" d="{}"/>').format(style, ends))
        seeds = "\n".join(f"seed {rate.seed}: {rate.k}/{rate.n} = {percent(rate.rate)}" for rate in several)
        parts.append(marker(style, right(point.rate), y, f"{name}: {told}" + (f"\n{seeds}" if seeds else "")))
    return Markup("").join(parts)


def _differences(
    model: str,
    compared: Sequence[tuple[str, MatrixCell | None]],
    signed: Sequence[float],
    conditions: Sequence[str],
    margin: float,
    bottom: int,
) -> Markup:
    def right(share: float) -> float:
        return SIDE + WIDE * (share - signed[0]) / (signed[-1] - signed[0])

    parts = _frame(f"{model}: points above the base", [(right(value), points(value, 0)) for value in signed], bottom)
    neutral = all(cell is None or cell.scope == "neutral" for _, cell in compared)
    floor = next((cell.floor for _, cell in compared if cell and cell.floor is not None), None)
    parts.append(_upright("zero", right(0), bottom))
    if not neutral:
        parts.append(_upright("margin", right(margin), bottom))
        if floor is not None:
            parts.append(
                Markup('<path class="floor" d="M{:.1f} {}l-4.5-7h9z"><title>{}</title></path>').format(
                    right(floor),
                    bottom,
                    f"benign-control ceiling: {points(floor, 1)} points, the largest rise of a benign control",
                )
            )
    for number, (name, cell) in enumerate(compared):
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        if cell is None or not cell.known:
            parts.append(_line(number, short, "" if name == BASE else "no data"))
            continue
        style, y = style_index(name, conditions), HEAD + LINE * number + BAR
        told = f"{points(cell.difference, 1)} [{_span(cell.low, cell.high, signed=True)}]"
        said = "" if cell.scope == "neutral" else cell.verdict
        parts.append(_line(number, short, told, said))
        general = ""
        if cell.low_runs is not None and cell.high_runs is not None:
            parts.append(_bar(style, right(cell.low_runs), right(cell.high_runs), y))
            general = f"\nruns in general: [{_span(cell.low_runs, cell.high_runs, signed=True)}]"
        parts.append(_bar(style, right(cell.low), right(cell.high), y, " thick"))
        hover = f"{name}: {told} {said}\nthese runs: [{_span(cell.low, cell.high, signed=True)}]{general}"
        parts.append(marker(style, right(cell.difference), y, hover))
    return Markup("").join(parts)


def _bar(style: int, low: float, high: float, y: float, thick: str = "") -> Markup:
    return Markup('<path class="bar{} s{}" d="M{:.1f} {}H{:.1f}"/>').format(thick, style, low, y, high)


def _upright(kind: str, x: float, bottom: int) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {}V{}"/>').format(kind, x, HEAD, bottom)


def _span(low: float | None, high: float | None, signed: bool = False) -> str:
    said: Callable[[float], str] = (lambda value: points(value, 1)) if signed else (lambda value: f"{100 * value:.1f}")
    return ", ".join(said(value) for value in (low, high) if value is not None)
