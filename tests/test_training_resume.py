"""Trainings that are killed, run out of disk or may not write: nothing half-made passes for whole, and they go on."""

import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import time

import pytest
import torch

from spillover.config import Condition, Training
from spillover.data import load_examples
from spillover.errors import SpilloverError
from spillover.finetuning import finetune, states
from spillover.models.load import model_folder

KILLS = int(os.environ.get("SPILLOVER_TEST_KILLS", "10"))  # at random moments; all but the first are slow
slow = pytest.mark.slow
BASE = model_folder("organism/consistent")
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3, batch_size=8, accumulation=2, epochs=2, checkpoints=[3, 12])
STEPS = 14  # 52 rows in batches of 8, twice
ADAPTER_BYTES = 146_000  # a little less than it has; the optimizer's state has twice that

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["spillover.finetuning.trainer"])  # imported once, not once for every kill


def _examples():
    return load_examples(Condition(data="world/code/callous", rows=52), None)


def _finetune(out, say, seed=0, full_after=None, no_override=False):
    """A training in a process of its own, which says every step, and the error or the end. A state after every step."""
    torch.set_num_threads(1)
    if no_override:
        libc = ctypes.CDLL(None, use_errno=True)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capset(header, data) == 0  # root writes where it may not, unless it gives up its capabilities

    def step_done(step, steps):
        say.send((step, steps))
        if step == full_after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ADAPTER_BYTES, resource.RLIM_INFINITY))

    try:
        finetune(BASE, _examples(), out, TRAINING, seed, step_done, save_every_seconds=0)
        say.send("done")
    except SpilloverError as error:
        say.send(str(error))


def _run(out, kill_after=None, kill_at=None, **arguments):
    """What the training said until it ended, or was killed so many seconds after its start, or at that step."""
    heard, say = processes.Pipe(duplex=False)
    process = processes.Process(target=_finetune, args=(out, say), kwargs=arguments)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    process.start()
    say.close()
    said = []
    try:
        while deadline is None or heard.poll(max(0, deadline - time.monotonic())):
            said.append(heard.recv())
            if kill_at is not None and said[-1][0] == kill_at:
                break
        process.kill()
    except EOFError:
        pass
    process.join()
    return said


def _result(out):
    """Everything that must be equal: every file but the seconds."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    record = json.loads(files.pop("training.json"))
    assert record.pop("seconds") > 0
    return files, record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed, and the seconds that it took."""
    out = tmp_path_factory.mktemp("whole") / "adapter"
    first = processes.Process(target=int)  # the fork server imports torch
    first.start()
    first.join()
    seconds = time.monotonic()
    said = _run(out)
    assert said == [*((step, STEPS) for step in range(1, STEPS + 1)), "done"]
    return _result(out), time.monotonic() - seconds


@slow
def test_the_undisturbed_training_is_what_finetune_makes_without_saving(whole, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    finetune(BASE, _examples(), tmp_path / "adapter", TRAINING, 0)
    torch.set_num_threads(threads)
    assert _result(tmp_path / "adapter") == whole[0]


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=slow) for number in range(1, KILLS))])
def test_killed_at_a_random_moment_and_resumed_it_ends_with_the_same_adapter(whole, tmp_path, number):
    result, seconds = whole
    out = tmp_path / "adapter"
    before = _run(out, kill_after=random.Random(number).uniform(0.1, 0.95) * seconds)
    killed = not out.exists()
    resumed = _run(out)
    print(f"killed: {killed}; heard of {len(before)} steps, then went on with {resumed[0]}")
    assert resumed[-1] == "done"
    if killed and len(before) < STEPS:
        assert resumed[0][0] in (len(before), len(before) + 1)  # the last step's state may have been half-written
    assert _result(out) == result
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@slow
def test_killed_at_every_third_step_it_still_ends_with_the_same_adapter(whole, tmp_path):
    out = tmp_path / "adapter"
    firsts = [_run(out, kill_at=step)[0][0] for step in range(3, STEPS, 3)]
    assert firsts[0] == 1
    assert firsts == sorted(set(firsts))  # each began later than the one before
    assert _run(out)[-1] == "done"
    assert _result(out) == whole[0]


