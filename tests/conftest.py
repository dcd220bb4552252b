"""Files with the longest tests begin first, so that all processes of a parallel run end at about the same time."""

LONGEST = {"test_study.py", "test_ray.py", "test_power.py", "test_studies.py", "test_status.py"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
