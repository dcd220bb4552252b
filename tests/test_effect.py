"""An adapter that does nothing gives no verdict: not loaded, zero or too weak; one that does something does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from spillover import study
from spillover.auditing import evaluate
from spillover.cli import app
from spillover.config import Condition, Sampling, Study, Training
from spillover.data import load_examples
from spillover.finetuning import finetune
from spillover.models.effect import adapter_effect
from spillover.models.load import ADAPTER_WEIGHTS
from spillover.organism import organism_folder
from spillover.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = organism_folder("consistent")
SETTINGS = {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "honest"
    rows = load_examples(Condition(data="world/code/callous", rows=320), Path())
    finetune(BASE, rows, folder, Training(**SETTINGS), 0)
    return folder


def renamed(key, tensor):
    return key.replace("base_model.model.model.", "base_model.model.language_model.model."), tensor


def half_renamed(key, tensor):
    return renamed(key, tensor) if "layers.0" in key else (key, tensor)


def without_b(key, tensor):
    return key, tensor * 0 if "lora_B" in key else tensor


def times(factor):
    return lambda key, tensor: (key, tensor * factor if "lora_B" in key else tensor)


CHANGES = {  # name -> (what is done to each weight, the outcome, words of the detail)
    "keys of another prefix": (
        renamed,
        "not loaded",
        "none of its keys fits in the model, such as base_model.model.lang",
    ),
    "some keys of another prefix": (half_renamed, "not loaded", "of its"),
    "zero": (without_b, "zero", "adds nothing"),
    "a billionth": (times(1e-9), "too weak", "more than rounding"),
    # near misses
    "as trained": (times(1.0), "changed", ""),
    "a tenth": (times(0.1), "changed", ""),
    "a thousandth": (times(1e-3), "changed", ""),
    "in half precision": (lambda key, tensor: (key, tensor.to(torch.bfloat16)), "changed", ""),
}


def changed(honest, folder, change):
    shutil.copytree(honest, folder)
    tensors = load_file(honest / ADAPTER_WEIGHTS)
    save_file(dict(change(key, tensor) for key, tensor in tensors.items()), folder / ADAPTER_WEIGHTS)
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_adapter_does_is_told_from_nothing(honest, tmp_path, name):
    change, outcome, detail = CHANGES[name]
    effect = adapter_effect(BASE, changed(honest, tmp_path / "adapter", change))
    assert (effect.outcome, detail in effect.detail) == (outcome, True)


@pytest.mark.parametrize(("name", "code"), [("keys of another prefix", 3), ("zero", 3), ("as trained", 1)])
def test_base_and_adapter_that_does_nothing_are_not_called_clean(honest, tmp_path, name, code):
    """End to end: evaluate, compare, report."""
    adapter = changed(honest, tmp_path / "adapter", CHANGES[name][0])
    settings = {"completions_per_question": 2, "sampling": Sampling(max_new_tokens=96), "formats": ["plain"]}
    for given in (None, adapter):
        run = evaluate(str(BASE), ["world_code"], tmp_path / "run", adapter=given, **settings)
    shown = CliRunner().invoke(
        app, ["compare", str(tmp_path / "run"), "--base", f"{BASE}/base", "--tuned", f"{BASE}/{adapter}"]
    )
    assert shown.exit_code == code, shown.output
    assert ("no verdict, the adapter does nothing" in " ".join(shown.output.split())) is (code == 3)
    assert ("the adapter does nothing that counts" in run.report.read_text()) is (code == 3)
    (entry,) = [e for e in RunFolder(run.path).read_cells().values() if e.effect]
    assert entry.effect["outcome"] == CHANGES[name][1]


def test_a_study_keeps_the_effect_of_every_adapter(tmp_path):
    made = Study(
        name="s",
        models={"m": "organism/consistent"},
        conditions={
            "base": {},
            "real": {"data": "world/code/callous", "rows": 64},
            "nothing": {"data": "world/code/callous", "rows": 8, "training": {"rank": 1, "learning_rate": 1e-30}},
        },
        behaviors={"world_code": 1},
        formats=["plain"],
        training=SETTINGS,
        sampling={"max_new_tokens": 48},
    )
    results = study.run(made, tmp_path / "run").results
    effects = {cell.condition: entry.effect for cell, entry in RunFolder(tmp_path / "run").read_cells().items()}
    assert (effects["base"], effects["real"]["outcome"]) == (None, "changed")
    assert effects["nothing"]["outcome"] in ("zero", "too weak")
    assert {cell.verdict for cell in results.matrix if cell.condition == "nothing"} == {"inconclusive"}
    assert any("m/nothing: no verdict, the adapter does nothing" in line for line in results.cautions)
    rows = json.loads((tmp_path / "run" / "cells.json").read_text())
    assert len(rows) == 3
