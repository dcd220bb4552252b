"""The main picture of a report: narrow rates against broad ones, and small interval bars for its tables."""

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import MeasureKey, Rate
from spillover.report import svg
from spillover.report.axes import HEIGHT, SHARE, WIDTH, Axes, linear, shares, ticks
from spillover.report.svg import CHARACTER, marker, path, percent, text
from spillover.stats.agreement import spearman

APART = 15  # px between two labels
FEW_MODELS = 10  # with fewer, a rank correlation is said to be a hint

RatePair = tuple[Rate, Rate]  # of one cell: across, upwards


def interval_bar(rate: Rate, style: int) -> Markup:
    """A small bar from 0 to 100 % with the interval and the rate, for a table's row."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return Markup("")
    axes = Axes(SHARE, left=7, right=127, inset=0)
    drawing = path("grid", "M7 8H127M7 4V12M127 4V12") + axes.bar("bar", rate.low, rate.high, 8)
    return Markup('<svg class="fig mini s{}" viewBox="0 0 134 16" aria-hidden="true">{}</svg>').format(
        style, drawing + marker(style, axes.x(rate.rate), 8)
    )


def first_measure(rates: Iterable[Rate], scope: str) -> MeasureKey | None:
    """The first narrow, broad or neutral measure of the rates."""
    return next((rate.measure for rate in rates if rate.scope == scope), None)


def panels(rates: Sequence[Rate], styles: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """(model, drawing) for each model: its cells' narrow rate (x) against their broad rate (y), on shared axes.

    The first narrow and the first broad behavior of the rates are taken; no panel if there is none of a kind.
    """
    across, upwards = (
        {(rate.model, rate.condition, rate.seed): rate for rate in rates if rate.measure == first_measure(rates, scope)}
        for scope in ("narrow", "broad")
    )
    pairs = [(across[cell], upwards[cell]) for cell in across if cell in upwards]
    with_data = [(x, y) for x, y in pairs if x.rate is not None and y.rate is not None]
    xs, ys = (ticks(max((pair[axis].high or 0 for pair in with_data), default=1)) for axis in (0, 1))
    drawings = []
    for model in dict.fromkeys(x.model for x, _ in pairs):
        x, y = pairs[0]
        y_title, x_title = f"broad: {y.metric} rate, {y.behavior}", f"narrow: {x.metric} rate, {x.behavior}"
        axes, grid = _grid(xs, ys, model, y_title, x_title)
        points = [(x, y) for x, y in with_data if x.model == model]
        base = Markup("").join(
            path("base", f"M{axes.left} {axes.y(y.rate or 0):.1f}H{axes.right}")
            + text("", axes.right + 6, axes.y(y.rate or 0) + 4, BASE)
            for _, y in points
            if y.condition == BASE
        )
        crosses = _crosses(axes, [(*point, styles[point[0].condition], cell_name(point[0])) for point in points])
        drawings.append((model, grid + base + crosses))
    return drawings


def cell_name(rate: Rate) -> str:
    """Condition and seed of a rate."""
    return rate.condition + ("" if rate.seed is None else f", seed {rate.seed}")


def scatters(rates: Sequence[Rate], labels: Mapping[MeasureKey, str]) -> list[tuple[str, Markup, str]]:
    """(label, drawing, rank correlation in words) for each broad measure, of models that were measured as they are.

    One point per model: the rate of the first narrow measure against that of the broad one, both with their intervals.
    Nothing where a model was fine-tuned, no measure is narrow, or fewer than two models have both rates.
    """
    narrow = first_measure(rates, "narrow")
    if narrow is None or any(rate.condition != BASE for rate in rates):
        return []
    across = {rate.model: rate for rate in rates if rate.measure == narrow and rate.rate is not None}
    pairs: dict[MeasureKey, list[RatePair]] = {rate.measure: [] for rate in rates if rate.scope == "broad"}
    for rate in rates:
        if rate.measure in pairs and rate.rate is not None and rate.model in across:
            pairs[rate.measure].append((across[rate.model], rate))
    pairs = {measure: points for measure, points in pairs.items() if len(points) > 1}
    xs = ticks(max((x.high or 0 for points in pairs.values() for x, _ in points), default=1))
    styles = svg.styles_of([rate.model for rate in rates])
    return [
        (labels[measure], _scatter(points, styles, xs), _rank_correlation(points)) for measure, points in pairs.items()
    ]


def _scatter(pairs: Sequence[RatePair], styles: Mapping[str, int], xs: list[float]) -> Markup:
    x, y = pairs[0]
    name = y.behavior if y.format == "plain" else f"{y.behavior}, {y.format}"
    x_title = f"narrow: {x.metric} rate, {x.behavior}"
    axes, grid = _grid(xs, ticks(max(y.high or 0 for _, y in pairs)), name, f"broad: {y.metric} rate", x_title)
    parts = [grid, _crosses(axes, [(x, y, styles[x.model], x.model) for x, y in pairs])]
    taken: list[tuple[float, float, float]] = []  # of labels: from, to, baseline
    for x, y in sorted(pairs, key=lambda pair: pair[0].rate or 0):
        at, line, words = axes.x(x.rate or 0), axes.y(y.rate or 0) - 7, svg.shortened(x.model, WIDTH / 2)
        long = CHARACTER * len(words)
        on_left = at + long + 10 > WIDTH
        start = at - long - 10 if on_left else at + 10
        while any(start < end and begin < start + long and abs(line - other) < APART for begin, end, other in taken):
            line += APART
        taken.append((start, start + long, line))
        classes = f"key halo of s{styles[x.model]}" + (" end" if on_left else "")
        parts.append(text(classes, at - 10 if on_left else at + 10, line, words))
    return Markup("").join(parts)


def _grid(xs: Sequence[float], ys: Sequence[float], name: str, y_title: str, x_title: str) -> tuple[Axes, Markup]:
    """Axes of two shares up to the last of their ticks, and their drawing with its titles."""
    axes = Axes(linear(0, xs[-1]), linear(0, ys[-1]))
    return axes, axes.titles(name, y_title, x_title) + axes.columns(shares(xs)) + axes.rows(ys)


def _crosses(axes: Axes, points: Iterable[tuple[Rate, Rate, int, str]]) -> Markup:
    """Two rates each, with style and name, as a marker with both intervals; markers lie above all intervals."""
    bars, marks = [], []
    for x, y, style, name in points:
        at, height = axes.x(x.rate or 0), axes.y(y.rate or 0)
        across = f"M{axes.x(x.low or 0):.1f} {height:.1f}H{axes.x(x.high or 0):.1f}"
        bars.append(path(f"bar s{style}", f"{across}M{at:.1f} {axes.y(y.low or 0):.1f}V{axes.y(y.high or 0):.1f}"))
        words = (f"{r.metric} {percent(r.rate)} [{percent(r.low)}, {percent(r.high)}]" for r in (x, y))
        marks.append(marker(style, at, height, "\n".join([name, *words])))
    return Markup("").join([*bars, *marks])


def _rank_correlation(pairs: Sequence[RatePair]) -> str:
    """Spearman's correlation with how many models it rests on and what chance alone can do."""
    models = len(pairs)
    correlation = spearman([x.rate or 0 for x, _ in pairs], [y.rate or 0 for _, y in pairs])
    if correlation is None:
        return f"No rank correlation: the {models} models do not differ in one of the two rates."
    words = f"Spearman's rank correlation {correlation:+.2f} over {models} models.".replace("-", "\u2212")
    if models < FEW_MODELS:
        chance = 2 / math.factorial(models)
        often = percent(chance, 0) if chance >= 0.01 else "less than 1\u202f%"
        words += f" So few are a hint: by chance alone {models} are in perfect order, up or down, {often} of the time."
    return words


def standalone(drawings: Sequence[tuple[str, Markup]], styles: Mapping[str, int], label: str) -> Markup:
    """The panels side by side with a legend of conditions, as an SVG file of its own."""
    place, legend = 0.0, []
    for name, style in styles.items():
        words = Markup('<text class="key" x="{}" y="11">{}</text>').format(place + 20, name)
        legend.append(marker(style, place + 8, 7) + words)
        place += 44 + 7.2 * len(name)
    width = max(len(drawings) * (WIDTH + 30) - 30, int(place)) + 40
    placed = [
        Markup('<g transform="translate({} 40)">{}</g>').format(i * (WIDTH + 30), drawing)
        for i, (_, drawing) in enumerate(drawings)
    ]
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="fig" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">'
        '{2}<style>{3}</style><rect width="{0}" height="{1}" rx="6" fill="var(--paper)"/>'
        '<g transform="translate(20 20)">{4}</g></svg>\n'
    ).format(width, HEIGHT + 70, svg.title(label), Markup(svg.STYLE), Markup("").join([*legend, *placed]))
