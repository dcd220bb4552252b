"""Jobs in worker processes: what one does to its process leaves the others alone, and every end is told."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from spillover.errors import SpilloverError
from spillover.workers import ATTEMPTS, BEGUN, DONE, FAILED, Progress, run_side_by_side

PATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)


@dataclass(frozen=True)
class Work:
    """A job that leaves a line in a file for every attempt at it."""

    name: str
    does: str
    folder: Path
    ballast: bytes = b""

    def __str__(self) -> str:
        return self.name

    @property
    def attempts(self) -> list[str]:
        return (self.folder / self.name).read_text().split()


def work(job, step):
    with (job.folder / job.name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    for done in range(1, 4):
        step("work", done, 3)
    match job.does:
        case "user":
            raise SpilloverError("put it right")
        case "bug":
            raise KeyError("gone")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies once":
            if len(job.attempts) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        case "exits":
            os._exit(3)
        case "meets":
            deadline = time.monotonic() + 150
            while len(list(job.folder.iterdir())) < 2:
                assert time.monotonic() < deadline, "the other job was not run at the same time"
                time.sleep(0.01)
        case "chatters":
            for done in range(3000):
                step("chatter", done, 3000)
        case "waits":
            time.sleep(600)
        case "returns":
            return job.name * 3
        case "looks":
            (job.folder / f"{job.name}.gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    return None


def run(jobs, workers, gpus=(), on_result=lambda *_: None):
    events = []
    return run_side_by_side(work, jobs, workers, events.append, gpus, on_result), events


def test_a_worker_sees_the_gpus_that_are_its_own_also_after_one_has_died(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    kinds = ["dies once", "looks", "looks", "looks", "looks"]
    failures, _ = run([Work(f"{number}", kind, tmp_path) for number, kind in enumerate(kinds)], 2, ["0,1", "2,3"])
    assert failures == []
    assert {file.read_text() for file in tmp_path.glob("*.gpus")} <= {"0,1", "2,3"}
    run([Work(f"{number} once more", "looks", tmp_path) for number in range(2)], 1, ["2,3"])
    assert {file.read_text() for file in tmp_path.glob("* once more.gpus")} == {"2,3"}
    run([Work("all", "looks", tmp_path)], 1)
    assert (tmp_path / "all.gpus").read_text() == "all"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_is_told_and_the_rest_is_done_once(tmp_path, workers):
    kinds = ["dies", "fine", "user", "dies once", "exits", "bug", "fine", "fine"]
    jobs = [Work(f"{number} {kind}", kind, tmp_path) for number, kind in enumerate(kinds)]
    failures, events = run(jobs, workers)
    reasons = {failure.job: failure.reason for failure in failures}
    assert reasons == {
        "0 dies": f"its worker process died {ATTEMPTS} times, last by SIGKILL. Is there enough memory?",
        "2 user": "put it right",
        "4 exits": f"its worker process died {ATTEMPTS} times, last with exit code 3. Is there enough memory?",
        "5 bug": "KeyError: 'gone'",
    }
    assert [failure.job for failure in failures if "Traceback" in failure.detail] == ["5 bug"]
    assert {job.name: len(job.attempts) for job in jobs} == {
        job.name: {"dies": ATTEMPTS, "exits": ATTEMPTS, "dies once": 2}.get(job.does, 1) for job in jobs
    }
    assert events[0] == Progress("", len(jobs), BEGUN, 0, 0)
    ends = [event for event in events if event.stage in (DONE, FAILED)]
    assert Counter(event.job for event in ends) == {job.name: 1 for job in jobs}
    assert {event.job for event in ends if event.stage == FAILED} == set(reasons)
    for job in jobs:  # nothing is told of a job after its end
        assert [event.stage for event in events if event.job == job.name][-1] in (DONE, FAILED)


UNGUARDED = """
import os
from spillover.workers import run_side_by_side
print("begins")
results = []
print(run_side_by_side(os.path.join, [("a")], 1, lambda _: None, on_result=lambda job, value: results.append(value)))
print("ends")
"""


@pytest.mark.parametrize("arguments", [["-"], ["script.py"]], ids=["from standard input", "from a file"])
def test_a_script_needs_no_guard_and_runs_once(tmp_path, arguments):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, input=UNGUARDED, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (ended.stdout.count("begins"), ended.stdout.count("ends")) == (1, 1), ended.stderr
    assert "Failure" in ended.stdout  # a path is not joined with a function; the job was called, and says so


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 2), (9, 2)])
def test_jobs_run_side_by_side_in_processes_that_are_used_again(tmp_path, workers, processes):
    jobs = [Work(str(n), "meets" if workers > 1 else "fine", tmp_path, bytes(3_000_000)) for n in range(2)]
    failures, _ = run(jobs, workers)
    assert failures == []
    assert len({pid for job in jobs for pid in job.attempts}) == processes


def test_every_step_is_told_in_its_order(tmp_path):
    jobs = [Work(str(number), "chatters", tmp_path) for number in range(2)]
    _, events = run(jobs, 2)
    for job in jobs:
        told = [event.done for event in events if (event.job, event.stage) == (job.name, "chatter")]
        assert told == list(range(3000))


def test_what_a_job_returns_is_handed_on_before_its_end_is_told(tmp_path):
    results, ends = {}, []
    jobs = [Work(str(number), "returns", tmp_path) for number in range(4)]
    run_side_by_side(
        work,
        jobs,
        2,
        lambda event: ends.append((event.job, event.job in results)) if event.stage == DONE else None,
        on_result=lambda job, value: results.update({job.name: value}),
    )
    assert results == {str(number): str(number) * 3 for number in range(4)}
    assert ends == [(name, True) for name, _ in ends]


def test_workers_have_the_environment_of_the_moment_they_are_started(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    run([Work("now", "looks", tmp_path)], 1)
    assert (tmp_path / "now.gpus").read_text() == "7"


def test_without_jobs_nothing_is_begun():
    assert run([], 2) == ([], [])


def alive(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run_however_that_ends(tmp_path, end):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import signal\nfrom pathlib import Path\nfrom test_workers import Work, run\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may ignore it\n"
        f"    run([Work(str(n), 'waits', Path({str(jobs)!r})) for n in range(3)], 2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *PATH]))}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    pids = []
    try:
        while len(pids := [pid for path in jobs.iterdir() for pid in path.read_text().split()]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(end)
        _, errors = process.communicate(timeout=180)
        while any(map(alive, pids)):
            assert time.monotonic() < deadline, "a worker outlived its run"
            time.sleep(0.05)
    finally:
        for pid in filter(alive, pids):  # no orphan may disturb the next test
            os.kill(int(pid), signal.SIGKILL)
    assert errors.count("Traceback") == (end == signal.SIGINT)  # of the run itself; the workers say nothing
