"""Rates as curves over a study's own axis; and of models as they are, each broad rate against the narrow one."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE, Curve
from spillover.records import MeasureKey, Rate
from spillover.report.figures import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, marker, percent, style_index, ticks
from spillover.report.rows import Point
from spillover.runs.results import Place
from spillover.stats.agreement import spearman

FAR_APART = 20  # times the least value above 0: from there on an axis is logarithmic
APART = 15  # px between two labels
CHARACTER = 7.4  # px, of a label
FEW_MODELS = 10  # with fewer, a rank correlation is said to be a hint


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
            style = 1 + number % 30 if of_conditions else style_index(line, conditions)
            places = [(line, name, measure) if of_conditions else (name, line, measure) for name, _ in steps]
            own = [(x, pooled[p]) for (_, x), p in zip(steps, places, strict=True) if p in pooled]
            drawn.append((line, style, [(x, point) for x, point in own if point.rate is not None]))
        if any(points for _, _, points in drawn):
            found.append((label, _curve(label, described[measure], curve.label, [x for _, x in steps], drawn)))
    return found


def axis(values: Sequence[float]) -> tuple[Callable[[float], float], bool]:
    """Where on 0 to 1 a value lies, and whether the axis is logarithmic, which it is where values are far apart.

    A logarithmic axis has its zero, if there is one, one step of the average size below the least value.
    """
    low, high = min(values), max(values)
    above = sorted({value for value in values if value > 0})
    if low < 0 or not above or above[-1] < FAR_APART * above[0]:
        return (lambda value: (value - low) / (high - low) if high > low else 0.5), False
    reach = math.log(above[-1] / above[0])
    gap = reach / (len(above) - 1) if low == 0 else 0.0
    return (lambda value: (gap + math.log(value / above[0])) / (gap + reach) if value else 0.0), True


def _curve(
    label: str,
    measured: Rate,
    across: str,
    values: Sequence[float],
    drawn: Sequence[tuple[str, int, list[tuple[float, Point]]]],
) -> Markup:
    margin = min(130.0, 16 + CHARACTER * max(len(line) for line, _, _ in drawn))
    place, logarithmic = axis(values)
    wide, high = WIDTH - LEFT - margin - 24, HEIGHT - TOP - BOTTOM - 8
    shown = [point for _, _, points in drawn for _, point in points]
    ys = ticks(max(max(point.high or 0, point.rate or 0) for point in shown))

    def right(value: float) -> float:
        return LEFT + 14 + wide * place(value)

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - 8 - high * share / ys[-1]

    parts = [Markup('<text class="name" x="0" y="15">{}</text>').format(label)]
    parts.append(_text("up", 0, 36, f"↑ {measured.scope}: {measured.metric} rate"))
    said = across + (", logarithmic" if logarithmic else "")
    parts.append(Markup('<text x="{}" y="{}">{} →</text>').format(LEFT, HEIGHT - 6, said))
    last = -math.inf
    for value in sorted(set(values)):
        text = f"{value:g}"
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(right(value), TOP, HEIGHT - BOTTOM))
        if right(value) - last > CHARACTER * len(text) + 4:  # a label that would touch the one before is left out
            parts.append(_text("mid", right(value), HEIGHT - BOTTOM + 17, text))
            last = right(value)
    for share in ys:
        parts.append(
            Markup('<path class="grid" d="M{} {:.1f}H{:.1f}"/>').format(LEFT, up(share), LEFT + wide + 24)
            + _text("end", LEFT - 6, up(share) + 4, percent(share, 0))
        )
    step = min(5.0, 20 / len(drawn))
    ends = []
    for number, (line, style, points) in enumerate(drawn):
        aside = step * (number - (len(drawn) - 1) / 2)  # intervals at one value stand side by side
        spots = [(right(x) + aside, up(point.rate or 0), x, point) for x, point in points]
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in spots)
        parts.append(Markup('<path class="line s{}" d="M{}"/>').format(style, path) if spots else Markup(""))
        for x, y, value, point in spots:
            hover = f"{line} at {value:g}: {percent(point.rate)}"
            if point.low is not None and point.high is not None:
                parts.append(
                    Markup('<path class="bar s{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                        style, x, up(point.low), up(point.high)
                    )
                )
                hover += f" [{percent(point.low)}, {percent(point.high)}]"
            parts.append(marker(style, x, y, hover))
        if spots:
            ends.append((spots[-1][1], line, style))
    for y, line, style in _spread(ends, TOP, HEIGHT - BOTTOM):
        parts.append(_text(f"key of s{style}", LEFT + wide + 28, y + 4, _shortened(line, margin - 8)))
    return Markup("").join(parts)


def _spread(labels: Sequence[tuple[float, str, int]], top: float, bottom: float) -> list[tuple[float, str, int]]:
    """Labels moved up and down until they are APART, in their order, none below `bottom` while there is room."""
    found: list[tuple[float, str, int]] = []
    for y, text, style in sorted(labels):
        found.append((max(y, found[-1][0] + APART if found else top), text, style))
    limit = bottom
    for number in range(len(found) - 1, -1, -1):
        y, text, style = found[number]
        found[number] = (min(y, limit), text, style)
        limit = found[number][0] - APART
    return found


def _shortened(text: str, room: float) -> str:
    most = int(room / CHARACTER)
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(classes: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(classes, x, y, text)


def scatters(rates: Sequence[Rate], labels: Mapping[MeasureKey, str]) -> list[tuple[str, Markup, str]]:
    """(label, drawing, rank correlation in words) for each broad measure, of models that were measured as they are.

    One point per model: the rate of the first narrow measure against that of the broad one, both with their intervals.
    Nothing where a model was fine-tuned, no measure is narrow, or fewer than two models have both rates.
    """
    if any(rate.condition != BASE for rate in rates):
        return []
    narrow = next((rate.measure for rate in rates if rate.scope == "narrow"), None)
    by_place = {(rate.model, rate.measure): rate for rate in rates if rate.rate is not None}
    models = list(dict.fromkeys(rate.model for rate in rates))
    pairs = {
        measure: [
            (by_place[model, narrow], by_place[model, measure])
            for model in models
            if narrow is not None and (model, narrow) in by_place and (model, measure) in by_place
        ]
        for measure in dict.fromkeys(rate.measure for rate in rates if rate.scope == "broad")
    }
    kept = {measure: own for measure, own in pairs.items() if len(own) > 1}
    across = ticks(max((x.high or 0 for own in kept.values() for x, _ in own), default=1))
    return [(labels[m], _scatter(own, models, across), _summary(own)) for m, own in kept.items()]


def _summary(pairs: Sequence[tuple[Rate, Rate]]) -> str:
    """Spearman's correlation with how many models it rests on and what chance alone can do."""
    many = len(pairs)
    found = spearman([x.rate or 0 for x, _ in pairs], [y.rate or 0 for _, y in pairs])
    if found is None:
        return f"No rank correlation: the {many} models do not differ in one of the two rates."
    told = f"Spearman's rank correlation {found:+.2f} over {many} models.".replace("-", "\u2212")
    if many < FEW_MODELS:
        chance = 2 / math.factorial(many)
        said = percent(chance, 0) if chance >= 0.01 else "less than 1\u202f%"
        told += f" So few are a hint: by chance alone {many} are in perfect order, up or down, {said} of the time."
    return told


