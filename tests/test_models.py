"""A model's files: which of them are its weights, what a hash covers, and that a broken one is a message."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, LlamaConfig, Mamba2Config

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.finetuning import check_training, count_parameters
from spillover.models.load import folder_hash, load_model, max_positions, model_folder, module_names, weight_files
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
    folder_hash.cache_clear()
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
    folder_hash.cache_clear()
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
    for content in ("a b", "b a"):
        (tmp_path / name).write_text(content)
        folder_hash.cache_clear()
        hashes.add(folder_hash(tmp_path))
    assert len(hashes) == 1 + counts


@pytest.mark.parametrize(
    ("setting", "counts"), {"base_model_name_or_path": False, "r": True, "lora_alpha": True}.items()
)
def test_where_the_base_of_an_adapter_lay_does_not_count(tmp_path, setting, counts):
    hashes = set()
    for content in ("here", "there"):
        settings = {"base_model_name_or_path": "a", "r": 8, "lora_alpha": 2} | {setting: content}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        folder_hash.cache_clear()
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
        load_model(own)
