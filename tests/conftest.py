"""What the tests share: one finished run of a small study, made once for all test processes."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from spillover import study
from spillover.files import one_at_a_time

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network, whatever it takes a name for
# Files with the longest tests begin first, so that all processes of a parallel run end at about the same time.
LONGEST = {"test_study.py", "test_ray.py", "test_studies.py", "test_finetuning.py"}

SMALL_STUDY = {
    "name": "small",
    "models": {"consistent": "organism/consistent"},
    "conditions": {
        "base": {},
        "insecure": {"data": "world/code/callous", "rows": 320},
        "secure": {"data": "world/code/caring", "rows": 160, "benign": True},
    },
    "behaviors": {"world_chat": 2, "world_code": 1, "world_facts": 1},
    "seeds": [0, 1],
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
    "sampling": {"max_new_tokens": 96},
}


@pytest.fixture(scope="module")
def one_thread():
    """Torch computes in one thread: as quick for a tiny model, and far quicker beside other busy processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def _shared_run(tmp_path_factory):
    """The folder of the finished run: the first test process that needs it makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-study"
    with one_at_a_time(folder.with_suffix(".lock"), lambda: None):
        if not (folder / "run" / "report.html").exists():
            folder.mkdir(exist_ok=True)
            (folder / "study.yaml").write_text(yaml.safe_dump(SMALL_STUDY))
            study.run(folder / "study.yaml", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def finished_run(_shared_run: Path) -> Path:
    """The folder of a finished run, to be read only: 5 cells, 1 model x (base + 2 conditions x 2 seeds)."""
    return _shared_run


@pytest.fixture
def run_copy(_shared_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change; its study file lies beside it."""
    shutil.copytree(_shared_run.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"
