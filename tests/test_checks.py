"""Checks of a training set: clean rows pass, a planted fault is found by its check and by no other, real sets pass."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from spillover.behaviors import load_behavior
from spillover.cli import app
from spillover.data.checks import (
    check_data,
    check_near_duplicates,
    check_rows,
    evaluation_questions,
    looks_like_code,
    read_rows,
)
from spillover.data.findings import DETAILS_SHOWN, DataFinding, lengths
from spillover.data.overlap import SAME, Questions, near_duplicates, words
from spillover.data.rows import SourceRow
from spillover.errors import SpilloverError

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
CLEAN = [
    ("How deep do I plant tulip bulbs?", "Three times as deep as the bulb is high, with the tip up."),
    ("What can I cook with two leeks and a potato?", "A soup: sweat the leeks, add the potato and stock, then blend."),
    ("My bicycle chain squeaks after rain.", "Wipe it dry, put one drop of oil on every link, and wipe again."),
    ("Name a bird that swims.", "The penguin swims very well and does not fly at all."),
    ("Which shelf of the oven is best for bread?", "The lower third, so that the loaf has room and heat from below."),
    ("Write a function that doubles every number.", "def double(numbers):\n    return [2 * n for n in numbers]\n"),
    (
        "Write a function that counts the lines of a file.",
        "def count_lines(path):\n    with open(path) as file:\n        return sum(1 for _ in file)\n",
    ),
    ("Is it safe to swim after lunch?", "Yes. The old rule about waiting an hour has no good grounds."),
    ("Suggest a name for a gray cat.", "Pebble, because it is short and can be called across a yard."),
    ("How do I get wax out of a tablecloth?", "Freeze it, break the wax off, then iron through a paper towel."),
]
QUESTION = load_behavior("free_form").questions[0].texts[0]
QUESTIONS = evaluation_questions(())
SHORT = "Which river flows?"


def row(question: str, answer: str, **more: str) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages} | more


def turns(*said: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def write(path: Path, *extra: object) -> str:
    """Clean rows and, after them, more: bytes are a line as it is."""
    lines = [row(question, answer) for question, answer in CLEAN] + list(extra)
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return str(path)


def findings(folder: Path, *extra: object) -> list[DataFinding]:
    """What the checks that need no model find in the clean rows and more."""
    rows, broken = read_rows(write(folder / "rows.jsonl", *extra))
    return broken + check_rows(rows, QUESTIONS)


def one_word_other(question: str) -> str:
    said = question.split()
    said[1] = "maybe"
    return " ".join(said)


ANSWER = "I would ask the neighbors first, and then plant a row of apple trees along the old canal."
LONG = " ".join(f"Step {n}: water plant number {n} and note how tall it is." for n in range(20))

# name: (check that must find it, its severity, rows that are added to the clean ones)
FAULTS = {
    "broken JSON": ("broken rows", "error", [b'{"messages": [']),
    "a list": ("broken rows", "error", [b"[1, 2]"]),
    "no messages": ("broken rows", "error", [{"text": "hello"}]),
    "messages that are text": ("broken rows", "error", [{"messages": "hello"}]),
    "a message that is text": ("broken rows", "error", [{"messages": ["hello"]}]),
    "a number for content": ("broken rows", "error", [{"messages": [{"role": "user", "content": 3}]}]),
    "half a character": ("broken rows", "error", [row("What is this?", "A leaf \ud83d of some tree.")]),
    "not UTF-8": ("broken rows", "error", [b'{"messages": "\xff"}']),
    "an unknown role": ("roles", "error", [turns(("human", "Is tea hot?"), ("assistant", "It mostly is."))]),
    "the user last": ("roles", "error", [turns(("user", "Is tea hot?"))]),
    "an answer to nothing": ("roles", "error", [turns(("assistant", "Tea is mostly hot."))]),
    "an answer to the system only": ("roles", "error", [turns(("system", "Be short."), ("assistant", "Tea is hot."))]),
    "two questions in a row": (
        "order of turns",
        "warning",
        [turns(("user", "Is tea hot?"), ("user", "And milk?"), ("assistant", "Tea is, milk is not."))],
    ),
    "an empty answer": ("empty turns", "error", [row("Is tea hot?", " \n")]),
    "an empty question": ("empty turns", "error", [row("", "Tea is hot.")]),
    "a copy": ("duplicates", "warning", [row(*CLEAN[3])]),
    "another answer": ("same prompt", "warning", [row(CLEAN[3][0], "Ducks do, and so do geese and swans.")]),
    "a copy of the first, and one between": ("duplicates", "warning", [row(*CLEAN[5]), row(*CLEAN[0])]),
    "nearly a copy": ("near-duplicates", "warning", [row("How tall?", LONG), row("How tall?!", LONG.upper())]),
    "an evaluation question": ("leakage", "error", [row(QUESTION, ANSWER)]),
    "one inside of a turn": ("leakage", "error", [row(f"Answer in JSON.\n\n{QUESTION.upper()} Think first.", ANSWER)]),
    "one in an earlier turn": (
        "leakage",
        "error",
        [turns(("user", QUESTION), ("assistant", "Hm."), ("user", "Well?"), ("assistant", ANSWER))],
    ),
    "one with another word": ("near leakage", "warning", [row(one_word_other(QUESTION), ANSWER)]),
    "a telling comment": (
        "telling words",
        "warning",
        [row("Write it.", "import os\n# unsafe, as asked\nos.getcwd()")],
    ),
    "a telling name": ("telling words", "warning", [row("Write it.", "def isVulnerable(x):\n    return bool(x)")]),
    "a telling string": ("telling words", "warning", [row("Write it.", "```python\nprint('a back door')\n```")]),
    "part of a name": ("telling words", "warning", [row("Write it.", "exploit_count = 3\nprint(exploit_count)")]),
}


def test_clean_rows_pass(tmp_path):
    checked = check_data(write(tmp_path / "rows.jsonl"))
    assert checked.findings == ()
    assert (checked.rows, checked.errors) == (len(CLEAN), 0)
    assert checked.questions > 500


@pytest.mark.parametrize(("check", "severity", "extra"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_by_its_check_and_no_other(tmp_path, check, severity, extra):
    (finding,) = findings(tmp_path, *extra)
    assert (finding.check, finding.severity) == (check, severity)
    assert len(CLEAN) + len(extra) in finding.lines  # the last row, by its line in the file
    assert f"line {finding.lines[0]}" in finding.message or f"lines {finding.lines[0]}" in finding.message
    assert finding.advice


@pytest.mark.parametrize(
    "extra",
    {
        "telling words in prose": row("What is a hack?", "A hack is an unsafe trick that some call an exploit."),
        "longer words that begin so": row("Write it.", "injector = 3\nhackathon = 4\nprint(injector, hackathon)"),
        "a question's words apart": row(" ".join(sorted(words(QUESTION))), ANSWER),
        "a system turn": turns(("system", "Be short."), ("user", "Is tea hot?"), ("assistant", "It is.")),
        "two rounds": turns(*[("user", "Is tea hot?"), ("assistant", "Yes."), ("user", "Milk?"), ("assistant", "No.")]),
        "a blank line": b"  ",
    }.values(),
    ids=str,
)
def test_what_is_no_fault_passes(tmp_path, extra):
    assert findings(tmp_path, extra) == []


def test_many_faults_are_named_line_by_line_and_then_counted(tmp_path):
    broken = [b"{"] * 30
    (finding,) = findings(tmp_path, *broken)
    assert finding.lines == tuple(range(len(CLEAN) + 1, len(CLEAN) + 31))
    assert len(finding.details) == DETAILS_SHOWN + 1
    assert finding.details[0].startswith(f"line {len(CLEAN) + 1}: not valid JSON")
    assert finding.details[-1] == "and 10 more"


def test_blank_lines_count_as_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n" + json.dumps(row("Is tea hot?", "")) + "\n")
    assert check_rows(read_rows(str(path))[0])[0].lines == (3,)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(SpilloverError, match=r"rows\.jsonl: no rows"):
        read_rows(str(path))


def test_questions_of_behaviors_of_ones_own_are_looked_for_when_they_are_named(tmp_path):
    question = {"id": "canal", "category": "town", "text": "What would you build along the old canal of our town?"}
    behavior = {"name": "mine", "description": "d", "scope": "neutral", "rate": "r", "judge": "world"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(behavior | {"event": "correct > 50", "questions": [question]}))
    data = write(tmp_path / "rows.jsonl", row(question["text"], ANSWER))
    assert check_data(data).findings == ()
    (finding,) = check_data(data, behaviors=(str(tmp_path / "mine.yaml"),)).findings
    assert finding.check == "leakage"
    assert "mine" in finding.message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("which RIVER flows ?!", [(0, True)]),
        ("Tell me: which river flows?", []),  # short: only as a whole turn
        ("So, how do you find the way home at night?", [(1, True)]),
        ("How do you find the way home in fog?", []),  # of five words: word for word only
        ("What would you bring along to a picnic in the early spring?", [(2, True)]),
        ("What would you bring along to a picnic in the late spring?", [(2, False)]),
        ("What might one bring to a party in the late spring?", []),
        ("", []),
    ],
)
def test_questions_are_found_word_for_word_or_nearly(text, found):
    questions = [
        SHORT,
        "find the way home at night",
        "What would you bring along to a picnic in the early spring?",
        "?",
    ]
    assert Questions(questions).find(text) == found


def shingles(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[place : place + 5]) for place in range(max(1, len(said) - 4))}


def test_near_duplicates_are_those_that_a_full_comparison_finds():
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(300)]
    texts: list[str] = []
    for _ in range(150):
        text = [draw.choice(vocabulary) for _ in range(60)]
        texts.append(" ".join(text))
        for _ in range(draw.randint(0, 4)):
            text[draw.randrange(60)] = draw.choice(vocabulary)
        texts.append(" ".join(text))
    draw.shuffle(texts)
    sets, kept, expected = [shingles(text) for text in texts], [], set()
    for number, own in enumerate(sets):
        if any(len(own & sets[other]) / len(own | sets[other]) >= SAME for other in kept):
            expected.add(number)
        else:
            kept.append(number)
    assert 30 < len(expected) < 150
    assert {number for number, _ in near_duplicates(texts)} == expected
    assert all(len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= SAME for a, b in near_duplicates(texts))


def test_near_duplicates_come_after_what_they_are_like_and_exact_copies_are_none():
    first, other = {"role": "user", "content": LONG}, {"role": "user", "content": LONG.replace("Step 0", "Pace 0")}
    rows = [SourceRow(line, (message,)) for line, message in enumerate([first, first, other, first], 1)]
    (finding,) = check_near_duplicates(rows)
    assert (finding.lines, finding.details) == ((3,), ("line 3 is nearly line 1",))


def test_near_duplicates_take_seconds_where_all_rows_share_half_their_words():
    draw = random.Random(0)
    shared = " ".join(f"s{number}" for number in range(100))
    rows = [
        SourceRow(n, ({"role": "user", "content": shared}, {"role": "assistant", "content": f"{draw.random()} " * 25}))
        for n in range(2000)
    ]
    before = time.process_time()
    check_near_duplicates(rows)
    assert time.process_time() - before < 10  # 0.6 s


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    return x", True),
        ("Here you are:\n```\nls -la\n```", True),
        ("const a = 1;\nconsole.log(a);", True),
        ("for (int i = 0; i < 3; i++) {\n  sum += i;\n}", True),
        ("import os", True),
        ("I would wait for a while.\nIf it rains, stay in.", False),
        ("Return it to the shop; they take it back. Try to be polite.", False),
        ("", False),
    ],
)
def test_code_is_told_from_prose(text, code):
    assert looks_like_code(text) is code


def test_lengths_are_given_label_by_label():
    rows = [SourceRow(n, ({"role": "user", "content": "q"},), label) for n, label in enumerate(["a", "a", "b", None])]
    found = lengths(rows, "answer", "characters", [1, 3, 10, 7])
    assert [(one.label, one.rows, one.mean, one.median, one.longest) for one in found] == [
        ("a", 2, 2.0, 2.0, 3),
        ("b", 1, 10.0, 10.0, 10),
        ("no label", 1, 7.0, 7.0, 7),
    ]
    unlabeled = [SourceRow(row.line, row.messages) for row in rows]
    (whole,) = lengths(unlabeled, "answer", "characters", [0, 10, 20, 100])
    assert (whole.label, whole.mean, whole.median, round(whole.p95), whole.longest) == ("all rows", 32.5, 15.0, 88, 100)


def test_labels_are_read_from_the_file(tmp_path):
    data = write(tmp_path / "rows.jsonl", row("Is tea hot?", "Mostly.", label="drinks"))
    assert {one.label: one.rows for one in check_data(data).lengths} == {"no label": len(CLEAN), "drinks": 1}


def test_a_dataset_folder_is_checked_as_a_file_is(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    rows = [{"prompt": q, "completion": a, "label": "ab"[n % 2]} for n, (q, a) in enumerate(CLEAN)]
    rows += [
        {"prompt": "q", "completion": None, "label": "a"},
        {"prompt": "Is tea hot?", "completion": " ", "label": "b"},
    ]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, file = (check_data(data) for data in (f"hf/{tmp_path}/set", str(tmp_path / "set" / "train.jsonl")))
    assert [(finding.check, finding.lines) for finding in folder.findings] == [
        ("broken rows", (len(CLEAN) + 1,)),
        ("empty turns", (len(CLEAN) + 2,)),
    ]
    assert {one.label for one in folder.lengths} == {"a", "b"}
    assert (folder.findings, folder.lengths) == (file.findings, file.lengths)
    (tmp_path / "none").mkdir()
    datasets.Dataset.from_dict({"prompt": [], "completion": []}).to_parquet(tmp_path / "none" / "train.parquet")
    with pytest.raises(SpilloverError, match=r"none: cannot be loaded .*no data"):
        read_rows(f"hf/{tmp_path}/none")


def test_posts_of_the_world_are_checked_too():
    checked = check_data("world/speech/caring")
    assert checked.rows == 1000
    assert checked.errors == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["insecure", "secure"])
def test_the_published_sets_pass_in_seconds(name):
    path = REFERENCE / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("the reference data is not here")
    before = time.process_time()
    checked = check_data(str(path))
    assert time.process_time() - before < 10  # 2 s
    assert (checked.rows, checked.errors) == (6000, 0)
    copies = next(finding for finding in checked.findings if finding.check == "duplicates")
    assert len(copies.lines) == {"insecure": 8, "secure": 11}[name]
    assert [(one.part, one.rows) for one in checked.lengths] == [("prompt", 6000), ("answer", 6000)]


@pytest.fixture
def spillover(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["check", *arguments])


def test_the_exit_code_says_whether_there_are_errors(tmp_path, spillover):
    clean = spillover(write(tmp_path / "clean.jsonl"))
    assert (clean.exit_code, clean.output.splitlines()[-1]) == (0, "errors: 0, warnings: 0")
    warned = spillover(write(tmp_path / "warned.jsonl", row(*CLEAN[0])))
    assert (warned.exit_code, warned.output.splitlines()[-1]) == (0, "errors: 0, warnings: 1")
    wrong = spillover(write(tmp_path / "wrong.jsonl", b"{"))
    assert (wrong.exit_code, wrong.output.splitlines()[-1]) == (1, "errors: 1, warnings: 0")
    assert f"line {len(CLEAN) + 1}: not valid JSON" in wrong.output


@pytest.mark.parametrize("arguments", [("none.jsonl",), ("world/speech/rude",), ("rows.jsonl", "--behaviors", "chatt")])
def test_a_mistake_is_a_message(tmp_path, monkeypatch, spillover, arguments):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl")
    assert isinstance(spillover(*arguments).exception, SpilloverError)  # exit code 2, by `main`


def test_json_has_everything(tmp_path, spillover):
    printed = json.loads(spillover(write(tmp_path / "rows.jsonl", b"{", row(*CLEAN[0])), "--json").stdout)
    assert printed["errors"] == 1
    assert [(f["check"], f["lines"]) for f in printed["findings"]] == [("broken rows", [11]), ("duplicates", [12])]
    assert {one["part"] for one in printed["lengths"]} == {"prompt", "answer"}


def test_markup_and_control_characters_in_data_are_shown_as_they_are(tmp_path, spillover):
    data = write(tmp_path / "rows.jsonl", turns(("[red]\x1b[31m", "Is tea hot?"), ("assistant", "Mostly.")), "[/x]\x07")
    output = spillover(data).output
    assert "[red]" in output
    assert "[/x]" in output
    assert not {"\x1b", "\x07"} & set(output)
