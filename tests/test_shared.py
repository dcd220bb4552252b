"""The shared folder: a hand-over that is killed anywhere lies about nothing, and of two copies the newer counts."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from spillover import files as rundir
from spillover import study
from spillover.config import load_study
from spillover.runs import shared
from spillover.runs.folder import RunFolder
from spillover.runs.progress import DONE, FAILED, LEFT, RUNNING, STOPPED, State, expect, of_these
from spillover.runs.shared import at_work, handing_over

PART, ADAPTER, UNFINISHED = Path("parts/m"), Path("adapters/m"), Path("adapters/.m.part")


@dataclass
class Work:
    """A job as the shared folder sees it, with folders like a cell's, and like distilled rows."""

    run: Path
    shared: str | None
    owner: str = "mine"
    fingerprint: str = "these"
    folders: dict = field(default_factory=lambda: {ADAPTER: "training.json", UNFINISHED: "", PART: ""})
    reads: dict = field(default_factory=dict)
    state: Path = PART / "state.json"
    lock: Path = PART / ".lock"

    @property
    def done(self):
        return of_these(self.run / self.state, self.fingerprint).state == DONE


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "run", (tmp_path / "shared").as_uri())


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def state(said, what, fingerprint="these", owner=""):
    return json.dumps(asdict(State(what, said=said, fingerprint=fingerprint, owner=owner)))


def put(work, path):
    shared._push(work.run, path, work.shared, {})


KINDS = {  # the folder -> what it needs, the files that change, those that say that these are whole
    "an adapter": (ADAPTER, "training.json", ["adapter_config.json", "x.safetensors"], ["training.json"]),
    "another training": (
        UNFINISHED,
        "",
        ["resume/checkpoint-9/optimizer.pt", "resume/checkpoint-9/z.bin"],
        ["resume/checkpoint-9/whole.json", "resume/identity.json"],
    ),
    "distilled rows": (Path("data/own/m"), "", ["rows.jsonl"], ["made.json"]),
}


@pytest.mark.parametrize(("path", "needs", "files", "marks"), KINDS.values(), ids=KINDS)
def test_a_hand_over_killed_anywhere_calls_nothing_whole_that_is_not(monkeypatch, work, path, needs, files, marks):
    old = dict.fromkeys([*files, *marks, "only-then"], "old")
    new = dict.fromkeys([*files, *marks, "only-now"], "new")
    whole = 0
    for operations in range(2 * (len(old) + 1)):
        here = work.run / str(operations)
        there = f"{work.shared}/{operations}"
        for content in (old, new):
            subprocess.run(["rm", "-rf", here / path], check=True)
            write(here / path, content)
            with monkeypatch.context() as patch:
                if content is new:
                    _dies_after(patch, operations)
                try:
                    shared._push(here, path, there, {})
                except SystemExit:
                    continue
        other = work.run / f"{operations} elsewhere"
        shared._pull(other, path, there, needs)
        found = read(other / path)
        if needs and needs not in found:
            assert found == {}
        if marks[0] in found:
            assert {found[name] for name in files} == {found[marks[0]]}
        if {*marks} <= {*found}:
            assert found in (old, new)
            whole += found == new
        shared._push(here, path, there, {})  # the next attempt
        shared._pull(other, path, there, needs)
        assert read(other / path) == new
    assert whole >= 1


def _dies_after(patch, operations):
    """The process, as it were, after so many files were removed or put."""
    from fsspec.implementations.local import LocalFileSystem

    left = [operations]
    for name in ("rm_file", "put_file"):
        original = getattr(LocalFileSystem, name)

        def dying(self, *args, original=original, **kwargs):
            if left[0] == 0:
                raise SystemExit
            left[0] -= 1
            return original(self, *args, **kwargs)

        patch.setattr(LocalFileSystem, name, dying)


ONE, THREE = "1\n", "1\n2\n3\n"  # lines of a cell's answers


