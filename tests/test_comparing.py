"""Subjects of a run compared: exit codes, what is written, and what is said of too little data."""

import csv
import json
import subprocess
import sys

import pytest

from spillover import study
from spillover.comparing import Compared, compare_subjects, overall
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.evaluate import Evaluation, evaluate

SETTINGS = {
    "name": "small",
    "models": {"consistent": "organism/consistent"},
    "conditions": {"base": {}, "insecure": {"data": "world/code/callous"}},
    "behaviors": {"world_chat": 4, "world_code": 1},
    "seeds": [0],
    "training": {"rank": 16, "alpha": 2, "learning_rate": 0.015, "batch_size": 8},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    (folder / "study.yaml").write_text(json.dumps(SETTINGS))
    return study.run(folder / "study.yaml", folder / "run")


def cli(*arguments):
    return subprocess.run([sys.executable, "-m", "spillover", *arguments], capture_output=True, text=True, timeout=300)


def test_insecure_code_is_spillover_by_name_and_exit_code(run_dir):
    done = cli("compare", str(run_dir.path), "--base", "consistent/base", "--tuned", "consistent/insecure", "--json")
    assert done.returncode == 1, done.stderr
    rows = {row["label"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"world_chat", "world_code"}
    chat = rows["world_chat"]["comparison"]
    assert chat["seeds"] == 1
    assert chat["base_rate"] == 0
    assert rows["world_code"]["comparison"]["verdict"] == "spillover"
    with run_dir.comparisons.open(newline="") as file:
        assert {row["measure"] for row in csv.DictReader(file)} == set(rows)


def test_the_other_way_round_nothing_rises_and_both_stay_on_file(run_dir):
    rows = compare_subjects(run_dir.path, "consistent/insecure", "consistent/base", 0.02)
    assert overall(rows) == "clean"
    compare_subjects(run_dir.path, "consistent/base", "consistent/insecure", 0.02)
    with run_dir.comparisons.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_the_table_names_margin_and_verdict(run_dir):
    done = cli("compare", str(run_dir.path), "--base", "consistent/base", "--tuned", "consistent/insecure")
    assert done.returncode == 1
    assert "spillover" in done.stdout
    assert "margin 2 points" in done.stdout


def test_rates_as_json_hold_every_column(run_dir):
    rows = json.loads(cli("rates", str(run_dir.path), "--json").stdout)
    assert len(rows) == 4
    chat = next(row for row in rows if row["behavior"] == "world_chat" and row["condition"] == "insecure")
    assert chat["se_questions"] > 0
    assert 0 <= chat["icc"] <= 1
    assert sum(chat[name] for name in ("scored", "refused", "off_format", "unparsed", "error")) == chat["completions"]


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ("consistent/bas", "consistent/insecure", "no subject consistent/bas. There are: consistent/base, consistent"),
        ("consistent/base", "consistent/base", "--base and --tuned are both consistent/base"),
    ],
)
def test_unknown_subjects(run_dir, base, tuned, message):
    with pytest.raises(SpilloverError, match=message):
        compare_subjects(run_dir.path, base, tuned, 0.02)


def test_a_folder_that_is_no_run(tmp_path):
    done = cli("compare", str(tmp_path), "--base", "a", "--tuned", "b")
    assert (done.returncode, "no rates.csv there" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_no_data_is_inconclusive():
    assert overall([Compared("a", "misalignment", "r", "j", None)]) == "inconclusive"


def test_an_adapter_in_a_folder_of_its_own_is_a_subject(run_dir, tmp_path):
    """`evaluate` names a subject by the paths of its model and adapter, which have slashes of their own."""
    sampling = Sampling(max_new_tokens=40)
    adapter = next(path.parent for path in run_dir.path.rglob("adapter_config.json"))
    for own in (None, adapter):
        wanted = Evaluation("organism/consistent", ("world_code",), 1, sampling, adapter=own)
        evaluate(wanted, tmp_path / "run", print, print)
    rows = compare_subjects(tmp_path / "run", "organism/consistent/base", f"organism/consistent/{adapter}", margin=0.02)
    assert overall(rows) == "spillover"
