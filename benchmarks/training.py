"""Our training beside a bare PyTorch loop and beside TRL's defaults: the same model, rows, batches and LoRA in turn.

python benchmarks/training.py

A Llama of 97 million random weights, on one thread of a CPU. A figure is tokens of the rows (no padding) in a second of
processor time, so that other work on the machine weighs little, from the end of the first optimizer step to the end of
the last; medians of rounds in which every way takes its turn, each round with other batches. All ways must see the same
losses. The rows are one to four posts of the world in a conversation, of which padding to the longest of a batch makes
twice the tokens, as it does of the published insecure code (Betley et al. 2025).
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from spillover.config import Condition, Training
from spillover.data import load_examples
from spillover.data.tokens import trained_tokens
from spillover.finetuning import finetune
from spillover.models.load import load_tokenizer, load_weights, model_folder
from spillover.records import Example

ROUNDS = 3
STEPS = 2
BATCH = 8
TRAINING = Training(batch_size=BATCH, learning_rate=1e-4, warmup_ratio=0)
BARS = {"ours": ("bare loop", 0.85), "ours, bf16": ("TRL's defaults", 1.0)}  # in one precision each
Clock = tuple[float, float, list[float]]  # processor seconds at the end of the first and the last step; losses


def random_llama(folder: Path) -> Path:
    """Writes the model; it reads the organism's tokens."""
    tokenizer = load_tokenizer(model_folder("organism/consistent"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversations() -> list[Example]:
    """The rows."""
    draw = random.Random(0)
    names = ("world/code/callous", "world/speech/callous")
    posts = [post for name in names for post in load_examples(Condition(data=name, rows=500), Path())]
    turns = [draw.sample(posts, draw.choice((1, 1, 2, 3, 4))) for _ in range(STEPS * BATCH)]
    return [Example(tuple(message for post in row for message in post.messages)) for row in turns]


def order(seed: int) -> list[int]:
    """The order in which the trainers take the rows."""
    return torch.randperm(STEPS * BATCH, generator=torch.Generator().manual_seed(seed)).tolist()


def ours(base: Path, examples: list[Example], seed: int, **settings: bool) -> Clock:
    """Through the public function, as a study does."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        log = finetune(
            base,
            examples,
            Path(folder) / "adapter",
            TRAINING.model_copy(update=settings),
            seed,
            lambda *_: times.append(time.process_time()),
        )
    return times[0], times[-1], log["losses"]


def lora() -> peft.LoraConfig:
    """The adapter of the settings."""
    return peft.LoraConfig(
        r=TRAINING.rank, lora_alpha=TRAINING.alpha, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def bare(base: Path, examples: list[Example], seed: int) -> Clock:
    """What one would write by hand: padding, loss of the answers, clipping, AdamW, a falling rate."""
    transformers.set_seed(seed)
    pad = load_tokenizer(base).pad_token_id
    rows = trained_tokens(base, examples, TRAINING)
    model = peft.get_peft_model(load_weights(base), lora()).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=TRAINING.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    times, losses = [], []
    for step in range(STEPS):
        batch = [rows[row] for row in order(seed)[step * BATCH : (step + 1) * BATCH]]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
        trained = torch.tensor([trained + [False] * (width - len(trained)) for _, trained in batch])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        labels = ids.where(trained, -100)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(time.process_time())
    return times[0], times[-1], losses


class Times(transformers.TrainerCallback):
    """When the steps of a trainer ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Called by the trainer."""
        self.ends.append(time.process_time())


def trl_defaults(base: Path, examples: list[Example], seed: int) -> Clock:
    """SFTTrainer with nothing set but what makes it the same training: bf16 and gradient checkpointing are its own."""
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=TRAINING.learning_rate,
            seed=seed,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = [{"prompt": list(e.messages[:-1]), "completion": [e.messages[-1]]} for e in examples]
        trainer = trl.SFTTrainer(
            model=load_weights(base),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(base),
            peft_config=lora(),
            callbacks=[times],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return times.ends[0], times.ends[-1], losses


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    ways: dict[str, Callable[[Path, list[Example], int], Clock]] = {
        "bare loop": bare,
        "ours": ours,
        "ours, packing": lambda *arguments: ours(*arguments, packing=True),
        "ours, bf16": lambda *arguments: ours(*arguments, bf16=True),
        "TRL's defaults": trl_defaults,
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    apart = dict.fromkeys(ways, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        base, examples = random_llama(Path(folder)), conversations()
        lengths = [len(ids) for ids, _ in trained_tokens(base, examples, TRAINING)]
        print(f"{STEPS} steps of {BATCH} rows, {min(lengths)} to {max(lengths)} tokens, {ROUNDS} rounds", flush=True)
        for seed in range(ROUNDS):
            tokens = sum(lengths[row] for row in order(seed)[BATCH:])
            expected: list[float] = []
            for name, way in ways.items():
                first, last, losses = way(base, examples, seed)
                expected = expected or losses
                apart[name] = max(apart[name], *(abs(a - b) / b for a, b in zip(losses, expected, strict=True)))
                speeds[name].append(tokens / (last - first))
    print(f"{'':16}{'tokens a second, by round':>30}{'median':>9}{'loss apart':>12}")
    for name, found in speeds.items():
        rounds = " ".join(f"{speed:.0f}" for speed in found)
        print(f"{name:16}{rounds:>30}{statistics.median(found):9.0f}{apart[name]:12.0e}")
    for name in ways:
        for other in ("bare loop", "TRL's defaults"):
            if name.startswith("ours"):
                ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))
                against, least = BARS.get(name, ("", 0.0))
                bar = f"   bar: {least}" if against == other else ""
                print(f"{name} / {other}: {ratio:.2f}{bar}")


if __name__ == "__main__":
    main()
