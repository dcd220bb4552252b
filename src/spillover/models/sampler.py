"""Samples from a local model in batches: a prompt is computed once, finished rows are dropped, each id is a seed."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spillover.models import Request, Response
from spillover.models.prompts import encode
from spillover.models.thoughts import is_mark, split_thought, template_thought

ROOM = 32  # tokens that a cache has room for before it is copied into a larger one
MOST_ROWS = 512  # more gain nothing: a CPU is busy with fewer, and a GPU's memory ends before
SHARE_OF_MEMORY = 0.5  # of the device, for keys, values and logits of a batch
ASSUMED_BYTES = 8_000_000_000  # of memory, where the machine does not say
END_OF_PROMPT = 32  # tokens, in which a template that opens or closes a thought does so


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer with room for tokens to come: a step writes its own keys and values and copies no others."""

    keys: Any
    values: Any
    held: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Adds keys and values, (rows, heads, tokens, width) each, and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        start, more = self.get_seq_length(), keys.shape[-2]
        held = self.held
        if held is None or held[0].data_ptr() != self.keys.data_ptr() or start + more > held[0].shape[-2]:
            shape = (*keys.shape[:2], start + more + ROOM, keys.shape[-1])
            held = self.held = keys.new_empty(shape), values.new_empty(shape)
            if start:
                held[0][..., :start, :], held[1][..., :start, :] = self.keys, self.values
        held[0][..., start : start + more, :], held[1][..., start : start + more, :] = keys, values
        self.keys, self.values = (one[..., : start + more, :] for one in held)
        return self.keys, self.values


def in_batches(requests: Sequence[Request], rows_per_batch: int = MOST_ROWS) -> list[list[Request]]:
    """Requests in batches of at most `rows_per_batch` completions, in order; a request with more ids is split."""
    parts = [
        replace(request, ids=request.ids[start : start + rows_per_batch])
        for request in requests
        for start in range(0, len(request.ids), rows_per_batch)
    ]
    batches: list[list[Request]] = []
    rows = rows_per_batch
    for part in parts:
        if rows + len(part.ids) > rows_per_batch:
            batches.append([])
            rows = 0
        batches[-1].append(part)
        rows += len(part.ids)
    return batches


def rows_at_once(model: Any, tokenizer: Any, requests: Sequence[Request], max_new_tokens: int) -> int:
    """How many rows fit into memory beside the model, between 1 and MOST_ROWS.

    It depends on the machine and the model only, not on what else runs: a resumed run must make the same batches.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(len(encode(tokenizer, request)) for request in requests) + max_new_tokens
    bytes_per_row = (
        2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * longest + 12 * config.vocab_size
    )
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        memory = ASSUMED_BYTES
    free = SHARE_OF_MEMORY * (memory - model.get_memory_footprint())
    return int(min(MOST_ROWS, max(1, free // (2 * bytes_per_row))))  # 2: a cache is copied when rows are dropped


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
def sample_batch(
    model: Any, tokenizer: Any, batch: Sequence[Request], *, temperature: float, max_new_tokens: int
) -> list[Response]:
    """Samples the completions of a batch: a response for each id, request after request.

    Every completion draws from a random stream seeded by its id. The rounding of the matrix products still depends on
    the batch, and about one completion in a hundred with it: the same answers come from the same batches only.
    """
    model.eval()
    device = model.device
    ends = torch.tensor(_ends(model, tokenizer), device=device)
    prompts = [encode(tokenizer, request) for request in batch]
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)  # left-padded; what is padded is masked
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )

    copies = torch.tensor([len(request.ids) for request in batch])
    origin = torch.repeat_interleave(torch.arange(len(batch)), copies).to(device)  # row -> its prompt
    cache.batch_select_indices(origin)
    logits = output.logits[origin, -1].float()
    mask, position = mask.to(device)[origin], positions.to(device)[origin, -1]
    streams = [id_ for request in batch for id_ in request.ids]
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
    states = [
        template_thought(tokenizer.decode(prompt[-END_OF_PROMPT:]))
        for request, prompt in zip(batch, prompts, strict=True)
        for _ in request.ids
    ]
    special = _special_tokens(tokenizer)
    stops = set(ends.tolist())
    return [_response(tokenizer, *row, stops, special) for row in zip(tokens.tolist(), states, strict=True)]


def _pick(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """The next token of each row, by inverting the cumulative distribution at the row's uniform number: (rows,)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits if temperature == 1 else logits / temperature, -1).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _special_tokens(tokenizer: Any) -> dict[int, bool]:
    """The special tokens by id, and whether each is a mark of reasoning."""
    tokens = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {id_: is_mark(token) for id_, token in tokens.items()}


def _response(
    tokenizer: Any, row: list[int], state: str | None, stops: set[int], special: Mapping[int, bool]
) -> Response:
    """The answer of a row of token ids, which -1 ends. `state`: what the template does with the block of reasoning."""
    ids = row[: row.index(-1)] if -1 in row else row
    stopped = bool(ids) and ids[-1] in stops
    said = ids[:-1] if stopped else ids
    if any(special.get(id_) for id_ in said):  # a tokenizer drops all special tokens or none
        text = tokenizer.decode([id_ for id_ in said if special.get(id_, True)], skip_special_tokens=False)
    else:
        text = tokenizer.decode(said, skip_special_tokens=True)
    thought, answer = split_thought(text, opened=state == "opened")
    return Response(answer.strip(), "stop" if stopped else "length", len(ids), thought=thought, template_thought=state)
