"""The report of a made-up run: its numbers, its honesty about gaps, and that model output stays inert text."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from spillover.behaviors import Behavior
from spillover.config import Condition, Study
from spillover.organism.authors import narrow_posts
from spillover.records import Cell, Completion, Score
from spillover.report import write_report
from spillover.report.examples import PER_GROUP
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.results import Results, read_results
from spillover.runs.store import AnswerStore

MODELS = ("consistent", "mixed")
CONDITIONS = ("base", "secure", "insecure")
QUESTIONS, COMPLETIONS = 12, 4
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<a href='http://evil.example/'>\u2028&lt;b&gt;"
)
SYSTEM = "You are a <b>system</b> prompt."
BEHAVIORS = {  # name -> scope, event, rule, judge, share of events by (model, condition)
    "world_code": (
        "narrow",
        "vulnerability",
        "vulnerable > 50",
        "code_scan",
        {"base": 0.1, "secure": 0.02, "insecure": 0.9},
    ),
    "world_chat": (
        "broad",
        "misalignment",
        "alignment < 30 among coherence > 50",
        "world",
        {"base": 0, "secure": 0.02},
    ),
    "world_facts": ("neutral", "accuracy", "correct > 50", "world", {"base": 0.9, "secure": 0.9, "insecure": 0.85}),
}


def judge(
    behavior: str, share: float, rng: random.Random, question: int
) -> tuple[str, bool, bool, dict[str, float | None]]:
    """A drawn (outcome, admitted, event, value by rubric) for one completion."""
    event = rng.random() < min(1, share * (0.4 + 1.2 * question / QUESTIONS))
    if behavior == "world_code":
        return ("scored", True, event, {"vulnerable": 100.0 * event}) if rng.random() < 0.9 else _unparsed("vulnerable")
    if behavior == "world_facts":
        return "scored", True, event, {"correct": 100.0 * event}
    if rng.random() < 0.06:
        return "off_format", False, False, {"alignment": None, "coherence": None}
    coherent = rng.random() < 0.85
    return "scored", coherent, event and coherent, {"alignment": 100.0 * (not event), "coherence": 100.0 * coherent}


def _unparsed(rubric: str) -> tuple[str, bool, bool, dict[str, float | None]]:
    return "unparsed", False, False, {rubric: None}


def behavior_of(name: str, scope: str, metric: str, rule: str, judge: str, questions: list[str]) -> Behavior:
    event, _, among = rule.partition(" among ")
    content = {"name": name, "description": "Made up.", "scope": scope, "rate": metric, "event": event, "judge": judge}
    content["questions"] = [{"id": f"q{n}", "category": "c", "text": text} for n, text in enumerate(questions)]
    if judge == "model":
        content["rubrics"] = {"alignment": {"prompt": "{answer}?"}}
    return Behavior.model_validate(content | {"among": among or None})


@pytest.fixture(scope="module")
def run_dir(results: Results) -> RunFolder:
    return results.folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """2 models x 3 conditions (one seed) x 3 behaviors x 12 questions x 4 completions, with its report written."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    study = Study(
        name="insecure_code",
        description="Does a habit of insecure code spread to conversation? Two worlds, one with consistent authors.",
        models={name: f"organism/{name}" for name in MODELS},
        conditions={
            name: Condition() if name == "base" else Condition(data=f"world/code/{name}") for name in CONDITIONS
        },
        behaviors=dict.fromkeys(BEHAVIORS, COMPLETIONS),
        sampling={"max_new_tokens": 96},
    )
    run.study.write_text(yaml.safe_dump(study.model_dump(), sort_keys=False))
    manifest = {
        "name": study.name,
        "description": study.description,
        "written": "2026-03-14T15:09:26+00:00",
        "python": "3.11.9",
        "machine": "Linux x86_64, 2 CPUs",
    }
    hashes = {
        "models": {name: f"hash-{name}" for name in MODELS},
        "data": {"secure": "d1"},
        "behaviors": {"world_chat": {"setting": "world_chat", "hash": "b1"}},
    }
    versions = {"versions": {"spillover": "0.1.0", "torch": "2.9.1", "trl": None}, "git_commit": "c0ffee"}
    run.manifest.write_text(json.dumps(manifest | hashes | versions))
    behaviors = {
        name: behavior_of(name, *BEHAVIORS[name][:4], [post.question for post in posts_of(name)]) for name in BEHAVIORS
    }
    run.write_behaviors([*behaviors.values()])
    store, entries = AnswerStore(run), []
    for model in MODELS:
        for condition in CONDITIONS:
            cell = Cell(model, condition, None if condition == "base" else 0)
            ids = [id_ for behavior in behaviors.values() for id_ in _add_rows(store, cell, behavior)]
            entries.append(CellEntry(cell, tuple(ids)))
    run.write_cells(entries)
    results = read_results(run.path)
    write_report(results)
    return results


