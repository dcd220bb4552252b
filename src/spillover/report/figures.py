"""The figures of a report as SVG: rates against each other, the rate per question, and small interval bars."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import MeasureKey, Rate
from spillover.report.axes import (
    CHARACTER,
    HEIGHT,
    STYLE,
    STYLES,
    WIDTH,
    Axes,
    linear,
    marker,
    path,
    percent,
    shares,
    shortened,
    style_index,
    text,
    ticks,
)
from spillover.report.rows import Asked
from spillover.stats.agreement import spearman

ROW, DOT = 78, 3.4  # strips: height of a condition's row, radius of a question's dot (again in STYLE)
APART = 15  # px between two labels
FEW_MODELS = 10  # with fewer, a rank correlation is said to be a hint

RatePair = tuple[Rate, Rate]  # of one cell: across, upwards


def interval_bar(rate: Rate, style: int) -> Markup:
    """A small bar from 0 to 100 % with the interval and the rate, for a table's row."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return Markup("")
    return Markup(
        '<svg class="fig mini s{}" viewBox="0 0 134 16" aria-hidden="true">'
        '<path class="grid" d="M7 8H127M7 4V12M127 4V12"/><path class="bar" d="M{:.1f} 8H{:.1f}"/>{}</svg>'
    ).format(style, 7 + 120 * rate.low, 7 + 120 * rate.high, marker(style, 7 + 120 * rate.rate, 8))


def panels(rates: Sequence[Rate], conditions: Sequence[str]) -> list[tuple[str, Markup]]:
    """(model, drawing) for each model: its cells' narrow rate (x) against their broad rate (y), on shared axes.

    The first narrow and the first broad behavior of the rates are taken; no panel if there is none of a kind.
    """
    narrow, broad = (
        next((rate.measure for rate in rates if rate.scope == scope), None) for scope in ("narrow", "broad")
    )
    cells: dict[str, list[RatePair]] = defaultdict(list)
    for x in (rate for rate in rates if rate.measure == narrow):
        for y in (rate for rate in rates if rate.measure == broad):
            if (x.model, x.condition, x.seed) == (y.model, y.condition, y.seed):
                cells[x.model].append((x, y))
    pairs = [pair for own in cells.values() for pair in own if None not in (pair[0].rate, pair[1].rate)]
    xs, ys = (ticks(max(((pair[axis].high or 0) for pair in pairs), default=1)) for axis in (0, 1))
    drawings = []
    for model, own in cells.items():
        axes = _share_axes(xs, ys)
        x, y = own[0]
        titles = axes.titles(model, f"broad: {y.metric} rate, {y.behavior}", f"narrow: {x.metric} rate, {x.behavior}")
        base = [y for x, y in own if y.condition == BASE and None not in (x.rate, y.rate)]
        lines = Markup("").join(
            path("base", f"M{axes.left:g} {axes.y(y.rate or 0):.1f}H{axes.right:g}")
            + text("", axes.right + 6, axes.y(y.rate or 0) + 4, "base")
            for y in base
        )
        crosses = _crosses(axes, own, lambda rate: style_index(rate.condition, conditions), _condition_and_seed)
        drawings.append((model, titles + axes.columns(shares(xs)) + axes.rows(ys) + lines + crosses))
    return drawings


