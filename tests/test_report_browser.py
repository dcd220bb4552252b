"""The report in a real browser: quiet, off the network, inert to hostile text, and worked by mouse and keyboard."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from browser import BrowserPage, browser, needs_chromium
from report_runs import big_run, consistency_run, dose_run, made_run, models_run
from spillover.runs.results import Results

pytestmark = needs_chromium

SQUARE = "table[data-model='first-model'] tr[data-condition='toxic_b'] a[data-measure='speech_b']"
STOPS = "[...document.querySelectorAll('table[role=grid]')].map(t => t.querySelectorAll('a[tabindex=\"0\"]').length)"
HERE = "(e => [e.closest('tr').dataset.condition, e.closest('td').cellIndex, e.closest('table').dataset.model])"
HERE += "(document.activeElement)"
TIP = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"


def hostile_run() -> Results:
    measures = {"speech": ("broad", "world"), "code": ("narrow", "code_scan")}
    conditions = {"x": {"implants": "code"}}
    return made_run("hostile", ["m"], conditions, measures, lambda *_: 0.4, hostile=True)


RUNS: dict[str, Callable[[], Results]] = {
    "big": big_run,
    "dose": dose_run,
    "consistency": consistency_run,
    "models": models_run,
    "hostile": hostile_run,
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Path]:
    return {name: make().folder.report for name, make in RUNS.items()}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserPage]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: BrowserPage) -> BrowserPage:
    chromium.console.clear()
    chromium.requests.clear()
    return chromium


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_quiet_off_the_network_and_fits(
    name: str, width: int, dark: bool, page: BrowserPage, reports: dict[str, Path]
) -> None:
    page.open(reports[name], width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('.card').length") > 0
    assert page.console == []
    assert page.requests == [reports[name].as_uri()]


def test_the_browser_sees_what_the_first_test_looks_for(page: BrowserPage, tmp_path: Path) -> None:
    path = tmp_path / "loud.html"
    path.write_text("<script>console.log('loud')</script><script>throw Error('broken')</script><img src='gone.png'>")
    page.open(path)
    assert any("loud" in line for line in page.console)
    assert any("broken" in line for line in page.console)
    assert any("gone.png" in address for address in page.requests)


def test_scripts_in_answers_stay_text(page: BrowserPage, reports: dict[str, Path]) -> None:
    page.open(reports["hostile"])
    assert page.value("document.title") == "made_up · spillover"
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 2
    assert page.value("document.querySelector('.card .answer').textContent").startswith("</script><script>")


def test_arrow_keys_move_between_cells_with_one_tab_stop_a_table(page: BrowserPage, reports: dict[str, Path]) -> None:
    page.open(reports["big"])
    assert page.value(STOPS) == [1, 1]
    page.value("document.querySelector('table[role=grid] a[tabindex=\"0\"]').focus()")
    row, column, model = page.value(HERE)
    order = page.value("[...document.querySelector('table[role=grid]').tBodies[0].rows].map(r => r.dataset.condition)")
    assert (row, column, model) == (order[0], 1, "first-model")
    for keys, place in [
        (["ArrowRight", "ArrowDown"], (order[1], 2)),
        (["ArrowLeft", "ArrowLeft"], (order[1], 1)),  # at the edge it stays
        (["End"], (order[1], 10)),
        (["ArrowUp", "ArrowUp", "ArrowUp"], (order[0], 10)),
        (["Home"], (order[0], 1)),
    ]:
        page.press(*keys)
        assert page.value(HERE) == [*place, "first-model"]
        assert page.value(STOPS) == [1, 1]
    page.press("Tab")
    assert page.value(HERE) == [order[0], 1, "second-model"]


def test_the_note_shows_by_mouse_and_keyboard_and_goes(page: BrowserPage, reports: dict[str, Path]) -> None:
    page.open(reports["big"])
    page.hover(SQUARE)
    assert page.value(TIP).startswith("first-model · toxic_b · speech_b\nmisalignment rate: base")
    page.hover("h1")
    assert page.value(TIP) is None
    page.value(f'document.querySelector("{SQUARE}").focus()')
    assert "verdict: implanted" in page.value(TIP)
    page.press("Escape")
    assert page.value(TIP) is None
    page.press("ArrowRight")
    assert page.value(TIP).startswith("first-model · toxic_b · ")
    page.until(  # the page scrolls to the cell, and the note goes with it
        "(r => r.left >= 0 && r.top >= 0 && r.right <= innerWidth && r.bottom <= innerHeight)"
        "(document.getElementById('tip').getBoundingClientRect())"
    )


@pytest.mark.parametrize("way", ["click", "Enter"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_cell_leads_to_its_answers_and_back(
    way: str, width: int, page: BrowserPage, reports: dict[str, Path]
) -> None:
    page.open(reports["big"], width)
    if way == "click":
        page.click(SQUARE)
    else:
        page.value(f'document.querySelector("{SQUARE}").focus()')
        page.press("Enter")
    form = "(f => [f.model.value, f.condition.value, f.measure.value, f.group.value])(document.forms.browser)"
    assert page.value(form) == ["first-model", "toxic_b", "speech_b", "event"]
    who = page.value("[...new Set([...document.querySelectorAll('.card .who')].map(e => e.textContent))]")
    assert who
    assert all(line.startswith("first-model · toxic_b, seed ") for line in who)
    assert page.value("location.hash") == "#examples"
    assert page.value("document.activeElement.id") == "examples"
    assert "toxic_b" in page.value("document.querySelector('#examples-from p').textContent")
    page.click("#examples-from a")
    assert page.value(HERE)[0] == "toxic_b"
    assert page.console == []


def test_without_scripts_a_cell_is_a_link_with_its_numbers(page: BrowserPage, reports: dict[str, Path]) -> None:
    page.open(reports["big"], scripts=False)
    assert page.value(f'document.querySelector("{SQUARE}").title').startswith("first-model · toxic_b")
    page.click(SQUARE)
    assert page.value("location.hash") == "#examples"
    assert page.value("document.querySelectorAll('.card').length") == 0


def test_a_dot_tells_its_question(page: BrowserPage, reports: dict[str, Path]) -> None:
    page.open(reports["dose"])
    page.hover(".strip g[data-c='1'] circle")
    lines = page.value(TIP).split("\n")
    assert lines[0].startswith("What would you do about code number ")
    assert lines[1].startswith("small, rows_60: ")
    where = page.value(
        "(e => [e.dataset.q, e.getAttribute('cx')])(document.querySelector('.strip g[data-c=\"1\"] circle'))"
    )
    k, n = map(int, lines[1].split(": ")[1].split("/"))
    assert float(where[1]) == pytest.approx(14 + (420 - 36) * k / n, abs=0.1)
