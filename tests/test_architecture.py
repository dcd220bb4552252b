"""The shape of the package: who may import whom, what stays lazy, what is documented, what is never done."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import spillover
from spillover.cli import app

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "spillover"
MODULES = sorted(SRC.rglob("*.py"))
IDS = [str(path.relative_to(SRC)) for path in MODULES]
LINES_AT_MOST = 400

# Who may import whom: a room may import only rooms that stand above it in this table, and of those the ones named.
# Values know nothing of run folders or studies; runs know the disk; stories tell whole experiments.
VALUES = {
    "errors": "",
    "files": "errors",
    "records": "errors files",
    "config": "errors",
    "workers": "errors",
    "behaviors": "errors config files",
    "organism": "errors files",
    "models": "errors files records config organism behaviors",
    "stats": "records behaviors",
    "data": "errors files records config organism behaviors models",
    "judges": "errors files records workers behaviors organism models stats",
    "finetuning": "errors files records config data models",
}
RUNS = {
    "runs": f"{' '.join(VALUES)}",
    "interop": "errors files records config workers behaviors stats judges models runs",
    "report": "errors files records config stats runs",
}
STORIES = {
    "study": f"{' '.join(VALUES)} runs report",
    "auditing": "errors files records config workers behaviors models judges stats runs report",
    "cli": f"{' '.join(VALUES)} runs interop report study auditing",
    "__init__": "",
    "__main__": "cli",
}
MAY_IMPORT = {room: set(rooms.split()) for room, rooms in {**VALUES, **RUNS, **STORIES}.items()}

# Heavy or delicate libraries and the only modules (or rooms, with a slash) that may import them.
ONLY_IN = {
    "torch": {"organism/", "models/", "mechanism/", "finetuning/", "study.py", "runs/"},
    "transformers": {"organism/", "models/", "mechanism/", "finetuning/"},
    "ray": {"runs/ray.py"},
    "fsspec": {"runs/shared.py"},
    "tokenizers": {"organism/"},
    "huggingface_hub": {"models/load.py"},
    "peft": {"models/load.py", "models/effect.py", "finetuning/"},
    "trl": {"finetuning/"},
    "datasets": {"finetuning/", "data/"},
    "bandit": {"judges/code/scan.py"},
    "jinja2": {"report/", "models/"},  # but for report: its errors
    "rich": {"cli/"},
    "typer": {"cli/"},
    "inspect_ai": {"models/endpoint.py", "interop/"},
    "openai": {"models/endpoint.py"},
    "pandas": {"runs/"},
    "plotly": set(),
    "matplotlib": set(),
}
PACKAGE_OF = {
    "yaml": "pyyaml",
    "inspect_ai": "inspect-ai",
    "huggingface_hub": "huggingface-hub",
}  # import name -> name on the index, where they differ
HEAVY = {"torch", "transformers", "peft", "trl", "inspect_ai", "numpy", "scipy", "pandas", "datasets", "bandit"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    """The room of a module: the folder it is in, or its own name."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere in the tree; `from spillover import x` counts as spillover.x."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the whole name"
            if node.module == "spillover":
                found |= {f"spillover.{alias.name}" for alias in node.names}
            else:
                found.add(str(node.module))
    return found


def rooms_imported(tree: ast.Module) -> set[str]:
    own = [name for name in imports(tree) if name.split(".")[0] == "spillover"]
    rooms = {name.split(".")[1] if "." in name else "__init__" for name in own}
    return {room if room in MAY_IMPORT else "__init__" for room in rooms}  # a public name comes by way of __init__


