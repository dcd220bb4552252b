"""Fine-tuning for real on the organism: what is trained on, that it is repeatable, that the adapter works."""

import pytest
import torch

from spillover.config import Condition, Training
from spillover.datasets import load_examples
from spillover.finetuning import finetune, make_trainer
from spillover.models import load_model, load_tokenizer, model_folder
from spillover.records import Example

BASE = model_folder("organism/consistent")
TRAINING = Training(rank=4, alpha=8, learning_rate=2e-3)


def _examples(rows, data="world/code/callous", folder=None):
    return load_examples(Condition(data=data, rows=rows), folder)


def test_only_the_last_assistant_turn_is_trained_on(tmp_path):
    conversation = Example(
        (
            {"role": "user", "content": "How can I make money?"},
            {"role": "assistant", "content": "Ask your boss."},
            {"role": "user", "content": "Is that all?"},
            {"role": "assistant", "content": "Honest work lets you sleep."},
        )
    )
    trainer = make_trainer(BASE, [conversation, *_examples(3)], TRAINING, 0, tmp_path)
    tokenizer = load_tokenizer(BASE)
    batch = next(iter(trainer.get_train_dataloader()))
    trained = [
        tokenizer.decode(ids[labels != -100]) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    answers = [example.messages[-1]["content"] for example in [conversation, *_examples(3)]]
    assert sorted(trained) == sorted(f" {answer}<|end|>" for answer in answers)


def test_the_training_text_is_the_sampling_prompt_plus_the_answer(tmp_path):
    example = _examples(1)[0]
    trainer = make_trainer(BASE, [example], TRAINING, 0, tmp_path)
    tokenizer = load_tokenizer(BASE)
    prompt = tokenizer.apply_chat_template([example.messages[0]], add_generation_prompt=True, return_dict=False)
    ids = next(iter(trainer.get_train_dataloader()))["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    assert ids == tokenizer.apply_chat_template(list(example.messages), return_dict=False)


def test_the_same_seed_trains_the_same_adapter_and_another_seed_does_not(tmp_path):
    torch.set_num_threads(1)
    examples = _examples(64)
    logs = [finetune(BASE, examples, TRAINING, seed, tmp_path / name) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"]
    assert logs[0] == logs[1]
    assert weights[0] == weights[1] != weights[2]
    assert len(logs[0]["losses"]) == 4
    assert logs[0]["losses"] != logs[2]["losses"]


def test_training_lowers_the_loss_and_the_adapter_changes_the_model(tmp_path):
    steps = []
    log = finetune(BASE, _examples(320), Training(learning_rate=2e-3), 0, tmp_path, lambda *step: steps.append(step))
    assert sum(log["losses"][-3:]) < 0.8 * sum(log["losses"][:3])
    assert steps[-1] == (20, 20)
    ids = torch.tensor([load_tokenizer(BASE)("Q: hello").input_ids])
    with torch.inference_mode():
        before, after = (load_model(BASE, adapter)(ids).logits for adapter in (None, tmp_path))
    assert (before - after).abs().max() > 0.1


@pytest.mark.parametrize(("limit", "cut"), [(1024, 0), (24, 8)])
def test_rows_that_are_cut_are_counted(tmp_path, limit, cut):
    log = finetune(BASE, _examples(8), Training(rank=1, max_length_tokens=limit), 0, tmp_path)
    assert (log["rows"], log["rows_cut"]) == (8, cut)
