"""The figures of a report as SVG: narrow against broad rates, the rate per question, and small interval bars."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import Rate
from spillover.report.rows import Asked

WIDTH, HEIGHT = 420, 350  # one panel of the picture, px
LEFT, RIGHT, TOP, BOTTOM = 48, 38, 52, 46  # its margins
ROW, DOT = 78, 3.4  # strips: height of a condition's row, radius of a question's dot (again in STYLE)

# Okabe and Ito's colours, darkened for 3:1 on white and lightened for dark; 5 colours x 6 shapes are 30 conditions.
LIGHT = ("#0072b2", "#d55e00", "#00875f", "#b65a8f", "#9a7200")
DARK = ("#5cb3ea", "#f5935a", "#3ecba3", "#e79fca", "#eac54f")
SHAPES = (
    "M-5-5H5V5H-5Z",
    "M0-7L7 0 0 7-7 0Z",
    "M0-6.5L6.5 5H-6.5Z",
    "M0 6.5L6.5-5H-6.5Z",
    "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z",
    "M0-7L6.7-2.2 4.1 5.7H-4.1L-6.7-2.2Z",
)
RING = "M-5.5 0A5.5 5.5 0 1 1 5.5 0A5.5 5.5 0 1 1 -5.5 0Z"

_FIXED = "--ink:{};--soft:{};--rule:{};--paper:{};"
STYLE = (
    ":root{" + _FIXED.format("#1c2127", "#59626d", "#dfe3e8", "#ffffff")
    + "".join(f"--c{i}:{colour};" for i, colour in enumerate(LIGHT)) + "}"
    "@media(prefers-color-scheme:dark){:root{" + _FIXED.format("#e8eaed", "#a5aeb9", "#39414b", "#15191e")
    + "".join(f"--c{i}:{colour};" for i, colour in enumerate(DARK)) + "}}"
    + "".join(f".s{i + 1}{{--c:var(--c{i % 5})}}" for i in range(30))
    + """.s0{--c:var(--ink)}
.fig text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--soft)}
.fig .name{font-weight:600;font-size:14px;fill:var(--ink)}.fig .key{fill:var(--ink);font-size:13px}
.fig .end{text-anchor:end}.fig .mid{text-anchor:middle}
.fig .grid{stroke:var(--rule)}.fig .axis{stroke:var(--soft)}.fig .base{stroke:var(--ink);stroke-dasharray:2 4}
.mark{fill:var(--c);stroke:var(--paper);stroke-width:1}.mark.s0{fill:var(--paper);stroke:var(--c);stroke-width:2}
.bar{stroke:var(--c);stroke-width:1.6;stroke-opacity:.6;fill:none}
.dots circle{r:3.4px;fill:var(--c);fill-opacity:.8;stroke:var(--paper);stroke-width:.7}.mean{fill:var(--c)}
.fig .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px}"""
)  # fmt: skip


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage; "no data" for None."""
    return "no data" if share is None else f"{100 * share:.{digits}f}\u202f%"


def style_index(condition: str, conditions: Iterable[str]) -> int:
    """Number of a condition's colour and shape: 0 for the base, 1, 2, ... for the others, in the study's order."""
    others = [name for name in conditions if name != BASE]
    return 0 if condition == BASE else 1 + others.index(condition) % 30


def marker(style: int, x: float = 0, y: float = 0, hover: str = "") -> Markup:
    """The marker of a condition; the base is a ring."""
    shape = SHAPES[(style - 1) % len(SHAPES)] if style else RING
    title = Markup("<title>{}</title>").format(hover) if hover else ""
    return Markup('<path class="mark s{}" transform="translate({:.1f} {:.1f})" d="{}">{}</path>').format(
        style, x, y, shape, title
    )


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
    narrow = next((rate.measure for rate in rates if rate.scope == "narrow"), None)
    broad = next((rate.measure for rate in rates if rate.scope == "broad"), None)
    cells: dict[str, list[tuple[Rate, Rate]]] = defaultdict(list)
    for x in (rate for rate in rates if rate.measure == narrow):
        for y in (rate for rate in rates if rate.measure == broad):
            if (x.model, x.condition, x.seed) == (y.model, y.condition, y.seed):
                cells[x.model].append((x, y))
    pairs = [pair for own in cells.values() for pair in own if None not in (pair[0].rate, pair[1].rate)]
    limits = [max(((pair[axis].high or 0) for pair in pairs), default=1) for axis in (0, 1)]
    return [(model, _panel(model, own, conditions, *map(ticks, limits))) for model, own in cells.items()]


def ticks(largest: float) -> list[float]:
    """Tick values from 0 to a round share that is not below `largest`."""
    steps = (0.01, 0.02, 0.05, 0.1, 0.2)
    step = next((step for step in steps if largest <= 5 * step), 0.2)
    return [step * i for i in range(6)]


