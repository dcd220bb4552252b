"""Tells it: a run folder becomes one self-contained HTML page, and its main picture an SVG file."""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spillover.config import Study, to_yaml
from spillover.files import write_atomically
from spillover.records import OUTCOMES, Cell, MeasureKey, Rate
from spillover.report import axes, figures
from spillover.report.curves import curves
from spillover.report.examples import examples
from spillover.report.finding import finding
from spillover.report.forest import forests
from spillover.report.matrix import heatmap, name_parts
from spillover.report.rows import Point, answers_of, cells_by_place, count_questions, points_of
from spillover.report.thresholds import grids
from spillover.runs.results import Place, Results
from spillover.stats import MatrixCell

_HERE = Path(__file__).parent


def write_report(results: Results) -> None:
    """Writes the run's report.html, one page that needs nothing from the network, and its main picture alone.

    The picture (picture.svg) is left out where the study has no narrow or no broad behavior; matrix and forest plots
    where there is no study; a curve where the study has none. Texts of models and questions are untrusted: they reach
    the page only escaped, and its content security policy lets no other script run than its own.
    """
    folder, study, manifest, labels = results.folder, results.study, results.manifest, results.labels
    assert folder is not None, "a report is of a run's folder"
    rates, answers, cells, points = results.rates, answers_of(results), cells_by_place(results), points_of(results)
    conditions = list(dict.fromkeys(rate.condition for rate in rates))
    by_measure: dict[MeasureKey, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_measure[rate.measure].append(rate)
    scattered = figures.scatters(rates, labels)
    panels = [] if scattered else figures.panels(rates, conditions)
    if panels or scattered:
        drawings = panels or [(label, drawing) for label, drawing, _ in scattered]
        title = f"{manifest['name']}: narrow against broad rates"
        key = conditions if panels else []  # the points of a scatter are labelled
        write_atomically(folder.picture, str(figures.standalone(drawings, key, title)))
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("tip.js", "browser.js", "matrix.js"))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = axes.percent
    environment.filters["name_parts"] = name_parts
    page = environment.get_template("report.html.j2").render(
        study_text=to_yaml(study.model_dump()) if study else "",
        study=study,
        manifest=manifest,
        models=list(dict.fromkeys(rate.model for rate in rates)),
        by_measure=by_measure,
        labels=labels,
        seeds=list(dict.fromkeys(rate.seed for rate in rates if rate.seed is not None)),
        conditions=[(name, axes.style_index(name, conditions)) for name in conditions],
        styles={name: axes.style_index(name, conditions) for name in conditions},
        outcomes=OUTCOMES,
        panels=panels,
        scatters=scattered,
        undrawn=_undrawn(rates),
        missing=_missing(study, rates),
        run_path=folder.path,
        finding=finding(results),
        heat=heatmap(cells, labels),
        curves=_curves(study, points, labels, by_measure),
        forests=_forests(study, by_measure, points, cells, conditions),
        grids=grids(results.thresholds, rates, conditions),
        strips=_strips(results, by_measure, conditions),
        examples=examples(answers, labels),
        size=(axes.WIDTH, axes.HEIGHT),
        marker=axes.marker,
        interval_bar=figures.interval_bar,
        style=Markup(axes.STYLE + (_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomically(folder.report, page.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates have no UTF-8


def _curves(
    study: Study | None,
    points: dict[Place, Point],
    labels: dict[MeasureKey, str],
    by_measure: dict[MeasureKey, list[Rate]],
) -> list[tuple[str, Markup]]:
    """The curves of a study that has an axis."""
    if study is None or study.curve is None:
        return []
    return curves(study.curve, points, labels, {measure: rates[0] for measure, rates in by_measure.items()})


def _forests(
    study: Study | None,
    by_measure: dict[MeasureKey, list[Rate]],
    points: dict[Place, Point],
    cells: dict[Place, MatrixCell],
    conditions: Sequence[str],
) -> dict[MeasureKey, list[tuple[str, int, Markup, Markup]]]:
    """The forest plots of every measure that the matrix holds."""
    if study is None:
        return {}
    return {measure: forests(measure, points, cells, conditions, study.margin) for measure in by_measure}


def _missing(study: Study | None, rates: list[Rate]) -> list[str]:
    """Cells of the study that have no rates: they failed, or are not done yet."""
    there = {(rate.model, rate.condition, rate.seed) for rate in rates}
    return [str(Cell(*cell)) for cell in (study.cells if study else ()) if cell not in there]


def _undrawn(rates: list[Rate]) -> list[str]:
    """Cells that the picture leaves out because a rate of theirs is 0 of 0."""
    shown = [next((rate.measure for rate in rates if rate.scope == scope), None) for scope in ("narrow", "broad")]
    names = [
        f"{rate.model}, {rate.condition}" + ("" if rate.seed is None else f", seed {rate.seed}")
        for rate in rates
        if rate.measure in shown and rate.rate is None
    ]
    return list(dict.fromkeys(names))


def _strips(
    results: Results, by_measure: dict[MeasureKey, list[Rate]], conditions: Sequence[str]
) -> list[dict[str, Any]]:
    """Per measure of a behavior that is narrow or broad: panels, and its questions as a table, highest rate first."""
    found = []
    for measure, rates in by_measure.items():
        if rates[0].scope == "neutral":
            continue
        counts = count_questions(results, measure)
        models = list(dict.fromkeys(model for model, _ in counts))
        questions = {id_: count.text for own in counts.values() for id_, count in own.items()}
        rows = [(id_, text, [own.get(id_) for own in counts.values()]) for id_, text in questions.items()]
        rows.sort(key=lambda row: -max((count.rate or 0 for count in row[2] if count), default=0))
        order = [id_ for id_, _, _ in rows]
        panels = [(model, *figures.strips(model, counts, conditions, order)) for model in models]
        found.append({"rate": rates[0], "panels": panels, "columns": list(counts), "rows": [row[1:] for row in rows]})
    return found