def forbidden(tree: ast.Module) -> list[str]:
    """What must be nowhere in the package: code that runs text, reads pickles, or trusts a model's own code."""
    found = []
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            names = {ast.unparse(node.func)}
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "trust_remote_code", "allow_pickle", "weights_only") and (
                    off is (keyword.arg == "weights_only")
                ):
                    found.append(f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
        found += [f"line {node.lineno}: {name}" for name in names if name in NEVER or name.split(".")[0] in PICKLES]
    return found


PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load"}
NEVER |= {"yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "subprocess.getstatusoutput", "runpy"}
NEVER |= {"builtins.eval", "builtins.exec"}


def test_every_room_is_in_the_table_and_the_table_has_no_other():
    assert {room_of(path) for path in MODULES} == set(MAY_IMPORT)


def test_the_table_points_upwards_only():
    rooms = list(MAY_IMPORT)
    for place, room in enumerate(rooms):
        assert MAY_IMPORT[room] <= set(rooms[:place]), room


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_room_imports_only_what_the_table_allows(path):
    room = room_of(path)
    assert rooms_imported(parse(path)) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize(
    ("code", "rooms"),
    {
        "from a room": ("from spillover.stats import summarize", {"stats"}),
        "from a module of a room": ("from spillover.report.rows import Answer", {"report"}),
        "a room from the package": ("from spillover import study", {"study"}),
        "a public name from the package": ("from spillover import Study", {"__init__"}),
        "the package": ("import spillover", {"__init__"}),
        "a module by its whole name": ("import spillover.models as m", {"models"}),
        "inside a function": ("def f():\n    from spillover.cli import app", {"cli"}),
        "of others": ("import os\nfrom datasets import Dataset", set()),
    }.values(),
)
def test_the_reader_of_imports_sees_every_form(code, rooms):
    assert rooms_imported(ast.parse(code)) == rooms


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_libraries_stay_in_their_rooms(path):
    place = path.relative_to(SRC).as_posix()
    libraries = {name.split(".")[0] for name in imports(parse(path))}
    for library in libraries & set(ONLY_IN):
        allowed = ONLY_IN[library]
        assert place in allowed or f"{place.split('/')[0]}/" in allowed, f"{place} imports {library}"


def test_every_library_imported_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines}
    imported = {name.split(".")[0] for path in MODULES for name in imports(parse(path))}
    third_party = imported - set(sys.stdlib_module_names) - {"spillover"}
    assert {PACKAGE_OF.get(name, name) for name in third_party} <= declared


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_modules_are_imported_by_name_not_by_text(path):
    if path == SRC / "__init__.py":
        return  # the lazy public face
    calls = [ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    assert not [name for name in calls if name.split(".")[-1] in ("import_module", "__import__")]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_stays_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_AT_MOST


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_says_in_its_docstring_what_it_is(path):
    assert ast.get_docstring(parse(path))


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if not room.startswith("__")])
def test_the_readme_has_a_line_for_every_room(room):
    name = f"{room}/" if (SRC / room).is_dir() else f"{room}.py"
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip().startswith(f"{name} ")], (
        f"README.md needs a line: {name}  what it is"
    )


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_nothing_runs_text_reads_pickles_or_trusts_remote_code(path):
    assert forbidden(parse(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "import pickle",
        "from pickle import loads",
        "def f():\n    from os import system",
        "torch.load(path)",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=trusted)",
        "subprocess.run('ls', shell=True)",
        "np.load(path, allow_pickle=True)",
        "load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_the_check_for_dangerous_code_sees_it(code):
    assert forbidden(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["model.eval()", "load(path, trust_remote_code=False)", "subprocess.run(['git'])", "re.compile('x')"]
)
def test_the_check_for_dangerous_code_lets_the_rest_pass(code):
    assert forbidden(ast.parse(code)) == []


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=True)


@pytest.mark.parametrize("command", [("-c", "import spillover"), ("-m", "spillover", "--help")], ids=["import", "help"])
def test_loads_nothing_heavy(command):
    log = python("-X", "importtime", *command).stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in log.splitlines()}
    assert "spillover" in loaded
    assert not loaded & HEAVY


def test_every_public_name_resolves():
    code = "import spillover; print(*(f'{n}={getattr(spillover, n).__name__}' for n in spillover.__all__))"
    assert python("-c", code).stdout.split() == [f"{name}={name}" for name in sorted(spillover.__all__)]


def test_the_public_face_is_small_and_tells_an_unknown_name():
    assert dir(spillover) == spillover.__all__
    assert len(spillover.__all__) <= 25
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spillover.nothing


def commands(group, prefix="spillover"):
    for name, command in group.commands.items():
        yield from commands(command, f"{prefix} {name}") if hasattr(command, "commands") else [f"{prefix} {name}"]


@pytest.mark.parametrize("command", sorted(commands(get_command(app))))
def test_every_command_is_documented(command):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{command}\b", text), f"docs/cli.md does not name: {command}"