def _panel(
    model: str, pairs: list[tuple[Rate, Rate]], conditions: Sequence[str], xs: list[float], ys: list[float]
) -> Markup:
    wide, high = WIDTH - LEFT - RIGHT - 8, HEIGHT - TOP - BOTTOM - 8  # 8 px keep markers at 0 off the axes

    def right(share: float) -> float:
        return LEFT + 8 + wide * share / xs[-1]

    def up(share: float) -> float:
        return HEIGHT - BOTTOM - 8 - high * share / ys[-1]

    narrow, broad = pairs[0]
    parts = [
        Markup('<text class="name" x="0" y="15">{}</text>').format(model),
        Markup('<text x="0" y="36">↑ broad: {} rate, {}</text>').format(broad.metric, broad.behavior),
        Markup('<text class="end" x="{}" y="{}">narrow: {} rate, {} →</text>').format(
            WIDTH - RIGHT, HEIGHT - 6, narrow.metric, narrow.behavior
        ),
    ]
    for value in xs:
        parts.append(
            Markup('<path class="grid" d="M{0:.1f} {1}V{2}"/><text class="mid" x="{0:.1f}" y="{3}">{4}</text>').format(
                right(value), TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 17, percent(value, 0)
            )
        )
    for value in ys:
        parts.append(
            Markup('<path class="grid" d="M{0} {1:.1f}H{2}"/><text class="end" x="{3}" y="{4:.1f}">{5}</text>').format(
                LEFT, up(value), WIDTH - RIGHT, LEFT - 6, up(value) + 4, percent(value, 0)
            )
        )
    drawn = [(x, y) for x, y in pairs if x.rate is not None and y.rate is not None]
    for _, y in drawn:
        if y.condition == BASE:
            parts.append(Markup('<path class="base" d="M{} {:.1f}H{}"/>').format(LEFT, up(y.rate or 0), WIDTH - RIGHT))
            parts.append(Markup('<text x="{}" y="{:.1f}">base</text>').format(WIDTH - RIGHT + 6, up(y.rate or 0) + 4))
    for x, y in drawn:
        style = style_index(x.condition, conditions)
        parts.append(
            Markup('<path class="bar s{}" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>').format(
                style,
                right(x.low or 0),
                up(y.rate or 0),
                right(x.high or 0),
                right(x.rate or 0),
                up(y.low or 0),
                up(y.high or 0),
            )
        )
    for x, y in drawn:
        where = x.condition + ("" if x.seed is None else f", seed {x.seed}")
        hover = "\n".join(
            [where, *(f"{r.metric} {percent(r.rate)} [{percent(r.low)}, {percent(r.high)}]" for r in (x, y))]
        )
        parts.append(marker(style_index(x.condition, conditions), right(x.rate or 0), up(y.rate or 0), hover))
    return Markup("").join(parts)


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
    bottom = 28 + ROW * len(rows)
    left, wide = 14, WIDTH - 36

    parts = [Markup('<text class="name" x="0" y="15">{}</text>').format(model)]
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            Markup('<path class="grid" d="M{0} 28V{1}"/><text class="mid" x="{0}" y="{2}">{3}</text>').format(
                left + wide * value, bottom, bottom + 17, percent(value, 0)
            )
        )
    places = {id_: place for place, id_ in enumerate(questions)}
    columns = list(counts)
    for number, name in enumerate(rows):
        own, column = counts[model, name], columns.index((model, name))
        style = style_index(name, conditions)
        parts.append(_strip(name, own, style, left, wide, 28 + ROW * number, places, column))
    return bottom + 24, Markup("").join(parts)


def _strip(
    name: str,
    counts: Mapping[str, Asked],
    style: int,
    left: int,
    wide: int,
    top: float,
    places: Mapping[str, int],
    column: int,
) -> Markup:
    """One row: dots of equal rate are stacked upwards, closer together where the stack would be too high."""
    base = top + ROW - 14
    k, n = sum(c.k for c in counts.values()), sum(c.n for c in counts.values())
    stacks: dict[int, list[tuple[int, float]]] = defaultdict(list)  # dots that would touch
    for id_, count in counts.items():
        if count.rate is not None:
            stacks[round(count.rate * wide / (2 * DOT))].append((places[id_], count.rate))
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(left, base, left + wide)]
    if n:
        parts.append(
            Markup('<path class="mean s{}" d="M{:.1f} {}l5 8h-10z"><title>{}</title></path>').format(
                style, left + wide * k / n, base + 1.5, f"{name}, all questions: {k}/{n} = {percent(k / n)}"
            )
        )
    dots, many = [], []
    for stack in stacks.values():
        step = min(2 * DOT, (base - top - 26) / max(1, len(stack) - 1))
        for number, (place, rate) in enumerate(stack):
            y = base - DOT - step * number
            dots.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" data-q="{}"/>').format(left + wide * rate, y, place))
        if step < 2 * DOT:  # too close together to be counted
            x, right_half = left + wide * stack[0][1], stack[0][1] > 0.5
            many.append(
                Markup('<text class="halo{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
                    " end" if right_half else "", x + (-8 if right_half else 8), base - 8, len(stack)
                )
            )
    parts.append(Markup('<g class="dots s{}" data-c="{}">{}</g>').format(style, column, Markup("").join(dots)))
    parts += many
    if not n:
        parts.append(Markup('<text x="{}" y="{}">no data</text>').format(left + 6, base - 6))
    parts.append(Markup('<text class="key" x="{}" y="{}">{}</text>').format(left + 6, top + 13, name))
    return Markup("").join(parts)
