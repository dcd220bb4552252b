"""A run reads every input once: counted while a study of five cells runs in this process, and when it runs again."""

from collections import Counter
from pathlib import Path

import pytest
import transformers
import yaml

from conftest import SMALL_STUDY
from spillover import config, data, records, study
from spillover.data import tokens
from spillover.models import load
from spillover.runs import inputs, self_distill
from spillover.workers import call


@pytest.fixture
def counts(monkeypatch):
    """How often each thing is read, while everything runs in this process."""
    counter: Counter[str] = Counter()
    load._tokenizer.cache_clear()  # another test may have loaded it
    tokens._TOKENIZED.clear()

    def watch(module, name, key):
        real = getattr(module, name)

        def counted(*args, **kwargs):
            if label := key(*args, **kwargs):
                counter[label] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    def in_this_process(function, jobs, workers, on_progress, gpus=(), on_result=lambda *_: None, preload=()):
        for job in jobs:
            on_result(job, call(function, job, lambda *_: None).value)
        return []

    monkeypatch.setattr(study, "run_side_by_side", in_this_process)
    watch(config, "read_yaml", lambda path: "study.yaml parsed" if path.name == "study.yaml" else None)
    load_tokenizer = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *args, **kwargs: (counter.update(["tokenizers loaded"]), load_tokenizer(*args, **kwargs))[1],
    )
    watch(inputs, "make_examples", lambda condition, _: f"rows made of {condition.data}")
    watch(tokens, "_tokenize", lambda base, examples: f"rows tokenized, {len(examples)} of them")
    real_jsonl, real_appended = records.read_jsonl, records.read_appended

    def read_jsonl(path):
        counter["JSON Lines files parsed"] += 1
        return real_jsonl(path)

    def read_appended(path, kind):
        counter["JSON Lines files parsed"] += path.exists()
        return real_appended(path, kind)

    for module in (records, data, data.sources, self_distill, study.AnswerStore.__init__.__globals__):
        for name, function in (("read_jsonl", read_jsonl), ("read_appended", read_appended)):
            if isinstance(module, dict):
                if name in module:
                    monkeypatch.setitem(module, name, function)
            elif hasattr(module, name):
                monkeypatch.setattr(module, name, function)
    real_open = Path.open

    def open_path(path, mode="r", *args, **kwargs):
        counter["CSV tables read"] += path.suffix == ".csv" and "r" in mode
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_path)
    return counter


def test_a_study_of_five_cells_reads_everything_once(counts, tmp_path):
    settings = SMALL_STUDY | {"behaviors": {"world_facts": 1}, "seeds": [0, 1]}
    conditions = {"base": {}, "insecure": {"data": "world/code/callous", "rows": 48}}
    conditions["secure"] = {"data": "world/code/caring", "rows": 40, "benign": True}
    path: Path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings | {"conditions": conditions}))
    run = study.run(path, tmp_path / "run")
    assert len(run.results.rates) == 5
    assert counts["study.yaml parsed"] == 2  # the second: `run.results` above reads the folder as anyone would
    assert counts["tokenizers loaded"] == 1
    assert {name: n for name, n in counts.items() if name.startswith("rows")} == {
        "rows made of world/code/callous": 1,
        "rows made of world/code/caring": 1,
        "rows tokenized, 48 of them": 1,
        "rows tokenized, 40 of them": 1,
    }
    assert counts["JSON Lines files parsed"] <= 8
    assert counts["CSV tables read"] == 0

    counts.clear()
    study.run(path, tmp_path / "run")
    assert counts["study.yaml parsed"] == 1
    assert counts["tokenizers loaded"] == 0
    assert counts["JSON Lines files parsed"] == 2
    assert counts["CSV tables read"] == 0
    assert not [name for name in counts if name.startswith("rows tokenized")]