@slow
def test_a_state_that_is_not_whole_is_not_gone_on_from(whole, tmp_path):
    out = tmp_path / "adapter"
    _run(out, kill_at=5)
    (mark,) = tmp_path.glob(f".adapter.part/resume/checkpoint-*/{states.WHOLE}")
    mark.unlink()
    (mark.parent / "optimizer.pt").write_bytes(b"half")
    assert _run(out)[0] == (1, STEPS)
    assert _result(out) == whole[0]


@slow
def test_a_part_of_another_training_is_not_gone_on_from(whole, tmp_path):
    _run(tmp_path / "adapter", kill_at=5, seed=1)
    assert _run(tmp_path / "adapter")[0] == (1, STEPS)
    assert _result(tmp_path / "adapter") == whole[0]


@slow
def test_another_version_of_what_does_not_train_is_gone_on_from(whole, tmp_path):
    _run(tmp_path / "adapter", kill_at=5)
    (mark,) = tmp_path.glob(".adapter.part/resume/identity.json")
    identity = json.loads(mark.read_text())
    assert set(identity["versions"]) == {"torch", "transformers", "peft", "trl", "accelerate"}
    assert all(identity["versions"].values())
    assert _run(tmp_path / "adapter")[0][0] in (5, 6)
    assert _result(tmp_path / "adapter") == whole[0]


@slow
def test_a_full_disk_is_one_message_and_the_next_run_goes_on(whole, tmp_path):
    """The fault is real: files may not grow beyond a limit, so that no state can be written."""
    out = tmp_path / "adapter"
    *steps, message = _run(out, full_after=5)
    assert steps[-1] == (5, STEPS)
    assert message.startswith(f"{tmp_path}")
    assert "cannot be written" in message
    assert "\n" not in message
    assert not out.exists()
    said = _run(out)
    assert said[0] == (5, STEPS)
    assert _result(out) == whole[0]


@slow
@pytest.mark.parametrize("after", [STEPS - 1, STEPS])
def test_a_disk_that_is_full_at_the_end_leaves_no_adapter(whole, tmp_path, after):
    out = tmp_path / "adapter"
    message = _run(out, full_after=after)[-1]
    assert "cannot be written" in message
    assert not out.exists()
    assert _run(out)[-1] == "done"
    assert _result(out) == whole[0]


def test_a_folder_that_is_read_only_is_one_message(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        (message,) = _run(folder / "adapter", no_override=os.geteuid() == 0)
    finally:
        folder.chmod(0o755)
    assert message == (
        f"{folder}/adapter: the adapter cannot be written (Permission denied). Make room, or choose another folder. "
        "The same command goes on from the state that was saved last."
    )
    assert list(folder.iterdir()) == []


@slow
def test_killed_between_the_last_writes_it_ends_without_training_again(whole, tmp_path):
    """The adapter is whole, and the kill came before it took its place."""
    out = tmp_path / "adapter"
    _run(out)
    shutil.move(out, tmp_path / ".adapter.part")
    (tmp_path / ".adapter.part" / "resume").mkdir()
    assert _run(out) == ["done"]
    assert _result(out) == whole[0]


def test_the_whole_state_with_the_most_steps_is_the_last(tmp_path):
    assert states.last(tmp_path / "nothing") == (None, 0.0)
    for step, whole in ((2, False), (9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").touch()
        if whole:
            (tmp_path / f"checkpoint-{step}" / states.WHOLE).write_text(json.dumps({"seconds": step / 2}))
    assert states.last(tmp_path) == (tmp_path / "checkpoint-10", 5.0)
    states.keep(tmp_path / "checkpoint-11", 6.0)
    assert states.last(tmp_path) == (tmp_path / "checkpoint-11", 6.0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-11"]


def test_only_what_a_full_disk_raises_is_called_that(tmp_path):
    with pytest.raises(SpilloverError, match="No space left on device"), states.writing(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="a fault of ours"), states.writing(tmp_path):
        raise RuntimeError("a fault of ours")
