"""Makes the narrow fine-tune: TRL's SFTTrainer and PEFT's LoRA turn chat rows into an adapter on a base model."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import transformers
import trl
from datasets import Dataset, disable_progress_bars

from spillover.config import Training
from spillover.models import load_model, load_tokenizer
from spillover.records import Example

# TRL 1.16 asks transformers 5.23 by a name that is on its way out.
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)


class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, step_done: Callable[[int, int], None]) -> None:
        self.step_done = step_done

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Report an optimizer step; called by the trainer."""
        self.step_done(state.global_step, state.max_steps)


def finetune(
    base: Path,
    examples: list[Example],
    training: Training,
    seed: int,
    out: Path,
    step_done: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Trains a LoRA adapter on the last assistant turn of every example and writes it to the folder `out`.

    Returns what is worth keeping: the loss of every optimizer step, the rows, and how many of them were longer than
    `max_length_tokens` and cut. `step_done` is called with (step, steps).
    """
    trainer = make_trainer(base, examples, training, seed, out)
    trainer.add_callback(_Steps(step_done))
    trainer.train()
    trainer.model.save_pretrained(out)
    _sort_modules(out / "adapter_config.json")
    tokenizer = trainer.processing_class
    lengths = [len(tokenizer.apply_chat_template(list(e.messages), return_dict=False)) for e in examples]
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "rows": len(examples),
        "rows_cut": sum(length > training.max_length_tokens for length in lengths),
    }


def make_trainer(base: Path, examples: list[Example], training: Training, seed: int, out: Path) -> trl.SFTTrainer:
    """The trainer that `finetune` runs: LoRA, loss on the completion's tokens only."""
    disable_progress_bars()
    transformers.set_seed(seed)
    tokenizer, model = load_tokenizer(base), load_model(base)
    gpu = model.device.type == "cuda"
    arguments = trl.SFTConfig(
        output_dir=str(out),
        seed=seed,
        data_seed=seed,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_length=training.max_length_tokens,
        completion_only_loss=True,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=gpu,
        activation_checkpointing=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
    )
    lora = peft.LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        use_rslora=training.rslora,
        target_modules=training.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([_prompt_and_completion(example) for example in examples]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _sort_modules(path: Path) -> None:
    """PEFT writes a set in the order of its hashes, another in every process; equal adapters get equal files."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _prompt_and_completion(example: Example) -> dict[str, Any]:
    """Prompt and last assistant turn apart: TRL then trains on exactly that turn, whatever the chat template."""
    *prompt, answer = example.messages
    return {"prompt": prompt, "completion": [answer]}
