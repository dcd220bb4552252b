"""A model's files: which of them are its weights, what a hash covers, and that a broken one is a message."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, LlamaConfig, Mamba2Config

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.finetuning import check_training, count_parameters
from spillover.models.load import (
    Model,
    folder_hash,
    load_model,
    load_tokenizer,
    load_weights,
    max_positions,
    model_folder,
    module_names,
    pinned,
    weight_files,
)
from spillover.organism import organism_folder
from template_models import make_model

SHARDS = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": ""}}
SHARDS["weight_map"]["c"] = SHARDS["weight_map"]["a"]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "chatml", "chatml")


@pytest.fixture
def own(model, tmp_path):
    """A copy to change."""
    return shutil.copytree(model, tmp_path / "model")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        ([*SHARDS["weight_map"].values(), INDEX, "consolidated.safetensors"], sorted({*SHARDS["weight_map"].values()})),
        (["model.safetensors", INDEX, "model-00001-of-00002.safetensors"], ["model.safetensors"]),  # as transformers
        (["consolidated.safetensors", "model-00001-of-00002.safetensors"], []),
        ([], []),
    ],
)
def test_the_weights_are_the_files_that_are_loaded(tmp_path, there, taken):
    for name in there:
        (tmp_path / name).write_text(json.dumps(SHARDS) if name == INDEX else "")
    assert [path.name for path in weight_files(tmp_path)] == taken


def test_weights_in_another_format_beside_them_do_not_count(own):
    parameters, before = count_parameters(own), folder_hash(own)
    weights = load_file(own / "model.safetensors")
    renamed = {name.replace("self_attn.q_proj", "attention.wq"): value for name, value in weights.items()}
    save_file(renamed, own / "consolidated.safetensors")
    assert (count_parameters(own), folder_hash(own)) == (parameters, before)
    with pytest.raises(SpilloverError, match="no module wq"):
        check_training(own, [], Training(target_modules=["wq"]))
    (own / "model.safetensors").unlink()
    with pytest.raises(SpilloverError, match=r"no model\.safetensors in the folder"):
        model_folder(str(own))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "model-1.safetensors"}}, r"model-1\.safetensors\) are not a whole"),
    ],
)
def test_a_broken_index_is_a_message(own, index, said):
    (own / "model.safetensors").unlink()
    (own / INDEX).write_text(json.dumps(index))
    with pytest.raises(SpilloverError, match=said):
        model_folder(str(own))


@pytest.mark.parametrize(
    ("name", "counts"),
    {
        "merges.txt": True,
        "vocab.txt": True,
        "tokenizer.model": True,
        "model.safetensors": True,
        "adapter_model.safetensors": True,
        "training.json": False,
        "consolidated.safetensors": False,
        "README.md": False,
    }.items(),
)
def test_a_hash_covers_what_decides_answers(tmp_path, name, counts):
    hashes = set()
    for content in ("a b", "b a c"):
        (tmp_path / name).write_text(content)
        hashes.add(folder_hash(tmp_path))
    assert len(hashes) == 1 + counts


@pytest.mark.parametrize(
    ("setting", "counts"), {"base_model_name_or_path": False, "r": True, "lora_alpha": True}.items()
)
def test_where_the_base_of_an_adapter_lay_does_not_count(tmp_path, setting, counts):
    hashes = set()
    for content in ("here", "there!"):
        settings = {"base_model_name_or_path": "a", "r": 8, "lora_alpha": 2} | {setting: content}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        hashes.add(folder_hash(tmp_path))
    assert len(hashes) == 1 + counts


@pytest.mark.parametrize(
    ("config", "positions"),
    [(GPT2Config(n_positions=32), 32), (LlamaConfig(max_position_embeddings=60), 60), (Mamba2Config(), None)],
)
def test_positions_are_read_whatever_a_config_calls_them(tmp_path, config, positions):
    config.save_pretrained(tmp_path)
    assert max_positions(tmp_path) == positions


def test_modules_are_named_without_weights(own):
    (own / "model.safetensors").unlink()
    assert "model.layers.0.self_attn.q_proj" in module_names(own)


def test_a_config_that_the_weights_do_not_fit_is_a_message(own):
    config = AutoConfig.from_pretrained(own)
    config.intermediate_size *= 2
    config.save_pretrained(own)
    with pytest.raises(SpilloverError, match=r"its weights cannot be loaded\. Have they the shapes"):
        load_weights(own)


def test_a_changed_file_is_read_again(own):
    tokenizer, before = load_tokenizer(own), folder_hash(own)
    assert load_tokenizer(own) is tokenizer
    template = own / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace(" ", "\t"))  # as long as it was
    os.utime(template, ns=(1, 1))
    assert load_tokenizer(own).chat_template != tokenizer.chat_template
    assert folder_hash(own) != before
    template.write_text(text)
    assert load_tokenizer(own).chat_template == tokenizer.chat_template
    assert folder_hash(own) == before


def test_a_model_is_loaded_once_when_it_is_needed(own):
    model = load_model(str(own))
    assert model == Model(str(own), own)
    assert model.weights is model.weights
    assert model.tokenizer is load_tokenizer(own)


def test_a_model_behind_an_endpoint_has_a_name_and_no_weights_and_takes_no_adapter(monkeypatch, own, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = load_model("openai/gpt-4o")
    assert model == Model("openai/gpt-4o", None)
    with pytest.raises(SpilloverError, match="openai/gpt-4o: answers behind an endpoint"):
        _ = model.weights
    with pytest.raises(SpilloverError, match=r"adapter a: .*openai/gpt-4o is an endpoint\. Serve it"):
        load_model("openai/gpt-4o", "a")
    with pytest.raises(SpilloverError, match=r"adapter a: no adapter_config\.json"):
        load_model(str(own), "a")
    shutil.copytree(own, tmp_path / "vllm" / "x")
    assert load_model("vllm/x").folder.samefile(tmp_path / "vllm" / "x")  # a folder goes before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", r"nowhere: no such folder\. Give a local folder.*organism/NAME.*OWNER/NAME@REVISION.*endpoint"),
        ("a/b/c", "a/b/c: no such folder"),
        ("openai/gpt-4o", "openai/gpt-4o: an endpoint, whose weights are out of reach"),
        ("organism/none", "no such organism"),
    ],
)
def test_what_is_no_model_is_told_what_may_be_one(name, said):
    with pytest.raises(SpilloverError, match=said):
        model_folder(name)


FROM_THE_HUB = """
import json, sys
from spillover.errors import SpilloverError
from spillover.models.load import load_model, model_folder, pinned
answers = {}
for name in sys.argv[1:]:
    try:
        folder = model_folder(name)
        answers[name] = pinned(folder), load_model(name).folder == folder
    except SpilloverError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


def test_a_model_of_the_hub_is_its_snapshot_pinned_to_a_commit(tmp_path):
    """From the Hub's cache as its library lays it out: refs name commits, and snapshots link to blobs. No network."""
    first, second = "a" * 40, "b" * 40
    cache = tmp_path / "hub" / "models--Own-er--Tiny.1"
    for commit in (first, second):
        for file in organism_folder("consistent").iterdir():
            blob = cache / "blobs" / f"{commit[:3]}-{file.name}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link = cache / "snapshots" / commit / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../../blobs/{blob.name}")
    for ref, commit in {"main": first, "v2": second}.items():
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / ref).write_text(commit)
    names = ["Own-er/Tiny.1", "Own-er/Tiny.1@v2", f"Own-er/Tiny.1@{second}", "Own-er/Tiny.1@v3", "other/model"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB, *names], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [found[name] for name in names[:3]] == [[first, True], [second, True], [second, True]]
    for name in names[3:]:
        assert re.match(rf"model {name}: no such folder, and it could not be had from the Hub \(.*\)\. G", found[name])


def test_a_folder_that_is_no_snapshot_is_pinned_to_nothing(own):
    assert pinned(own) is None