def scatters(rates: Sequence[Rate], labels: Mapping[MeasureKey, str]) -> list[tuple[str, Markup, str]]:
    """(label, drawing, rank correlation in words) for each broad measure, of models that were measured as they are.

    One point per model: the rate of the first narrow measure against that of the broad one, both with their intervals.
    Nothing where a model was fine-tuned, no measure is narrow, or fewer than two models have both rates.
    """
    narrow = next((rate.measure for rate in rates if rate.scope == "narrow"), None)
    if narrow is None or any(rate.condition != BASE for rate in rates):
        return []
    by_place = {(rate.model, rate.measure): rate for rate in rates if rate.rate is not None}
    models = list(dict.fromkeys(rate.model for rate in rates))
    pairs = {
        measure: [
            (by_place[model, narrow], by_place[model, measure])
            for model in models
            if (model, narrow) in by_place and (model, measure) in by_place
        ]
        for measure in dict.fromkeys(rate.measure for rate in rates if rate.scope == "broad")
    }
    kept = {measure: own for measure, own in pairs.items() if len(own) > 1}
    xs = ticks(max((x.high or 0 for own in kept.values() for x, _ in own), default=1))
    return [(labels[m], _scatter(own, models, xs), _rank_correlation(own)) for m, own in kept.items()]


def _scatter(pairs: Sequence[RatePair], models: Sequence[str], xs: list[float]) -> Markup:
    ys = ticks(max(y.high or 0 for _, y in pairs))
    axes, (x, y) = _share_axes(xs, ys), pairs[0]
    name = y.behavior if y.format == "plain" else f"{y.behavior}, {y.format}"
    titles = axes.titles(name, f"broad: {y.metric} rate", f"narrow: {x.metric} rate, {x.behavior}")

    def style(rate: Rate) -> int:
        return 1 + models.index(rate.model) % STYLES

    parts = [titles, axes.columns(shares(xs)), axes.rows(ys), _crosses(axes, pairs, style, lambda rate: rate.model)]
    taken: list[tuple[float, float, float]] = []  # of labels: from, to, baseline
    for x, y in sorted(pairs, key=lambda pair: axes.x(pair[0].rate or 0)):
        at, line, words = axes.x(x.rate or 0), axes.y(y.rate or 0) - 7, shortened(x.model, WIDTH / 2)
        long = CHARACTER * len(words)
        on_left = at + long + 10 > WIDTH
        start = at - long - 10 if on_left else at + 10
        while any(start < end and begin < start + long and abs(line - other) < APART for begin, end, other in taken):
            line += APART
        taken.append((start, start + long, line))
        classes = f"key halo of s{style(x)}" + (" end" if on_left else "")
        parts.append(text(classes, at - 10 if on_left else at + 10, line, words))
    return Markup("").join(parts)


def _share_axes(xs: Sequence[float], ys: Sequence[float]) -> Axes:
    return Axes(linear(0, xs[-1]), linear(0, ys[-1]))


def _crosses(
    axes: Axes, pairs: Sequence[RatePair], style: Callable[[Rate], int], name: Callable[[Rate], str]
) -> Markup:
    """Each pair of rates as a marker with the intervals of both; markers lie above all intervals."""
    drawn = [(x, y) for x, y in pairs if x.rate is not None and y.rate is not None]
    bars, marks = [], []
    for x, y in drawn:
        at, height = axes.x(x.rate or 0), axes.y(y.rate or 0)
        across = f"M{axes.x(x.low or 0):.1f} {height:.1f}H{axes.x(x.high or 0):.1f}"
        bars.append(path(f"bar s{style(x)}", f"{across}M{at:.1f} {axes.y(y.low or 0):.1f}V{axes.y(y.high or 0):.1f}"))
        words = (f"{r.metric} {percent(r.rate)} [{percent(r.low)}, {percent(r.high)}]" for r in (x, y))
        marks.append(marker(style(x), at, height, "\n".join([name(x), *words])))
    return Markup("").join([*bars, *marks])


def _condition_and_seed(rate: Rate) -> str:
    return rate.condition + ("" if rate.seed is None else f", seed {rate.seed}")


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