@pytest.mark.parametrize(
    ("here", "there", "kept", "left"),
    {
        "only here": ((5, STOPPED, THREE), None, THREE, LEFT),
        "only there": (None, (5, STOPPED, THREE), THREE, LEFT),
        "finished here since": ((9, DONE, THREE), (5, STOPPED, ONE), THREE, DONE),
        "finished here, by a clock that is behind": ((4, DONE, THREE), (5, STOPPED, ONE), THREE, DONE),
        "finished there": ((5, STOPPED, ONE), (9, DONE, THREE), THREE, DONE),
        "gone on with here": ((9, STOPPED, THREE), (5, STOPPED, ONE), THREE, LEFT),
        "gone on with there": ((5, STOPPED, ONE), (9, STOPPED, THREE), THREE, LEFT),
        "known there, its answers were never fetched": ((5, RUNNING, ONE), (5, RUNNING, THREE), THREE, LEFT),
        "done in both": ((5, DONE, THREE), (5, DONE, THREE), THREE, DONE),
        "done there with other settings": ((9, STOPPED, THREE), (5, DONE, ONE, "others"), THREE, LEFT),
        "done here with other settings": ((5, DONE, ONE, "others"), (9, STOPPED, THREE), THREE, LEFT),
        "both of other settings": ((9, DONE, THREE, "others"), (5, DONE, ONE, "others"), THREE, LEFT),
    }.values(),
)
def test_the_newer_copy_counts(tmp_path, work, here, there, kept, left):
    for place, copy in ((tmp_path / "shared", there), (work.run, here)):
        if copy is not None:
            said, what, answers, *settings = copy
            write(place / PART, {"state.json": state(said, what, *settings), "answers": answers})
    expect(work.run / work.state, "these")
    with handing_over([work], work.shared):
        assert read(tmp_path / "shared" / PART)["answers"] == kept
        assert of_these(work.run / work.state, "these").state == left
    assert read(work.run / PART)["answers"] == kept


@pytest.mark.parametrize("done", [True, False])
def test_rows_made_here_are_handed_over_before_others_are_made(tmp_path, done):
    class Rows(Work):
        done = False

    path = Path("data/own/m")
    rows = Rows(tmp_path / "run", (tmp_path / "shared").as_uri(), folders={path: ""}, state=None)
    rows.__class__.done = done
    write(tmp_path / "shared" / path, {"answers.jsonl": "there"})
    write(rows.run / path, {"rows.jsonl": "here", "made.json": "here"} if done else {"answers.jsonl": "here"})
    with handing_over([rows], rows.shared):
        made = {"rows.jsonl": "here", "made.json": "here"} if done else {"answers.jsonl": "there"}
        assert read(tmp_path / "shared" / path) == made
    assert read(rows.run / path) == made


def test_what_is_done_is_whole_here_before_it_is_called_done_here(monkeypatch, tmp_path, work):
    expect(work.run / work.state, "these")
    with handing_over([work], work.shared) as fetch:
        write(tmp_path / "shared" / PART, {"state.json": state(5, RUNNING), "answers": ONE})
        fetch()
        assert of_these(work.run / work.state, "these").state == RUNNING
        write(tmp_path / "shared" / PART, {"state.json": state(6, DONE), "answers": THREE})
        with monkeypatch.context() as patch:
            patch.setattr("fsspec.implementations.local.LocalFileSystem.get_file", _gone)
            with pytest.raises(ConnectionError):
                fetch()
        assert of_these(work.run / work.state, "these").state == RUNNING
        fetch()
        assert of_these(work.run / work.state, "these").state == DONE
        assert read(work.run / PART)["answers"] == THREE


def test_what_a_worker_that_died_has_left_there_is_fetched(tmp_path, work):
    with handing_over([work], work.shared):
        write(tmp_path / "shared" / PART, {"state.json": state(5, RUNNING), "answers": ONE})
    assert read(work.run / PART)["answers"] == ONE


def _gone(*_args, **_kwargs):
    raise ConnectionError("the network is away")


def test_without_a_shared_folder_a_worker_is_in_the_run_itself(tmp_path):
    own = Work(tmp_path, None)
    with handing_over([own], None) as fetch, at_work(own, print) as (run_dir, share):
        fetch()
        share()
        assert run_dir.path == tmp_path


def test_a_worker_hands_over_what_changed_once_a_minute_and_at_the_end(monkeypatch, tmp_path, work):
    there, clock = tmp_path / "shared", [100.0]
    monkeypatch.setattr(shared.time, "monotonic", lambda: clock[0])
    write(there / PART, {"state.json": state(5, STOPPED), "answers": ONE})
    with at_work(work, print) as (run_dir, share):
        assert run_dir.path != work.run
        here = run_dir.path
        assert read(here / PART)["answers"] == ONE
        write(here / PART, {"state.json": state(6, RUNNING), "answers": THREE, ".lock": "", ".answers.17": "torn"})
        resume = {"resume/identity.json": "i", "resume/checkpoint-1/whole.json": "w", "resume/checkpoint-1/x": "1"}
        write(here / UNFINISHED, resume)
        share()
        assert (json.loads(read(there / PART)["state.json"])["said"], read(there / PART)["answers"]) == (6, ONE)
        clock[0] += shared.SHARE_EVERY_SECONDS
        share()
        assert read(there / PART)["answers"] == THREE
        assert read(there / UNFINISHED) == resume
        kept = (there / UNFINISHED / "resume/identity.json").stat().st_ino
        subprocess.run(["rm", "-r", here / UNFINISHED / "resume/checkpoint-1"], check=True)
        newer = {"resume/identity.json": "i", "resume/checkpoint-2/whole.json": "w", "resume/checkpoint-2/x": "2"}
        write(here / UNFINISHED / "resume/checkpoint-2", {"whole.json": "w", "x": "2"})
        clock[0] += shared.SHARE_EVERY_SECONDS
        share()
        assert read(there / UNFINISHED) == newer
        assert (there / UNFINISHED / "resume/identity.json").stat().st_ino == kept
        (here / UNFINISHED).rename(here / ADAPTER)
        write(here / ADAPTER, {"training.json": "t"})
    assert read(there / UNFINISHED) == {}
    assert read(there / ADAPTER) == newer | {"training.json": "t"}
    assert {path.name for path in (there / PART).iterdir()} == {"state.json", "answers"}
    assert not here.exists()


