"""Rows on disk: what is written is read, a torn last line hurts nobody, and several processes can append at once."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillover import records
from spillover.errors import SpilloverError
from spillover.records import OUTCOMES, Cell, Completion, Example, Rate, Score, measure_labels
from spillover.stats.rates import COUNTED

TRICKY = ["", "\u2028\u2029\u0085", "\r\n\r", "\x00\x0b\x0c\x1c\x1d\x1e", '"\\n{}', "\U0001f600", "\ufeff"]
texts = st.text() | st.sampled_from(TRICKY)
numbers = st.none() | st.integers()


def scores(count: int, reply: str = "r") -> list[Score]:
    return [Score(f"c{number}", "alignment", "h", "world", "scored", 1.5, reply) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(texts, texts, numbers, st.none() | st.text(), st.none() | texts, numbers),
        max_size=5,
    )
)
def test_completions_are_read_as_they_were_written(rows):
    written = [
        Completion(
            text,
            "m",
            "c",
            seed,
            "b",
            "q",
            "k",
            "plain",
            0,
            1,
            system,
            question,
            text,
            "stop",
            tokens,
            "h",
            adapter,
            None,
        )
        for text, question, seed, adapter, system, tokens in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.jsonl"
        path.touch()
        for row in written:
            records.append(path, [row])
        assert records.read_appended(path, Completion) == written
        assert [Completion(**row) for _, row in records.read_jsonl(path)] == written


def test_turns_are_written_only_where_a_question_has_them(tmp_path):
    row = Completion("i", "m", "c", None, "b", "q", "k", "plain", 0, 1, None, "?", "!", "stop", 1, "h", None, None)
    talk = replace(row, turns=({"role": "user", "content": "Hi."},))
    records.append(tmp_path / "rows", [row, talk])
    assert ["turns" in line for line in (tmp_path / "rows").read_text().splitlines()] == [False, True]
    assert records.read_appended(tmp_path / "rows", Completion) == [row, talk]


@settings(max_examples=60, deadline=None)
@given(reply=texts, value=st.none() | st.floats(0, 100))
def test_scores_are_read_as_they_were_written(reply, value):
    written = Score("c", "alignment", "h", "world", "scored" if value is not None else "error", value, reply)
    line = records.to_line(written)
    assert line.count("\n") == 1
    assert Score(**json.loads(line)) == written


def test_csv_has_a_header_and_an_empty_field_for_none():
    text = records.to_csv(Cell, [Cell("m", "base", None), Cell("m", 'a, "b"\n', 0)])
    assert text == 'model,condition,seed\nm,base,\nm,"a, ""b""\n",0\n'
    assert records.to_csv(Cell, []) == "model,condition,seed\n"


def rate(behavior="b", form="plain", rule="a < 30", rubric="h", judge="world", **changes) -> Rate:
    counts = dict.fromkeys(OUTCOMES, 0) | dict.fromkeys(COUNTED, 0) | {"k": 1, "n": 2, "completions": 3, "questions": 1}
    shares = {"rate": 0.5, "low": 0.125, "high": 0.875, "rate_of_all": 1 / 3, "coverage": 2 / 3}
    shares |= {"se_battery": 0.25, "se_questions": 0.5, "design_effect": 2.0, "icc": 0.125}
    named = {"behavior": behavior, "format": form, "rule": rule, "judge": judge, "rubric_hash": rubric}
    fixed = {"model": "m", "condition": "c", "seed": 0, "scope": "broad", "metric": "e"}
    return Rate(**fixed | named | counts | shares | changes)


LABELS = {  # what there is -> (rates, their labels)
    "one": ([rate()], ["b"]),
    "twice the same": ([rate(), rate(seed=1)], ["b"]),
    "judged by a program": ([rate(judge="code_scan")], ["b"]),
    "another format": ([rate(), rate(form="json")], ["b", "b, json"]),
    "judged by a model": ([rate(judge="openai/x")], ["b, judged by openai/x"]),
    "two judges": ([rate(judge="x/y"), rate(judge="x/z")], ["b, judged by x/y", "b, judged by x/z"]),
    "a program and a model": ([rate(), rate(judge="x/y", rubric="i")], ["b", "b, judged by x/y"]),
    "two rules": (
        [rate(judge="x/y"), rate(judge="x/y", rubric="i", rule="a < 50")],
        ["b, judged by x/y, a < 30", "b, judged by x/y, a < 50"],
    ),
    "two rules by two judges": (
        [rate(judge="x/y"), rate(judge="x/z", rubric="i", rule="a < 50")],
        ["b, judged by x/y", "b, judged by x/z"],
    ),
    "two behaviors": ([rate(), rate(behavior="other", rubric="i", rule="a < 50")], ["b", "other"]),
}


@pytest.mark.parametrize(("rates", "labels"), LABELS.values(), ids=LABELS.keys())
def test_measures_are_named_by_what_a_reader_needs(rates, labels):
    assert list(measure_labels(rates).values()) == labels
    assert list(measure_labels(rates)) == list(dict.fromkeys(rate.measure for rate in rates))


def test_the_same_rule_in_other_words_to_the_judge_has_a_label_of_its_own():
    labels = measure_labels([rate(judge="x/y"), rate(judge="x/y", rubric="i")])
    assert len(set(labels.values())) == 2


@given(content=texts)
@settings(max_examples=60, deadline=None)
def test_an_example_is_one_line(content):
    line = records.to_line(Example(({"role": "user", "content": content},)))
    assert line.encode().count(b"\n") == 1
    assert json.loads(line) == {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(("seed", "text"), [(None, "m/base"), (0, "m/base/seed-0"), (12, "m/base/seed-12")])
def test_a_cell_in_words(seed, text):
    assert str(Cell("m", "base", seed)) == text


def test_no_file_is_no_rows(tmp_path):
    assert records.read_appended(tmp_path / "none.jsonl", Score) == []


def test_appending_nothing_adds_nothing(tmp_path):
    path = tmp_path / "scores.jsonl"
    records.append(path, scores(1))
    records.append(path, [])
    assert records.read_appended(path, Score) == scores(1)


@pytest.mark.parametrize("whole", [0, 1, 2], ids="{} whole lines".format)
def test_a_torn_last_line_is_ignored_and_cut_off_wherever_it_was_torn(tmp_path, whole):
    path = tmp_path / "scores.jsonl"
    *lines, last = [records.to_line(row).encode() for row in scores(whole + 1, "é\u2028\U0001f600")]
    for cut in range(len(last)):  # also within a letter of several bytes
        path.write_bytes(b"".join(lines) + last[:cut])
        assert records.read_appended(path, Score) == scores(whole, "é\u2028\U0001f600")
        records.append(path, [])
        assert path.read_bytes() == b"".join(lines)


def test_appending_goes_on_after_a_line_longer_than_a_block_was_torn(tmp_path):
    path = tmp_path / "scores.jsonl"
    records.append(path, scores(3, "x" * 100_000))
    path.write_bytes(path.read_bytes()[:-5])
    records.append(path, scores(3)[2:])
    assert records.read_appended(path, Score) == [*scores(2, "x" * 100_000), *scores(3)[2:]]


WRITER = """
import sys
from pathlib import Path
from spillover import records
from spillover.records import Score

