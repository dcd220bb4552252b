"""Forest plots: the rate of every condition with its seeds, and its difference from the base, one line for each."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from spillover.config import BASE
from spillover.records import MeasureKey, Rate
from spillover.report.axes import WIDTH, Axes, linear, shares, signed_ticks, ticks
from spillover.report.svg import marker, path, percent, points, text
from spillover.runs.results import Results
from spillover.stats import MatrixCell
from spillover.stats.pooling import PooledRate

SIDE, HEAD = 20, 28  # px: margin at the sides, and above the first line
LINE, BAR = 43, 27  # px: height of a line, and how far below its top its bar is
LONGEST_NAME = 18  # characters of a condition beside a difference and its verdict; the whole name is in the hover


def forests(results: Results, measure: MeasureKey, styles: Mapping[str, int]) -> list[tuple[str, int, Markup, Markup]]:
    """(model, height, rates, differences) for every model with matrix cells of this measure, all on the same two axes.

    `styles`: the style of each condition, in the order of the lines. Nothing without a study.
    """
    cells = {(cell.model, cell.condition): cell for cell in results.matrix if cell.measure == measure}
    if results.study is None or not cells:
        return []
    models, margin = list(dict.fromkeys(model for model, _ in cells)), results.study.margin
    rates = [rate for rate in results.rates if rate.measure == measure and rate.model in models]
    pooled = {(rate.model, rate.condition): results.pooled[rate.model, rate.condition, measure] for rate in rates}
    xs = ticks(max([*(rate.high or 0 for rate in pooled.values()), *(rate.rate or 0 for rate in rates)], default=1))
    compared = [cell for cell in cells.values() if cell.known]
    limits = [limit for cell in compared for limit in (cell.low, cell.low_runs, cell.high, cell.high_runs)]
    signed = signed_ticks([*(limit for limit in limits if limit is not None), margin])
    drawings = []
    for model in models:
        names = [name for name in styles if (model, name) in pooled]
        bottom = HEAD + LINE * len(names)
        of_rates = [text("name", 0, 15, f"{model}: rate"), _axes(xs, bottom).columns(shares(xs))]
        tested = [cell for cell in compared if cell.model == model]
        of_differences = [text("name", 0, 15, f"{model}: points above the base")]
        of_differences.append(_references(_axes(signed, bottom), signed, margin, tested))
        for number, name in enumerate(names):
            top, arm = HEAD + LINE * number, (model, name)
            seeds = [rate for rate in rates if (rate.model, rate.condition) == arm]
            of_rates.append(_rate(_axes(xs, bottom), name, styles[name], top, pooled[arm], seeds))
            of_differences.append(_difference(_axes(signed, bottom), name, styles[name], top, cells.get(arm)))
        drawings.append((model, bottom + 24, Markup("").join(of_rates), Markup("").join(of_differences)))
    return drawings


def _axes(values: Sequence[float], bottom: int) -> Axes:
    return Axes(linear(values[0], values[-1]), left=SIDE, right=WIDTH - SIDE, top=HEAD, bottom=bottom, inset=0)


def _line(top: int, name: str, numbers: str, verdict: str = "") -> Markup:
    """What every line has: its condition on the left, its numbers on the right."""
    strong = Markup('<tspan class="strong">  {}</tspan>').format(verdict) if verdict else ""
    right = text("end halo", WIDTH - SIDE, top + 14, Markup("{}{}").format(numbers, strong))
    return path("grid", f"M{SIDE} {top + BAR}H{WIDTH - SIDE}") + text("key halo", SIDE, top + 14, name) + right


def _rate(axes: Axes, name: str, style: int, top: int, pooled: PooledRate, rates: Sequence[Rate]) -> Markup:
    """The line of a condition's rate: the seeds together with their interval, and a tick for each of several seeds."""
    if pooled.rate is None:
        return _line(top, name, "no data")
    y, numbers, bars = top + BAR, percent(pooled.rate), Markup("")
    if pooled.low is not None and pooled.high is not None:
        numbers += f" [{100 * pooled.low:.1f}, {100 * pooled.high:.1f}]"
        bars += axes.bar(f"bar s{style}", pooled.low, pooled.high, y)
    seeds = [rate for rate in rates if rate.rate is not None] if len(rates) > 1 else []
    if seeds:
        bars += path(f"seed s{style}", "".join(f"M{axes.x(rate.rate or 0):.1f} {y - 4.5}v9" for rate in seeds))
    hover = [f"{name}: {numbers}", *(f"seed {r.seed}: {r.k}/{r.n} = {percent(r.rate)}" for r in seeds)]
    return _line(top, name, numbers) + bars + marker(style, axes.x(pooled.rate), y, "\n".join(hover))


def _references(axes: Axes, signed: Sequence[float], margin: float, cells: Sequence[MatrixCell]) -> Markup:
    """What differences are read against: the base, and for what is not neutral the margin and the control ceiling."""
    drawing = axes.columns([(value, points(value, 0)) for value in signed])
    drawing += path("zero", f"M{axes.x(0):.1f} {HEAD}V{axes.bottom}")
    if all(cell.scope == "neutral" for cell in cells):
        return drawing
    drawing += path("margin", f"M{axes.x(margin):.1f} {HEAD}V{axes.bottom}")
    ceiling = next((cell.ceiling for cell in cells if cell.ceiling is not None), None)
    if ceiling is not None:
        hover = f"benign-control ceiling: {points(ceiling, 1)} points, the largest rise of a benign control"
        drawing += path("ceiling", f"M{axes.x(ceiling):.1f} {axes.bottom}l-4.5-7h9z", hover)
    return drawing


def _difference(axes: Axes, name: str, style: int, top: int, cell: MatrixCell | None) -> Markup:
    """The line of a condition's difference from the base, with its interval in these runs and in runs in general."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    if cell is None or not cell.known:
        return _line(top, short, "" if name == BASE else "no data")
    numbers = f"{points(cell.difference, 1)} {_span(cell.low, cell.high)}"
    verdict = "" if cell.scope == "neutral" else cell.verdict
    drawing = _line(top, short, numbers, verdict)
    hover = f"{name}: {numbers} {verdict}\nthese runs: {_span(cell.low, cell.high)}"
    if cell.low_runs is not None and cell.high_runs is not None:
        drawing += axes.bar(f"bar s{style}", cell.low_runs, cell.high_runs, top + BAR)
        hover += f"\nruns in general: {_span(cell.low_runs, cell.high_runs)}"
    drawing += axes.bar(f"bar thick s{style}", cell.low, cell.high, top + BAR)
    return drawing + marker(style, axes.x(cell.difference), top + BAR, hover)


def _span(low: float, high: float) -> str:
    return f"[{points(low, 1)}, {points(high, 1)}]"
