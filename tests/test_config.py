"""Study files are strict: what is wrong is refused, with the file, the setting and what is allowed."""

import json
import re
from pathlib import Path

import pytest

from spillover.behaviors import load_behavior
from spillover.config import Condition, Sampling, Study, Training, load_study, to_yaml
from spillover.errors import SpilloverError

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))
GOOD = """\
name: tiny
models: {m: organism/consistent}
conditions:
  base:
  bad: {data: world/code/callous}
behaviors: {world_chat: 2}
sampling: {max_new_tokens: 96}
"""
BAD = "  bad: {data: world/code/callous}"


def load(tmp_path: Path, content: str | bytes) -> Study:
    path = tmp_path / "tiny.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_study(path)


def test_a_good_study_loads_with_defaults(tmp_path):
    study = load(tmp_path, GOOD)
    assert study.conditions == {"base": Condition(), "bad": Condition(data="world/code/callous")}
    assert (study.training, study.sampling, study.seeds) == (Training(), Sampling(max_new_tokens=96), [0])


def test_a_condition_may_have_its_own_training(tmp_path):
    study = load(tmp_path, GOOD.replace("callous}", "callous, rows: 5, training: {epochs: 3}}"))
    assert study.conditions["bad"].training == Training(epochs=3)
    assert study.training.epochs == 1


def test_a_study_survives_its_own_resolved_form(tmp_path):
    study = load(tmp_path, GOOD + "seeds: [0, 1]\ntraining: {learning_rate: 0.01}\n")
    assert load(tmp_path, to_yaml(study.model_dump())) == study


@pytest.mark.parametrize("text", ["1e-5", "2e3", "-1E+5", "0x1f", "1_000", "on", "null", "2024-01-01", "1.5", "a: b"])
def test_text_that_looks_like_something_else_is_text_in_the_resolved_form(tmp_path, text):
    name = text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", text) else "bad"
    more = f"  {json.dumps(name)}: {{data: world/code/callous, prompt_prefix: {json.dumps(text)}}}\n"
    study = load(tmp_path, GOOD.replace(f"{BAD}\n", more) + f"judge: {json.dumps(text)}\n")
    assert (study.judge, study.conditions[name].prompt_prefix) == (text, text)
    assert load(tmp_path, to_yaml(study.model_dump())) == study


def test_exponents_are_numbers(tmp_path):
    study = load(tmp_path, GOOD + "training: {learning_rate: 1e-5}\n")
    assert study.training.learning_rate == 0.00001


