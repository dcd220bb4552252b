"""The transfer matrix as a table: its order, its shades, and in words what its cells say and come to."""

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
from spillover.report.svg import percent, points
from spillover.runs.results import Place
from spillover.stats import MatrixCell
from spillover.stats.compare import is_spillover

STEPS = (0.01, 0.03, 0.1, 0.3)  # differences at which the colour changes: each about three times the last
ALPHA = 0.05  # of Holm's correction in spillover.stats
Name = TypeVar("Name")


@dataclass(frozen=True)
class Heatmap:
    """The whole matrix, its rows and columns in one order for all models, benign controls and neutral measures last.

    `cells` by (model, condition, measure). `implanted` by (model, condition): whether what it trains rose; None without
    data, or if the study does not say what it trains. `rows` are (condition, benign control or not), `columns`
    (measure, short label, scope). `summaries`: by model what its cells come to. `notes`: how to read the matrix, and
    what it cannot tell.
    """

    cells: dict[Place, MatrixCell]
    implanted: dict[tuple[str, str], bool | None]
    rows: list[tuple[str, bool]]
    columns: list[tuple[MeasureKey, str, str]]
    summaries: dict[str, str]
    notes: list[str]


def heatmap(cells: Sequence[MatrixCell], labels: Mapping[MeasureKey, str]) -> Heatmap | None:
    """The matrix of these cells; None if there are none. `labels` names the measures, in the order of the rates."""
    if not cells:
        return None
    models = list(dict.fromkeys(cell.model for cell in cells))
    benign = {cell.condition: cell.benign for cell in cells}
    scopes = {cell.measure: cell.scope for cell in cells}
    by_place = {(cell.model, cell.condition, cell.measure): cell for cell in cells}
    implanted: dict[tuple[str, str], bool | None] = {(cell.model, cell.condition): None for cell in cells}
    implanted |= {(cell.model, cell.condition): cell.implanted for cell in cells if cell.known}
    differences = {place: cell.difference if cell.known else 0.0 for place, cell in by_place.items()}
    measures = [measure for measure in labels if measure in scopes]
    treated = [name for name in benign if not benign[name]]
    compared = [measure for measure in measures if scopes[measure] != "neutral"]
    table = np.array([[[differences.get((m, c, key), 0.0) for m in models] for key in compared] for c in treated])
    table = table.reshape(len(treated), len(compared), len(models))  # also where it holds nothing
    by_row = table.reshape(len(treated), len(compared) * len(models))
    by_column = table.transpose(1, 0, 2).reshape(len(compared), len(treated) * len(models))
    rows = cluster_order(treated, by_row) + [name for name in benign if benign[name]]
    columns = cluster_order(compared, by_column)
    columns += [measure for measure in measures if scopes[measure] == "neutral"]
    short = short_labels(labels)
    return Heatmap(
        by_place,
        implanted,
        [(name, benign[name]) for name in rows],
        [(measure, short[measure], scopes[measure]) for measure in columns],
        {model: _summary(model, [cell for cell in cells if cell.model == model]) for model in models},
        _notes(cells, len(models)),
    )


def cluster_order(names: Sequence[Name], vectors: Sequence[Sequence[float]] | np.ndarray) -> list[Name]:
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


def shade(difference: float) -> str:
    """Class of a difference's colour: n for none, u1 to u4 for up, d1 to d4 for down."""
    step = bisect_right(STEPS, abs(difference) + 1e-12)
    return f"{'u' if difference > 0 else 'd'}{step}" if step else "n"


