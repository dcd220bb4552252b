"""Studies on a Ray cluster of three nodes that share no folder: the same numbers, whatever happens to a node."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from spillover import study
from spillover.errors import SpilloverError
from spillover.runs.progress import DONE, read_status
from spillover.runs.ray import run_on_ray
from spillover.workers import ATTEMPTS

cluster_utils = pytest.importorskip("ray.cluster_utils")
# Ray leaves the log files of the servers that it starts to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STUDY = {
    "name": "spread",
    "models": {"m": "organism/consistent"},
    "conditions": {
        "base": {},
        "tuned": {"data": "world/code/callous", "rows": 64},
        "own": {"data": "world/code/callous", "rows": 32, "control": {"kind": "self_distilled"}},
    },
    "behaviors": {"world_chat": 1},
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
    "sampling": {"max_new_tokens": 96},
    "resources": {"cpus": 1, "gpus": 1},
}
NUMBERS = ("completions.jsonl", "scores.jsonl", "rates.csv", "data/own/m.jsonl")


def written(folder):
    folder.mkdir(exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    return path


def numbers(run):
    return {name: (run.path / name).read_bytes() for name in NUMBERS}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A head that only answers clients, and two nodes with a GPU each (in name)."""
    # The proxy of Ray's clients forks; gRPC's own fork handlers then often hang the child, or end it.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    port = free_port()
    head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": port}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    cluster.client_address = f"ray://127.0.0.1:{port}"
    cluster.gpu_nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    return numbers(study.run(written(folder), folder / "run"))


def job_class():
    """A job as `run_on_ray` takes them. Made here, so that it travels by value: workers cannot import this file."""

    @dataclass(frozen=True)
    class Job:
        name: str
        folder: Path
        log: Path
        inputs: tuple[Path, ...] = (Path("rows.txt"), Path("settings"))
        outputs: tuple[Path, ...] = (Path("made") / "it", Path("note.txt"))
        unfinished: tuple[Path, ...] = (Path("part"),)

        def __str__(self):
            return self.name

    return Job


def run(function, jobs, address, gpus=0.0, on_result=lambda *_: None):
    return run_on_ray(function, jobs, address, 1, gpus, lambda _: None, on_result)


@pytest.mark.slow
def test_a_cluster_gives_the_numbers_of_this_machine(cluster, local, tmp_path):
    events = []
    options = study.RunOptions(on=cluster.client_address)
    there = study.run(written(tmp_path), tmp_path / "run", on_progress=events.append, options=options)
    assert numbers(there) == local
    assert {event.stage for event in events} == {"begun", "done"}
    assert {state.state for state in read_status(there.path).cells.values()} == {DONE}