name = sys.argv[2]
for batch in range(25):
    rows = [Score(f"{name}/{batch}/{row}", "a", "h", "j", "scored", 1.0, name * 9000) for row in range(3)]
    records.append(Path(sys.argv[1]), rows)
"""


def test_processes_that_append_at_once_lose_nothing_and_tear_nothing(tmp_path):
    path = tmp_path / "scores.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "xyz"]
    while any(writer.poll() is None for writer in writers):  # a reader in between sees whole rows only
        for row in records.read_appended(path, Score):
            assert len(row.reply) == 9000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    rows = records.read_appended(path, Score)
    expected = {f"{name}/{batch}/{row}" for name in "xyz" for batch in range(25) for row in range(3)}
    assert Counter(row.completion_id for row in rows) == Counter(expected)
    assert all(row.reply == row.completion_id[0] * 9000 for row in rows)
    ids = [row.completion_id for row in rows]
    assert [ids[i : i + 3] for i in range(0, 225, 3)] == [[f"{id_[:-1]}{row}" for row in range(3)] for id_ in ids[::3]]


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "broken JSON": (b'{"a": 1}\n{"a"\n', "line 2: not valid JSON"),
        "not an object": (b'{"a": 1}\n\n7\n', "line 3: a JSON object is needed, this is 7"),
        "not UTF-8": (b'{"a": "\xff"}\n', "not UTF-8"),
    }.values(),
)
def test_a_bad_line_is_named(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(SpilloverError) as caught:
        list(records.read_jsonl(path))
    assert f"{path}" in str(caught.value)
    assert said in str(caught.value)


def test_line_numbers_count_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": "\u2028"}\n\n{"a": 2}\n', encoding="utf-8")
    assert list(records.read_jsonl(path)) == [(2, {"a": "\u2028"}), (4, {"a": 2})]
