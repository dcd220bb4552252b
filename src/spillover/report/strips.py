"""The rate of every question as dots, a row for each condition: it shows whether a few questions carry a behavior."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from spillover.records import MeasureKey
from spillover.report.axes import SHARE, WIDTH, Axes, shares
from spillover.report.svg import path, percent, text
from spillover.runs.results import Results

HEAD, ROW, DOT = 28, 78, 3.4  # px: above the first row, height of a row, radius of a dot (again in svg.STYLE)

Counts = dict[str, tuple[int, int]]  # question id -> events k and admitted completions n, all seeds together


def question_strips(results: Results, styles: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each narrow or broad measure: a panel for each model, and its questions as a table, highest rate first.

    `columns`: (model, condition) of the table. `rows`: the words of a question, and (k, n) or None for each column.
    """
    texts: dict[tuple[MeasureKey, str], str] = {}
    for block in results.blocks:
        for completion in block.completions:
            texts.setdefault((block.measure, completion.question_id), completion.question)
    strips = []
    for measure, rate in ((key, results.described[key]) for key in results.labels):
        if rate.scope == "neutral":
            continue
        counts = count_questions(results, measure)
        ids = list(dict.fromkeys(id_ for arm in counts.values() for id_ in arm))
        ids.sort(key=lambda id_: -max(k / n if n else 0 for k, n in (arm.get(id_, (0, 0)) for arm in counts.values())))
        models = dict.fromkeys(model for model, _ in counts)
        strips.append(
            {
                "rate": rate,
                "panels": [(model, *_panel(model, counts, styles, ids)) for model in models],
                "columns": list(counts),
                "rows": [(texts[measure, id_], [arm.get(id_) for arm in counts.values()]) for id_ in ids],
            }
        )
    return strips


def count_questions(results: Results, measure: MeasureKey) -> dict[tuple[str, str], Counts]:
    """(model, condition) -> counts of each question, for one measure."""
    pooled: dict[tuple[str, str], Counts] = {}
    for (model, condition, key), seeds in results.counts.items():
        if key == measure:
            arm = pooled.setdefault((model, condition), {})
            for id_, (k, n, *_) in (item for counts in seeds.values() for item in counts.items()):
                before = arm.get(id_, (0, 0))
                arm[id_] = before[0] + k, before[1] + n
    return pooled


def _panel(
    model: str, counts: Mapping[tuple[str, str], Counts], styles: Mapping[str, int], ids: Sequence[str]
) -> tuple[int, Markup]:
    """Height and drawing of one model's panel.

    Dots hold the place of their question in `ids`, and of (model, condition) in `counts`: tip.js finds the words in the
    table of questions, so that they are in the page once.
    """
    rows = [name for name in styles if (model, name) in counts]
    axes = Axes(SHARE, left=14, right=WIDTH - 22, top=HEAD, bottom=HEAD + ROW * len(rows), inset=0)
    parts = [text("name", 0, 15, model), axes.columns(shares((0, 0.25, 0.5, 0.75, 1)))]
    columns, places = list(counts), {id_: place for place, id_ in enumerate(ids)}
    for number, name in enumerate(rows):
        dots = {places[id_]: k / n for id_, (k, n) in counts[model, name].items() if n}
        k, n = (sum(numbers) for numbers in zip(*counts[model, name].values(), strict=True))
        top = HEAD + ROW * number
        parts.append(_row(axes, name, styles[name], top, dots, k, n, columns.index((model, name))))
    return axes.bottom + 24, Markup("").join(parts)


def _row(axes: Axes, name: str, style: int, top: int, dots: Mapping[int, float], k: int, n: int, column: int) -> Markup:
    """One condition: dots of equal rate are stacked upwards, closer together where the stack would be too high."""
    base = top + ROW - 14
    parts = [path("axis", f"M{axes.left} {base}H{axes.right}")]
    if n:
        hover = f"{name}, all questions: {k}/{n} = {percent(k / n)}"
        parts.append(path(f"mean s{style}", f"M{axes.x(k / n):.1f} {base + 1.5}l5 8h-10z", hover))
    stacks: dict[int, list[tuple[int, float]]] = defaultdict(list)  # dots that would touch
    for place, rate in dots.items():
        stacks[round(axes.x(rate) / (2 * DOT))].append((place, rate))
    circles, sizes = [], []
    for stack in stacks.values():
        step = min(2 * DOT, (base - top - 26) / max(1, len(stack) - 1))
        for number, (place, rate) in enumerate(stack):
            y = base - DOT - step * number
            circles.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" data-q="{}"/>').format(axes.x(rate), y, place))
        if step < 2 * DOT:  # too close together to be counted
            on_left = stack[0][1] > 0.5
            x = axes.x(stack[0][1]) + (-8 if on_left else 8)
            sizes.append(text("halo end" if on_left else "halo", x, base - 8, str(len(stack))))
    parts.append(Markup('<g class="dots s{}" data-c="{}">{}</g>').format(style, column, Markup("").join(circles)))
    parts += sizes if n else [text("", axes.left + 6, base - 6, "no data")]
    return Markup("").join([*parts, text("key", axes.left + 6, top + 13, name)])
