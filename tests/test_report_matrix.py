"""The transfer matrix, forest plots, threshold grids, curves and scatters of a report, on made-up runs."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy.stats import spearmanr

from report_runs import BIG_CONDITIONS, BIG_MEASURES, big_run, consistency_run, dose_run, made_run, models_run
from spillover.records import MeasureKey, Rate, ThresholdRate
from spillover.report import write_report
from spillover.report.axes import scale_of, signed_ticks
from spillover.report.examples import BUDGET
from spillover.report.forest import forests
from spillover.report.matrix import cluster_order, heatmap, shade, short_labels
from spillover.report.svg import points, styles_of
from spillover.report.thresholds import grid_number, grids
from spillover.runs.folder import RunFolder
from spillover.runs.results import Results
from spillover.stats import MatrixCell

MOST_BYTES = 3_000_000
NEUTRAL = [name for name, (scope, _) in BIG_MEASURES.items() if scope == "neutral"]


@pytest.fixture(scope="module")
def big() -> Results:
    return big_run()


@pytest.fixture(scope="module")
def dose() -> Results:
    return dose_run()


@pytest.fixture(scope="module")
def cells(big: Results) -> list[MatrixCell]:
    return big.matrix


def text_of(run: Results) -> str:
    return run.folder.report.read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    """The HTML of one section."""
    return re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)[0]


def tables(html: str) -> dict[str, list[list[tuple[str, str, str]]]]:
    """Model -> rows of (row name, classes, text of the square) of each matrix in the page."""
    found = {}
    for model, body in re.findall(r'<table role="grid".*?data-model="([^"]+)".*?<tbody>(.*?)</tbody>', html, re.DOTALL):
        found[model] = [
            [
                (name, classes, unescape(re.sub("<[^>]+>", "", inner)).strip())
                for classes, inner in re.findall(r'<td class="([^"]*)">(.*?)</td>', row, re.DOTALL)
            ]
            for name, row in re.findall(r'<tr[^>]*data-condition="([^"]+)">(.*?)</tr>', body, re.DOTALL)
        ]
    return found


def test_every_cell_is_in_the_table_with_its_number_and_verdict(big: Results, cells: list[MatrixCell]) -> None:
    html = section(text_of(big), "matrix")
    by_place = {(cell.model, cell.condition, cell.behavior): cell for cell in cells}
    assert len(by_place) == 200
    seen = 0
    for model, rows in tables(html).items():
        links = re.findall(rf'data-model="{model}".*?</table>', html, re.DOTALL)[0]
        names = [name.split(",")[0] for name in re.findall(r'data-measure="([^"]+)"', links)][:10]
        for row in rows:
            for behavior, (condition, classes, number) in zip(names, row, strict=True):
                cell = by_place[model, condition, behavior]
                assert number == points(cell.difference)
                assert classes.split()[:2] == [shade(cell.difference), cell.verdict.replace(" ", "-")]
                seen += 1
    assert seen == 200


def test_a_note_tells_everything_of_its_cell(big: Results, cells: list[MatrixCell]) -> None:
    notes = {}
    for note in re.findall(r'title="([^"]*verdict[^"]*)"', section(text_of(big), "matrix")):
        lines = unescape(note).split("\n")
        notes[tuple(lines[0].split(" · "))] = lines
    for cell in cells:
        lines = notes[cell.model, cell.condition, cell.behavior]
        said = "\n".join(lines)
        assert f"base {100 * cell.base_rate:.1f}\u202f%, tuned {100 * cell.tuned_rate:.1f}\u202f%" in said
        for low, high in ((cell.low, cell.high), (cell.low_runs, cell.high_runs)):
            assert f"{points(low, 1)} to {points(high, 1)}" in said
        assert f"{cell.questions} questions, 3 seeds" in said
        assert ("after Holm" in said) == (cell.scope != "neutral")
        assert f"benign-control ceiling: {points(cell.ceiling, 1)} points" in said
        assert lines[-1].startswith("verdict: none" if cell.scope == "neutral" else f"verdict: {cell.verdict}")


def test_all_panels_have_one_order_with_controls_and_neutral_measures_last(big: Results) -> None:
    run = heatmap(big.matrix, big.labels)
    orders = {tuple(row[0][0] for row in rows) for rows in tables(section(text_of(big), "matrix")).values()}
    assert orders == {tuple(name for name, _ in run.rows)}
    order = list(orders.pop())
    assert order[-2:] == ["secure", "educational"]
    assert sorted(order) == sorted(BIG_CONDITIONS)
    assert [label for _, label, _ in run.columns[-2:]] == NEUTRAL
    families = [name[-1] for name in order[:-2] if name != "inert_b"]
    assert sum(a != b for a, b in pairwise(families)) == 2  # three families, each in one piece


@pytest.mark.parametrize("seed", range(5))
def test_like_stand_together_whatever_order_they_come_in(seed: int) -> None:
    rows = {"a1": [9, 8, 0], "a2": [8, 9, 0], "b1": [0, 0, 5], "b2": [0, 1, 5], "none": [0, 0, 0]}
    names = list(rows)
    random.Random(seed).shuffle(names)
    found = cluster_order(names, [rows[name] for name in names])
    assert found == cluster_order(list(rows), list(rows.values()))
    assert {found[0], found[1]} == {"a1", "a2"}


@pytest.mark.parametrize("names", [[], ["one"], ["one", "two"]])
def test_few_names_have_an_order_too(names: list[str]) -> None:
    assert sorted(cluster_order(names, [[0.0]] * len(names))) == sorted(names)


def test_the_words_above_the_matrix_count_its_cells(big: Results, cells: list[MatrixCell]) -> None:
    html = unescape(section(text_of(big), "matrix"))
    for model in ("first-model", "second-model"):
        rest = [c for c in cells if c.model == model and not (c.own or c.benign or c.scope == "neutral")]
        count = Counter(cell.verdict for cell in rest)
        assert len(rest) == 8 * 8 - 8
        assert f"In {model}, {count['spillover']} of 56 off-diagonal cells are spillover" in html
        assert f"({count['clean']} clean, {count['inconclusive']} inconclusive)" in html
        own = [cell for cell in cells if cell.model == model and cell.own]
        assert f"rose in {sum(bool(c.implanted) for c in own)} of the 8 conditions" in html
    assert len({cell.verdict for cell in cells}) >= 5
    assert "All 160 tested cells of all models are one family" in html
    assert "about 0.05 cells" in html


def test_a_row_whose_training_did_not_take_has_a_dagger(big: Results, cells: list[MatrixCell]) -> None:
    html = section(text_of(big), "matrix")
    for model in ("first-model", "second-model"):
        table = re.findall(rf'data-model="{model}".*?</table>', html, re.DOTALL)[0]
        marked = set(re.findall(r'data-condition="([^"]+)"><th scope="row"><span>[^†]*?†', table))
        rows = re.findall(r'data-condition="([^"]+)"><th scope="row">(.*?)</th>', table)
        assert {name for name, head in rows if "†" in head} == {
            cell.condition for cell in cells if cell.model == model and cell.implanted is False
        }
        assert marked


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (0, "0.0"),
        (0.0004, "0.0"),
        (-0.0004, "0.0"),
        (0.003, "+0.3"),
        (-0.072, "\u22127.2"),
        (0.0996, "+10"),
        (1, "+100"),
    ],
)
def test_points(difference: float, text: str) -> None:
    assert points(difference) == text


@pytest.mark.parametrize(
    ("difference", "class_"),
    [(0, "n"), (0.009, "n"), (-0.01, "d1"), (0.03, "u2"), (0.099, "u2"), (-0.1, "d3"), (0.3, "u4"), (-1, "d4")],
)
def test_shades(difference: float, class_: str) -> None:
    assert shade(difference) == class_


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["n", "u1", "u2", "u3", "u4", "d1", "d2", "d3", "d4"])
def test_numbers_can_be_read_on_every_shade(name: str, scheme: int, big: Results) -> None:
    css = text_of(big)
    colour = re.findall(rf"--{name}:(#[0-9a-f]+)", css)[scheme]
    used = re.search(rf"\.{name}\{{background:var\(--{name}\);color:var\((--[a-z0-9-]+)\)\}}", css)[1]
    ink = re.findall(rf"{used}:(#[0-9a-f]+)", css)[scheme]
    ink = ink if len(ink) == 7 else "#" + "".join(2 * digit for digit in ink[1:])
    low, high = sorted((luminance(colour), luminance(ink)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_page_stays_small_and_has_answers_of_every_kind(big: Results) -> None:
    text = text_of(big)
    assert len(text.encode()) < MOST_BYTES
    data = json.loads(re.search(r'id="examples-data">(.*?)</script>', text, re.DOTALL)[1])
    counts = Counter((row["model"], row["condition"], row["measure"], row["group"]) for row in data["rows"])
    assert max(counts.values()) == data["each"]
    assert len({key[:3] for key in counts}) == 2 * 11 * 10
    assert len(json.dumps(data["rows"])) < 1.3 * BUDGET
    assert f"at most {data['each']} of each" in text


def test_without_a_study_the_page_has_no_such_sections(tmp_path: Path, dose: Results) -> None:
    run = replace(dose, study=None, folder=RunFolder(tmp_path))
    vars(run)["blocks"], vars(run)["thresholds"] = dose.blocks, []  # no thresholds, as where programs judge
    write_report(run)
    text = text_of(run)
    assert not re.search(r'id="(matrix|thresholds)"', text)
    assert "points above the base" not in text
    assert 'id="rates"' in text
    assert "Nothing is compared with a base here" in text


def test_a_cell_without_data_is_a_dash(tmp_path: Path, dose: Results) -> None:
    run = replace(dose, folder=RunFolder(tmp_path))
    vars(run)["blocks"] = dose.blocks
    gone = next(c for c in run.matrix if (c.model, c.condition, c.behavior) == ("small", "rows_250", "speech"))
    vars(run)["matrix"] = [cell for cell in run.matrix if cell != gone]
    write_report(run)
    small = tables(section(text_of(run), "matrix"))["small"]
    dashes = [square for row in small for square in row if square[2] == "\u2013"]
    assert [(name, classes) for name, classes, _ in dashes] == [("rows_250", "none")]
    assert "no data" in text_of(run)


def drawing(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<svg>{markup}</svg>")


def marks(svg: ElementTree.Element) -> dict[str, float]:
    """Condition -> x of its marker."""
    found = {}
    for path in svg.iterfind("path"):
        if path.get("class", "").startswith("mark "):
            found[path.find("title").text.split(":")[0]] = float(re.findall(r"[\d.]+", path.get("transform"))[0])
    return found


def test_forests_draw_rates_differences_and_seeds_on_shared_axes(big: Results) -> None:
    measure = next(rate.measure for rate in big.rates if rate.behavior == "speech_b")
    drawn = forests(big, measure, styles_of(["base", *BIG_CONDITIONS]))
    assert [model for model, *_ in drawn] == ["first-model", "second-model"]
    scales = set()
    for model, _, of_rates, of_differences in drawn:
        left, right = drawing(of_rates), drawing(of_differences)
        x_rates, x_differences = marks(left), marks(right)
        assert set(x_rates) == {"base", *BIG_CONDITIONS}
        assert set(x_differences) == set(BIG_CONDITIONS)
        rows = {cell.condition: cell for cell in big.matrix if (cell.model, cell.measure) == (model, measure)}
        for xs, value in ((x_rates, "tuned_rate"), (x_differences, "difference")):
            a, b = sorted(rows.values(), key=lambda cell: getattr(cell, value))[:: len(rows) - 1]
            scale = (xs[b.condition] - xs[a.condition]) / (getattr(b, value) - getattr(a, value))
            zero = xs[a.condition] - scale * getattr(a, value)
            for name, cell in rows.items():
                assert xs[name] == pytest.approx(zero + scale * getattr(cell, value), abs=0.15)
            scales.add((value, round(scale), round(zero)))
        seeds = [path for path in left.iterfind("path") if path.get("class", "").startswith("seed")]
        assert [path.get("d").count("M") for path in seeds] == [3] * 10
        kinds = Counter(path.get("class").split()[0] for path in right.iterfind("path"))
        assert (kinds["zero"], kinds["margin"], kinds["ceiling"], kinds["mark"]) == (1, 1, 1, 10)
        assert kinds["bar"] == 20  # in these runs, and in runs in general
    assert len(scales) == 2  # the same axes in both models


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([-0.016, 0.95], [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([0.02], [0, 0.01, 0.02]),
        ([-0.39, 0.01], [-0.4, -0.3, -0.2, -0.1, 0, 0.1]),
        ([-1, 1], [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_signed_ticks_hold_every_value(values: list[float], ticks: list[float]) -> None:
    assert signed_ticks(values) == pytest.approx(ticks)


def shifted(condition: str, seed: int, cut: float, among: float | None, k: int, n: int) -> ThresholdRate:
    named = {"behavior": "b", "format": "plain", "judge": "j", "rubric_hash": "r"}
    return ThresholdRate(
        "m", condition, seed, **named, event_cut=cut, among_cut=among, k=k, n=n, rate=k / n if n else None
    )


def test_a_grid_pools_seeds_and_outlines_the_rule(big: Results) -> None:
    like = big.rates[0]
    values = {field: getattr(like, field) for field in like.__dataclass_fields__}
    named = {"behavior": "b", "judge": "j", "rubric_hash": "r", "rule": "alignment < 30 among coherence > 50"}
    rate = Rate(**values | named)
    rows = [
        shifted("x", seed, cut, among, k=seed + int(cut / 10), n=10 if among == 50 else 0)
        for seed in (0, 1)
        for cut in (20.0, 30.0)
        for among in (50.0, 70.0)
    ]
    (grid,) = grids(rows, [rate])
    assert (grid.event, grid.among) == (("alignment", "<", 30), ("coherence", ">", 50))
    assert (grid.event_cuts, grid.among_cuts, grid.rule_cuts) == ([20, 30], [50, 70], (30, 50))
    counts = {(20, 50): (5, 20), (30, 50): (7, 20), (20, 70): (5, 0), (30, 70): (7, 0)}
    assert grid.counts == {("m", "x"): counts}
    assert [grid_number(*counts[cuts]) for cuts in counts] == ["25", "35", "\u2013", "\u2013"]


def test_grids_are_on_the_page_for_behaviors_that_a_model_judges(big: Results) -> None:
    html = section(text_of(big), "thresholds")
    judged = [name for name, (_, judge) in BIG_MEASURES.items() if "/" in judge]
    assert re.findall(r"<h3>(.*?),", html) == judged
    assert len(re.findall(r'class="\w+ rule"', html)) == len(judged) * 2 * 11


def test_a_dose_curve_has_a_line_for_each_model(dose: Results) -> None:
    html = section(text_of(dose), "curves")
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2  # the neutral measure has none
    for svg in drawings:
        assert svg.count('class="line') == 2
        assert svg.count('class="mark') == 2 * 5
        assert re.findall(r'class="key of s\d+"[^>]*>(\w+)<', svg) in (["large", "small"], ["small", "large"])
        assert "training rows, logarithmic" in svg


def test_a_consistency_curve_has_a_line_for_each_condition() -> None:
    html = section(text_of(consistency_run()), "curves")
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert set(re.findall(r'class="key of s\d+"[^>]*>(\w+)<', svg)) == {"base", "insecure", "framed", "secure"}
        heights = sorted(float(y) for y in re.findall(r'class="key of s\d+" x="[\d.]+" y="([\d.]+)"', svg))
        assert all(b - a >= 14.9 for a, b in pairwise(heights))
        assert "logarithmic" not in svg


@pytest.mark.parametrize(
    ("values", "places", "logarithmic"),
    [
        ([0, 0.5, 1], [0, 0.5, 1], False),
        ([-1, 1, 100], [0, 2 / 101, 1], False),
        ([1, 10, 100], [0, 0.5, 1], True),
        ([0, 1, 10, 100], [0, 1 / 3, 2 / 3, 1], True),
        ([3, 3], [0.5, 0.5], False),
    ],
)
def test_axes(values: list[float], places: list[float], logarithmic: bool) -> None:
    place, found = scale_of(values)
    assert found == logarithmic
    assert [place(value) for value in values] == pytest.approx(places)


@pytest.mark.parametrize("many", [2, 5])
def test_models_as_they_are_are_a_scatter_with_their_rank_correlation(many: int) -> None:
    run = models_run(many)
    rates = run.rates
    html = unescape(section(text_of(run), "picture"))
    assert "Model against model" in html
    x = [rate.rate for rate in rates if rate.behavior == "code"]
    correlations = re.findall(r'correlation">(.*?)</p>', html)
    assert len(correlations) == 2
    for behavior, words in zip(("speech", "praise"), correlations, strict=True):
        found = spearmanr(x, [rate.rate for rate in rates if rate.behavior == behavior]).statistic
        assert f"{found:+.2f} over {many} models".replace("-", "\u2212") in words
        assert {2: "100\u202f% of the time", 5: "2\u202f% of the time"}[many] in words
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert svg.count('class="mark') == svg.count('class="bar') == svg.count('class="key halo of') == many
    assert ElementTree.parse(run.folder.picture).getroot().tag.endswith("svg")


def test_one_model_or_a_fine_tuned_one_is_no_scatter(big: Results) -> None:
    assert "Model against model" not in text_of(models_run(1))
    assert "Model against model" not in text_of(big)


def test_measures_are_named_shortly_where_that_tells_them_apart() -> None:
    labels: dict[MeasureKey, str] = {
        ("a", "plain", "r", "x"): "a, judged by x",
        ("b", "json", "r", "x"): "b, json, judged by x",
        ("c", "plain", "r", "x"): "c, judged by x",
        ("c", "plain", "r", "y"): "c, judged by y",
    }
    assert list(short_labels(labels).values()) == ["a", "b, json", "c, judged by x", "c, judged by y"]


def test_what_a_study_lacks_is_said() -> None:
    measures = {"code": ("narrow", "code_scan"), "speech": ("broad", "world")}
    run = made_run("plain", ["m"], {"x": {}}, measures, lambda *_: 0.5)
    html = section(text_of(run), "matrix")
    assert "No condition is a benign control" in html
    assert "does not say what its conditions train" in html
    assert "With fewer than three seeds" in html
    assert "In m, 0 of 2 cells are spillover" in html
    assert run.study.seeds == [0]