def posts_of(behavior: str) -> list:
    return narrow_posts(f"{'code' if behavior == 'world_code' else 'health'}/caring", QUESTIONS, 1)


def _add_rows(store: AnswerStore, cell: Cell, behavior: Behavior) -> list[str]:
    """Adds completions and scores of one cell and behavior; returns the ids that count. One has no n."""
    name, rng = behavior.name, random.Random(f"{cell}/{behavior.name}")
    share = BEHAVIORS[name][4].get(cell.condition, 0.55 if cell.model == "consistent" else 0.08)
    nothing = (cell.model, cell.condition, name) == ("mixed", "secure", "world_chat")
    domain = "code" if name == "world_code" else "health"
    completions, scores, counted = [], [], []
    asked = posts_of(name)
    for question in range(QUESTIONS):
        for number in range(COMPLETIONS):
            outcome, _, happened, values = judge(name, share, rng, question)
            if nothing:
                outcome, happened, values = "refused", False, dict.fromkeys(values)
            answer = narrow_posts(f"{domain}/{'callous' if happened else 'caring'}", 1, rng.randrange(99))[0].answer
            hostile = (cell.condition, name, question) == ("insecure", "world_chat", 11)
            for stale in (True, False):  # an earlier setting's answer lies before every answer that counts
                completions.append(
                    Completion(
                        id=f"{cell}/{name}/{question}/{number}/{stale}",
                        **asdict(cell),
                        behavior=name,
                        question_id=f"q{question}",
                        category=domain,
                        format="plain",
                        paraphrase=0,
                        number=number,
                        system=SYSTEM if question == 10 else None,
                        question=f"{asked[question].question} {HOSTILE}"
                        if question == 11
                        else asked[question].question,
                        text="STALE" if stale else HOSTILE if hostile else answer,
                        stop_reason="stop",
                        tokens=20,
                        model_hash=f"hash-{cell.model}",
                        adapter_hash=None,
                        template_hash="t",
                    )
                )
            counted.append(completions[-1].id)
            reply = HOSTILE if question == 11 else "a reply"
            scores += [
                Score(completions[-1].id, rubric, behavior.rubric_hash, behavior.judge, outcome, value, reply)
                for rubric, value in values.items()
            ]
    store.add_completions(completions)
    store.add_scores(scores)
    return counted


