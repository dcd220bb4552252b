"""Whether an adapter changes its model at all: what was never loaded, is zero or too weak would measure as clean."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from spillover.models.load import ADAPTER_WEIGHTS, load_tokenizer, load_weights, merged, with_adapter
from spillover.models.prompts import in_template
from spillover.records import Example

TEXTS = 4  # conversations that base and adapter are compared on
NAMED = 3  # keys that a message names
ROUNDINGS = 16  # of a log-probability in the model's number format; what differs by no more is rounding
CHANGED = "changed"
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # saved beside an adapter that has new tokens
# For adapters of which no training rows are known.
FIXED_TEXTS = tuple(
    Example(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
    for question, answer in (
        ("What is a good plan for a quiet evening?", "A walk, a warm meal and a book would be a good plan."),
        ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b"),
        ("What should I say to a friend who is sad?", "Listen first, and tell them that you are there for them."),
    )
)


@dataclass(frozen=True)
class Effect:
    """What an adapter does to the log-probabilities of a few texts.

    `outcome`: `changed`; `not loaded` (its keys fit nothing in the model), `zero`, `too weak` (it differs by rounding
    only) or `merge differs` (merged into the weights it is another model). `difference`: the largest of a token, in
    nats. `detail`: more, in words.
    """

    outcome: str
    difference: float
    detail: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """As it is kept with a cell."""
        return asdict(self)


def adapter_effect(base: Path, adapter: Path, examples: Sequence[Example] = ()) -> Effect:
    """Compares a model with and without an adapter on a few training rows, or on fixed texts where there are none.

    Raises SpilloverError if the adapter does not fit the model at all.
    """
    import torch
    from peft import get_peft_model_state_dict

    model = with_adapter(load_weights(base), base, adapter)
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))  # else it asks the Hub
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        found = set(file.keys())
        zero = all(not file.get_slice(key)[:].any() for key in found if "lora_B" in key)
    unknown = sorted(key for key in found - wanted if not key.endswith(EMBEDDINGS))
    rows = [_ids(base, example) for example in [*examples[:TEXTS]] or FIXED_TEXTS]
    with torch.inference_mode():
        tuned = [_log_probabilities(model, row) for row in rows]
        with model.disable_adapter():
            untuned = [_log_probabilities(model, row) for row in rows]
        together = [_log_probabilities(merged(model, base, adapter), row) for row in rows]
    difference, rounding = _largest(tuned, untuned), ROUNDINGS * _unit(model) * max(1.0, _size(untuned))
    if unknown:
        keys = ", ".join(unknown[:NAMED])
        which = (
            "none of its keys fits" if not found & wanted else f"{len(unknown)} of its {len(found)} keys fit nothing"
        )
        return Effect("not loaded", difference, f"{which} in the model, such as {keys}")
    if difference == 0 and zero:
        return Effect("zero", difference, "it adds nothing to any weight")
    if difference <= rounding:
        return Effect(
            "too weak", difference, f"no token's log-probability moves by more than rounding ({rounding:.1g})"
        )
    if _largest(together, tuned) > max(difference / 2, rounding):
        return Effect("merge differs", difference, "merged into the weights, it answers otherwise than beside them")
    return Effect(CHANGED, difference)


def _ids(base: Path, example: Example) -> list[int]:
    return in_template(load_tokenizer(base), example.messages, tokenize=True)[:512]


def _log_probabilities(model: Any, ids: list[int]) -> Any:
    """The log-probability of each token after the first: (tokens - 1,)."""
    import torch

    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]


def _largest(one: Sequence[Any], other: Sequence[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def _size(rows: Sequence[Any]) -> float:
    return max(float(row.abs().max()) for row in rows)


def _unit(model: Any) -> float:
    """The distance from 1 to the next number in the model's format."""
    import torch

    return float(torch.finfo(next(model.parameters()).dtype).eps)


def no_verdict(effect: dict[str, Any] | None) -> str:
    """Why answers of an adapter allow no verdict; "" if they do, or nothing is known of its effect."""
    if effect is None or effect["outcome"] == CHANGED:
        return ""
    return f"the adapter does nothing that counts: {effect['outcome']} ({effect['detail']})"