def _scatter(pairs: Sequence[tuple[Rate, Rate]], models: Sequence[str], across: Sequence[float]) -> Markup:
    wide, high = WIDTH - LEFT - RIGHT - 8, HEIGHT - TOP - BOTTOM - 8
    ys = ticks(max(y.high or 0 for _, y in pairs))

    def right(share: float) -> float:
        return LEFT + 8 + wide * share / across[-1]

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - 8 - high * share / ys[-1]

    narrow, broad = pairs[0]
    parts = [
        _text("name", 0, 15, f"{broad.behavior}" + ("" if broad.format == "plain" else f", {broad.format}")),
        _text("up", 0, 36, f"↑ broad: {broad.metric} rate"),
        _text("end", WIDTH - RIGHT, HEIGHT - 6, f"narrow: {narrow.metric} rate, {narrow.behavior} →"),
    ]
    for share in across:
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(right(share), TOP, HEIGHT - BOTTOM))
        parts.append(_text("mid", right(share), HEIGHT - BOTTOM + 17, percent(share, 0)))
    for share in ys:
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, up(share), WIDTH - RIGHT))
        parts.append(_text("end", LEFT - 6, up(share) + 4, percent(share, 0)))
    spots = [(right(x.rate or 0), up(y.rate or 0), 1 + models.index(x.model) % 30, x, y) for x, y in pairs]
    for at, height, style, x, y in spots:
        bars = (right(x.low or 0), height, right(x.high or 0), at, up(y.low or 0), up(y.high or 0))
        parts.append(
            Markup('<path class="bar s{}" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>').format(style, *bars)
        )
    for at, height, style, x, y in spots:
        told = (f"{r.metric} {percent(r.rate)} [{percent(r.low)}, {percent(r.high)}]" for r in (x, y))
        parts.append(marker(style, at, height, "\n".join([x.model, *told])))
    taken: list[tuple[float, float, float]] = []
    for at, height, style, x, _ in sorted(spots, key=lambda spot: spot[1]):
        name = _shortened(x.model, WIDTH / 2)
        long = CHARACTER * len(name)
        left = at + long + 10 > WIDTH
        start, line = (at - long - 10 if left else at + 10), height - 7
        while any(start < end and begin < start + long and abs(line - other) < APART for begin, end, other in taken):
            line += APART
        taken.append((start, start + long, line))
        parts.append(
            _text(f"key halo of s{style}" + (" end" if left else ""), at - 10 if left else at + 10, line, name)
        )
    return Markup("").join(parts)
