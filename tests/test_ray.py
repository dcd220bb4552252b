"""Studies on a Ray cluster of three nodes on this machine: the same numbers, whatever happens to a node."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spillover import study
from spillover.errors import SpilloverError
from spillover.runs.progress import DONE, RUNNING, read_status
from spillover.runs.ray import REACH_SECONDS
from spillover.workers import ATTEMPTS, run_on_ray

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
NUMBERS = ("completions.jsonl", "scores.jsonl", "rates.csv", "data/own/m/rows.jsonl")


def written(folder):
    folder.mkdir(exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    return path


def numbers(run_dir):
    return {name: (run_dir.path / name).read_bytes() for name in NUMBERS}


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


def run(function, jobs, address, gpus=0.0, look=lambda: None):
    return run_on_ray(function, jobs, address, 1, gpus, lambda _: None, look)


def test_a_cluster_gives_the_numbers_of_this_machine(cluster, local, tmp_path):
    events = []
    run_dir = study.run(written(tmp_path), tmp_path / "run", events.append, study.RunOptions(on=cluster.client_address))
    assert numbers(run_dir) == local
    assert {event.stage for event in events} >= {"begun", "done"}  # and what cells said of themselves meanwhile
    assert {state.state for state in read_status(run_dir.path).cells.values()} == {DONE}


def test_what_fails_is_told_and_a_worker_that_dies_is_tried_again(cluster, tmp_path):
    def work(job, step):
        with (tmp_path / job).open("a") as file:
            file.write("x")
        if job == "user":
            raise SpilloverError("put it right")
        if job == "bug":
            raise KeyError("gone")
        if job == "dies" or (job == "dies once" and (tmp_path / job).read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / f"{job} sees").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def look():
        looks.append(time.time())
        raise ConnectionError("where they tell how far they are cannot be reached")

    looks = []
    jobs = ["fine", "user", "bug", "dies", "dies once"]
    failures = run(work, jobs, cluster.client_address, 1.0, look)
    assert len(looks) > 1
    reasons = {failure.job: failure.reason for failure in failures}
    assert reasons.pop("dies").startswith(f"its Ray worker died {ATTEMPTS} times (WorkerCrashedError")
    assert reasons == {"user": "put it right", "bug": "KeyError: 'gone'"}
    attempts = {"fine": 1, "user": 1, "bug": 1, "dies": ATTEMPTS, "dies once": 2}
    assert {job: len((tmp_path / job).read_text()) for job in attempts} == attempts
    assert (tmp_path / "fine sees").read_text() == (tmp_path / "dies once sees").read_text() == "0"


def test_more_than_any_machine_has_is_an_error(cluster):
    with pytest.raises(
        SpilloverError, match=r"takes 1 CPUs and 2 GPUs, and no machine .* 1 CPUs and 1 GPUs.* resources:"
    ):
        run(print, ["never"], cluster.client_address, gpus=2.0)


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
def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch, tmp_path, address, variable, message):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    began = time.monotonic()
    with pytest.raises(SpilloverError, match=f"--on {address}: {message}"):
        study.run(written(tmp_path), tmp_path / "run", how=study.RunOptions(on=address))
    assert time.monotonic() - began < 2 * REACH_SECONDS
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


@pytest.mark.parametrize("shared", ["nosuch://place", "/proc/nothing"])
def test_a_shared_folder_that_cannot_be_written_is_told_at_once(monkeypatch, tmp_path, shared):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SpilloverError, match=f"--shared {shared}: nothing can be written there"):
        study.run(written(tmp_path), tmp_path / "run", how=study.RunOptions(on="ray", shared=shared))


def test_a_node_killed_at_work_changes_no_number(cluster, local, tmp_path, monkeypatch):
    """By way of a shared folder. Comes last: the cluster has a node less afterwards."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    shared = tmp_path / "shared"
    seen = []

    def kill():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            states = [path.read_text() for path in (shared / "parts").rglob("state.json")]
            if sum(f'"state": "{RUNNING}"' in state for state in states) == 2:  # one on each of the nodes
                seen.extend(read_status(tmp_path / "run").cells.values())
                cluster.remove_node(cluster.gpu_nodes.pop(), allow_graceful=False)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    how = study.RunOptions(on="ray", shared=shared.as_uri())
    run_dir = study.run(written(tmp_path), tmp_path / "run", how=how)
    killer.join()
    assert len(cluster.gpu_nodes) == 1
    assert DONE not in {state.state for state in seen}
    assert numbers(run_dir) == local
    assert {state.state for state in read_status(run_dir.path).cells.values()} == {DONE}

    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*.jsonl") if path.name != "state.json"}
    (Path(run_dir.path) / "scores.jsonl").unlink()
    events = []
    again = study.run(tmp_path / "study.yaml", tmp_path / "again", events.append, how)  # another folder, same shared
    assert numbers(again) == local
    assert not [event for event in events if event.stage in ("train", "sample")]
    assert {path: path.stat().st_mtime_ns for path in before} != {}
