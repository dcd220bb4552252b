"""The documents keep up with the code: examples run, links resolve, generated pages are up to date.

`python tests/test_docs.py --write` writes the generated parts of docs/cli.md and docs/api.md anew.
"""

import doctest
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from typer.main import get_command

import spillover
from spillover.cli import app
from spillover.config import Condition, Control, Curve, Resources, Sampling, Study, Training

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
NOTEBOOK = DOCS / "quickstart.ipynb"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")), NOTEBOOK]
MARK = "<!-- Written by python tests/test_docs.py --write; everything below this line is overwritten. -->\n"
WIDTH = 100  # characters of a line of help, or of a call
INDENT = " " * 4


def commands(group, prefix="spillover"):
    """(full name, command) of every command, in the order of the help page."""
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        yield from commands(command, full) if hasattr(command, "commands") else [(full, command)]


def plain_help(name: str, command) -> str:
    """The help page of a command as plain text, without the boxes and colours of a terminal."""
    command.rich_markup_mode = None
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


def cli_pages() -> str:
    """What stands below the mark in docs/cli.md: the help of every command."""
    return "\n".join(
        f"## {name}\n\n```text\n{plain_help(name, command)}\n```\n" for name, command in commands(get_command(app))
    )


def default_text(value: object) -> str:
    """A default value as it is written in a call; three dots where that would be long."""
    return repr(value) if value is None or isinstance(value, str | int | float | tuple) else "..."


def call_text(name: str, value: object) -> str:
    """A function or class as it is called: names of its arguments with their defaults."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return name
    parts, keyword_only = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts, keyword_only = [*parts, "*"], True
        default = "" if parameter.default is parameter.empty else f"={default_text(parameter.default)}"
        parts.append(parameter.name + default)
    call = f"{name}({', '.join(parts)})"
    return (
        call
        if len(call) <= WIDTH
        else f"{name}(\n{textwrap.fill(', '.join(parts), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)}\n)"
    )


def examples_text(doc: str) -> str:
    """The examples of a docstring, as a Python prompt shows them."""
    lines = []
    for example in doctest.DocTestParser().get_examples(doc):
        source = example.source.rstrip("\n").splitlines()
        lines += [f">>> {source[0]}", *(f"... {line}" for line in source[1:]), *example.want.splitlines()]
    return "\n".join(lines)


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


def api_pages() -> str:
    """What stands below the mark in docs/api.md: every public name with its call, first sentence and example."""
    sections = []
    for name in spillover.__all__:
        value = getattr(spillover, name)
        doc = inspect.getdoc(value) or ""
        section = f"## {name}\n\n```text\n{call_text(name, value)}\n```\n\n{first_sentence(doc)}\n"
        if examples := examples_text(doc):
            section += f"\n```text\n{examples}\n```\n"
        sections.append(section)
    return "\n".join(sections)


GENERATED = {DOCS / "cli.md": cli_pages, DOCS / "api.md": api_pages}


def write_generated() -> None:
    """Writes what stands below the mark of every generated page anew."""
    for path, text in GENERATED.items():
        above = path.read_text(encoding="utf-8").partition(MARK)[0]
        path.write_text(f"{above}{MARK}\n{text()}", encoding="utf-8")


@pytest.mark.parametrize("path", GENERATED, ids=[path.name for path in GENERATED])
def test_a_generated_page_is_up_to_date(path):
    below = path.read_text(encoding="utf-8").partition(MARK)[2]
    assert below.strip() == GENERATED[path]().strip(), "write it anew: python tests/test_docs.py --write"


@pytest.mark.parametrize("part", [Study, Condition, Control, Training, Sampling, Curve, Resources])
def test_every_setting_is_on_the_page_of_the_study_file(part):
    page = (DOCS / "study-file.md").read_text(encoding="utf-8")
    assert not [name for name in part.model_fields if not re.search(rf"\b{name}\b", page)]


def prose(path: Path) -> str:
    """The text of a page, or of a notebook's Markdown cells, without what is fenced."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def links(path: Path) -> list[str]:
    """The targets of the links and pictures of a page that are files of the repository."""
    text = prose(path)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(path: Path) -> set[str]:
    """The names by which a link can point at a heading of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_every_link_leads_to_a_file_that_is_there(path):
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{path.name}: {link}"


def run_python(arguments: list[str], folder: Path) -> str:
    """What Python prints that is run in a folder of its own, without the network."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path):
    (tmp_path / "first.py").write_text(python_blocks(README)[0], encoding="utf-8")
    output = run_python(["first.py"], tmp_path)
    assert "spillover" in output
    assert "function:scorn" in output
    assert (tmp_path / "runs" / "first" / "report.html").exists()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]], "written without outputs"
    run_python(["-c", "\n\n".join("".join(cell["source"]) for cell in cells)], tmp_path)
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()


def documented() -> list[str]:
    """The public names whose docstring has an example."""
    return [name for name in spillover.__all__ if examples_text(inspect.getdoc(getattr(spillover, name)) or "")]


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = []
    for name in documented():
        value = getattr(spillover, name)
        module = importlib.import_module(value.__module__)
        names = vars(module) | {public: getattr(spillover, public) for public in spillover.__all__}
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        for test in doctest.DocTestFinder(recurse=False).find(value, name, module=module, globs=names):
            log: list[str] = []
            if runner.run(test, out=log.append).failed:
                failures.append("".join(log))
    assert not failures, "\n".join(failures)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write_generated()
