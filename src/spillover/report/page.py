"""Writes the report of a run: one self-contained HTML page, and its main picture as an SVG file."""

import base64
import hashlib
from collections import defaultdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spillover.config import to_yaml
from spillover.files import write_atomically
from spillover.records import OUTCOMES, Cell, MeasureKey, Rate
from spillover.report import axes, figures, svg
from spillover.report.curves import curves
from spillover.report.examples import examples
from spillover.report.finding import finding
from spillover.report.forest import forests
from spillover.report.matrix import heatmap, name_parts, note, shade
from spillover.report.strips import question_strips
from spillover.report.thresholds import grid_number, grids
from spillover.runs.results import Results

_HERE = Path(__file__).parent


def write_report(results: Results) -> None:
    """Writes report.html, one page that needs nothing from the network, and the main picture alone, into the folder.

    The picture (picture.svg) is left out where there is no narrow or no broad behavior; matrix and forest plots where
    there is no study; curves where the study has none. Texts of models and questions are untrusted: they reach the page
    only escaped, and its content security policy lets no other script run than its own.
    """
    folder, study, rates = results.folder, results.study, results.rates
    assert folder is not None, "a report is of a run's folder"
    styles = svg.styles_of(dict.fromkeys(rate.condition for rate in rates))
    by_measure: dict[MeasureKey, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_measure[rate.measure].append(rate)
    scatters = figures.scatters(rates, results.labels)
    panels = [] if scatters else figures.panels(rates, styles)
    if drawings := panels or [(label, drawing) for label, drawing, _ in scatters]:
        title = f"{results.manifest['name']}: narrow against broad rates"
        legend = styles if panels else {}  # the points of a scatter are labelled
        write_atomically(folder.picture, str(figures.standalone(drawings, legend, title)))
    done = {(rate.model, rate.condition, rate.seed) for rate in rates}
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("tip.js", "browser.js", "matrix.js"))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": svg.percent, "points": svg.points, "name_parts": name_parts, "shade": shade}
    page = environment.get_template("report.html.j2").render(
        study_text=to_yaml(study.model_dump()) if study else "",
        study=study,
        manifest=results.manifest,
        models=list(dict.fromkeys(rate.model for rate in rates)),
        by_measure=by_measure,
        labels=results.labels,
        seeds=list(dict.fromkeys(rate.seed for rate in rates if rate.seed is not None)),
        styles=styles,
        outcomes=OUTCOMES,
        panels=panels,
        scatters=scatters,
        undrawn=_undrawn(rates),
        missing=[str(Cell(*cell)) for cell in (study.cells if study else ()) if cell not in done],
        run_path=folder.path,
        finding=finding(results),
        cautions=results.cautions,
        heatmap=heatmap(results.matrix, results.labels),
        curves=curves(results, styles),
        forests={measure: forests(results, measure, styles) for measure in by_measure},
        grids=grids(results.thresholds, rates),
        grid_number=grid_number,
        note=note,
        strips=question_strips(results, styles),
        examples=examples(results),
        size=(axes.WIDTH, axes.HEIGHT),
        marker=svg.marker,
        interval_bar=figures.interval_bar,
        style=Markup(svg.STYLE + (_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomically(folder.report, page.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates have no UTF-8


def _undrawn(rates: list[Rate]) -> list[str]:
    """Cells that the picture leaves out because a rate of theirs is 0 of 0."""
    measures = [figures.first_measure(rates, scope) for scope in ("narrow", "broad")]
    return list(
        dict.fromkeys(
            f"{rate.model}, {figures.cell_name(rate)}"
            for rate in rates
            if rate.measure in measures and rate.rate is None
        )
    )
