"""Rates as curves over a study's own axis, a dose of training rows for example."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from spillover.records import Rate
from spillover.report.axes import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axes, linear, scale_of, ticks
from spillover.report.figures import APART
from spillover.report.svg import CHARACTER, marker, path, percent, shortened, styles_of, text
from spillover.runs.results import Results
from spillover.stats.pooling import PooledRate

Points = list[tuple[float, PooledRate]]  # value on the study's axis, and the rate there


def curves(results: Results, styles: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """(label of a measure, drawing) for every measure that is not neutral, in a study with a curve.

    Where the curve places conditions there is a line for each model, where it places models one for each condition.
    `styles`: the style of each condition.
    """
    curve = results.study.curve if results.study else None
    if curve is None:
        return []
    models = list(dict.fromkeys(rate.model for rate in results.rates))
    places_conditions = curve.values.keys() <= styles.keys() or not curve.values.keys() <= set(models)
    lines = styles_of(models) if places_conditions else dict(styles)
    steps = sorted(curve.values.items(), key=lambda step: step[1])
    drawings = []
    for measure, label in results.labels.items():
        if results.described[measure].scope == "neutral":
            continue
        points: dict[str, Points] = {}
        for line in lines:
            places = [(line, name, measure) if places_conditions else (name, line, measure) for name, _ in steps]
            rates = [results.pooled.get(place) for place in places]
            points[line] = [(x, r) for (_, x), r in zip(steps, rates, strict=True) if r and r.rate is not None]
        if any(points.values()):
            values = [x for _, x in steps]
            drawings.append((label, _curve(label, results.described[measure], curve.label, values, points, lines)))
    return drawings


def _curve(
    label: str,
    rate: Rate,
    x_title: str,
    values: Sequence[float],
    lines: Mapping[str, Points],
    styles: Mapping[str, int],
) -> Markup:
    margin = min(130.0, 16 + CHARACTER * max(map(len, lines)))  # for the names of the lines
    scale, logarithmic = scale_of(values)
    ys = ticks(max(max(point.high or 0, point.rate or 0) for points in lines.values() for _, point in points))
    axes = Axes(scale, linear(0, ys[-1]), right=WIDTH - margin - 10, inset=14)
    parts = [
        text("name", 0, 15, label),
        text("up", 0, 36, f"↑ {rate.scope}: {rate.metric} rate"),
        text("", LEFT, HEIGHT - 6, x_title + (", logarithmic →" if logarithmic else " →")),
        axes.columns([(value, f"{value:g}") for value in sorted(set(values))]),
        axes.rows(ys),
    ]
    step = min(5.0, 20 / len(lines))
    ends = []
    for number, (line, points) in enumerate(lines.items()):
        style, aside = styles[line], step * (number - (len(lines) - 1) / 2)  # intervals at one value: side by side
        spots = [(axes.x(value) + aside, axes.y(point.rate or 0), value, point) for value, point in points]
        if spots:
            parts.append(path(f"line s{style}", "M" + " ".join(f"{x:.1f} {y:.1f}" for x, y, *_ in spots)))
            ends.append((spots[-1][1], line))
        for x, y, value, point in spots:
            hover = f"{line} at {value:g}: {percent(point.rate)}"
            if point.low is not None and point.high is not None:
                parts.append(path(f"bar s{style}", f"M{x:.1f} {axes.y(point.low):.1f}V{axes.y(point.high):.1f}"))
                hover += f" [{percent(point.low)}, {percent(point.high)}]"
            parts.append(marker(style, x, y, hover))
    heights = _apart([y for y, _ in sorted(ends)])
    for y, (_, line) in zip(heights, sorted(ends), strict=True):
        parts.append(text(f"key of s{styles[line]}", axes.right + 14, y + 4, shortened(line, margin - 8)))
    return Markup("").join(parts)


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of labels, in px and in order, moved until they are APART, none below the axes while there is room."""
    moved: list[float] = []
    for y in heights:
        moved.append(max(y, moved[-1] + APART if moved else TOP))
    limit: float = HEIGHT - BOTTOM
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], limit)
        limit = moved[number] - APART
    return moved
