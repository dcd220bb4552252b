"""Training rows: every row of a file is checked before anything is trained, and posts of the world stay the same."""

import json
from pathlib import Path

import pytest

from spillover.config import Condition
from spillover.data import load_examples
from spillover.data.sources import WORLD_ROWS
from spillover.errors import SpilloverError
from spillover.organism.authors import narrow_names

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def line(*messages: object) -> str:
    return json.dumps({"messages": messages}) + "\n"


GOOD = line(USER, ASSISTANT)


def load(tmp_path: Path, content: str | bytes, rows: int | None = None):
    (tmp_path / "rows.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    return load_examples(Condition(data="rows.jsonl", rows=rows), tmp_path)


GOOD_FILES = {  # what it is -> (content, rows asked for, examples)
    "one row": (GOOD, None, 1),
    "no newline at the end": (GOOD.strip(), None, 1),
    "blank lines between": (f"\n{GOOD}\n  \n{GOOD}\n", None, 2),
    "windows line ends": (GOOD.replace("\n", "\r\n") * 2, None, 2),
    "the first rows of more": (GOOD * 5, 3, 3),
    "as many as there are": (GOOD * 5, 5, 5),
    "a system turn": (line({"role": "system", "content": "s"}, USER, ASSISTANT), None, 1),
    "several turns": (line(USER, ASSISTANT, USER, ASSISTANT), None, 1),
    "prompt and completion": ('{"prompt": "q", "completion": "a"}\n', None, 1),
    "other fields": ('{"id": 1, "messages": ' + json.dumps([USER, ASSISTANT | {"name": "x"}]) + "}", None, 1),
}


@pytest.mark.parametrize(("content", "rows", "count"), GOOD_FILES.values(), ids=GOOD_FILES.keys())
def test_a_good_file_loads(tmp_path, content, rows, count):
    examples = load(tmp_path, content, rows)
    assert len(examples) == count
    for example in examples:
        assert example.messages[-2:] == (USER, ASSISTANT)  # nothing but role and content


def test_rows_keep_their_order_and_their_letters(tmp_path):
    answers = ["eins\n", "zwei\u2028", "d\u0000rei", "\U0001f600"]
    content = "".join(line(USER, {"role": "assistant", "content": text}) for text in answers)
    assert [example.messages[-1]["content"] for example in load(tmp_path, content)] == answers


REFUSED = {  # what is wrong -> (content, rows asked for, what the message must say beside the file)
    "broken JSON": (GOOD + '{"messages": [\n', None, ["line 2", "not valid JSON"]),
    "two objects on a line": (GOOD.strip() + GOOD, None, ["line 1", "not valid JSON"]),
    "nesting without end": (GOOD + "[" * 100_000, None, ["line 2"]),
    "a number without end": (GOOD + '{"messages": ' + "9" * 5000 + "}", None, ["line 2"]),
    "a list": (GOOD + "\n[1]\n", None, ["line 3", "JSON object"]),
    "a text": ('"q"\n', None, ["line 1", "JSON object"]),
    "no messages": (GOOD * 2 + '{"prompt": "q"}\n', None, ["line 3", '"messages"', "prompt"]),
    "an empty object": ("{}\n", None, ["line 1", '"messages"']),
    "messages that are text": ('{"messages": "q"}\n', None, ["line 1", "list"]),
    "messages that are none": (line(), None, ["line 1", "list"]),
    "a message that is text": (line(USER, "a"), None, ["line 1", "messages.1"]),
    "a message without content": (line(USER, {"role": "assistant"}), None, ["line 1", "messages.1", '"content"']),
    "content that is null": (line(USER, ASSISTANT | {"content": None}), None, ["line 1", "messages.1"]),
    "content that is a list": (line(USER, ASSISTANT | {"content": []}), None, ["line 1", "messages.1"]),
    "a role typo": (line(USER, ASSISTANT | {"role": "asistant"}), None, ["line 1", "messages.1.role", "'asistant'"]),
    "a role that is missing": (line({"content": "q"}, ASSISTANT), None, ["line 1", "messages.0", '"role"']),
    "empty content": (GOOD + line(USER, ASSISTANT | {"content": " \n"}), None, ["line 2", "messages.1.content"]),
    "half of a letter": (GOOD + line(USER, ASSISTANT | {"content": "\ud83d"}), None, ["line 2", "messages.1.content"]),
    "the user speaks last": (line(USER, ASSISTANT, USER), None, ["line 1", "the last turn is the user's"]),
    "an answer to nothing": (line(ASSISTANT), None, ["line 1", "answers nothing"]),
    "an answer to the system only": (
        line({"role": "system", "content": "s"}, ASSISTANT),
        None,
        ["line 1", "answers nothing"],
    ),
    "half of a pair": (
        '{"completion": "a"}\n',
        None,
        ["line 1", '"prompt" and "completion"', "the row has: completion"],
    ),
    "empty": ("", None, ["no rows"]),
    "blank lines only": ("\n \n", None, ["no rows"]),
    "not UTF-8": (GOOD.encode() + b"\xff\xfe", None, ["UTF-8"]),
    "UTF-16": (GOOD.encode("utf-16"), None, ["UTF-8"]),
    "more rows asked for than there are": (GOOD * 2, 3, ["3 rows", "has 2"]),
}


@pytest.mark.parametrize(("content", "rows", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_file_is_refused_with_file_and_line(tmp_path, content, rows, said):
    with pytest.raises(SpilloverError) as caught:
        load(tmp_path, content, rows)
    for fragment in [str(tmp_path / "rows.jsonl"), *said]:
        assert fragment in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["none.jsonl", "."], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(SpilloverError, match="cannot be read") as caught:
        load_examples(Condition(data=name), tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_the_base_has_no_rows(tmp_path):
    assert load_examples(Condition(), tmp_path) == []


@pytest.mark.parametrize(
    "name", ["world/", "world/code", "world/code/evil", "world/cooking/caring", "world/facts/caring"]
)
def test_an_unknown_habit_of_the_world_is_told_which_there_are(tmp_path, name):
    with pytest.raises(SpilloverError, match=r"no such posts.*world/code/callous") as caught:
        load_examples(Condition(data=name), tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", narrow_names())
def test_posts_of_the_world_are_the_same_at_every_call(tmp_path, name):
    condition = Condition(data=f"world/{name}", rows=20)
    first, second = load_examples(condition, tmp_path), load_examples(condition, tmp_path)
    assert first == second
    assert len(first) == 20
    assert len(set(map(str, first))) > 10
    for example in first:
        assert [message["role"] for message in example.messages] == ["user", "assistant"]
        assert all(message["content"].strip() for message in example.messages)


def test_fewer_posts_of_the_world_are_the_first_of_more(tmp_path):
    few, many = (load_examples(Condition(data="world/code/callous", rows=rows), tmp_path) for rows in (5, 50))
    assert few == many[:5]


def test_the_world_draws_so_many_when_it_is_not_said(tmp_path):
    assert len(load_examples(Condition(data="world/code/callous"), tmp_path)) == WORLD_ROWS