def note(cell: MatrixCell, label: str) -> str:
    """Everything that the matrix holds of a cell, in lines."""
    place = f"{cell.model} · {cell.condition} · {label}"
    if not cell.known:
        return f"{place}\nno data: no two questions that both base and tuned answered"
    runs = "three seeds are needed"
    if cell.low_runs is not None and cell.high_runs is not None:
        runs = f"{points(cell.low_runs, 1)} to {points(cell.high_runs, 1)}"
    power = "no rise is large enough to be found for certain"
    if cell.detectable is not None:
        power = f"a true rise below {points(cell.detectable, 1).lstrip('+')} points could be missed"
    dropped = f"; {cell.questions_dropped} questions missing" if cell.questions_dropped else ""
    dropped += f"; {cell.seeds_left_out} seeds without data left out" if cell.seeds_left_out else ""
    corrected = "" if cell.scope == "neutral" else f", {_p(cell.p_holm)} after Holm"  # neutral cells are in no family
    ceiling = "no benign control" if cell.ceiling is None else f"{points(cell.ceiling, 1)} points"
    return "\n".join(
        [
            place,
            f"{cell.metric} rate: base {percent(cell.base_rate)}, tuned {percent(cell.tuned_rate)}",
            f"difference: {points(cell.difference, 1)} points",
            f"95 % interval, these runs: {points(cell.low, 1)} to {points(cell.high, 1)}",
            f"95 % interval, runs in general: {runs}",
            f"{cell.questions} questions, {cell.seeds} {'seed' if cell.seeds == 1 else 'seeds'}; {power}",
            f"coverage: base {percent(cell.base_coverage)}, tuned {percent(cell.tuned_coverage)}{dropped}",
            f"cut off: base {percent(cell.base_cut_off)}, tuned {percent(cell.tuned_cut_off)}",
            f"p {_p(cell.p)}{corrected}",
            f"benign-control ceiling: {ceiling}",
            f"verdict: {_verdict(cell)}",
        ]
    )


def _verdict(cell: MatrixCell) -> str:
    """The verdict with its reason."""
    if cell.verdict == "neutral":
        return "none, for a neutral measure"
    if cell.verdict == "inconclusive" and cell.no_verdict:
        return f"inconclusive: {cell.no_verdict}"
    if cell.verdict == "inconclusive" and cell.implanted is False:
        return "inconclusive: what this condition trains did not rise"
    if cell.verdict == "inconclusive" and is_spillover(cell.p_holm, cell.low, cell.low_runs, ALPHA):
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
    tested = [cell for cell in cells if cell.known and cell.scope != "neutral"]
    spread = Counter(cell.verdict for cell in tested if not (cell.own or cell.benign))
    kind = "off-diagonal cells" if any(cell.implanted is not None for cell in cells) else "cells"
    summary = f"In {model}, {spread['spillover']} of {spread.total()} {kind} are spillover"
    summary += f" ({spread['clean']} clean, {spread['inconclusive']} inconclusive)."
    with_data = {cell.condition for cell in cells if cell.known}
    implants = {cell.condition: bool(cell.implanted) for cell in cells if cell.own and cell.condition in with_data}
    if implants:
        failed = [condition for condition, rose in implants.items() if not rose]
        summary += f" What was trained rose in {len(implants) - len(failed)} of the "
        summary += f"{len(implants)} conditions that name it"
        summary += f" (not in {', '.join(failed)})." if failed else "."
    controls = [cell.verdict for cell in tested if cell.benign]
    if controls:
        rose = controls.count("spillover")
        summary += f" Of the {len(controls)} cells of benign controls, {rose} {'is' if rose == 1 else 'are'} spillover."
    return summary


def _notes(cells: Sequence[MatrixCell], models: int) -> list[str]:
    """What chance alone would make of all cells that are tested together, and what the matrix cannot tell."""
    tested = sum(cell.known and cell.scope != "neutral" for cell in cells)
    notes = [
        f"Expected by chance: about {ALPHA} cells. All {tested} tested cells{' of all models' if models > 1 else ''} "
        "are one family under Holm's correction: if nothing had moved, one or more of them would look like a rise in "
        f"at most {percent(ALPHA, 0)} of studies like this one."
    ]
    if not any(cell.benign for cell in cells):
        notes.append("No condition is a benign control: what any fine-tune moves counts as spillover here.")
    if all(cell.implanted is None for cell in cells):
        notes.append("The study does not say what its conditions train, so no cell is set apart as their own.")
    if any(cell.known and cell.low_runs is None for cell in cells):
        notes.append("With fewer than three seeds, nothing here speaks of training runs in general.")
    return notes
