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

from spillover.config import load_study
from spillover.records import OUTCOMES, Rate
from spillover.report import figures
from spillover.report.rows import GROUPS, Answer, count_questions, key_of, read_answers, read_rates
from spillover.rundir import RunDir, hash_of, write_atomically

EXAMPLES_PER_GROUP = 20  # of each cell, behavior and group
EXAMPLE_CHARACTERS = 6000

_HERE = Path(__file__).parent


def write_report(run_dir: RunDir) -> None:
    """Writes the run's report.html, one page that needs nothing from the network, and its main picture alone.

    The picture (picture.svg) is left out where the study has no narrow or no broad behavior.
    Texts of models and questions are untrusted: they reach the page only escaped, and its content security policy
    lets no other script run than its own.
    """
    study = load_study(run_dir.study)
    manifest = json.loads(run_dir.manifest.read_text(encoding="utf-8"))
    rates = read_rates(run_dir)
    answers = read_answers(run_dir)
    conditions = list(study.conditions)
    by_behavior: dict[str, list[Rate]] = defaultdict(list)
    for rate in rates:
        by_behavior[rate.behavior].append(rate)
    panels = figures.panels(rates, conditions)
    if panels:
        label = f"{study.name}: narrow against broad rates"
        write_atomically(run_dir.picture, str(figures.standalone(panels, conditions, label)))
    script = (_HERE / "browser.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = figures.percent
    page = environment.get_template("report.html.j2").render(
        study=study,
        study_text=run_dir.study.read_text(encoding="utf-8"),
        manifest=manifest,
        by_behavior=by_behavior,
        seeds=study.seeds if len(conditions) > 1 else [],
        conditions=[(name, figures.style_index(name, conditions)) for name in conditions],
        styles={name: figures.style_index(name, conditions) for name in conditions},
        outcomes=OUTCOMES,
        panels=panels,
        undrawn=_undrawn(rates),
        strips=_strips(by_behavior, answers, conditions),
        examples=_examples(answers, rates),
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
    shown = [next((rate.behavior for rate in rates if rate.scope == scope), None) for scope in ("narrow", "broad")]
    names = [
        f"{rate.model}, {rate.condition}" + ("" if rate.seed is None else f", seed {rate.seed}")
        for rate in rates
        if rate.behavior in shown and rate.rate is None
    ]
    return list(dict.fromkeys(names))


def _strips(
    by_behavior: dict[str, list[Rate]], answers: list[Answer], conditions: Sequence[str]
) -> list[dict[str, Any]]:
    """Per behavior that is narrow or broad: its panels, and its questions as a table, highest rate first."""
    found = []
    for behavior, rates in by_behavior.items():
        if rates[0].scope == "neutral":
            continue
        counts = count_questions(answers, behavior)
        models = list(dict.fromkeys(model for model, _ in counts))
        columns = [(model, name) for model in models for name in conditions if (model, name) in counts]
        questions = {id_: count.text for own in counts.values() for id_, count in own.items()}
        rows = [(text, [counts[column].get(id_) for column in columns]) for id_, text in questions.items()]
        rows.sort(key=lambda row: -max((count.rate or 0 for count in row[1] if count), default=0))
        panels = [(model, *figures.strips(model, counts, conditions)) for model in models]
        found.append({"rate": rates[0], "panels": panels, "columns": columns, "rows": rows})
    return found


def _examples(answers: list[Answer], rates: list[Rate]) -> dict[str, Any]:
    """What the example browser reads: of each cell, behavior and group the first few by the hash of their id."""
    code = {rate.behavior for rate in rates if rate.judge == "code_scan"}
    groups: dict[Any, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[key_of(answer.completion), answer.group].append(answer)
    rows = []
    for own in groups.values():
        for answer in sorted(own, key=lambda answer: hash_of(answer.completion.id))[:EXAMPLES_PER_GROUP]:
            row = answer.completion
            rows.append(
                {
                    "model": row.model,
                    "condition": row.condition,
                    "seed": row.seed,
                    "behavior": row.behavior,
                    "group": answer.group,
                    "outcome": answer.outcome.replace("_", "-"),
                    "scores": ", ".join(
                        f"{s.rubric} {s.value:.0f}" for s in answer.scores.values() if s.value is not None
                    ),
                    "reply": next(iter(answer.scores.values())).reply[:500],
                    "question": row.question,
                    "text": row.text[:EXAMPLE_CHARACTERS] + (" […]" if len(row.text) > EXAMPLE_CHARACTERS else ""),
                    "code": row.behavior in code or answer.outcome == "off_format",
                }
            )
    return {"groups": GROUPS, "rows": rows, "of": len(answers)}
