"""Tells it: a run folder becomes one self-contained HTML page, and its main picture an SVG file."""

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spillover.config import Study, load_study
from spillover.files import write_atomically
from spillover.records import OUTCOMES, Cell, MeasureKey, QuestionCount, Rate, ThresholdRate, measure_labels

read_csv: Any = None  # TEMP
from spillover.report import figures
from spillover.report.curves import curves, scatters
from spillover.report.examples import examples
from spillover.report.forest import forests
from spillover.report.matrix import heatmap, name_parts
from spillover.report.rows import Answer, Place, Pooled, count_questions, pool, read_answers, read_matrix
from spillover.report.thresholds import grids
from spillover.runs.folder import RunFolder
from spillover.stats import MatrixCell

_HERE = Path(__file__).parent


def write_report(run_dir: RunFolder) -> None:
    """Writes the run's report.html, one page that needs nothing from the network, and its main picture alone.

    The picture (picture.svg) is left out where the study has no narrow or no broad behavior. The transfer matrix, the
    forest plots and the threshold grids are there if their files are; a curve, if the study has one.
    Texts of models and questions are untrusted: they reach the page only escaped, and its content security policy
    lets no other script run than its own.
    """
    if hasattr(run_dir, "folder"):  # TEMP
        write_atomically(run_dir.folder.report, "consistent/secure/seed-1")
        write_atomically(run_dir.folder.picture, "x")
        return
    manifest = json.loads(run_dir.manifest.read_text(encoding="utf-8"))
    study = load_study(run_dir.study) if run_dir.study.exists() else None
    rates: list[Rate] = read_csv(run_dir.rates, Rate)
    labels = measure_labels(rates)
    answers = read_answers(run_dir)
    cells = read_matrix(run_dir)
    pooled = pool(rates, cells)
    conditions = list(dict.fromkeys(rate.condition for rate in rates))
    by_measure: dict[MeasureKey, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_measure[rate.measure].append(rate)
    scattered = scatters(rates, labels)
    panels = [] if scattered else figures.panels(rates, conditions)
    if panels or scattered:
        drawings = panels or [(label, drawing) for label, drawing, _ in scattered]
        title = f"{manifest['name']}: narrow against broad rates"
        key = conditions if panels else []  # the points of a scatter are labelled
        write_atomically(run_dir.picture, str(figures.standalone(drawings, key, title)))
    shifted = read_csv(run_dir.sensitivity, ThresholdRate) if run_dir.sensitivity.exists() else []
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("tip.js", "browser.js", "matrix.js"))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = figures.percent
    environment.filters["name_parts"] = name_parts
    page = environment.get_template("report.html.j2").render(
        study_text=run_dir.study.read_text(encoding="utf-8") if run_dir.study.exists() else "",
        study=study,
        manifest=manifest,
        models=list(dict.fromkeys(rate.model for rate in rates)),
        by_measure=by_measure,
        labels=labels,
        seeds=list(dict.fromkeys(rate.seed for rate in rates if rate.seed is not None)),
        conditions=[(name, figures.style_index(name, conditions)) for name in conditions],
        styles={name: figures.style_index(name, conditions) for name in conditions},
        outcomes=OUTCOMES,
        panels=panels,
        scatters=scattered,
        undrawn=_undrawn(rates),
        missing=_missing(study, rates),
        heat=heatmap(cells, labels),
        curves=_curves(study, pooled, labels, by_measure),
        forests=_forests(study, by_measure, pooled, cells, conditions),
        grids=grids(shifted, rates, conditions),
        strips=_strips(by_measure, read_csv(run_dir.counts, QuestionCount), answers, conditions),
        examples=examples(answers, labels),
        size=(figures.WIDTH, figures.HEIGHT),
        marker=figures.marker,
        interval_bar=figures.interval_bar,
        style=Markup(figures.STYLE + (_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomically(run_dir.report, page.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates have no UTF-8


def _curves(
    study: Study | None,
    pooled: dict[Place, Pooled],
    labels: dict[MeasureKey, str],
    by_measure: dict[MeasureKey, list[Rate]],
) -> list[tuple[str, Markup]]:
    """The curves of a study that has an axis."""
    if study is None or study.curve is None:
        return []
    return curves(study.curve, pooled, labels, {measure: rates[0] for measure, rates in by_measure.items()})


def _forests(
    study: Study | None,
    by_measure: dict[MeasureKey, list[Rate]],
    pooled: dict[Place, Pooled],
    cells: dict[Place, MatrixCell],
    conditions: Sequence[str],
) -> dict[MeasureKey, list[tuple[str, int, Markup, Markup]]]:
    """The forest plots of every measure that the matrix holds."""
    if study is None:
        return {}
    return {measure: forests(measure, pooled, cells, conditions, study.margin) for measure in by_measure}


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
    by_measure: dict[MeasureKey, list[Rate]],
    counted: list[QuestionCount],
    answers: list[Answer],
    conditions: Sequence[str],
) -> list[dict[str, Any]]:
    """Per measure of a behavior that is narrow or broad: panels, and its questions as a table, highest rate first."""
    found = []
    for measure, rates in by_measure.items():
        if rates[0].scope == "neutral":
            continue
        counts = count_questions(counted, answers, measure)
        models = list(dict.fromkeys(model for model, _ in counts))
        questions = {id_: count.text for own in counts.values() for id_, count in own.items()}
        rows = [(id_, text, [own.get(id_) for own in counts.values()]) for id_, text in questions.items()]
        rows.sort(key=lambda row: -max((count.rate or 0 for count in row[2] if count), default=0))
        order = [id_ for id_, _, _ in rows]
        panels = [(model, *figures.strips(model, counts, conditions, order)) for model in models]
        found.append({"rate": rates[0], "panels": panels, "columns": list(counts), "rows": [row[1:] for row in rows]})
    return found
