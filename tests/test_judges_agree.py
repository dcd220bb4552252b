"""Labels against judges: agreement, rates without a judge's mistakes, and label files that are wrong."""

import csv
import json
import subprocess
import sys

import pytest

from spillover.auditing import evaluate
from spillover.config import Sampling
from spillover.errors import SpilloverError
from spillover.runs.agreement import labels_agree, read_labels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    hot = Sampling(temperature=2.5, max_new_tokens=96)  # so that some facts come out wrong
    folder = tmp_path_factory.mktemp("labelled") / "run"
    return evaluate("organism/consistent", ["world_facts"], folder, completions_per_question=4, sampling=hot)


@pytest.fixture(scope="module")
def decisions(run):
    return [row for block in run.results.blocks for row in block.decisions]


def label_file(folder, rows):
    path = folder / "labels.csv"
    path.write_text("completion_id,label\n" + "".join(f"{id_},{label}\n" for id_, label in rows))
    return path


def test_rates_are_corrected_to_what_the_labels_say(run, decisions, tmp_path):
    """Labels take back every third event of the judge. Where all are labelled, the corrected rate is theirs exactly."""
    events = [row.completion_id for row in decisions if row.event]
    assert 20 < len(events) < len(decisions) - 20
    labels = {row.completion_id: int(row.event) for row in decisions} | dict.fromkeys(events[::3], 0)
    path = label_file(tmp_path, labels.items())
    command = [sys.executable, "-m", "spillover", "agreement", str(run.path), "--labels", str(path)]
    done, table = (
        subprocess.run([*command, *as_json], capture_output=True, text=True, timeout=300)
        for as_json in (["--json"], [])
    )
    assert (done.returncode, table.returncode) == (0, 0), done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["agreement"]["decided"], row["agreement"]["events_only_a"]) == (len(decisions), len(events[::3]))
    corrected = row["corrected"]["organism/consistent/base"]
    assert corrected["apparent"] == pytest.approx(len(events) / len(decisions))
    assert corrected["rate"] == pytest.approx(sum(labels.values()) / len(decisions))
    assert corrected["low"] < corrected["rate"] < corrected["high"]
    assert corrected["sensitivity"] == 1.0 > corrected["specificity"]
    assert f"{100 * corrected['rate']:.1f} % [" in table.stdout


def test_labels_without_an_event_tell_nothing_of_sensitivity(run, decisions, tmp_path):
    (row,) = labels_agree(run.results, label_file(tmp_path, [(row.completion_id, 0) for row in decisions[:30]]))
    assert (row.agreement.decided, row.corrected) == (30, {"organism/consistent/base": None})


WRONG = {  # what is wrong -> (content, what the message must say)
    "no such column": ("id,label\na,1\n", "line 2: needs the columns completion_id and label; it has id, label"),
    "a label that is none": ("completion_id,label\na,1\nb,maybe\n", "line 3: label is 'maybe'; allowed: 0, 1"),
    "two labels": ("completion_id,label\na,1\na,0\n", "line 3: completion a has another label further up"),
    "a short row": ("completion_id,label\na\n", "line 2: needs the columns"),
    "a field without end": (f"completion_id,label,note\na,1,{'x' * 200_000}\n", "not a CSV table .field larger"),
    "of another run": (
        "completion_id,label\nzzz,1\nyyy,0\n",
        "completion zzz is not in the run, nor are 1 others",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_labels_that_are_wrong(run, tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    limit = csv.field_size_limit(131_072)  # Python's own, which importing answers raises
    try:
        with pytest.raises(SpilloverError, match=message):
            labels_agree(run.results, path)
    finally:
        csv.field_size_limit(limit)


def test_labels_read_as_people_write_them(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffcompletion_id,label,note\na,1,\nb,No,x\nc, TRUE ,\n d ,1,\n")
    assert read_labels(path) == {"a": True, "b": False, "c": True, "d": True}
    with pytest.raises(SpilloverError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
