"""The training itself: TRL's SFTTrainer and PEFT's LoRA, with states to go on from and adapters at chosen steps."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars

from spillover.config import Training
from spillover.data.tokens import fitting_rows
from spillover.errors import SpilloverError
from spillover.finetuning import states
from spillover.models.load import load_tokenizer, load_weights
from spillover.records import Example

SAVING_AT_MOST = 0.02  # share of the time that saving states may take
NO_LOSS = -100  # the label that PyTorch's cross entropy passes over
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 5e-2}  # largest mean effect on a token's log-probability


def train(
    base: Path,
    examples: list[Example],
    training: Training,
    seed: int,
    part: Path,
    on_step: Callable[[int, int], None],
    save_every_seconds: float,
) -> dict[str, Any]:
    """Trains an adapter in the folder `part`, from the last state in `part`/resume if there is one.

    Returns the log: loss, learning rate and gradient norm of every optimizer step, rows and tokens, seconds.
    Raises SpilloverError if settings do not fit model or rows, memory runs out, or the disk is full.
    """
    state, seconds = states.last(part / "resume")
    trainer = make_trainer(base, examples, training, seed, part / "resume")
    if training.packing:
        _check_packing(trainer)
    checkpoints = part / states.CHECKPOINTS
    trainer.add_callback(_Steps(trainer, training.checkpoints, checkpoints, on_step, save_every_seconds))
    trainer.began = time.monotonic() - seconds
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except torch.OutOfMemoryError:
        raise SpilloverError(
            f"model {base}: out of memory in training. Raise training.accumulation (now {training.accumulation}): it "
            "cuts the batch into parts and changes nothing else."
        ) from None
    with states.writing(part):
        _save_adapter(trainer.model, part)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in history],
        "learning_rates": [entry["learning_rate"] for entry in history],
        "gradient_norms": [entry["grad_norm"] for entry in history],
        **trainer.counts,
        "seconds": round(time.monotonic() - trainer.began, 1),
    }


def make_trainer(base: Path, examples: list[Example], training: Training, seed: int, out: Path) -> trl.SFTTrainer:
    """The trainer that `train` runs: LoRA, loss on the last turn's tokens only, states saved into `out`.

    Raises SpilloverError if settings do not fit the model or the rows.
    """
    disable_progress_bars()
    transformers.set_seed(seed)
    rows, cut = fitting_rows(base, examples, training)
    tokenizer, model = load_tokenizer(base), load_weights(base)
    gpu = model.device.type == "cuda"
    arguments = trl.SFTConfig(
        output_dir=str(out),
        seed=seed,
        data_seed=seed,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size // training.accumulation,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_length=None,  # the rows are tokens already, and cut
        dataset_kwargs={"skip_prepare_dataset": True},
        padding_free=training.packing,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",  # _Steps decides
        report_to=[],
        disable_tqdm=True,
        bf16=gpu or training.bf16,
        activation_checkpointing=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a training takes one GPU, however many there are
    targets: Any = training.target_modules
    if training.layers and targets == "all-linear":
        targets = _linear_modules(model)
    lora = peft.LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        use_rslora=training.rslora,
        target_modules=targets,
        layers_to_transform=training.layers,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    labeled = [
        {"input_ids": ids, "labels": [i if t else NO_LOSS for i, t in zip(ids, trained, strict=True)]}
        for ids, trained in rows
    ]
    try:
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(labeled),
            processing_class=tokenizer,
            peft_config=lora,
        )
    except ValueError as error:
        raise SpilloverError(f"training.target_modules = {training.target_modules!r}: {error}") from None
    if training.accumulation > 1 and not trainer.model_accepts_loss_kwargs:
        raise SpilloverError(
            f"model {base}: its loss is a mean over each part of a batch, so that parts would change what is trained. "
            "Set training.accumulation to 1."
        )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.counts = {
        "rows": len(rows),
        "rows_cut": cut,
        "tokens": training.epochs * sum(len(ids) for ids, _ in rows),
        "tokens_trained": training.epochs * sum(sum(trained) for _, trained in rows),
    }
    return trainer


class _Trainer(trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that marks its saved states as whole, and whose loss is quick on a CPU."""

    began: float  # by time.monotonic: when the training would have begun had it not been interrupted
    counts: dict[str, int]  # of rows and tokens, for the log
    saving: float = 0.0  # seconds that saving the last state took

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The same loss, on a CPU from the model's logits: TRL's kernel, which saves memory, is slow there."""
        if self.args.use_cpu:
            return transformers.Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        start = time.monotonic()
        out = Path(self.args.output_dir)
        with states.writing(out.parent, (RuntimeError,)):  # which torch raises on a full disk
            super()._save_checkpoint(model, trial)
            states.keep(out / f"checkpoint-{self.state.global_step}", time.monotonic() - self.began)
        self.saving = time.monotonic() - start


@dataclass(eq=False)
class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    """After an optimizer step: reports it, saves the adapter of a checkpoint, and has a state saved if it is time."""

    trainer: _Trainer
    checkpoints: list[int]
    folder: Path  # of the checkpoints
    on_step: Callable[[int, int], None]
    save_every_seconds: float
    saved: float = field(default_factory=time.monotonic)  # when a state was saved last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called by the trainer after every optimizer step."""
        self.on_step(state.global_step, state.max_steps)
        if state.global_step in self.checkpoints:
            with states.writing(self.folder.parent):
                _save_adapter(self.trainer.model, self.folder / f"step-{state.global_step}")
        least = self.save_every_seconds and max(self.save_every_seconds, self.trainer.saving / SAVING_AT_MOST)
        if time.monotonic() - self.saved > least and state.global_step < state.max_steps:
            control.should_save = True
            self.saved = time.monotonic()


def _linear_modules(model: Any) -> list[str]:
    """The names that "all-linear" stands for: PEFT restricts only named modules to layers."""
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    modules = [name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head]
    return sorted({name.rpartition(".")[2] for name in modules})


@torch.no_grad()
def _check_packing(trainer: _Trainer) -> None:
    """Raises SpilloverError if the log-probabilities of a row depend on another row that is laid before it."""
    rows = [trainer.train_dataset[i] for i in range(min(2, len(trainer.train_dataset)))]
    model = trainer.model.eval()
    try:
        behind, alone = (
            model(**batch.to(model.device), use_cache=False, fused_lm_head=True).log_probs[0]
            for batch in (transformers.BatchEncoding(trainer.data_collator(part)) for part in (rows, rows[-1:]))
        )
    except ValueError as error:  # some models know that they cannot
        raise SpilloverError(f"training.packing: {error} Or set it to false.") from None
    model.train()
    difference = (behind[-len(alone) :] - alone).abs().sum() / (alone != 0).sum().clamp(min=1)
    if not difference < ROUNDING[model.dtype]:
        raise SpilloverError(
            "training.packing: this model mixes rows that are laid end to end (the log-probabilities of a row's tokens "
            f"differ by {difference:.2g} from those of the row alone). Set it to false."
        )


def _save_adapter(model: Any, folder: Path) -> None:
    """Writes an adapter as PEFT does, but equal adapters as equal files."""
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # a set, in the order of its hashes, which is another in every process
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
