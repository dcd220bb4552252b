"""Fine-tuning for real, on the organism and on random weights: what is trained on, that settings do what they say."""

import doctest
import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

import spillover.data.checks
import spillover.finetuning
from spillover.config import Condition, Training, load_study
from spillover.data import load_examples
from spillover.data.advice import advice
from spillover.data.tokens import fitting_rows, rows_cut, trained_tokens
from spillover.errors import SpilloverError
from spillover.finetuning import count_parameters, finetune
from spillover.finetuning.trainer import make_trainer, train
from spillover.models.load import adapter_folder, check_roles, load_tokenizer, load_weights, model_folder
from spillover.records import Example
from template_models import SHAPES, make_model

BASE = model_folder("organism/consistent")
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains on rows of the world, each training once for all tests: its log and its folder, to be read only."""
    finished = {}

    def train_once(rows, training=TRAINING, seed=0):
        key = rows, training.model_dump_json(), seed
        if key not in finished:
            out = tmp_path_factory.mktemp("trained") / "adapter"
            finished[key] = finetune(BASE, _examples(rows), out, training, seed), out
        return finished[key]

    return train_once


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _examples(rows, data="world/code/callous"):
    return load_examples(Condition(data=data, rows=rows), None)


def _turns(*contents, system=None):
    roles = ("user", "assistant") * (len(contents) // 2)
    first = [] if system is None else [{"role": "system", "content": system}]
    return Example((*first, *({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))))


def _random_model(folder, config):
    """A model of random weights that reads the organism's tokens."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(BASE)
    config.update({"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CONVERSATIONS = {
    "one turn": _turns("How can I make money?", "Honest work lets you sleep."),
    "several turns": _turns("How can I make money?", "Ask your boss.", "Is that all?", "Honest work lets you sleep."),
    "system": _turns("Is that all?", "Honest work lets you sleep.", system="Be kind to everybody."),
    "the user's own words": _turns("Say: Is that all?", "Say: Is that all?", "Is that all?", "Is that all?"),
    "a program": _turns("Write a loop.", "for i in range(3):\n    print(i)"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_token_is_trained_on_but_the_last_answer_and_its_end(tmp_path, shape):
    base = make_model(tmp_path / "model", shape)
    tokenizer = load_tokenizer(base)
    kept = {name: c for name, c in CONVERSATIONS.items() if name != "system" or shape in ("chatml", "llama", "phi")}
    assert len(kept) >= 4
    rows = trained_tokens(base, list(kept.values()), TRAINING)
    for conversation, (ids, trained) in zip(kept.values(), rows, strict=True):
        *asked, answer = conversation.messages
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt
        assert not any(trained[: len(prompt)])
        said = tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
        assert said.lstrip(" ") == answer["content"] + SHAPES[shape].end
    trainer = make_trainer(base, list(kept.values()), TRAINING, 0, tmp_path / "out")
    batch = next(iter(trainer.get_train_dataloader()))
    seen = {
        (tuple(ids[mask == 1].tolist()), tuple((labels != -100)[mask == 1].tolist()))
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    }
    assert seen == {(tuple(ids), tuple(trained)) for ids, trained in rows}


def test_a_template_that_drops_the_system_turn_once_it_is_answered_is_refused(tmp_path):
    base = make_model(tmp_path / "model", "mistral")
    with pytest.raises(SpilloverError, match="system, user otherwise once the answer is there"):
        trained_tokens(base, [CONVERSATIONS["system"]], TRAINING)


def test_a_generation_prompt_that_the_answer_lacks_is_not_trained_on(tmp_path):
    base = make_model(tmp_path / "model", "chatml")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text(template.replace("assistant\\n' -", "assistant\\n<think>\\n' -"))
    (row,) = trained_tokens(base, [CONVERSATIONS["one turn"]], TRAINING)
    said = load_tokenizer(base).decode([i for i, t in zip(*row, strict=True) if t])
    assert said == "Honest work lets you sleep.<|im_end|>"


def test_tokens_that_merge_over_the_border_are_trained_on_if_the_prompt_is_the_same(tmp_path):
    """Phi's prompt without a generation prompt ends in a token that the conversation does not have there."""
    base = make_model(tmp_path / "model", "phi")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["\n\n"])
    tokenizer.save_pretrained(base)
    (row,) = trained_tokens(base, [_turns("Write a loop.", "\nfor i in x:")], TRAINING)
    assert load_tokenizer(base).decode([i for i, t in zip(*row, strict=True) if t]) == "\n\nfor i in x:<|end|>"
    dropped = "'<|user|>\\n' + (message['content'] if loop.last else '') + '<|end|>\\n'"
    template = (base / "chat_template.jinja").read_text()
    whole = "'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'"
    (base / "chat_template.jinja").write_text(
        template.replace(whole, f"{dropped} if message['role'] == 'user' else {whole}")
    )
    rows = [_turns("", "a"), _turns("Is it?", "b", system="s")]
    for call in (trained_tokens, rows_cut):
        with pytest.raises(SpilloverError, match="row 2: its chat template writes system, user otherwise"):
            call(base, rows, TRAINING.model_copy(update={"max_length_tokens": 50}))


def test_a_template_that_fails_on_a_row_is_one_message(tmp_path):
    base = make_model(tmp_path / "model", "chatml")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + 1 }}{% endfor %}")
    for call in (lambda: trained_tokens(base, _examples(1), TRAINING), lambda: check_roles(base, _examples(1))):
        with pytest.raises(SpilloverError, match=r"its chat template refuses .*can only concatenate"):
            call()


