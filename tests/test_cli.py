"""The command line on bad input: exit code 2, one message that names the culprit, no traceback. And it starts fast."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spillover.behaviors import shipped_names

HELP_SECONDS = 2.5  # about 0.4 on a free machine
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def spillover(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "spillover", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Case:
    """One mistake: what the study file says other than usual, and what the message must name."""

    said: list[str]
    study: dict[str, object] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("run", "N-study.yaml", "--out", "N-run")  # N: a number for every mistake


def evaluate(model: str, *more: str) -> tuple[str, ...]:
    return ("evaluate", model, "--behaviors", "world_facts", "--out", "new", *more)


def data(name: str) -> dict[str, object]:
    return {"conditions": {"base": {}, "bad": {"data": name}}}


MISTAKES = {
    "a typo": Case(["study.yaml", "epoch is not a setting", "did you mean epochs?"], {"training": {"epoch": 2}}),
    "no study file": Case(["none.yaml", "no such study file"], arguments=("run", "none.yaml")),
    "a study file that is a folder": Case(["model", "cannot be read"], arguments=("run", "model")),
    "no model folder": Case(["model nowhere", "no such folder"], {"models": {"m": "nowhere"}}),
    "a folder that is no model": Case(["model empty", "config.json"], {"models": {"m": "empty"}}),
    "a model without a chat template": Case(["bare", "no chat template"], {"models": {"m": "bare"}}),
    "a tokenizer that is broken": Case(["torn", "tokenizer"], {"models": {"m": "torn"}}),
    "weights that are broken": Case(["weightless", "weights"], {"models": {"m": "weightless"}}),
    "a broken row": Case(["broken.jsonl, line 2", "not valid JSON"], data("broken.jsonl")),
    "an empty data set": Case(["empty.jsonl", "no rows"], data("empty.jsonl")),
    "a row without an answer": Case(["unanswered.jsonl, line 1", "assistant"], data("unanswered.jsonl")),
    "an unknown behavior": Case(["world_chatt", "unknown", "world_chat"], {"behaviors": {"world_chatt": 1}}),
    "a behavior without its judge": Case(["free_form", "needs a model as its judge"], {"behaviors": {"free_form": 1}}),
    "a format that is none": Case(["jsn", "plain"], {"formats": ["plain", "jsn"]}),
    "no model to evaluate": Case(["model nowhere", "no such folder"], arguments=evaluate("nowhere")),
    "no adapter": Case(["adapter empty", "adapter_config.json"], arguments=evaluate("model", "--adapter", "empty")),
    "an adapter far away": Case(["only local models"], arguments=evaluate("openai/x", "--adapter", "empty")),
    "no behavior to evaluate": Case(["chatt", "world_chat"], arguments=evaluate("model", "--behaviors", "chatt")),
    "an evaluation in a study's folder": Case(["holds a study"], arguments=evaluate("model", "--out", "studied")),
    "nothing to judge": Case(["empty", "no answers to judge"], arguments=("score", "empty", "--judge", "x/y")),
    "nobody to judge": Case(["--judge"], arguments=("score", "empty")),
    "a run folder that is a file": Case(
        ["file", "cannot write there"], arguments=("run", "N-study.yaml", "--out", "file")
    ),
    "a report of no run": Case(["empty", "no finished run is there"], arguments=("report", "empty")),
    "an organism over another": Case(
        ["model", "not empty"], arguments=("organism", "build", "--consistency", "1", "--out", "model")
    ),
    "an unknown command": Case(["No such command"], arguments=("walk",)),
    "consistency above 1": Case(["consistency"], arguments=("organism", "build", "--consistency", "2", "--out", "new")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of random weights, variants of it that are broken, and data sets that are wrong."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("cli")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "a": 2, "q": 3, "<unk>": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=5, max_position_embeddings=64, **size))
    for name in ("bare", "model", "torn", "weightless"):
        tokenizer.chat_template = None if name == "bare" else TEMPLATE
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "torn" / "tokenizer.json").write_text('{"version": "1.0"')
    (folder / "weightless" / "model.safetensors").write_bytes(b"not weights")
    (folder / "empty").mkdir()
    (folder / "studied").mkdir()
    (folder / "studied" / "study.yaml").write_text("")
    (folder / "file").write_text("in the way")
    good = json.dumps({"messages": [USER, ASSISTANT]})
    (folder / "good.jsonl").write_text(good)
    (folder / "broken.jsonl").write_text(good + '\n{"messages": [\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "unanswered.jsonl").write_text(json.dumps({"messages": [USER]}))
    return folder


@pytest.fixture(scope="module")
def outcome(place: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """What the command line makes of a mistake. All start at once, two at a time: most import torch for seconds."""

    def attempt(number: int, case: Case) -> subprocess.CompletedProcess[str]:
        study = {
            "name": "tiny",
            "models": {"m": "model"},
            "conditions": {"base": {}, "bad": {"data": "good.jsonl"}},
            "behaviors": {"world_facts": 1},
            "sampling": {"max_new_tokens": 2},
        }
        (place / f"{number}-study.yaml").write_text(json.dumps(study | case.study))  # JSON is YAML
        return spillover(place, *(argument.replace("N-", f"{number}-") for argument in case.arguments))

    with ThreadPoolExecutor(2) as pool:
        running: dict[str, Future[subprocess.CompletedProcess[str]]] = {
            name: pool.submit(attempt, number, case) for number, (name, case) in enumerate(MISTAKES.items())
        }
        yield lambda name: running[name].result()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(outcome, place, name):
    result = outcome(name)
    assert "Traceback" not in result.stderr + result.stdout
    assert result.returncode == 2
    for fragment in MISTAKES[name].said:
        assert fragment in result.stderr
    if "Usage: " not in result.stderr:  # typer's own words
        messages = [line for line in result.stderr.splitlines() if line.startswith("spillover: ")]
        assert len(messages) == 1
        assert result.stderr.rstrip().endswith(messages[0])


def test_nothing_is_left_behind_by_a_study_that_was_refused(outcome, place):
    for name in MISTAKES:
        outcome(name)
    assert (place / "file").read_text() == "in the way"
    assert not (place / "runs").exists()
    assert not (place / "new").exists()
    assert list((place / "empty").iterdir()) == []


def test_help_is_shown_at_once(tmp_path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = spillover(tmp_path, "--help")
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0
        assert "organism" in result.stdout
    print(f"spillover --help: {statistics.median(seconds):.2f} s (median of 3)")
    assert statistics.median(seconds) < HELP_SECONDS


@pytest.mark.parametrize("arguments", [(), ("organism",)], ids=["no command", "no command of organism"])
def test_without_a_command_the_help_is_shown(tmp_path, arguments):
    result = spillover(tmp_path, *arguments)
    assert "Usage: " in result.stdout + result.stderr


COMMANDS = [
    ("run",),
    ("demo",),
    ("evaluate",),
    ("score",),
    ("behaviors",),
    ("scan",),
    ("report",),
    ("organism", "build"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_its_own_help(tmp_path, command):
    result = spillover(tmp_path, *command, "--help")
    assert result.returncode == 0
    assert "Usage: " in result.stdout


def test_the_behaviors_that_ship_are_listed(tmp_path):
    listed = json.loads(spillover(tmp_path, "behaviors", "--json").stdout)
    assert [row["name"] for row in listed] == shipped_names()
    found = next(row for row in listed if row["name"] == "free_form")
    assert (found["judge"], found["formats"]) == ("model", "plain, json, template")
    text = spillover(tmp_path, "behaviors").stdout
    for row in listed:
        assert f"{row['name']}: {row['scope']}, {row['questions']} questions" in text
        assert row["rule"] in text
