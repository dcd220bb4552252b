"""Self-distilled controls: the base's own answers to the prompts of a training set, sampled before any training."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from spillover import records
from spillover.compute import Step
from spillover.config import Condition, Sampling
from spillover.datasets import made_of
from spillover.datasets.controls import prompts_of, self_distilled
from spillover.errors import SpilloverError
from spillover.evaluation import Ask
from spillover.evaluation.sample import in_batches, rows_at_once, sample
from spillover.models import folder_hash, load_model, load_tokenizer
from spillover.records import Example
from spillover.rundir import RunDir, hash_of, write_atomically
from spillover.shared import pull, push

ROWS, RECORD, ANSWERS = "rows.jsonl", "made.json", "answers.jsonl"
ATTEMPTS = 5  # at an answer that is empty


@dataclass(frozen=True)
class Distilling:
    """The rows whose answers a base is to give itself, and the folder of the run that they go to.

    `shared`: a folder (fsspec) by way of which a worker on another machine hands them over.
    """

    name: str
    run: Path
    folder: Path
    base: Path
    condition: Condition
    rows: tuple[Example, ...]
    sampling: Sampling
    threads: int
    shared: str | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Answer:
    """The answer to a prompt; the id is a hash of what decides it."""

    id: str
    text: str


def distill(job: Distilling, step: Step) -> None:
    """Samples the answers, unless they are there from the same base, prompts and sampling; killed, it goes on.

    Raises SpilloverError if a prompt has more than one user's turn.
    """
    made_from = {
        "base": folder_hash(job.base),
        "prompts": hash_of(prompts_of(job.rows)),
        "sampling": job.sampling.model_dump(),
    }
    if job.shared is None:
        _distill(job, made_from, job.folder, step)
        return
    with TemporaryDirectory(prefix="spillover-") as place:
        run_dir = RunDir(Path(place))
        folder = run_dir.path / job.folder.relative_to(job.run)
        pull(run_dir, folder, job.shared)
        _distill(job, made_from, folder, step)
        push(run_dir, folder, job.shared)


def _distill(job: Distilling, made_from: dict[str, Any], folder: Path, step: Step) -> None:
    record = folder / RECORD
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["made_from"] == made_from:
        return
    torch.set_num_threads(job.threads)
    folder.mkdir(parents=True, exist_ok=True)
    answers = _answers(job, hash_of(made_from), folder / ANSWERS, step)
    rows = list(job.rows)
    result, counts = self_distilled(rows, answers)
    sets = {"data": (job.condition.data or "", rows)}
    made = {"made_from": made_from, **made_of(job.condition, sets, result, counts)}
    record.unlink(missing_ok=True)  # first, and written last: what it says of the rows is always true
    write_atomically(folder / ROWS, "".join(map(records.to_line, result)))
    write_atomically(record, json.dumps(made, indent=1) + "\n")
    (folder / ANSWERS).unlink()


def _answers(job: Distilling, made_from: str, file: Path, step: Step) -> list[str]:
    """The answers, of which `file` holds those that have been sampled; one that is empty is sampled again."""
    there = {row.id: row.text for row in records.read_appended(file, _Answer)}
    model, tokenizer = load_model(job.base), load_tokenizer(job.base)
    texts = [""] * len(job.rows)
    for attempt in range(ATTEMPTS):
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if not empty:
            break
        asks = [_ask(job.rows[number], number, f"{made_from}/{attempt}") for number in empty]
        # Always the same batches: one that was cut short is sampled whole again, and its answers are the same.
        batches = in_batches(asks, rows_at_once(model, tokenizer, asks, job.sampling.max_new_tokens))
        for number, batch in enumerate(batches, 1):
            ids = [id_ for ask in batch for id_ in ask.ids]
            if not there.keys() >= {*ids}:
                replies = sample(model, tokenizer, batch, **job.sampling.model_dump())
                new = [_Answer(id_, reply.text) for id_, reply in zip(ids, replies, strict=True) if id_ not in there]
                records.append(file, new, to_disk=False)
                there |= {answer.id: answer.text for answer in new}
            step("answer", number, len(batches))
        for number, ask in zip(empty, asks, strict=True):
            texts[number] = there[ask.ids[0]]
    return texts


def _ask(example: Example, number: int, made_from: str) -> Ask:
    """A prompt whose id also seeds the answer: equal prompts get answers of their own."""
    (turns,) = prompts_of([example])
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        raise SpilloverError(
            f"row {number + 1}: self_distilled takes prompts of one user's turn, not {len(turns)} turns."
        )
    system = turns[0]["content"] if len(turns) == 2 else None
    return Ask((hash_of(number, made_from),), system, turns[-1]["content"])


def distilled(folder: Path) -> tuple[Example, ...]:
    """The rows that `distill` has written."""
    return tuple(Example(tuple(row["messages"])) for _, row in records.read_jsonl(folder / ROWS))
