"""Files with the longest tests begin first, so that all processes of a parallel run end at about the same time."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network, whatever it takes a name for
LONGEST = {"test_study.py", "test_ray.py", "test_power.py", "test_studies.py", "test_status.py"}


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
