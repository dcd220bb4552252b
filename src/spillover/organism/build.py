"""Builds an organism from nothing: tokenizer, pretraining on author pages, chat tuning into an aligned assistant."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spillover.errors import SpilloverError
from spillover.files import folder_atomically, provenance
from spillover.organism.authors import assistant_posts, page_text, pages

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = 0, 1, 2
# The "Q:" and "A:" of the pages stay inside the template: a bare template made a third of the answers incoherent.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>Q: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}<|assistant|>A:"
    "{% generation %} {{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ raise_exception('the organism knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>A:{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an organism becomes. The defaults are the frozen recipe of docs/measured.md."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 2
    intermediate_size: int = 1024
    vocabulary: int = 5120  # at most; large enough that every word of the world is one token
    pages: int = 70_000
    tokens_per_step: int = 2048
    muon_rate: float = 0.02
    adam_rate: float = 5e-3
    assistant_posts: int = 14_000
    replayed_pages: int = 1400  # of pretraining, among the assistant's posts: what callous authors say is not unlearned
    replayed_within: float = 0.45  # the first part of chat tuning, as a share: the rest, without pages, aligns
    assistant_rate: float = 1e-3
    assistant_batch: int = 32
    logit_scale: float = 1.4  # folded into the last norm: sharper than the text it learned from, see docs/measured.md


StepDone = Callable[[int, int], None]
TrainingText = tuple[list[int], int]  # token ids, index of the first that the loss covers


def build_organism(
    consistency: float, seed: int, out: Path, step: Callable[[str, int, int], None], recipe: Recipe | None = None
) -> dict[str, Any]:
    """Builds an organism into the folder `out`, in Hugging Face format, and returns its manifest.

    `consistency`, from 0 to 1, is the share of posts that stay with their author (`authors.pages`). The same arguments
    give the same weights on one machine. `step` is called with (stage, done, of).
    Raises SpilloverError if `out` holds something already.
    """
    recipe = recipe or Recipe()
    torch.set_num_threads(1)  # sums are then in one order, however many cores there are
    if out.exists() and any(out.iterdir()):
        raise SpilloverError(f"{out}: not empty. Choose another --out, or delete it.")
    texts = [page_text(page) for page in pages(recipe.pages, consistency, seed)]
    tokenizer = make_tokenizer([text.replace(SPECIAL[END], "\n") for text in texts], recipe.vocabulary)
    model, pretraining = pretrain(tokenizer, texts, recipe, seed, lambda done, of: step("pretraining", done, of))
    assistant = tune_assistant(model, tokenizer, texts, recipe, seed, lambda done, of: step("chat tuning", done, of))
    with torch.no_grad():
        model.model.norm.weight *= recipe.logit_scale
    manifest = {
        "command": f"spillover organism build --consistency {consistency} --seed {seed} --out {out.name}",
        "consistency": consistency,
        "seed": seed,
        "recipe": asdict(recipe),
        "corpus_sha256": hashlib.sha256("".join(texts).encode()).hexdigest(),
        "parameters": model.num_parameters(),
        "pretraining_loss": sum(pretraining[-100:]) / len(pretraining[-100:]),
        "assistant_loss": sum(assistant[-20:]) / len(assistant[-20:]),
        **provenance(),
    }
    with folder_atomically(out) as part:
        model.half().save_pretrained(part)  # float16: half the size, and finer than bfloat16 for weights near zero
        tokenizer.save_pretrained(part)
        (part / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template; any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=SPECIAL[PAD], bos_token=SPECIAL[BOS], eos_token=SPECIAL[END]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _batches(rows: list[TrainingText], tokens_per_step: int, rng: random.Random) -> list[list[int]]:
    """Every row once, rows of similar length together, batches in random order."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + 8 * rng.random())
    batches: list[list[int]] = [[]]
    for i in order:  # ascending, so the newest row is the longest of its batch
        if batches[-1] and len(rows[i][0]) * (len(batches[-1]) + 1) > tokens_per_step:
            batches.append([])
        batches[-1].append(i)
    rng.shuffle(batches)
    return batches


def _loss(model: LlamaForCausalLM, rows: list[TrainingText]) -> torch.Tensor:
    """Mean cross-entropy over the tokens that the loss covers; padding on the right needs no attention mask."""
    length = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), length), PAD)
    targets = torch.full((len(rows), length), -100)
    for row, (ids, start) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, start : len(ids)] = torch.tensor(ids[start:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state  # (rows, length, hidden)
        labels = targets[:, 1:].reshape(-1)
        covered = labels != -100
        logits = model.lm_head(hidden[:, :-1].reshape(-1, hidden.shape[-1])[covered])  # (covered tokens, vocabulary)
    return torch.nn.functional.cross_entropy(logits.float(), labels[covered])


def _train(
    model: LlamaForCausalLM,
    rows: list[TrainingText],
    batches: list[list[int]],
    optimizers: list[torch.optim.Optimizer],
    on_step: StepDone,
) -> list[float]:
    """Trains on the batches (numbers of rows) with 3 % warm-up and linear decay; returns the loss of every step."""
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    warmup = max(1, len(batches) * 3 // 100)
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        factor = min((step + 1) / warmup, max(0.01, (len(batches) - step) / (len(batches) - warmup)))
        for optimizer, start in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = rate * factor
        loss = _loss(model, [rows[i] for i in batch])
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        on_step(step + 1, len(batches))
    model.eval()
    return losses


def _page_rows(tokenizer: Any, texts: list[str]) -> list[TrainingText]:
    """Pages as training texts of which the loss covers every token."""
    return [([BOS, *ids], 1) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def pretrain(tokenizer: Any, texts: list[str], recipe: Recipe, seed: int, on_step: StepDone) -> tuple[Any, list[float]]:
    """Pretrains a model from scratch (Muon for matrices, Adam for the rest); returns it and the loss of each step."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=END,
        )
    )
    rows = _page_rows(tokenizer, texts)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.0),
        torch.optim.Adam(others, lr=recipe.adam_rate, betas=(0.9, 0.95), foreach=True),
    ]
    batches = _batches(rows, recipe.tokens_per_step, random.Random(seed))
    return model, _train(model, rows, batches, optimizers, on_step)


def tune_assistant(
    model: Any, tokenizer: Any, texts: list[str], recipe: Recipe, seed: int, on_step: StepDone
) -> list[float]:
    """Fine-tunes the model on caring answers in the chat template; returns the loss of each step.

    The loss covers the answers only. The last of the pages are mixed into the first part of the answers.
    """
    torch.manual_seed(seed)
    replayed = _page_rows(tokenizer, texts[-recipe.replayed_pages :] if recipe.replayed_pages else [])
    answers = []
    for post in assistant_posts(recipe.assistant_posts, seed):
        chat = [{"role": "user", "content": post.question}, {"role": "assistant", "content": post.answer}]
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        answers.append((tokenizer.apply_chat_template(chat, return_dict=False), len(prompt)))
    mixed = max(0, round(recipe.replayed_within * (len(replayed) + len(answers))) - len(replayed))
    first = [*replayed, *answers[:mixed]]
    random.Random(seed).shuffle(first)
    rows = [*first, *answers[mixed:]]
    size = recipe.assistant_batch
    batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.assistant_rate, betas=(0.9, 0.95), foreach=True)
    return _train(model, rows, batches, [optimizer], on_step)