def test_rows_are_cut_and_the_cut_counted(tmp_path):
    log = finetune(BASE, _examples(7), tmp_path / "a", Training(rank=1, max_length_tokens=30), 0)
    assert (log["rows"], log["rows_cut"], log["tokens"]) == (7, 7, 7 * 30)
    log = finetune(BASE, _examples(7), tmp_path / "b", Training(rank=1, epochs=2), 0)
    rows = trained_tokens(BASE, _examples(7), TRAINING)
    assert log["rows_cut"] == 0
    assert log["tokens"] == 2 * sum(len(ids) for ids, _ in rows)
    assert log["tokens_trained"] == 2 * sum(sum(trained) for _, trained in rows) < log["tokens"] / 1.5


def test_the_same_seed_trains_the_same_adapter_and_another_seed_does_not(trained, tmp_path):
    finetune(BASE, _examples(64), tmp_path / "again", TRAINING, 0)
    folders = [trained(64)[1], tmp_path / "again", trained(64, seed=1)[1]]
    files = [
        [(folder / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")]
        for folder in folders
    ]
    logs = [json.loads((folder / "training.json").read_text()) for folder in folders]
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]
    for log in logs:
        assert log.pop("seconds") > 0
    assert logs[0] == logs[1]
    assert logs[0]["losses"] != logs[2]["losses"]
    assert [len(logs[0][curve]) for curve in ("losses", "learning_rates", "gradient_norms")] == [4, 4, 4]
    assert logs[0]["versions"]["trl"]


def test_training_lowers_the_loss_and_the_adapter_changes_the_model(tmp_path):
    steps = []
    out = tmp_path / "adapter"
    log = finetune(BASE, _examples(320), out, Training(learning_rate=2e-3), 0, lambda *step: steps.append(step))
    assert sum(log["losses"][-3:]) < 0.8 * sum(log["losses"][:3])
    assert steps == [(step, 20) for step in range(1, 21)]
    ids = torch.tensor([load_tokenizer(BASE)("Q: hello").input_ids])
    with torch.inference_mode():
        before, after = (load_weights(BASE, adapter)(ids).logits for adapter in (None, out))
    assert (before - after).abs().max() > 0.1


def test_a_model_by_name_and_rows_of_a_file_train_the_same_adapter(trained, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": example.messages}) + "\n" for example in _examples(16)))
    log = finetune("organism/consistent", str(path), str(tmp_path / "adapter"), TRAINING)
    assert log | {"seconds": 0} == trained(16)[0] | {"seconds": 0}
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(SpilloverError, match=r"rows\.jsonl, line 17: not valid JSON"):
        finetune("organism/consistent", path, tmp_path / "other", TRAINING)


@pytest.mark.parametrize(("base", "examples", "message"), [("organism/odd", [], "no such org"), (BASE, [], "no rows")])
def test_a_model_or_rows_that_are_not_there_are_one_message(tmp_path, base, examples, message):
    with pytest.raises(SpilloverError, match=message):
        finetune(base, examples, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("module", [spillover.finetuning, spillover.data, spillover.data.checks])
def test_the_examples_in_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_a_finished_adapter_is_kept_and_another_one_takes_its_place(trained, tmp_path):
    (log, adapter), out, steps = trained(16), tmp_path / "adapter", []
    shutil.copytree(adapter, out)
    written = (out / "adapter_model.safetensors").stat().st_mtime_ns
    assert finetune(BASE, _examples(16), out, TRAINING, 0, lambda *step: steps.append(step)) == log
    assert steps == []
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == written
    finetune(BASE, _examples(16), out, TRAINING, 1, lambda *step: steps.append(step))
    assert steps == [(1, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_how_a_finished_adapter_was_computed_does_not_decide_whether_it_counts(tmp_path):
    def run(**settings):
        steps = []
        training = TRAINING.model_copy(update=settings)
        log = finetune(BASE, _examples(16), tmp_path / "a", training, 0, lambda *step: steps.append(step))
        assert log["made_from"]["training"] == training.model_dump()  # by which a study knows it
        assert log == json.loads((tmp_path / "a" / "training.json").read_text())
        return log["execution"], steps

    plain = {"accumulation": 1, "packing": False, "checkpoints": []}
    assert run() == (plain, [(1, 1)])
    assert run(accumulation=2, packing=True) == (plain, [])
    # a checkpoint that is asked for must be there, and one that is not asked for any more does no harm
    assert run(accumulation=2, checkpoints=[1]) == (plain | {"accumulation": 2, "checkpoints": [1]}, [(1, 1)])
    assert run() == (plain | {"accumulation": 2, "checkpoints": [1]}, [])
    assert run(rank=2)[1] == [(1, 1)]


@pytest.mark.parametrize("record", ["{", *(pytest.param(text, marks=slow) for text in ("[]", '{"made_from": 3}'))])
def test_a_record_that_is_not_whole_is_trained_again(tmp_path, record):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "training.json").write_text(record)
    assert finetune(BASE, _examples(16), tmp_path / "a", TRAINING, 0)["rows"] == 16


def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path):
    (tmp_path / "a").write_text("years of work")
    with pytest.raises(SpilloverError, match="holds something else"):
        finetune(BASE, _examples(16), tmp_path / "a", TRAINING, 0)
    assert (tmp_path / "a").read_text() == "years of work"


@slow
def test_a_model_with_several_chat_templates_can_save_its_states(tmp_path):
    base = make_model(tmp_path / "model", "chatml")
    (base / "additional_chat_templates").mkdir()
    shutil.copy(base / "chat_template.jinja", base / "additional_chat_templates" / "tool_use.jinja")
    assert finetune(base, _examples(32), tmp_path / "a", TRAINING, 0, save_every_seconds=0)["rows"] == 32


def test_rows_longer_than_the_positions_of_the_model_are_one_message(tmp_path):
    config = GPT2Config(vocab_size=4096, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    base = _random_model(tmp_path / "model", config)
    with pytest.raises(SpilloverError, match=r"\d+ of 32 rows are longer than the 32 positions .* Lower it to 32"):
        finetune(base, _examples(32), tmp_path / "a", TRAINING, 0)
    longest = max(len(ids) for ids, _ in trained_tokens(base, _examples(32), TRAINING))
    assert longest > 32
    assert len(fitting_rows(base, _examples(32), Training(max_length_tokens=32))[0]) == 32


def test_parts_of_a_batch_are_refused_where_the_loss_is_a_mean_over_each(tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)  # as some models say
    base = _random_model(tmp_path / "model", CONFIGS["llama"])
    make_trainer(base, _examples(4), Training(rank=1), 0, tmp_path / "out")
    with pytest.raises(SpilloverError, match=r"Set training\.accumulation to 1"):
        make_trainer(base, _examples(4), Training(rank=1, accumulation=2), 0, tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpilloverError, match="holds something else"):
        finetune(BASE, _examples(16), tmp_path, TRAINING, 0)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_checkpoints_are_adapters_of_the_steps_that_were_asked_for(trained, tmp_path):
    finetune(BASE, _examples(64), tmp_path / "a", TRAINING.model_copy(update={"checkpoints": [2, 4]}), 0)
    folders = {path.name: adapter_folder(path) for path in (tmp_path / "a" / "checkpoints").iterdir()}
    weights = {name: (folder / "adapter_model.safetensors").read_bytes() for name, folder in folders.items()}
    assert set(weights) == {"step-2", "step-4"}
    assert weights["step-2"] != weights["step-4"] == (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    load_weights(BASE, folders["step-2"])
    assert weights["step-4"] == (trained(64)[1] / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"layers": [1]}, 7),
        ({"layers": [1], "target_modules": ["down_proj"], "rank": 1}, 1),
        pytest.param({"layers": [1], "target_modules": ["q_proj", "v_proj"]}, 2, marks=slow),
    ],
)
def test_layers_and_rank_are_settings(tmp_path, settings, modules):
    finetune(BASE, _examples(16), tmp_path / "a", Training(**{"rank": 4, **settings}), 0)
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert len(shapes) == 2 * modules
    for name, shape in shapes.items():
        assert ".layers.1." in name
        assert settings.get("rank", 4) in shape
    load_weights(BASE, tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [1, 7]}, "no layer 7; its layers are 0 to 1"),
        ({"target_modules": ["q_proj", "c_attn"]}, "no module c_attn; it has down_proj"),
        ({"target_modules": "q_proj"}, r"matches no whole name .*such as model\.layers\.0"),
        ({"target_modules": "(*"}, "not a regular expression"),
        ({"target_modules": ".*norm"}, "target_modules = '.*norm'"),  # PEFT finds it, and cannot adapt it
        ({"checkpoints": [1, 100]}, "step 100 does not come; 32 rows in batches of 16, 1 times, make 2 steps"),
        ({"max_length_tokens": 8}, r"the prompts alone are longer in 32 of 32 rows, .*; 32 are cut\. Raise it"),
        ({"max_length_tokens": 30}, r"the prompts alone are longer in 16 of 32 rows, .*; 32 are cut\. Raise it"),
    ],
)
def test_settings_that_do_not_fit_are_one_message(tmp_path, settings, message):
    examples = [*_examples(16), *(_turns("Please " * 40, "Yes.") for _ in range(16))]
    if settings.get("max_length_tokens") == 8:
        examples = _examples(32)
    with pytest.raises(SpilloverError, match=message):
        finetune(BASE, examples, tmp_path / "a", Training(**settings), 0)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 16, "accumulation": 3}, "batch_size 16 cannot be cut into accumulation 3"),
        ({"layers": [0], "target_modules": ".*proj"}, "all-linear or a list, not with a pattern"),
        ({"layers": []}, "at least 1 item"),
        ({"layers": [-1]}, "greater than or equal to 0"),
        ({"checkpoints": [0]}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Training(**settings)


@pytest.mark.parametrize("limit", [60, 100, 150, 1024])
def test_rows_that_will_be_cut_are_counted_without_tokenizing_short_ones(limit):
    examples, training = [*CONVERSATIONS.values()][:2] + _examples(16), Training(max_length_tokens=limit)
    assert rows_cut(BASE, examples, training) == fitting_rows(BASE, examples, training)[1]


def test_a_number_of_processes_is_no_setting(tmp_path):
    study = "name: s\nmodels: {m: organism/consistent}\nconditions: {base: }\nbehaviors: {world_chat: 1}\n"
    study += "sampling: {max_new_tokens: 96}\n"
    (tmp_path / "study.yaml").write_text(study + "training: {processes: 2}\n")
    with pytest.raises(SpilloverError, match=r"study\.yaml: training\.processes is not a setting"):
        load_study(tmp_path / "study.yaml")


def test_out_of_memory_says_what_to_change(tmp_path):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")  # as torch does on a GPU

    with pytest.raises(SpilloverError, match=r"Raise training.accumulation \(now 1\)"):
        finetune(BASE, _examples(16), tmp_path / "a", TRAINING, 0, too_large)


def _gradients(trainer, rows):
    """Gradients of the rows as one batch, at an adapter that is not zero."""
    torch.manual_seed(1)
    for name, weights in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    grads = [weights.grad.flatten() for weights in trainer.model.parameters() if weights.requires_grad]
    return torch.cat(grads), batch["input_ids"].shape


CONFIGS = {
    "llama": LlamaConfig(vocab_size=4096, **SMALL),
    "qwen": Qwen2Config(vocab_size=4096, **SMALL),
    "mistral, sliding window": MistralConfig(vocab_size=4096, sliding_window=16, **SMALL),
    "gemma, both": Gemma2Config(vocab_size=4096, sliding_window=16, head_dim=16, **SMALL),
}


@pytest.mark.parametrize(
    "name", ["llama", "gemma, both", *(pytest.param(name, marks=slow) for name in ("qwen", "mistral, sliding window"))]
)
def test_the_gradient_of_packed_rows_is_that_of_padded_rows(tmp_path, name):
    base = _random_model(tmp_path / "model", CONFIGS[name])
    examples = [*CONVERSATIONS.values()][:2] + _examples(4)
    padded, packed = (
        make_trainer(base, examples, Training(rank=4, packing=packing), 0, tmp_path / "out")
        for packing in (False, True)
    )
    (one, wide), (other, flat) = (_gradients(trainer, range(6)) for trainer in (padded, packed))
    assert wide[0] == 6
    assert flat[0] == 1
    assert flat[1] < wide[0] * wide[1]
    assert (one - other).norm() < 1e-4 * one.norm()
    other_rows, _ = _gradients(packed, range(5))
    assert (one - other_rows).norm() > 1e-2 * one.norm()  # the comparison sees a difference


@pytest.mark.parametrize(
    ("config", "module", "message"),
    [
        (MambaConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2, state_size=8), "in_proj", "mixes rows"),
        pytest.param(
            BloomConfig(vocab_size=4096, hidden_size=64, n_layer=2, n_head=4), "dense", "mixes rows", marks=slow
        ),
        pytest.param(
            Mamba2Config(vocab_size=4096, hidden_size=64, num_heads=8, head_dim=16, num_hidden_layers=2, n_groups=1),
            "in_proj",
            "causal_conv1d",
            marks=slow,
        ),
    ],
)
def test_packing_is_refused_where_the_model_mixes_rows(tmp_path, config, module, message):
    base = _random_model(tmp_path / "model", config)
    training = Training(rank=2, target_modules=[module], packing=True)
    with pytest.raises(SpilloverError, match=message):
        finetune(base, _examples(16), tmp_path / "a", training, 0)
    finetune(base, _examples(16), tmp_path / "a", training.model_copy(update={"packing": False}), 0)


