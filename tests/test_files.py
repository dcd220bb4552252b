"""A run's folder: everything or nothing is written, by one writer at a time, and hashes tell what changed."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillover.errors import SpilloverError
from spillover.files import folder_atomically, hash_of, provenance, write_atomically
from spillover.records import Cell
from spillover.runs.folder import RunFolder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_naming_a_run_writes_nothing(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert run.adapter(Cell("m", "bad", 3)) == tmp_path / "run" / "adapters" / "m" / "bad" / "seed-3"
    assert run.examples("bad") == tmp_path / "run" / "data" / "bad.jsonl"
    assert names(tmp_path) == []


@pytest.mark.parametrize("text", ["", "a\n", "\u2028\U0001f600\r\n"], ids=["empty", "a line", "tricky"])
def test_write_atomically_writes_or_replaces_and_leaves_no_parts(tmp_path, text):
    path = tmp_path / "deep" / "file.txt"
    for content in ("before", text):
        write_atomically(path, content)
        assert path.read_bytes().decode() == content
    assert names(path.parent) == ["file.txt"]


def test_write_atomically_that_fails_keeps_the_old_content_and_leaves_no_parts(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half of a letter: \ud83d")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file.txt"]


def test_folder_atomically_takes_the_place_of_the_old(tmp_path):
    folder = tmp_path / "deep" / "adapter"
    for content in ("before", "after"):
        with folder_atomically(folder) as part:
            (part / content).write_text(content)
            assert folder.exists() == (content == "after")
    assert names(folder) == ["after"]
    assert names(folder.parent) == ["adapter"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [False, True], ids=["new", "there before"])
def test_folder_atomically_leaves_nothing_on_failure(tmp_path, error, before):
    folder = tmp_path / "adapter"
    if before:
        folder.mkdir()
        (folder / "old").write_text("old")

    def fail():
        with folder_atomically(folder) as part:
            (part / "new").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["adapter"] if before else [])
    assert not before or names(folder) == ["old"]


def test_folder_atomically_starts_clean_after_a_killed_run(tmp_path):
    killed = folder_atomically(tmp_path / "adapter")
    (killed.__enter__() / "half").write_text("half")  # and no exit
    with folder_atomically(tmp_path / "adapter") as again:
        assert names(again) == []
        (again / "whole").write_text("whole")
    assert names(tmp_path / "adapter") == ["whole"]


HOLD = """
import sys
from pathlib import Path
from spillover.runs.folder import RunFolder

with RunFolder(Path(sys.argv[1])).writing():
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_refused_while_another_process_holds_the_run(tmp_path):
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(SpilloverError, match="another spillover is writing there"), run.writing():
            pytest.fail("two writers at once")
        other.kill()  # the lock of a killed writer is gone with it
    with run.writing():
        pass


def test_a_second_writer_is_refused_in_one_process_too_and_the_run_is_free_after(tmp_path):
    run = RunFolder(tmp_path / "run")
    with ExitStack() as stack:
        stack.enter_context(run.writing())
        with pytest.raises(SpilloverError, match="another spillover"):
            stack.enter_context(RunFolder(tmp_path / "run").writing())
    with pytest.raises(ZeroDivisionError), run.writing():
        _ = 1 / 0
    with run.writing():
        pass


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpilloverError, match="cannot write there") as caught, RunFolder(tmp_path / place).writing():
        pytest.fail("wrote into a file")
    assert str(tmp_path / place) in str(caught.value)
    assert "--out" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o555)
    with pytest.raises(SpilloverError, match="cannot write there"), RunFolder(folder).writing():
        pytest.fail("wrote without permission")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_hash_does_not_depend_on_the_order_of_settings(value):
    assert hash_of(value) == hash_of(dict(reversed(value.items())))
    assert len(hash_of(value)) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), (2,)), (("a", "b"), ("ab",)), (("a", "b"), ("b", "a")), (([],), ()), (("1",), (1,)), ((None,), ("None",))],
)
def test_what_differs_has_another_hash(one, other):
    assert hash_of(*one) != hash_of(*other)


def test_a_hash_is_the_same_on_every_machine():
    assert hash_of({"a": [1, "ä"]}, None) == "31ccdc403579cf12"


def test_provenance_names_versions_and_machine():
    found = provenance()
    assert found["versions"]["bandit"]
    assert set(found) == {"written", "python", "machine", "versions", "git_commit"}