def standalone(drawings: Sequence[tuple[str, Markup]], conditions: Sequence[str], label: str) -> Markup:
    """The panels side by side with their legend, as an SVG file of its own."""
    place, key = 0.0, []
    for name in conditions:
        style = style_index(name, conditions)
        key.append(
            Markup('{}<text class="key" x="{}" y="11">{}</text>').format(marker(style, place + 8, 7), place + 20, name)
        )
        place += 44 + 7.2 * len(name)
    width = max(len(drawings) * (WIDTH + 30) - 30, int(place)) + 40
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="fig" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">'
        '<title>{2}</title><style>{3}</style><rect width="{0}" height="{1}" rx="6" fill="var(--paper)"/>'
        '<g transform="translate(20 20)">{4}{5}</g></svg>\n'
    ).format(
        width,
        HEIGHT + 70,
        label,
        Markup(STYLE),
        Markup("").join(key),
        Markup("").join(
            Markup('<g transform="translate({} 40)">{}</g>').format(i * (WIDTH + 30), drawing)
            for i, (_, drawing) in enumerate(drawings)
        ),
    )


def strips(
    model: str,
    counts: Mapping[tuple[str, str], Mapping[str, Asked]],
    conditions: Sequence[str],
    questions: Sequence[str],
) -> tuple[int, Markup]:
    """(height, drawing) of one model's panel: a row per condition, a dot per question at its rate.

    Dots hold the place of their question in `questions`, and of (model, condition) in `counts`: tip.js finds the words
    in the table of questions, so that they are in the page once.
    """
    rows = [name for name in conditions if (model, name) in counts]
    axes = Axes(linear(0, 1), left=14, right=WIDTH - 22, top=28, bottom=28 + ROW * len(rows), inset=0)
    parts = [text("name", 0, 15, model), axes.columns(shares((0, 0.25, 0.5, 0.75, 1)))]
    places = {id_: place for place, id_ in enumerate(questions)}
    columns = list(counts)
    for number, name in enumerate(rows):
        style, column = style_index(name, conditions), columns.index((model, name))
        parts.append(_strip(axes, name, counts[model, name], style, 28 + ROW * number, places, column))
    return int(axes.bottom) + 24, Markup("").join(parts)


def _strip(
    axes: Axes,
    name: str,
    counts: Mapping[str, Asked],
    style: int,
    top: float,
    places: Mapping[str, int],
    column: int,
) -> Markup:
    """One row: dots of equal rate are stacked upwards, closer together where the stack would be too high."""
    base = top + ROW - 14
    k, n = sum(asked.k for asked in counts.values()), sum(asked.n for asked in counts.values())
    stacks: dict[int, list[tuple[int, float]]] = defaultdict(list)  # dots that would touch
    for id_, asked in counts.items():
        if asked.rate is not None:
            stacks[round(axes.x(asked.rate) / (2 * DOT))].append((places[id_], asked.rate))
    parts = [path("axis", f"M{axes.left:g} {base:g}H{axes.right:g}")]
    if n:
        title = f"{name}, all questions: {k}/{n} = {percent(k / n)}"
        parts.append(
            Markup('<path class="mean s{}" d="M{:.1f} {}l5 8h-10z"><title>{}</title></path>').format(
                style, axes.x(k / n), base + 1.5, title
            )
        )
    dots, sizes = [], []
    for stack in stacks.values():
        step = min(2 * DOT, (base - top - 26) / max(1, len(stack) - 1))
        for number, (place, rate) in enumerate(stack):
            y = base - DOT - step * number
            dots.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" data-q="{}"/>').format(axes.x(rate), y, place))
        if step < 2 * DOT:  # too close together to be counted
            on_left = stack[0][1] > 0.5
            x = axes.x(stack[0][1]) + (-8 if on_left else 8)
            sizes.append(text("halo end" if on_left else "halo", x, base - 8, str(len(stack))))
    parts.append(Markup('<g class="dots s{}" data-c="{}">{}</g>').format(style, column, Markup("").join(dots)))
    parts += sizes
    if not n:
        parts.append(text("", axes.left + 6, base - 6, "no data"))
    parts.append(text("key", axes.left + 6, top + 13, name))
    return Markup("").join(parts)
