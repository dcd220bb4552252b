"""Training rows in every shape that people have: read, or refused with the key and the line; nothing is dropped."""

import json
from pathlib import Path

import pytest

from spillover.data import file_examples
from spillover.data.rows import BrokenRow, read_row
from spillover.errors import SpilloverError

CASES = Path(__file__).parent / "cases" / "training_rows" / "rows.jsonl"
ROWS = [json.loads(line) for line in CASES.read_text().splitlines()]
SHARED = Path(__file__).parents[2] / "shared" / "cases" / "training_rows"
ROW = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "x"}]}\n'


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case["name"])
def test_a_row_is_read_whole_or_refused_by_the_key(case):
    row = read_row(case["row"], 3)
    if case["fault"]:
        assert isinstance(row, BrokenRow)
        assert case["fault"] in row.fault
        assert row.line == 3
    else:
        assert [[turn["role"], turn["content"]] for turn in row.messages] == case["turns"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (ROW % "a" + ROW % "b").encode())
    assert [example.messages[0]["content"] for example in file_examples(path)] == ["a", "b"]


def test_a_key_twice_is_refused_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW % "a" + '{"messages": [], "messages": [1]}\n')
    with pytest.raises(SpilloverError, match=r"line 2: .*the key 'messages' is there twice"):
        file_examples(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize(
    ("name", "words"),
    {
        "alpaca": None, "bom": None, "multiturn": None, "parts": None, "sharegpt": None,
        "dupkeys": "line 1: .*twice", "reasoning_content": "line 1: messages.1.reasoning_content",
        "toolcall": "line 1: messages.1.tool_calls", "weight0": "line 2: messages.1.weight is 0",
        "weight0_first": "line 1: messages.1.weight is 0",
    }.items(),
)  # fmt: skip
def test_the_shared_rows_come_out_right(name, words):
    if words is None:
        assert file_examples(SHARED / f"{name}.jsonl")
        return
    with pytest.raises(SpilloverError, match=words):
        file_examples(SHARED / f"{name}.jsonl")
