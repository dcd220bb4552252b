"""Forest plots: the rate of every condition with its seeds, and its difference from the base, one line for each."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import MeasureKey
from spillover.report.axes import (
    WIDTH,
    Axes,
    linear,
    marker,
    path,
    percent,
    shares,
    signed_ticks,
    style_index,
    text,
    ticks,
)
from spillover.report.matrix import points
from spillover.report.rows import Point
from spillover.runs.results import Place
from spillover.stats import MatrixCell

SIDE, HEAD = 20, 28  # px: margin at the sides, and above the first line
LINE, BAR = 43, 27  # px: height of a line, and how far below its top its bar is
LONGEST_NAME = 18  # characters of a condition beside a difference and its verdict; the whole name is in the hover


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
    xs = ticks(max((max(point.high or 0, *(rate.rate or 0 for rate in point.seeds)) for point in shown), default=1))
    compared = [cell for (_, _, of), cell in cells.items() if of == measure and cell.known]
    limits = (limit for cell in compared for limit in (cell.low, cell.low_runs, cell.high, cell.high_runs))
    signed = signed_ticks([*(limit for limit in limits if limit is not None), margin])
    drawings = []
    for model in models:
        names = [name for name in conditions if (model, name, measure) in pooled]
        height = HEAD + LINE * len(names)
        styles = {name: style_index(name, conditions) for name in names}
        rates = {name: pooled[model, name, measure] for name in names}
        differences = {name: cells.get((model, name, measure)) for name in names}
        drawings.append(
            (
                model,
                height + 24,
                _rates(_axes(xs, height), model, rates, styles, xs),
                _differences(_axes(signed, height), model, differences, styles, signed, margin),
            )
        )
    return drawings


def _axes(values: Sequence[float], bottom: float) -> Axes:
    scale = linear(values[0], values[-1])
    return Axes(scale, left=SIDE, right=WIDTH - SIDE, top=HEAD, bottom=bottom, inset=0)


def _line(number: int, name: str, numbers: str, verdict: str = "") -> Markup:
    """The words of one line: its condition on the left, its numbers on the right."""
    top = HEAD + LINE * number
    strong = Markup('<tspan class="said">  {}</tspan>').format(verdict) if verdict else Markup("")
    right = Markup('<text class="end halo" x="{}" y="{}">{}{}</text>').format(WIDTH - SIDE, top + 14, numbers, strong)
    return path("grid", f"M{SIDE} {top + BAR}H{WIDTH - SIDE}") + text("key halo", SIDE, top + 14, name) + right


def _rates(
    axes: Axes, model: str, rates: Mapping[str, Point], styles: Mapping[str, int], xs: Sequence[float]
) -> Markup:
    parts = [text("name", 0, 15, f"{model}: rate"), axes.columns(shares(xs))]
    for number, (name, point) in enumerate(rates.items()):
        style, y = styles[name], HEAD + LINE * number + BAR
        if point.rate is None:
            parts.append(_line(number, name, "no data"))
            continue
        numbers = percent(point.rate)
        if point.low is not None and point.high is not None:
            numbers += f" [{100 * point.low:.1f}, {100 * point.high:.1f}]"
            parts.append(_bar(axes, style, point.low, point.high, y))
        parts.append(_line(number, name, numbers))
        several = [rate for rate in point.seeds if rate.rate is not None] if len(point.seeds) > 1 else []
        if several:
            parts.append(path(f"seed s{style}", "".join(f"M{axes.x(r.rate or 0):.1f} {y - 4.5}v9" for r in several)))
        seeds = [f"seed {rate.seed}: {rate.k}/{rate.n} = {percent(rate.rate)}" for rate in several]
        parts.append(marker(style, axes.x(point.rate), y, "\n".join([f"{name}: {numbers}", *seeds])))
    return Markup("").join(parts)


def _differences(
    axes: Axes,
    model: str,
    cells: Mapping[str, MatrixCell | None],
    styles: Mapping[str, int],
    signed: Sequence[float],
    margin: float,
) -> Markup:
    parts = [
        text("name", 0, 15, f"{model}: points above the base"),
        axes.columns([(value, points(value, 0)) for value in signed]),
        path("zero", f"M{axes.x(0):.1f} {HEAD}V{axes.bottom:g}"),
    ]
    if not all(cell is None or cell.scope == "neutral" for cell in cells.values()):
        parts.append(path("margin", f"M{axes.x(margin):.1f} {HEAD}V{axes.bottom:g}"))
        ceiling = next((cell.ceiling for cell in cells.values() if cell and cell.ceiling is not None), None)
        if ceiling is not None:
            title = f"benign-control ceiling: {points(ceiling, 1)} points, the largest rise of a benign control"
            parts.append(
                Markup('<path class="floor" d="M{:.1f} {:g}l-4.5-7h9z"><title>{}</title></path>').format(
                    axes.x(ceiling), axes.bottom, title
                )
            )
    for number, (name, cell) in enumerate(cells.items()):
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        if cell is None or not cell.known:
            parts.append(_line(number, short, "" if name == BASE else "no data"))
            continue
        style, y = styles[name], HEAD + LINE * number + BAR
        these_runs = _span(cell.low, cell.high)
        verdict = "" if cell.scope == "neutral" else cell.verdict
        parts.append(_line(number, short, f"{points(cell.difference, 1)} {these_runs}", verdict))
        hover = f"{name}: {points(cell.difference, 1)} {these_runs} {verdict}\nthese runs: {these_runs}"
        if cell.low_runs is not None and cell.high_runs is not None:
            parts.append(_bar(axes, style, cell.low_runs, cell.high_runs, y))
            hover += f"\nruns in general: {_span(cell.low_runs, cell.high_runs)}"
        parts.append(_bar(axes, style, cell.low, cell.high, y, " thick"))
        parts.append(marker(style, axes.x(cell.difference), y, hover))
    return Markup("").join(parts)


def _bar(axes: Axes, style: int, low: float, high: float, y: float, thick: str = "") -> Markup:
    return path(f"bar{thick} s{style}", f"M{axes.x(low):.1f} {y}H{axes.x(high):.1f}")


def _span(low: float, high: float) -> str:
    return f"[{points(low, 1)}, {points(high, 1)}]"
