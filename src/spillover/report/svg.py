"""What figures are made of: colours, markers, words, paths and numbers, as SVG."""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from spillover import records
from spillover.config import BASE

CHARACTER = 7.4  # px, of a label

COLOURS = 5  # of figure.css: Okabe and Ito's, darkened for 3:1 on white and lightened for dark
SHAPES = (
    "M-5-5H5V5H-5Z",
    "M0-7L7 0 0 7-7 0Z",
    "M0-6.5L6.5 5H-6.5Z",
    "M0 6.5L6.5-5H-6.5Z",
    "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z",
    "M0-7L6.7-2.2 4.1 5.7H-4.1L-6.7-2.2Z",
)
RING = "M-5.5 0A5.5 5.5 0 1 1 5.5 0A5.5 5.5 0 1 1 -5.5 0Z"
STYLES = COLOURS * len(SHAPES)

STYLE = (Path(__file__).parent / "figure.css").read_text(encoding="utf-8").rstrip()  # of figures, light and dark


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as a percentage with a narrow space, as `records.percent`; "no data" for None."""
    return records.percent(share, digits).replace(" %", "\u202f%")


def points(difference: float, digits: int | None = None) -> str:
    """A difference of shares in points with its sign; by default one digit behind the point for those below 10."""
    value = 100 * difference
    number = f"{value:+.{digits if digits is not None else 1 if abs(value) < 9.95 else 0}f}"
    return number.lstrip("+-") if not number.strip("+-0.") else number.replace("-", "\u2212")


def styles_of(names: Iterable[str]) -> dict[str, int]:
    """The style (colour and shape) of each condition or model: 0 for the base, 1, 2, ... for the others, in order."""
    others = [name for name in dict.fromkeys(names) if name != BASE]
    styles = {name: 1 + number % STYLES for number, name in enumerate(others)}
    return {name: styles.get(name, 0) for name in names}


def marker(style: int, x: float = 0, y: float = 0, hover: str = "") -> Markup:
    """The marker of a style at (x, y) in px; the base is a ring."""
    shape = SHAPES[(style - 1) % len(SHAPES)] if style else RING
    return Markup('<path class="mark s{}" transform="translate({:.1f} {:.1f})" d="{}">{}</path>').format(
        style, x, y, shape, title(hover) if hover else ""
    )


def title(hover: str) -> Markup:
    """The words that show while the mouse is on the shape around them."""
    return Markup("<title>{}</title>").format(hover)


def text(classes: str, x: float, y: float, words: str | Markup) -> Markup:
    """Words at (x, y) in px."""
    kind = Markup(' class="{}"').format(classes) if classes else ""
    place = [f"{value:.1f}" if isinstance(value, float) else value for value in (x, y)]
    return Markup('<text{} x="{}" y="{}">{}</text>').format(kind, *place, words)


def path(classes: str, d: str, hover: str = "") -> Markup:
    """A path; `d` is made of numbers."""
    if hover:
        return Markup('<path class="{}" d="{}">{}</path>').format(classes, d, title(hover))
    return Markup('<path class="{}" d="{}"/>').format(classes, d)


def shortened(words: str, room: float) -> str:
    """Words that take at most `room` px, with an ellipsis where they are cut."""
    most = int(room / CHARACTER)
    return words if len(words) <= most else words[: most - 1] + "…"
