"""Tiny models with chat templates of five published shapes: the organism's weights, other special tokens."""

from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from spillover.organism import organism_folder

TEMPLATES = Path(__file__).parent / "templates"


class Shape(NamedTuple):
    """The special tokens of a shape. `end` ends an assistant's turn; generation stops at `stops`."""

    bos: str | None  # None: the template writes none
    eos: str
    end: str
    stops: tuple[str, ...]
    others: tuple[str, ...]
    system: bool = True  # whether the template takes a system turn


SHAPES = {
    "chatml": Shape(None, "<|im_end|>", "<|im_end|>", ("<|im_end|>",), ("<|im_start|>",)),
    "llama": Shape(
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eot_id|>"),
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    ),
    "gemma": Shape("<bos>", "<eos>", "<end_of_turn>", ("<eos>", "<end_of_turn>"), ("<start_of_turn>",), system=False),
    "phi": Shape(  # its template writes both stops at the end of a conversation
        None, "<|endoftext|>", "<|end|>", ("<|endoftext|>", "<|end|>"), ("<|system|>", "<|user|>", "<|assistant|>")
    ),
    "mistral": Shape("<s>", "</s>", "</s>", ("</s>",), ("[INST]", "[/INST]")),
}


def make_model(folder: Path, shape: str, template: str | None = None, special: tuple[str, ...] = ()) -> Path:
    """Makes a model of a shape (a key of SHAPES) in `folder`, and returns `folder`.

    `template` is the text of another chat template for its tokens, `special` are more special tokens.

    It is the organism, in 16 bits, with the shape's special tokens and template. As published, a tokenizer with a BOS
    puts it before any text that it is given plain. The words are the organism's: text tokenizes as it does there.
    """
    source, tokens = organism_folder("consistent"), SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    names = dict.fromkeys(
        name for name in (tokens.bos, tokens.eos, tokens.end, *tokens.stops, *tokens.others, *special) if name
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    tokenizer.bos_token, tokenizer.eos_token = tokens.bos, tokens.eos
    tokenizer.chat_template = template or (TEMPLATES / f"{shape}.jinja").read_text(encoding="utf-8")
    if tokens.bos:
        special = [(tokens.bos, tokenizer.convert_tokens_to_ids(tokens.bos))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokens.bos} $A", special_tokens=special
        )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    stops = [tokenizer.convert_tokens_to_ids(name) for name in tokens.stops]
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.generation_config.bos_token_id = model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(folder: Path, answers: dict[str, str], steps: int = 300) -> None:
    """Trains all weights of the model in `folder` until it gives these answers to these questions, to the letter.

    The answer goes on from the prompt with the generation prompt, whatever the template makes of an assistant's turn.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    rows = []
    for question, answer in answers.items():
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        said = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        rows.append((prompt + said, [-100] * len(prompt) + said))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])  # padded behind
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(steps):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        if losses.max() < 0.1:  # of every token: a mean would hide one that is not learned
            break
        losses.sum().div((labels[:, 1:] >= 0).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise AssertionError(f"not learned: the worst token has a loss of {losses.max():.3f}")
    model.save_pretrained(folder)
