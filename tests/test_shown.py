"""What stands beside a rate (cut off answers, thoughts, means of scores), and how numbers and tables are shown."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from report_runs import dose_run
from spillover import records
from spillover.behaviors import load_behavior
from spillover.cli import tables
from spillover.interop.importing import import_answers
from spillover.interop.tables import Options
from spillover.models.endpoint import complaint
from spillover.records import percent
from spillover.report.examples import examples
from spillover.report.finding import finding
from spillover.report.thresholds import grid_number
from spillover.runs.comparing import Compared, compare_targets, overall, warnings
from spillover.runs.results import results_from
from spillover.stats import compare, verdicts

CASES = Path(__file__).parent / "cases" / "shown"


def read(name):
    return yaml.safe_load((CASES / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", read("shares.yaml"), ids=lambda case: f"{case['k']} of {case['n']}")
def test_a_share_that_is_neither_0_nor_1_never_looks_like_it(case):
    assert percent(case["k"] / case["n"]) == case["shown"]


def arm(events, cut):
    """Counts of 30 questions with 10 answers each, events and cut off answers spread over them."""
    return {f"q{i}": (events // 30 + (i < events % 30), 10, 10, cut // 30 + (i < cut % 30)) for i in range(30)}


@pytest.mark.parametrize("case", read("cut_off.yaml"), ids=str)
def test_with_a_tenth_cut_off_there_is_no_verdict(case):
    comparison = compare(arm(case["base"], case["base_cut"]), [arm(case["tuned"], case["tuned_cut"])], 0.05)
    (decided,) = verdicts([comparison], 0.05)
    assert decided.verdict == case["verdict"]
    rows = [Compared("m", "misalignment", "rule", "judge", decided)]
    assert overall(rows) == case["verdict"]
    assert any("cut off at max_new_tokens" in line for line in warnings(rows, 0.05)) is case["said"]


@pytest.mark.parametrize("case", read("seeds_cut_off.yaml"), ids=str)
def test_a_seed_with_a_tenth_cut_off_gives_no_verdict(case):
    (decided,) = verdicts([compare(arm(0, 0), [arm(240, cut) for cut in case["cut"]], 0.05)], 0.05)
    assert (decided.verdict, decided.no_verdict) == (case["verdict"], case["why"])


@pytest.fixture(scope="module")
def run():
    return dose_run()


def changed(run, condition, **changes):
    """The results of the run with every answer of a condition changed."""
    rows = {id_: replace(row, **changes) if row.condition == condition else row for id_, row in run.completions.items()}
    return replace(run, completions=rows)


def test_an_arm_that_is_cut_off_has_no_verdict_anywhere(run):
    treated = next(c.condition for c in run.matrix if c.verdict == "spillover" and not c.own)
    model = next(c.model for c in run.matrix if c.condition == treated)
    cut = changed(run, treated, stop_reason="length")
    assert {c.verdict for c in cut.matrix if c.condition == treated} <= {"inconclusive", "neutral"}
    assert any("allow no verdict: too many answers are cut off" in line for line in finding(cut).sentences)
    assert any(f"/{treated}" in line and "100.0 % of the answers are cut off" in line for line in cut.cautions)
    rows = compare_targets(cut, f"{model}/base", f"{model}/{treated}", 0.02)
    assert overall(rows) == "inconclusive"
    assert not [line for line in run.cautions if "cut off" in line]  # a near miss: nothing is said of the run as it was


def test_thoughts_stand_beside_the_rate_and_are_never_pooled_silently(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    treated = next(c.condition for c in run.matrix if not c.benign)
    thinking = changed(run, treated, thought="<b>Let me see.</b>", template_thought="opened")
    assert any("factor of its own" in line for line in thinking.cautions)
    tables.rates_table(thinking)
    shown = capsys.readouterr().out
    assert "100.0 % with a thought" in shown
    assert "thought opened by the template" in shown
    assert {row["thought"] for row in examples(thinking)["rows"]} == {None, "<b>Let me see.</b>"}
    tables.rates_table(run)
    assert "thought" not in capsys.readouterr().out  # no noise where there are none


def with_thoughts(row, number, template, thinks):
    """The answer with a thought if it thinks; half of the templates open a thought and half close it if `mixed`."""
    own = ("opened", "closed")[number % 2] if template == "mixed" else template
    return replace(row, template_thought=own, thought="Let me see." if thinks else None)


@pytest.mark.parametrize("case", read("thoughts.yaml"), ids=str)
def test_a_comparison_says_how_its_targets_differ_in_thoughts(run, case):
    treated = next(c for c in run.matrix if not c.benign)
    sides = {"base": case["base"], treated.condition: case["tuned"]}
    rows = {
        id_: with_thoughts(row, number, *sides[row.condition])
        for number, (id_, row) in enumerate(run.completions.items())
        if row.condition in sides
    }
    results = replace(run, completions=rows)
    compared = compare_targets(results, f"{treated.model}/base", f"{treated.model}/{treated.condition}", 0.02)
    for lines, measures in ((warnings(compared, 0.02), len(compared)), (results.cautions, len(results.labels))):
        said = [line for line in lines if "factor of its own" in line or "think" in line]
        assert all(case["said"] in line for line in said)
        assert len(said) == (measures if case["said"] else 0)


@pytest.mark.parametrize("case", read("shares.yaml"), ids=lambda case: f"{case['k']} of {case['n']}")
def test_no_place_rounds_a_share_to_0_or_100(run, case):
    share = case["k"] / case["n"]
    decided = replace(compare(arm(0, 0), [arm(240, 0)], 0.05), base_coverage=share, base_cut_off=share)
    words = tables._compared_in_words(decided)
    assert [words[name].split(" to ")[0] for name in ("coverage", "cut off")] == [case["shown"]] * 2
    assert (float(grid_number(case["k"], case["n"])) in (0, 100)) == (share in (0, 1))


def test_means_of_scores_stand_beside_the_rates(run):
    for row in run.score_means:
        block = next(
            b
            for b in run.blocks
            if (b.cell.model, b.cell.condition, b.cell.seed) == (row.model, row.condition, row.seed)
            and (b.behavior.name, b.format, b.judge) == (row.behavior, row.format, row.judge)
        )
        scores = [block.scores.get((c.id, row.rubric)) for c in block.completions]
        values = [score.value for score in scores if score is not None and score.value is not None]
        assert row.n == len(values)
        if values:
            assert row.mean == pytest.approx(statistics.fmean(values))
            assert row.sd == pytest.approx(statistics.stdev(values))
    assert any(row.mean not in (None, 0, 100) for row in run.score_means)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_table_is_squeezed_or_cut(run, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert Console().width == width
    tables.rates_table(run)
    shown = capsys.readouterr().out
    headings = [line for label in run.labels.values() for line in label.split("\n")]
    if width >= 80:
        assert [heading for heading in headings if heading not in shown] == []
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith(("┃", "│"))) <= width


def test_a_short_key_masks_no_letters_and_a_real_one_is_masked(monkeypatch):
    monkeypatch.setenv("A_API_KEY", "a")
    monkeypatch.setenv("B_API_KEY", "sk-secret-0123456789")
    assert complaint("a bad answer with sk-secret-0123456789") == "a bad answer with ***"


def test_the_same_behavior_by_another_path_is_the_same(tmp_path):
    from spillover.config import Study
    from spillover.runs.inputs import read_inputs

    path = tmp_path / "mine.yaml"
    path.write_text((Path(records.__file__).parent / "behaviors" / "world_facts.yaml").read_text())
    study = Study(
        name="s",
        models={"m": "organism/consistent"},
        conditions={"base": {}, "x": {"data": "world/code/caring", "rows": 2, "implants": str(path)}},
        behaviors={"world_facts": 1, str(path): 2},
        sampling={"max_new_tokens": 8},
    )
    inputs = read_inputs(study, tmp_path)
    assert inputs.battery("base").behaviors == ((load_behavior("world_facts"), 2),)
    assert {
        *inputs.hashes["behaviors"]["world_facts"]["also"],
        inputs.hashes["behaviors"]["world_facts"]["setting"],
    } == {
        "world_facts",
        str(path),
    }
    assert results_from([], []).rates == []


@pytest.mark.parametrize("answers", [0, 3])
def test_scores_that_a_program_gives_on_import_are_counted(tmp_path, answers):
    lines = [json.dumps({"question": f"Add {n}.", "answer": f"def f(x):\n    return x + {n}"}) for n in range(answers)]
    table = tmp_path / "answers.jsonl"
    table.write_text("\n".join([*lines, json.dumps({"question": "Add.", "answer": "def f(x):\n    return x"})]) + "\n")
    found = import_answers([table], tmp_path / "run", Options(behavior="insecure_code"))
    rows = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert found.scores == len(rows) >= answers + 1
