"""The transfer matrix as a table: like beside like, marks for verdicts, and what each cell says in words."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from markupsafe import Markup
from scipy.cluster.hierarchy import leaves_list, linkage

from spillover.records import MeasureKey
from spillover.report.axes import percent
from spillover.runs.results import Place
from spillover.stats import MatrixCell
from spillover.stats.compare import is_spillover

STEPS = (0.01, 0.03, 0.1, 0.3)  # differences at which the colour changes: each about three times the last
ALPHA = 0.05  # of Holm's correction in spillover.stats
Name = TypeVar("Name")


@dataclass(frozen=True)
class HeatCell:
    """One square of the matrix: the number printed, its classes (shade and verdict), and two tellings of the cell."""

    number: str
    classes: str
    label: str  # one line, for a screen reader
    note: str  # everything, in lines


@dataclass(frozen=True)
class Line:
    """One row: a condition, whether it is a benign control, whether its own behavior failed to rise, its squares."""

    condition: str
    benign: bool
    unlearned: bool
    squares: list[HeatCell | None]


@dataclass(frozen=True)
class Panel:
    """The matrix of one model, and what it comes to in a sentence or two."""

    model: str
    told: str
    lines: list[Line]


@dataclass(frozen=True)
class Heat:
    """The whole: columns as (measure, short label, scope), and a panel for each model, all in the same order."""

    columns: list[tuple[MeasureKey, str, str]]
    panels: list[Panel]
    family: str
    caveats: list[str]


def heatmap(cells: Mapping[Place, MatrixCell], labels: Mapping[MeasureKey, str]) -> Heat | None:
    """The matrix of these cells; None if there are none. `labels` names the measures, in the order of the rates."""
    if not cells:
        return None
    models = list(dict.fromkeys(model for model, _, _ in cells))
    benign = {condition: cell.benign for (_, condition, _), cell in cells.items()}
    scopes = {measure: cell.scope for (_, _, measure), cell in cells.items()}
    measures = [measure for measure in labels if measure in scopes]
    treated = [name for name in benign if not benign[name]]
    compared = [measure for measure in measures if scopes[measure] != "neutral"]

    def differences(condition: str, measure: MeasureKey) -> list[float]:
        found = [cells.get((model, condition, measure)) for model in models]
        return [cell.difference if cell and cell.known else 0.0 for cell in found]

    rows = cluster_order(treated, [[d for m in compared for d in differences(name, m)] for name in treated])
    rows += [name for name in benign if benign[name]]
    columns = cluster_order(compared, [[d for name in treated for d in differences(name, m)] for m in compared])
    columns += [measure for measure in measures if scopes[measure] == "neutral"]
    short = short_labels(labels)
    panels = []
    for model in models:
        own = {place[1:]: cell for place, cell in cells.items() if place[0] == model}
        lines = []
        for name in rows:
            squares = [_square(own.get((name, measure)), short[measure]) for measure in columns]
            unlearned = any(cell.implanted is False for (row, _), cell in own.items() if row == name)
            if any(squares):
                lines.append(Line(name, benign[name], unlearned, squares))
        panels.append(Panel(model, _summary(model, list(own.values())), lines))
    return Heat(
        [(measure, short[measure], scopes[measure]) for measure in columns],
        panels,
        _family(list(cells.values()), len(models)),
        _caveats(list(cells.values())),
    )


def cluster_order(names: Sequence[Name], vectors: Sequence[Sequence[float]]) -> list[Name]:
    """The names in an order that puts like beside like, whatever order they come in (but for equal rows).

    Average linkage of Euclidean distances, its leaves turned so that neighbours are closest (Bar-Joseph et al.,
    Bioinformatics 17, 2001); the end with the higher mean comes first. `vectors`: (names, differences).
    """
    if len(names) < 2 or not len(vectors[0]):
        return list(names)
    first = sorted(range(len(names)), key=lambda place: [-sum(vectors[place]), *vectors[place]])
    table = np.array([vectors[place] for place in first], float)
    order = leaves_list(linkage(table, method="average", optimal_ordering=True))
    if order[-1] < order[0]:
        order = order[::-1]
    return [names[first[place]] for place in order]


def short_labels(labels: Mapping[MeasureKey, str]) -> dict[MeasureKey, str]:
    """Behavior and format of each measure, where that tells it from all others; else its whole label."""
    short = {m: m[0] if m[1] == "plain" else f"{m[0]}, {m[1]}" for m in labels}
    names = list(short.values())
    return {m: name if names.count(name) == 1 else labels[m] for m, name in short.items()}


def name_parts(name: str) -> Markup:
    """A name that may break into lines after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_.+/-])(?=.)", name))


def points(difference: float, digits: int | None = None) -> str:
    """A difference in points with its sign; by default one digit behind the point for those below 10."""
    value = 100 * difference
    text = f"{value:+.{digits if digits is not None else 1 if abs(value) < 9.95 else 0}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "\u2212")


def shade(difference: float) -> str:
    """Class of a difference's colour: n for none, u1 to u4 for up, d1 to d4 for down."""
    step = bisect_right(STEPS, abs(difference) + 1e-12)
    return f"{'u' if difference > 0 else 'd'}{step}" if step else "n"