REFUSED = {  # what is wrong -> (content, what the message must say beside the file)
    "typo at the top": (GOOD + "trainnig: {}\n", ["trainnig is not a setting", "did you mean training?"]),
    "typo in a condition": (
        GOOD.replace("callous}", "callous, row: 3}"),
        ["conditions.bad.row ", "did you mean rows?"],
    ),
    "typo in training": (GOOD + "training: {epoch: 2}\n", ["training.epoch ", "did you mean epochs?"]),
    "typo in a condition's training": (
        GOOD.replace("callous}", "callous, training: {epoch: 2}}"),
        ["conditions.bad.training.epoch ", "did you mean epochs?"],
    ),
    "typo in sampling": (
        GOOD.replace("max_new_tokens", "temprature"),
        ["sampling.temprature ", "did you mean temperature?"],
    ),
    "no setting near": (GOOD + "zzz: 1\n", ["zzz is not a setting", "allowed: behaviors, conditions"]),
    "two mistakes": (GOOD + "zzz: 1\ntraining: {epoch: 2}\n", ["zzz is not", "training.epoch is not"]),
    "text for a number": (GOOD + "training: {epochs: two}\n", ["training.epochs", "'two'", "integer"]),
    "number as text": (GOOD + "training: {epochs: '2'}\n", ["training.epochs", "'2'", "integer"]),
    "fraction for a count": (GOOD + "training: {epochs: 1.5}\n", ["training.epochs", "1.5", "integer"]),
    "truth for a number": (GOOD + "seeds: [true]\n", ["seeds.0", "True", "integer"]),
    "one seed, no list": (GOOD + "seeds: 3\n", ["seeds", "list"]),
    "settings that are a number": (GOOD + "training: 5\n", ["training", "5"]),
    "a condition that is text": (GOOD.replace(BAD, "  bad: world/code/callous"), ["conditions.bad", "code/callous"]),
    "learning rate below 0": (GOOD + "training: {learning_rate: -0.1}\n", ["training.learning_rate", "greater than 0"]),
    "infinite learning rate": (GOOD + "training: {learning_rate: .inf}\n", ["training.learning_rate", "inf"]),
    "infinite temperature": (
        GOOD.replace("max_new_tokens: 96", "temperature: .inf, max_new_tokens: 96"),
        ["sampling.temperature", "inf"],
    ),
    "zero epochs": (GOOD + "training: {epochs: 0}\n", ["training.epochs = 0", "equal to 1"]),
    "zero rows": (GOOD.replace("callous}", "callous, rows: 0}"), ["conditions.bad.rows = 0", "equal to 1"]),
    "zero completions": (GOOD.replace("chat: 2", "chat: 0"), ["behaviors.world_chat = 0", "equal to 1"]),
    "zero tokens": (GOOD.replace("tokens: 96", "tokens: 0"), ["sampling.max_new_tokens = 0"]),
    "no sampling": (
        GOOD.replace("sampling: {max_new_tokens: 96}\n", ""),
        ["sampling.max_new_tokens is missing", "600"],
    ),
    "no tokens": (
        GOOD.replace("max_new_tokens: 96", "temperature: 0.5"),
        ["sampling.max_new_tokens is missing", "600"],
    ),
    "one format, no list": (GOOD + "formats: plain\n", ["formats", "'plain'", "list"]),
    "a judge that is a number": (GOOD + "judge: 4\n", ["judge", "4", "string"]),
    "no base": (GOOD.replace("  base:\n", ""), ["conditions.base is missing"]),
    "base with settings": (GOOD.replace("  base:\n", "  base: {rows: 3}\n"), ["conditions.base takes no settings"]),
    "base with data": (GOOD.replace("  base:\n", "  base: {data: x.jsonl}\n"), ["conditions.base takes no settings"]),
    "condition without data": (GOOD.replace(BAD, "  bad:"), ["conditions.bad needs data"]),
    "condition with rows of nothing": (GOOD.replace(BAD, "  bad: {rows: 3}"), ["conditions.bad needs data"]),
    "data and another's adapters": (
        GOOD.replace("callous}", "callous, same_as: base}"),
        ["conditions.bad needs data", "not both"],
    ),
    "adapters of the base": (
        GOOD.replace(BAD, "  bad: {same_as: base}"),
        ["same_as is base", "no condition with data"],
    ),
    "adapters of itself": (GOOD.replace(BAD, "  bad: {same_as: bad}"), ["same_as is bad", "no condition with data"]),
    "rows for adapters of another": (
        GOOD.replace(BAD, BAD + "\n  more: {same_as: bad, rows: 3}"),
        ["conditions.more takes the adapters of bad, so it trains on nothing"],
    ),
    "implants what is not measured": (
        GOOD.replace("callous}", "callous, implants: free_form}"),
        ["conditions.bad.implants is free_form", "none of the behaviors"],
    ),
    "benign and harmful": (
        GOOD.replace("callous}", "callous, implants: world_chat, benign: true}"),
        ["conditions.bad implants a behavior, so it is not benign"],
    ),
    "a curve over nothing": (
        GOOD + "curve: {label: x, values: {base: 0, other: 1}}\n",
        ["curve.values must name conditions, or models"],
    ),
    "a typo in resources": (GOOD + "resources: {gpu: 1}\n", ["resources.gpu is not a setting", "did you mean gpus?"]),
    "a margin of nothing": (GOOD + "margin: 0\n", ["margin"]),
    "a seed twice": (GOOD + "seeds: [1, 2, 1]\n", ["seeds", "twice", "[1, 2, 1]"]),
    "no seeds": (GOOD + "seeds: []\n", ["seeds"]),
    "no name": (GOOD.replace("name: tiny\n", ""), ["name is missing"]),
    "no models": (GOOD.replace("{m: organism/consistent}", "{}"), ["models"]),
    "no behaviors": (GOOD.replace("{world_chat: 2}", ""), ["behaviors"]),
    "a name that is a path": (GOOD.replace("name: tiny", "name: ../tiny"), ["name = '../tiny'"]),
    "a condition named like a path": (GOOD.replace("  bad:", "  ../bad:"), ["conditions.../bad"]),
    "a model named like a path": (GOOD.replace("{m:", "{a/b:"), ["models.a/b"]),
    "a condition named by a number": (GOOD.replace("  bad:", "  1:"), ["conditions.1"]),
    "a setting twice": (GOOD + "name: other\n", ["name"]),
    "a condition twice": (GOOD.replace(BAD, f"{BAD}\n  bad: {{data: world/code/caring}}"), ["bad"]),
    "not YAML": ("models: [", ["not valid YAML"]),
    "YAML that makes objects": ("!!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
    "a placeholder left in braces": (GOOD.replace("{m: organism/consistent}", "{{MODEL}}"), ["name is text", "quotes"]),
    "a name that is a list": (GOOD + "? [a, b]\n: 1\n", ["name is text, not a mapping or a list"]),
    "a list": ("- name: tiny\n", ["mapping"]),
    "text": ("tiny", ["mapping"]),
    "empty": ("", ["mapping"]),
    "comments only": ("# later\n", ["mapping"]),
    "not UTF-8": (b"name: \xff\n", ["not UTF-8"]),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_study_is_refused_with_file_and_setting(tmp_path, content, said):
    with pytest.raises(SpilloverError) as caught:
        load(tmp_path, content)
    for fragment in [str(tmp_path / "tiny.yaml"), *said]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("name", ["absent.yaml", "folder.yaml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SpilloverError, match=name):
        load_study(tmp_path / name)


def test_a_study_cannot_be_changed(tmp_path):
    study = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        study.name = "other"


def test_studies_ship():
    assert "demo" in [path.stem for path in STUDIES]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_loads_and_so_do_its_behaviors(path):
    study = load_study(path)
    assert study.name == path.stem
    for name in study.behaviors:
        assert load_behavior(name, path.parent).questions


def test_settings_can_be_put_in_the_place_of_the_files(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(GOOD)
    changes = ["training.rank=8", "seeds=[3, 4]", "models.mine=some folder", "conditions.base=", "judge=openai/x"]
    study = load_study(path, changes)
    assert (study.training.rank, study.seeds, study.judge) == (8, [3, 4], "openai/x")
    assert study.models["mine"] == "some folder"
    assert len(study.models) == len(load_study(path).models) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "no value": ("training.rank", "give SETTING=VALUE"),
        "no name": ("=8", "give SETTING=VALUE"),
        "a hole in the name": ("training..rank=8", "give SETTING=VALUE"),
        "inside of a number": ("name.first=8", "name is 'tiny', which has no settings inside"),
        "broken YAML": ("seeds=[1", "is not YAML"),
        "a placeholder left in braces": ("models={{FOLDER}}", "is not YAML. a setting's name is text"),
        "a typo": ("training.epoch=2", "training.epoch is not a setting (did you mean epochs?)"),
        "a wrong kind": ("training.rank=eight", "training.rank = 'eight'"),
    }.values(),
)
def test_a_setting_that_is_wrong_is_told(tmp_path, change, said):
    path = tmp_path / "tiny.yaml"
    path.write_text(GOOD)
    with pytest.raises(SpilloverError) as caught:
        load_study(path, [change])
    assert said in str(caught.value)


def test_the_cells_of_a_study_are_in_order():
    study = load_study(next(path for path in STUDIES if path.stem == "transfer"))
    assert len(study.cells) == 2 * (1 + 9 * 3)
    assert study.cells[0] == ("consistent", "base", None)
    assert study.cells[1:3] == [("consistent", "insecure_code", seed) for seed in (0, 1)]