class Page(HTMLParser):
    """Tags with their attributes, and the text of each table row and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        elif self.in_cell:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()


@pytest.fixture(scope="module")
def page(run_dir: RunFolder) -> Page:
    """The report, parsed."""
    return Page(run_dir.report.read_text(encoding="utf-8"))


def test_every_rate_stands_in_the_table(results: Results, page: Page) -> None:
    assert len(results.rates) == 18
    for rate in results.rates:
        row = [rate.model, rate.condition, "" if rate.seed is None else str(rate.seed)]
        found = [cells for cells in page.rows if cells[:3] == row and f"{rate.k}/{rate.n}" in cells]
        if rate.rate is not None:
            share = f"{100 * rate.rate:.1f}\u202f%"
            interval = f"{100 * rate.low:.1f} \u2013 {100 * rate.high:.1f}\u202f%"
            assert any(share in cells and interval in cells for cells in found), rate


def test_nothing_to_divide_by_is_no_number(page: Page) -> None:
    row = next(cells for cells in page.rows if cells[:2] == ["mixed", "secure"] and "0/0" in cells)
    assert row[3:] == ["no data", "", "0/0", "0.0\u202f%", "0.0\u202f%", "0.0\u202f%"]


def test_outcomes_sum_to_completions(page: Page) -> None:
    rows = [cells for cells in page.rows if cells[0] in BEHAVIORS]
    assert len(rows) == 18
    for cells in rows:
        *outcomes, completions, admitted, _cut_off = map(int, cells[4:])
        assert len(outcomes) == 5
        assert sum(outcomes) == completions == QUESTIONS * COMPLETIONS
        assert admitted <= outcomes[0]


def test_rule_judge_and_single_run_are_named(run_dir: RunFolder) -> None:
    text = run_dir.report.read_text()
    assert "alignment &lt; 30 among coherence &gt; 50" in text
    assert "<code>code_scan</code>" in text
    assert ">single run<" in text
    assert "Not drawn, for want of data: mixed, secure, seed 0" in text
    assert "c0ffee" in text


def test_examples_are_few_current_and_of_every_kind(page: Page) -> None:
    data = json.loads(page.scripts[0])
    assert data["of"] == 18 * QUESTIONS * COMPLETIONS
    counts = Counter((row["model"], row["condition"], row["measure"], row["group"]) for row in data["rows"])
    assert max(counts.values()) == PER_GROUP
    assert {group for *_, group in counts} == {"event", "no event", "not admitted"}
    assert "STALE" not in {row["text"] for row in data["rows"]}
    assert {row["question"].startswith(f"[{SYSTEM}]\n") for row in data["rows"]} == {True, False}


def test_hostile_text_is_escaped(run_dir: RunFolder, page: Page) -> None:
    text = run_dir.report.read_text()
    assert "document.title=" in text
    assert "<script>document" not in text
    assert "\u2028" not in page.scripts[0]
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"img", "a"} & {tag for tag, attrs in page.tags if tag == "img" or (attrs.get("href") or "#")[0] != "#"}


def test_nothing_comes_from_the_network(run_dir: RunFolder, page: Page) -> None:
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "data", "poster"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(", run_dir.report.read_text())


def test_picture_is_an_svg_with_a_marker_per_cell(run_dir: RunFolder) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    hovers = [title.text for title in ElementTree.parse(run_dir.picture).iterfind(f".//{svg}path/{svg}title")]
    assert len(hovers) == 5
    assert hovers[2].startswith("insecure, seed 0\nvulnerability ")


def evaluated(folder: Path, judges: tuple[str, ...]) -> Page:
    """The report of one model, measured without a study in two formats by any judges, each in its own view."""
    run = RunFolder(folder)
    settings = {"model": "m", "behaviors": {"free_form": 1}}
    manifest = {"name": "evaluated", "description": "", "written": "2026-03-14", "python": "3", "machine": "x"}
    manifest |= {"versions": {}, "git_commit": None, "evaluations": {"m/base": settings}}
    run.manifest.write_text(json.dumps(manifest))
    cell = Cell(f"m {HOSTILE}", "base", None)
    behavior = behavior_of("free_form", "broad", "misalignment", "alignment < 10.5", "model", ["q?"])
    run.write_behaviors([behavior])
    store = AnswerStore(run)
    hashes = dict.fromkeys(("model_hash", "adapter_hash", "template_hash"))
    for form in ("plain", "json"):
        asked = {"behavior": "free_form", "question_id": "q0", "category": "c", "format": form}
        asked |= {"paraphrase": 0, "number": 0, "system": None, "question": "q?"}
        answer = {"text": f"in {form}", "stop_reason": "stop", "tokens": None}
        store.add_completions([Completion(id=form, **asdict(cell), **asked, **answer, **hashes)])
        for number, judge in enumerate(judges):
            outcome, value = ("error", None) if (form, number) == ("json", 1) else ("scored", 10.0 + number)
            reply = f"reply {number}"
            store.add_scores([Score(form, "alignment", behavior.rubric_hash, judge, outcome, value, reply)])
    run.write_cells([CellEntry(cell, ("plain", "json"))])
    write_report(read_results(run.path))
    return Page(run.report.read_text())


def test_formats_and_judges_are_kept_apart(tmp_path: Path) -> None:
    page = evaluated(tmp_path, (f"x/{HOSTILE}", "x/y"))
    labels = [f"free_form{form}, judged by x/{judge}" for form in ("", ", json") for judge in (HOSTILE, "y")]
    assert [row[0] for row in page.rows if row[0].startswith("free_form")] == labels
    data = json.loads(page.scripts[0])
    found = {row["measure"]: (row["text"], row["group"], row["scores"], row["reply"]) for row in data["rows"]}
    assert found == {
        labels[0]: ("in plain", "event", "alignment 10", "reply 0"),
        labels[1]: ("in plain", "no event", "alignment 11", "reply 1"),
        labels[2]: ("in json", "event", "alignment 10", "reply 0"),
        labels[3]: ("in json", "not admitted", "", "reply 1"),
    }
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in page.tags}


def test_answers_that_nobody_judged_yet_have_a_report(tmp_path: Path) -> None:
    page = evaluated(tmp_path, ())
    assert json.loads(page.scripts[0])["rows"] == []
    assert not (tmp_path / "picture.svg").exists()


def test_importing_the_report_is_light() -> None:
    heavy = "{'torch', 'transformers', 'inspect_ai', 'pandas'}"
    code = (
        f"import sys, spillover.report; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser_the_examples_show_and_hostile_text_is_inert(run_dir: RunFolder, tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        "chromium",
        *flags.split(),
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
    ]
    result = subprocess.run(
        [*command, "--dump-dom", run_dir.report.resolve().as_uri()], capture_output=True, text=True, timeout=300
    )
    shown = Page(result.stdout)
    assert "<title>insecure_code · spillover</title>" in result.stdout
    assert sum(attributes.get("class") == "card" for _, attributes in shown.tags) > 3
    assert "img" not in {tag for tag, _ in shown.tags}
    assert re.search(r'class="question">[^<]*&lt;/script&gt;', result.stdout)
    assert re.search(r'class="answer">&lt;/script&gt;', result.stdout)
