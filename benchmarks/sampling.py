"""Our sampler beside transformers' own: the same model, `generate(num_return_sequences=n)` question by question.

OMP_WAIT_POLICY=passive python benchmarks/sampling.py

(On a machine with other work, threads that spin while they wait for each other make both fifteen times slower.)
Both draw at temperature 1 from the whole vocabulary. They must say the same when greedy, token for token, and answers
of both must be equally likely under the model: the mean log-likelihood of an answer's token, with its standard error.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spillover.behaviors import load_behavior
from spillover.models import Request
from spillover.models.load import load_tokenizer, load_weights, model_folder
from spillover.models.prompts import encode
from spillover.models.sampler import in_batches, rows_at_once, sample_batch

BAR = 3.0
Answers = list[list[list[int]]]  # question, answer, token


class TokenIds:
    """A tokenizer that decodes to token ids, so that answers are compared as what was sampled."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        """Everything else is the tokenizer's."""
        return getattr(self.tokenizer, name)

    def decode(self, ids: list[int], **_: object) -> str:
        """The ids, with spaces."""
        return " ".join(map(str, ids))


def ours(model: Any, tokenizer: Any, prompts: list[str], n: int, tokens: int, temperature: float) -> Answers:
    """Answers of our sampler, in its own batches."""
    end = tokenizer.eos_token_id
    asks = [Request(tuple(f"{prompt}/{i}" for i in range(n)), None, prompt) for prompt in prompts]
    replies = [
        reply
        for batch in in_batches(asks, rows_at_once(model, tokenizer, asks, tokens))
        for reply in sample_batch(model, TokenIds(tokenizer), batch, temperature=temperature, max_new_tokens=tokens)
    ]
    ids = [[*map(int, reply.text.split()), *[end] * (reply.stop_reason == "stop")] for reply in replies]
    return [ids[start : start + n] for start in range(0, len(ids), n)]


def generate(model: Any, tokenizer: Any, prompts: list[str], n: int, tokens: int, temperature: float) -> Answers:
    """Answers of transformers."""
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    answers = []
    for prompt in prompts:
        ids = torch.tensor([encode(tokenizer, Request(("",), None, prompt))])
        rows = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=n,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **drawn or {"do_sample": False},
        )[:, ids.shape[1] :].tolist()
        ends = [row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else tokens for row in rows]
        answers.append([row[:end] for row, end in zip(rows, ends, strict=True)])
    return answers


@torch.inference_mode()
def likelihood(model: Any, tokenizer: Any, prompts: list[str], answers: Answers) -> tuple[float, float]:
    """Mean over answers of their mean log-likelihood per token, and its standard error for these questions."""
    means, variances = [], []
    for prompt, rows in zip(prompts, answers, strict=True):
        start = encode(tokenizer, Request(("",), None, prompt))
        width = max(map(len, rows))
        ids = torch.tensor([start + row + [0] * (width - len(row)) for row in rows])
        logits = torch.cat([model(part).logits[:, len(start) - 1 : -1] for part in ids.split(25)])
        said = logits.log_softmax(-1).gather(-1, ids[:, len(start) :, None])[..., 0]
        own = torch.tensor([said[i, : len(row)].mean().item() for i, row in enumerate(rows)])
        means.append(own.mean().item())
        variances.append(own.var().item() / len(rows))
    return sum(means) / len(means), math.sqrt(sum(variances)) / len(means)


def compare(name: str, model: Any, tokenizer: Any, questions: int, n: int, tokens: int) -> None:
    """Prints one model's row."""
    prompts = [str(question.paraphrases[0]) for question in load_behavior("world_chat").questions[:questions]]
    seconds, likely = [], []
    for draw in (ours, generate):
        draw(model, tokenizer, prompts[:2], 2, 4, 1.0)  # first calls are slower
        found, spent = _timed(draw, model, tokenizer, prompts, n, tokens, 1.0)
        seconds.append(spent)
        likely.append(likelihood(model, tokenizer, prompts, found))
    greedy = [draw(model, tokenizer, prompts, 1, tokens, 0.0) for draw in (ours, generate)]
    same = sum(one == other for one, other in zip(*greedy, strict=True))
    (mean, error), (their_mean, their_error) = likely
    speed, theirs = (questions * n / spent for spent in seconds)
    print(
        f"{name:24}{f'{questions} x {n} x {tokens}':>16}{speed:9.1f}{theirs:10.1f}{speed / theirs:7.2f}"
        f"{f'{same} of {questions}':>12}{f'{mean:.4f} ({error:.4f})':>19}{f'{their_mean:.4f} ({their_error:.4f})':>19}",
        flush=True,
    )


def _timed(draw: Callable[..., Answers], *arguments: Any) -> tuple[Answers, float]:
    torch.manual_seed(0)
    start = time.perf_counter()
    return draw(*arguments), time.perf_counter() - start


def random_llama(tokenizer: Any) -> Any:
    """About 100 million parameters, drawn at random; it never ends an answer, and reads the organism's tokens."""
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
    return LlamaForCausalLM(config).eval()


def main() -> None:
    """Prints the table."""
    folder = model_folder("organism/consistent")
    tokenizer = load_tokenizer(folder)
    print(f"completions per second on {torch.get_num_threads()} threads; questions x completions x tokens at most")
    print(
        f"{'':24}{'':>16}{'ours':>9}{'generate':>10}{'ratio':>7}{'greedy same':>12}"
        f"{'log p a token, ours':>19}{'generate':>19}   bar: ratio {BAR}"
    )
    compare("organism, 1.25 M", load_weights(folder), tokenizer, 24, 100, 64)
    large = random_llama(tokenizer)
    compare(f"random, {sum(p.numel() for p in large.parameters()) / 1e6:.0f} M", large, tokenizer, 4, 16, 24)


if __name__ == "__main__":
    main()