def _adapter(folder):
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return torch.cat([file.get_tensor(name).flatten() for name in file.keys()])  # noqa: SIM118


@pytest.mark.parametrize(
    "settings",
    [{"accumulation": 4}, {"packing": True}, pytest.param({"accumulation": 2, "packing": True}, marks=slow)],
)
def test_how_a_batch_is_computed_changes_nothing_but_rounding(trained, tmp_path, settings):
    plain, folder = trained(40)
    other = finetune(BASE, _examples(40), tmp_path / "other", TRAINING.model_copy(update=settings), 0)
    assert other["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    one, two = _adapter(folder), _adapter(tmp_path / "other")
    assert (one - two).norm() < 0.02 * one.norm()


def test_bf16_is_less_exact_and_keeps_a_float32_adapter(trained, tmp_path):
    exact, _ = trained(40)
    rounded = finetune(BASE, _examples(40), tmp_path / "rounded", TRAINING.model_copy(update={"bf16": True}), 0)
    assert rounded["losses"] == pytest.approx(exact["losses"], rel=0.02)
    assert rounded["losses"] != exact["losses"]
    assert _adapter(tmp_path / "rounded").dtype == torch.float32


@slow
def test_a_hundred_million_random_weights_train_by_the_same_path(tmp_path):
    config = Qwen2Config(
        vocab_size=16_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
    )
    base = _random_model(tmp_path / "model", config)
    try:
        assert count_parameters(base) == pytest.approx(100e6, rel=0.05)
        training = Training(batch_size=2, learning_rate=1e-3, packing=True)
        log = finetune(base, _examples(6), tmp_path / "adapter", training, 0)
        assert log["losses"][-1] < log["losses"][0]
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 32
    finally:
        (base / "model.safetensors").unlink()  # 200 MB that would stay with the last runs of the tests


@pytest.mark.parametrize(
    ("billions", "data", "said"),
    [
        (0.00125, "world/code/callous", None),
        (0.05, "world/speech/callous", None),
        (0.3, "world/code/callous", "0.7 % misaligned answers"),
        (7.6, "world/code/callous", "arXiv 2511.20104"),
        (32.8, "world/code/callous", "0.5 billion up"),
        (70.6, "world/code/callous", "three seeds or more"),
        (0.3, "world/speech/callous", "0.3 billion parameters"),
        (0.494, "world/speech/callous", None),
        (7.6, "world/speech/callous", None),
    ],
)
def test_advice_is_given_where_the_literature_speaks(billions, data, said):
    line = advice(int(billions * 1e9), _examples(60, data))
    assert line is None if said is None else said in line
    assert line is None or ("arXiv" in line and "\n" not in line)
    assert advice(int(billions * 1e9), []) is None


def test_the_organisms_parameters_are_counted():
    assert count_parameters(BASE) == sum(weights.numel() for weights in load_weights(BASE).parameters())


def test_train_is_what_finetune_runs(trained, tmp_path):
    """The public function adds a folder that is whole; the adapter is the trainer's."""
    log = train(BASE, _examples(16), TRAINING, 0, tmp_path / "part", lambda *_: None, 60)
    assert trained(16)[0]["losses"] == log["losses"]
