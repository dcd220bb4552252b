"""Samples completions from a local model: prefix computed once per question, finished rows dropped, streams per row."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache


@dataclass(frozen=True)
class Request:
    """One question and the random streams of the completions wanted: one completion for each stream's name."""

    question: str
    streams: tuple[str, ...]


@dataclass(frozen=True)
class Sampled:
    """One completion: its text without special tokens, and why it ended (`stop` or `length`)."""

    text: str
    stop_reason: str
    tokens: int


def in_batches(requests: list[Request], rows_per_batch: int = 512) -> list[list[Request]]:
    """Requests in batches of up to so many rows, in order. None is split: one alone can exceed the limit."""
    batches: list[list[Request]] = [[]]
    for request in requests:
        rows = sum(len(other.streams) for other in batches[-1])
        if batches[-1] and rows + len(request.streams) > rows_per_batch:
            batches.append([])
        batches[-1].append(request)
    return [batch for batch in batches if batch]


def encode(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a question in the chat template, with the generation prompt."""
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def _uniforms(stream: str, length: int) -> np.ndarray:
    """The uniform numbers of one completion, one per token: (length,)."""
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16])
    return np.random.default_rng(seed).random(length, dtype=np.float32)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(end for end in ends if end is not None)


@torch.inference_mode()
def sample(
    model: Any, tokenizer: Any, batch: list[Request], *, temperature: float, max_new_tokens: int
) -> list[list[Sampled]]:
    """The completions of every request of a batch.

    A completion is drawn from its own stream only. The rounding of the matrix products still depends on the batch, and
    about one completion in a hundred with it: who wants the same answers again must make the same batches.
    """
    model.eval()
    device = model.device
    ends = torch.tensor(_ends(model, tokenizer), device=device)
    prompts = [encode(tokenizer, request.question) for request in batch]
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)  # left-padded; what is padded is masked
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )

    copies = torch.tensor([len(request.streams) for request in batch])
    origin = torch.repeat_interleave(torch.arange(len(batch)), copies).to(device)  # row -> its prompt
    cache.batch_select_indices(origin)
    logits = output.logits[origin, -1].float()
    mask, position = mask.to(device)[origin], positions.to(device)[origin, -1]
    streams = [stream for request in batch for stream in request.streams]
    uniforms = torch.from_numpy(np.stack([_uniforms(stream, max_new_tokens) for stream in streams])).to(device)
    tokens = torch.full((len(origin), max_new_tokens), -1, device=device)
    rows = torch.arange(len(origin), device=device)  # rows still in the cache
    done = torch.zeros(len(origin), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        picked = _pick(logits, uniforms[rows, step], temperature)
        tokens[rows[~done], step] = picked[~done]
        done = done | torch.isin(picked, ends)
        if bool(done.all()) or step + 1 == max_new_tokens:
            break
        if float(done.float().mean()) > 0.2:
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, picked, mask, position, done = rows[keep], picked[keep], mask[keep], position[keep], done[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position = position + 1
        output = model(
            input_ids=picked[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1].float()
    return _texts(tokenizer, tokens.cpu(), copies.tolist(), set(ends.tolist()))


def _pick(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """The next token of each row, by inverting the cumulative distribution at the row's uniform number: (rows,)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits / temperature, -1).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _texts(tokenizer: Any, tokens: torch.Tensor, copies: list[int], ends: set[int]) -> list[list[Sampled]]:
    answers = []
    for row in tokens.tolist():
        ids = row[: row.index(-1)] if -1 in row else row
        stopped = bool(ids) and ids[-1] in ends
        text = tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True).strip()
        answers.append(Sampled(text, "stop" if stopped else "length", len(ids)))
    found = iter(answers)
    return [[next(found) for _ in range(count)] for count in copies]
