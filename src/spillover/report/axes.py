"""What every figure of a report is drawn on: colours and markers, scales with round ticks, axes with their grid."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spillover.config import BASE

WIDTH, HEIGHT = 420, 350  # one panel of a figure, px
LEFT, RIGHT, TOP, BOTTOM = 48, 38, 52, 46  # its margins
INSET = 8  # px that keep markers at 0 off the axes
CHARACTER = 7.4  # px, of a label
FAR_APART = 20  # times the least value above 0: from there on an axis is logarithmic
SHARE_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
SIGNED_STEPS = (*SHARE_STEPS, 0.5)

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
STYLES = len(LIGHT) * len(SHAPES)

_FIXED = "--ink:{};--soft:{};--rule:{};--paper:{};"
STYLE = (
    ":root{" + _FIXED.format("#1c2127", "#59626d", "#dfe3e8", "#ffffff")
    + "".join(f"--c{i}:{colour};" for i, colour in enumerate(LIGHT)) + "}"
    "@media(prefers-color-scheme:dark){:root{" + _FIXED.format("#e8eaed", "#a5aeb9", "#39414b", "#15191e")
    + "".join(f"--c{i}:{colour};" for i, colour in enumerate(DARK)) + "}}"
    + "".join(f".s{i + 1}{{--c:var(--c{i % 5})}}" for i in range(STYLES))
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
    return 0 if condition == BASE else 1 + others.index(condition) % STYLES


def marker(style: int, x: float = 0, y: float = 0, hover: str = "") -> Markup:
    """The marker of a style at (x, y) in px; the base is a ring."""
    shape = SHAPES[(style - 1) % len(SHAPES)] if style else RING
    title = Markup("<title>{}</title>").format(hover) if hover else ""
    return Markup('<path class="mark s{}" transform="translate({:.1f} {:.1f})" d="{}">{}</path>').format(
        style, x, y, shape, title
    )


def text(classes: str, x: float, y: float, words: str) -> Markup:
    """Words at (x, y) in px."""
    kind = Markup(' class="{}"').format(classes) if classes else ""
    return Markup('<text{} x="{:g}" y="{:g}">{}</text>').format(kind, round(x, 1), round(y, 1), words)


def path(classes: str, d: str) -> Markup:
    """A path; `d` is made of numbers of ours."""
    return Markup('<path class="{}" d="{}"/>').format(classes, d)


def shortened(words: str, room: float) -> str:
    """Words that take at most `room` px, with an ellipsis where they are cut."""
    most = int(room / CHARACTER)
    return words if len(words) <= most else words[: most - 1] + "…"


def ticks(largest: float) -> list[float]:
    """Six tick values from 0 to a round share that is not below `largest`."""
    step = next((step for step in SHARE_STEPS if largest <= 5 * step), SHARE_STEPS[-1])
    return [step * i for i in range(6)]


def signed_ticks(values: Sequence[float]) -> list[float]:
    """Round tick values around 0 that no value is outside of: six steps or fewer."""
    low, high = min(0.0, *values), max(0.0, *values)
    for step in SIGNED_STEPS:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [step * place for place in range(first, last + 1)]


Scale = Callable[[float], float]  # value -> where it lies on an axis, 0 to 1


def linear(low: float, high: float) -> Scale:
    """A scale from `low` at 0 to `high` at 1; all in the middle if they are equal."""
    return lambda value: (value - low) / (high - low) if high > low else 0.5


UNUSED = linear(0, 1)  # of axes that have no scale upwards


def scale_of(values: Sequence[float]) -> tuple[Scale, bool]:
    """A scale that holds these values, and whether it is logarithmic, which it is where they are far apart.

    A logarithmic one has its zero, if there is one, one step of the average size below the least value.
    """
    low, above = min(values), sorted({value for value in values if value > 0})
    if low < 0 or not above or above[-1] < FAR_APART * above[0]:
        return linear(low, max(values)), False
    reach = math.log(above[-1] / above[0])
    gap = reach / (len(above) - 1) if low == 0 else 0.0
    return (lambda value: (gap + math.log(value / above[0])) / (gap + reach) if value else 0.0), True


@dataclass(frozen=True)
class Axes:
    """A plotting area in px with a scale across and, where it has one, a scale upwards.

    `left` and `bottom` are where 0 of the scales lies less `inset`; `right` and `top` where 1 lies.
    """

    across: Scale
    upwards: Scale = UNUSED
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    inset: float = INSET

    def x(self, value: float) -> float:
        """Where a value lies across, px."""
        return self.left + self.inset + (self.right - self.left - self.inset) * self.across(value)

    def y(self, value: float) -> float:
        """Where a value lies upwards, px."""
        return self.bottom - self.inset - (self.bottom - self.top - self.inset) * self.upwards(value)

    def columns(self, labels: Iterable[tuple[float, str]]) -> Markup:
        """A grid line at each value across, with its label below; a label that would touch the last one is left out."""
        parts, end = [], -math.inf
        for value, label in labels:
            x = self.x(value)
            parts.append(path("grid", f"M{x:.1f} {self.top:g}V{self.bottom:g}"))
            if x - CHARACTER * len(label) / 2 > end:
                parts.append(text("mid", x, self.bottom + 17, label))
                end = x + CHARACTER * len(label) / 2 - CHARACTER
        return Markup("").join(parts)

    def rows(self, shares: Iterable[float]) -> Markup:
        """A grid line at each share upwards, with its percentage on the left."""
        return Markup("").join(
            path("grid", f"M{self.left:g} {self.y(share):.1f}H{self.right:g}")
            + text("end", self.left - 6, self.y(share) + 4, percent(share, 0))
            for share in shares
        )

    def titles(self, name: str, upwards: str, across: str) -> Markup:
        """The name of the panel, and what its axes are."""
        return (
            text("name", 0, 15, name)
            + text("", 0, 36, f"↑ {upwards}")
            + text("end", self.right, HEIGHT - 6, f"{across} →")
        )


def shares(values: Sequence[float]) -> list[tuple[float, str]]:
    """Tick values that are shares, with their percentages."""
    return [(value, percent(value, 0)) for value in values]