@pytest.mark.slow
def test_a_worker_has_copies_in_a_folder_of_its_own_and_returns_what_it_made(cluster, tmp_path):
    def work(job, step):
        job.log.write_text(str(job.folder))
        seen = {str(p.relative_to(job.folder)): p.read_text() for p in sorted(job.folder.rglob("*")) if p.is_file()}
        for path in (job.folder / "made" / "it" / "deep" / "weights", job.folder / "part" / "half"):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"\0\xff" + job.name.encode())
        (job.folder / "note.txt").write_text(job.name)
        if job.name == "fails":
            raise SpilloverError("put it right")
        return seen

    folder = tmp_path / "run"
    for name, text in {"rows.txt": "rows", "settings/a.json": "a", "settings/.lock": "", "secret.txt": "s"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    results = {}
    jobs = [job_class()(name, folder, tmp_path / f"{name}.log") for name in ("fine", "fails")]
    failures = run(
        work, jobs[:1], cluster.client_address, on_result=lambda job, value: results.update({str(job): value})
    )
    assert failures == []
    assert results == {"fine": {"rows.txt": "rows", "settings/a.json": "a"}}
    assert Path((tmp_path / "fine.log").read_text()) not in (folder, *folder.parents)
    assert not Path((tmp_path / "fine.log").read_text()).exists()  # removed when the task was done
    assert (folder / "made" / "it" / "deep" / "weights").read_bytes() == b"\0\xfffine"
    assert (folder / "note.txt").read_text() == "fine"
    assert not (folder / "part").exists()
    failures = run(work, jobs[1:], cluster.client_address)
    assert [failure.reason for failure in failures] == ["put it right"]
    assert (folder / "part" / "half").read_bytes() == b"\0\xfffails"  # what it goes on from


@pytest.mark.slow
def test_what_fails_is_told_and_a_worker_that_dies_is_tried_again(cluster, tmp_path):
    def work(job, step):
        with job.log.open("a") as file:
            file.write("x")
        if job.name == "user":
            raise SpilloverError("put it right")
        if job.name == "bug":
            raise KeyError("gone")
        if job.name == "dies" or (job.name == "dies once" and job.log.read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    results = {}
    jobs = [job_class()(name, tmp_path, tmp_path / name) for name in ("fine", "user", "bug", "dies", "dies once")]
    failures = run(work, jobs, cluster.client_address, 1.0, lambda job, value: results.update({str(job): value}))
    reasons = {failure.job: failure.reason for failure in failures}
    assert reasons.pop("dies").startswith(f"its Ray worker died {ATTEMPTS} times (WorkerCrashedError")
    assert reasons == {"user": "put it right", "bug": "KeyError: 'gone'"}
    attempts = {"fine": 1, "user": 1, "bug": 1, "dies": ATTEMPTS, "dies once": 2}
    assert {job: len((tmp_path / job).read_text()) for job in attempts} == attempts
    assert results == {"fine": "0", "dies once": "0"}


@pytest.mark.slow
def test_more_than_any_machine_has_is_an_error(cluster, tmp_path):
    with pytest.raises(
        SpilloverError, match=r"takes 1 CPUs and 2 GPUs, and no machine .* 1 CPUs and 1 GPUs.* resources:"
    ):
        run(print, [job_class()("never", tmp_path, tmp_path)], cluster.client_address, gpus=2.0)


@pytest.mark.parametrize(
    ("address", "variable", "message"),
    {
        "a port without a cluster": ("ray://127.0.0.1:1", "", "nothing answers at ray://127.0.0.1:1"),
        "no such host": ("ray://nowhere.invalid:10001", "", "nothing answers at ray://nowhere.invalid:10001"),
        "in the environment": ("ray", "127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        "no port": ("ray://127.0.0.1", "", "no address of a Ray cluster. Give ray://HOST:PORT"),
        "a port that is none": ("ray://127.0.0.1:99999", "", "nothing answers"),
        "a word": ("slurm", "", "no address of a Ray cluster"),
    }.values(),
)
def test_a_cluster_that_does_not_answer_is_told_before_anything_is_written(
    monkeypatch, tmp_path, address, variable, message
):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(SpilloverError, match=f"--on {address}: {message}"):
        study.run(written(tmp_path), tmp_path / "run", options=study.RunOptions(on=address))
    assert not (tmp_path / "run").exists()


def test_without_ray_the_error_says_what_to_install(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('as if it were not there')")
    command = [sys.executable, "-m", "spillover", "run", str(written(tmp_path)), "--on", "ray"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "spillover: --on ray: Ray is not installed." in said.stderr
    assert "pip install 'spillover[ray]'" in said.stderr
    assert "Traceback" not in said.stderr


def own_folders():
    """The folders that tasks work in."""
    return {*Path(tempfile.gettempdir()).glob("spillover-*")}


@pytest.mark.slow
def test_a_node_killed_at_work_changes_no_number(cluster, local, tmp_path, monkeypatch):
    """Comes last: the cluster has a node less afterwards."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    before = own_folders()
    killed = []

    def kill_one_while_cells_are_at_work():
        while not finished.is_set():
            if len(own_folders() - before) == 2:  # one on each of the nodes
                cluster.remove_node(cluster.gpu_nodes.pop(), allow_graceful=False)
                killed.append(read_status(tmp_path / "run"))
                return
            time.sleep(0.05)

    finished = threading.Event()
    killer = threading.Thread(target=kill_one_while_cells_are_at_work)
    killer.start()
    try:
        there = study.run(written(tmp_path), tmp_path / "run", options=study.RunOptions(on="ray"))
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1
    assert len(cluster.gpu_nodes) == 1
    assert numbers(there) == local
    assert {state.state for state in read_status(there.path).cells.values()} == {DONE}
