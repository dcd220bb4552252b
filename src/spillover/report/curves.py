"""Rates as curves over a study's own axis."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from spillover.config import Curve
from spillover.records import MeasureKey, Rate
from spillover.report.axes import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEFT,
    STYLES,
    TOP,
    WIDTH,
    Axes,
    linear,
    marker,
    path,
    percent,
    scale_of,
    shortened,
    style_index,
    text,
    ticks,
)
from spillover.report.figures import APART
from spillover.report.rows import Point
from spillover.runs.results import Place


def curves(
    curve: Curve, pooled: Mapping[Place, Point], labels: Mapping[MeasureKey, str], described: Mapping[MeasureKey, Rate]
) -> list[tuple[str, Markup]]:
    """(what is drawn, drawing) for every measure that is not neutral: its rate over the places of the curve.

    Where the curve places conditions there is a line for each model, where it places models one for each condition.
    `described` has any rate of each measure.
    """
    conditions = list(dict.fromkeys(condition for _, condition, _ in pooled))
    models = list(dict.fromkeys(model for model, _, _ in pooled))
    of_conditions = curve.values.keys() <= set(conditions) or not curve.values.keys() <= set(models)
    lines = models if of_conditions else conditions
    steps = sorted(curve.values.items(), key=lambda step: step[1])
    found = []
    for measure, label in labels.items():
        if described[measure].scope == "neutral":
            continue
        drawn = []
        for number, line in enumerate(lines):
            style = 1 + number % STYLES if of_conditions else style_index(line, conditions)
            places = [(line, name, measure) if of_conditions else (name, line, measure) for name, _ in steps]
            own = [(x, pooled[p]) for (_, x), p in zip(steps, places, strict=True) if p in pooled]
            drawn.append((line, style, [(x, point) for x, point in own if point.rate is not None]))
        if any(points for _, _, points in drawn):
            found.append((label, _curve(label, described[measure], curve.label, [x for _, x in steps], drawn)))
    return found


def _curve(
    label: str,
    measured: Rate,
    across: str,
    values: Sequence[float],
    drawn: Sequence[tuple[str, int, list[tuple[float, Point]]]],
) -> Markup:
    margin = min(130.0, 16 + CHARACTER * max(len(line) for line, _, _ in drawn))  # for the names of the lines
    scale, logarithmic = scale_of(values)
    ys = ticks(max(max(point.high or 0, point.rate or 0) for _, _, points in drawn for _, point in points))
    axes = Axes(
        lambda value: scale(value) * (1 - 10 / (WIDTH - margin)), linear(0, ys[-1]), right=WIDTH - margin, inset=14
    )
    parts = [
        text("name", 0, 15, label),
        text("up", 0, 36, f"↑ {measured.scope}: {measured.metric} rate"),
        text("", LEFT, HEIGHT - 6, across + (", logarithmic →" if logarithmic else " →")),
        axes.columns([(value, f"{value:g}") for value in sorted(set(values))]),
        axes.rows(ys),
    ]
    step = min(5.0, 20 / len(drawn))
    ends = []
    for number, (line, style, points) in enumerate(drawn):
        aside = step * (number - (len(drawn) - 1) / 2)  # intervals at one value stand side by side
        spots = [(axes.x(x) + aside, axes.y(point.rate or 0), x, point) for x, point in points]
        if spots:
            parts.append(path(f"line s{style}", "M" + " ".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in spots)))
            ends.append((spots[-1][1], line, style))
        for x, y, value, point in spots:
            hover = f"{line} at {value:g}: {percent(point.rate)}"
            if point.low is not None and point.high is not None:
                parts.append(path(f"bar s{style}", f"M{x:.1f} {axes.y(point.low):.1f}V{axes.y(point.high):.1f}"))
                hover += f" [{percent(point.low)}, {percent(point.high)}]"
            parts.append(marker(style, x, y, hover))
    for y, line, style in _spread(ends, TOP, HEIGHT - BOTTOM):
        parts.append(text(f"key of s{style}", axes.right + 4, y + 4, shortened(line, margin - 8)))
    return Markup("").join(parts)


def _spread(labels: Sequence[tuple[float, str, int]], top: float, bottom: float) -> list[tuple[float, str, int]]:
    """Labels moved up and down until they are APART, in their order, none below `bottom` while there is room."""
    spread: list[tuple[float, str, int]] = []
    for y, line, style in sorted(labels):
        spread.append((max(y, spread[-1][0] + APART if spread else top), line, style))
    limit = bottom
    for number in range(len(spread) - 1, -1, -1):
        y, line, style = spread[number]
        spread[number] = (min(y, limit), line, style)
        limit = spread[number][0] - APART
    return spread
