"""Axes of every figure: scales across and upwards, round ticks, a grid with its labels."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spillover.report.svg import CHARACTER, path, percent, text

WIDTH, HEIGHT = 420, 350  # one panel of a figure, px
LEFT, RIGHT, TOP, BOTTOM = 48, 38, 52, 46  # its margins
FAR_APART = 20  # times the least value above 0: from there on an axis is logarithmic
SHARE_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
SIGNED_STEPS = (*SHARE_STEPS, 0.5)

Scale = Callable[[float], float]  # value -> where it lies on an axis, 0 to 1


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


def shares(values: Sequence[float]) -> list[tuple[float, str]]:
    """Tick values that are shares, with their percentages."""
    return [(value, percent(value, 0)) for value in values]


def linear(low: float, high: float) -> Scale:
    """A scale from `low` at 0 to `high` at 1; all in the middle if they are equal."""
    return lambda value: (value - low) / (high - low) if high > low else 0.5


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


SHARE = linear(0, 1)


@dataclass(frozen=True)
class Axes:
    """A plotting area, its edges in px, with a scale across and, where it needs one, a scale upwards.

    `inset` keeps 0 of the scales, and the markers there, off the left and the lower edge; 1 lies on the other edges.
    """

    across: Scale
    upwards: Scale = SHARE
    left: int = LEFT
    right: float = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    inset: int = 8

    def x(self, value: float) -> float:
        """Where a value lies across, px."""
        return self.left + self.inset + (self.right - self.left - self.inset) * self.across(value)

    def y(self, value: float) -> float:
        """Where a value lies upwards, px."""
        return self.bottom - self.inset - (self.bottom - self.top - self.inset) * self.upwards(value)

    def columns(self, labels: Iterable[tuple[float, str]]) -> Markup:
        """A grid line at each value across, with its label below; a label that would touch the last one is left out."""
        parts, last = [], -math.inf
        for value, label in labels:
            x = self.x(value)
            parts.append(path("grid", f"M{x:.1f} {self.top}V{self.bottom}"))
            if x - last > CHARACTER * len(label) + 4:
                parts.append(text("mid", x, self.bottom + 17, label))
                last = x
        return Markup("").join(parts)

    def rows(self, values: Iterable[float]) -> Markup:
        """A grid line at each share upwards, with its percentage on the left."""
        return Markup("").join(
            path("grid", f"M{self.left} {self.y(share):.1f}H{self.right:g}")
            + text("end", self.left - 6, self.y(share) + 4, percent(share, 0))
            for share in values
        )

    def titles(self, name: str, upwards: str, across: str) -> Markup:
        """The name of the panel, and what its axes are."""
        x_title = text("end", self.right, HEIGHT - 6, f"{across} →")
        return text("name", 0, 15, name) + text("", 0, 36, f"↑ {upwards}") + x_title

    def bar(self, kind: str, low: float, high: float, y: float) -> Markup:
        """An interval from `low` to `high` across, `y` px from the top."""
        return path(kind, f"M{self.x(low):.1f} {y}H{self.x(high):.1f}")