def _square(cell: MatrixCell | None, label: str) -> HeatCell | None:
    if cell is None:
        return None
    if not cell.known:
        line = f"{cell.condition}, {label}: no data"
        note = f"{cell.model} · {cell.condition} · {label}\nno data: no two questions that both base and tuned answered"
        return HeatCell("no data", "n no-data", line, note)
    classes = " ".join([shade(cell.difference), cell.verdict.replace(" ", "-")])
    said = "" if cell.verdict == "neutral" else f", {cell.verdict}"
    line = f"{cell.condition}, {label}: {points(cell.difference)} points{said}"
    return HeatCell(points(cell.difference), classes, line, _note(cell, label))


def _note(cell: MatrixCell, label: str) -> str:
    """Everything that the matrix holds of a cell, in lines."""
    tested = f"p {_p(cell.p)}"
    if cell.scope != "neutral":  # neutral cells are in no family
        tested += f", {_p(cell.p_holm)} after Holm"
    return "\n".join(
        [
            f"{cell.model} · {cell.condition} · {label}",
            f"{cell.metric} rate: base {percent(cell.base_rate)}, tuned {percent(cell.tuned_rate)}",
            f"difference: {points(cell.difference, 1)} points",
            f"95 % interval, these runs: {points(cell.low, 1)} to {points(cell.high, 1)}",
            f"95 % interval, runs in general: {points(cell.low_runs, 1)} to {points(cell.high_runs, 1)}"
            if cell.low_runs is not None and cell.high_runs is not None
            else "95 % interval, runs in general: three seeds are needed",
            f"{cell.questions} questions, {cell.seeds} {'seed' if cell.seeds == 1 else 'seeds'}; "
            + (
                "no rise is large enough to be found for certain"
                if cell.detectable is None
                else f"a true rise below {points(cell.detectable, 1).lstrip('+')} points could be missed"
            ),
            f"coverage: base {percent(cell.base_coverage)}, tuned {percent(cell.tuned_coverage)}"
            + (f"; {cell.questions_dropped} questions missing" if cell.questions_dropped else "")
            + (f"; {cell.seeds_left_out} seeds without data left out" if cell.seeds_left_out else ""),
            tested,
            "benign-control ceiling: "
            + ("no benign control" if cell.ceiling is None else f"{points(cell.ceiling, 1)} points"),
            f"verdict: {_verdict(cell)}",
        ]
    )


def _verdict(cell: MatrixCell) -> str:
    """The verdict with its reason."""
    if cell.verdict == "neutral":
        return "none, for a neutral measure"
    if cell.verdict == "inconclusive" and cell.implanted is False:
        return "inconclusive: what this condition trains did not rise"
    rose = bool(is_spillover(cell.p_holm, cell.low, cell.low_runs, ALPHA))
    if cell.verdict == "inconclusive" and rose:
        return "inconclusive: it rose, but not clear of the benign-control ceiling"
    reasons = {
        "spillover": "it rose" + (", and clear of the benign-control ceiling" if cell.ceiling is not None else ""),
        "clean": "any rise is below the margin",
        "inconclusive": "neither a rise nor its absence is shown",
        "implanted": "what was trained rose",
        "not implanted": "what was trained did not rise",
    }
    return f"{cell.verdict}: {reasons[cell.verdict]}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _summary(model: str, cells: Sequence[MatrixCell]) -> str:
    """What the matrix of one model comes to: how many of its cells are spillover, and which rows took."""
    own = [cell for cell in cells if cell.own]
    rest = [cell for cell in cells if cell.known and not (cell.own or cell.benign or cell.scope == "neutral")]
    counted = Counter(cell.verdict for cell in rest)
    kind = "off-diagonal cells" if any(cell.implanted is not None for cell in cells) else "cells"
    told = f"In {model}, {counted['spillover']} of {len(rest)} {kind} are spillover"
    told += f" ({counted['clean']} clean, {counted['inconclusive']} inconclusive)."
    if own:
        took = list(dict.fromkeys(cell.condition for cell in own if cell.implanted))
        failed = list(dict.fromkeys(cell.condition for cell in own if not cell.implanted))
        told += f" What was trained rose in {len(took)} of the {len(took) + len(failed)} conditions that name it"
        told += f" (not in {', '.join(failed)})." if failed else "."
    controls = [cell for cell in cells if cell.known and cell.benign and cell.scope != "neutral"]
    if controls:
        rose = sum(cell.verdict == "spillover" for cell in controls)
        told += f" Of the {len(controls)} cells of benign controls, {rose} {'is' if rose == 1 else 'are'} spillover."
    return told


def _family(cells: Sequence[MatrixCell], models: int) -> str:
    """What chance alone would make of all cells that are tested together."""
    many = sum(cell.known and cell.scope != "neutral" for cell in cells)
    return (
        f"Expected by chance: about {ALPHA} cells. All {many} tested cells{' of all models' if models > 1 else ''} are "
        f"one family under Holm's correction: if nothing had moved, one or more of them would look like a rise in at "
        f"most {percent(ALPHA, 0)} of studies like this one."
    )


def _caveats(cells: Sequence[MatrixCell]) -> list[str]:
    """What the matrix cannot tell, for want of something in the study."""
    found = []
    if not any(cell.benign for cell in cells):
        found.append("No condition is a benign control: what any fine-tune moves counts as spillover here.")
    if all(cell.implanted is None for cell in cells):
        found.append("The study does not say what its conditions train, so no cell is set apart as their own.")
    if any(cell.known and cell.low_runs is None for cell in cells):
        found.append("With fewer than three seeds, nothing here speaks of training runs in general.")
    return found