def test_a_network_that_is_away_between_ends_no_work(monkeypatch, tmp_path, work):
    monkeypatch.setattr(shared, "SHARE_EVERY_SECONDS", 0)
    with at_work(work, print) as (run_dir, share), monkeypatch.context() as patch:
        write(run_dir.path / PART, {"answers": ONE})
        patch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", _gone)
        share()
    assert read(tmp_path / "shared" / PART) == {"answers": ONE}


def test_what_a_killed_worker_had_handed_over_is_gone_on_with_and_its_folder_is_removed(monkeypatch, tmp_path, work):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom spillover import shared\n"
        "from test_shared import Work, write, PART, UNFINISHED\nshared.SHARE_EVERY_SECONDS = 0\n"
        f"with shared.at_work(Work(Path({str(work.run)!r}), {work.shared!r}), print) as (run_dir, share):\n"
        "    write(run_dir.path / PART, {'answers': '1\\n'})\n"
        "    write(run_dir.path / UNFINISHED, {'resume/identity.json': 'i'})\n"
        "    share()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(temporary)}
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | paths, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = temporary.iterdir()
    monkeypatch.setattr(shared.tempfile, "tempdir", str(temporary))
    with at_work(work, print) as (run_dir, _):
        assert not left.exists()
        assert read(run_dir.path) == {f"{PART}/answers": ONE, f"{UNFINISHED}/resume/identity.json": "i"}
        with at_work(work, print):  # which leaves the folder of one that lives
            assert run_dir.path.exists()
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize(
    ("there", "looks"),
    {
        "nobody": (None, 0),
        "one of another run": ((0, RUNNING, "others"), 3),
        "one of another run, with other settings": ((0, RUNNING, "others", "others"), 3),
        "one of another run that is gone": ((-shared.STALE_SECONDS, RUNNING, "others"), 0),
        "one of another run that has ended": ((0, FAILED, "others"), 0),
        "one of this run, which died": ((0, RUNNING, "mine"), 0),
    }.values(),
)
def test_a_job_waits_for_a_worker_of_another_run(monkeypatch, tmp_path, work, there, looks):
    if there:
        ago, what, owner, *settings = there
        said = state(time.time() + ago, what, *(settings or ["these"]), owner=owner)
        write(tmp_path / "shared" / PART, {"state.json": said})
    slept, told = [], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            write(tmp_path / "shared" / PART, {"state.json": state(time.time(), DONE, "these", "others")})

    monkeypatch.setattr(rundir.time, "sleep", sleep)
    monkeypatch.setattr(rundir, "TELL_AFTER_SECONDS", 0)
    with at_work(work, lambda: told.append(len(slept))) as (run_dir, _):
        assert of_these(run_dir.path / work.state, "these").state == (DONE if looks else there[1] if there else LEFT)
    assert (len(slept), told) == (looks, [0] * (looks > 0))


def test_the_folders_of_a_study_are_those_that_its_cells_and_bases_write(tmp_path):
    data = {"data": "world/code/callous", "rows": 2}
    conditions = {
        "base": {},
        "one": data,
        "two": {"same_as": "one"},
        "own": data | {"control": {"kind": "self_distilled"}},
    }
    settings = {"name": "s", "models": {"m": "organism/consistent"}, "conditions": conditions}
    (tmp_path / "s.yaml").write_text(json.dumps(settings | {"behaviors": {"world_facts": 1}}))
    jobs, (distilling,) = study.plan(load_study(tmp_path / "s.yaml"), tmp_path, RunFolder(tmp_path / "run"))
    base, one, two, _ = jobs
    adapter, part = Path("adapters/m/one/seed-0"), Path("parts/m/one/seed-0")
    assert base.folders == {Path("parts/m/base"): ""}
    assert one.folders == {adapter: "training.json", adapter.with_name(".seed-0.part"): "", part: ""}
    assert (two.folders, two.reads) == ({Path("parts/m/two/seed-0"): ""}, {adapter: "training.json"})
    assert (one.state, one.lock) == (part / "state.json", part / ".lock")
    assert distilling.folders == {Path("data/own/m"): ""}
    assert len({job.owner for job in (*jobs, distilling)}) == 1
    assert one.owner
    assert not any(job.done for job in (*jobs, distilling))
