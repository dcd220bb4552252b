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

from spillover.records import OUTCOMES, Measure, Rate, measure_labels, read_csv
from spillover.report import figures
from spillover.report.rows import GROUPS, Answer, count_questions, read_answers
from spillover.rundir import RunDir, hash_of, write_atomically

EXAMPLES_PER_GROUP = 20  # of each cell, measure and group
EXAMPLE_CHARACTERS = 6000

_HERE = Path(__file__).parent


def write_report(run_dir: RunDir) -> None:
    """Writes the run's report.html, one page that needs nothing from the network, and its main picture alone.

    The picture (picture.svg) is left out where the study has no narrow or no broad behavior.
    Texts of models and questions are untrusted: they reach the page only escaped, and its content security policy
    lets no other script run than its own.
    """
    manifest = json.loads(run_dir.manifest.read_text(encoding="utf-8"))
    rates: list[Rate] = read_csv(run_dir.rates, Rate)
    labels = measure_labels(rates)
    answers = read_answers(run_dir)
    conditions = list(dict.fromkeys(rate.condition for rate in rates))
    seeds = list(dict.fromkeys(rate.seed for rate in rates if rate.seed is not None))
    by_measure: dict[Measure, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_measure[rate.measure].append(rate)
    panels = figures.panels(rates, conditions)
    if panels:
        label = f"{manifest['name']}: narrow against broad rates"
        write_atomically(run_dir.picture, str(figures.standalone(panels, conditions, label)))
    script = (_HERE / "browser.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = figures.percent
    page = environment.get_template("report.html.j2").render(
        study_text=run_dir.study.read_text(encoding="utf-8") if run_dir.study.exists() else "",
        manifest=manifest,
        models=list(dict.fromkeys(rate.model for rate in rates)),
        by_measure=by_measure,
        labels=labels,
        seeds=seeds,
        conditions=[(name, figures.style_index(name, conditions)) for name in conditions],
        styles={name: figures.style_index(name, conditions) for name in conditions},
        outcomes=OUTCOMES,
        panels=panels,
        undrawn=_undrawn(rates),
        strips=_strips(by_measure, answers, conditions),
        examples=_examples(answers, labels),
        examples_per_group=EXAMPLES_PER_GROUP,
        size=(figures.WIDTH, figures.HEIGHT),
        marker=figures.marker,
        interval_bar=figures.interval_bar,
        style=Markup(figures.STYLE),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomically(run_dir.report, page.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates have no UTF-8


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
    by_measure: dict[Measure, list[Rate]], answers: list[Answer], conditions: Sequence[str]
) -> list[dict[str, Any]]:
    """Per measure of a behavior that is narrow or broad: panels, and its questions as a table, highest rate first."""
    found = []
    for measure, rates in by_measure.items():
        if rates[0].scope == "neutral":
            continue
        counts = count_questions(answers, measure)
        models = list(dict.fromkeys(model for model, _ in counts))
        columns = [(model, name) for model in models for name in conditions if (model, name) in counts]
        questions = {id_: count.text for own in counts.values() for id_, count in own.items()}
        rows = [(text, [counts[column].get(id_) for column in columns]) for id_, text in questions.items()]
        rows.sort(key=lambda row: -max((count.rate or 0 for count in row[1] if count), default=0))
        panels = [(model, *figures.strips(model, counts, conditions)) for model in models]
        found.append({"rate": rates[0], "panels": panels, "columns": columns, "rows": rows})
    return found


def _examples(answers: list[Answer], labels: dict[Measure, str]) -> dict[str, Any]:
    """What the example browser reads: of each cell, measure and group the first few by the hash of their id."""
    groups: dict[Any, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.cell, answer.measure, answer.group].append(answer)
    rows = []
    for own in groups.values():
        for answer in sorted(own, key=lambda answer: hash_of(answer.completion.id))[:EXAMPLES_PER_GROUP]:
            row = answer.completion
            rows.append(
                {
                    "model": row.model,
                    "condition": row.condition,
                    "seed": row.seed,
                    "measure": labels[answer.measure],
                    "group": answer.group,
                    "outcome": answer.outcome.replace("_", "-"),
                    "scores": ", ".join(
                        f"{s.rubric} {s.value:.0f}" for s in answer.scores.values() if s.value is not None
                    ),
                    "reply": next((score.reply[:500] for score in answer.scores.values()), "no score"),
                    "question": f"[{row.system}]\n{row.question}" if row.system else row.question,
                    "text": row.text[:EXAMPLE_CHARACTERS] + (" […]" if len(row.text) > EXAMPLE_CHARACTERS else ""),
                    "code": answer.measure[-1] == "code_scan" or answer.outcome == "off_format",
                }
            )
    return {"groups": GROUPS, "rows": rows, "of": len(answers)}
