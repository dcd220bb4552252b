"""Self-distilled controls: the base's own answers to the prompts of a training set, sampled before any training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spillover import records
from spillover.config import Condition, Sampling
from spillover.data import made_of
from spillover.data.controls import prompts_of, self_distilled
from spillover.errors import SpilloverError
from spillover.files import hash_of, write_atomically
from spillover.models import Request
from spillover.models.load import check_here, folder_hash, load_tokenizer, load_weights
from spillover.models.sampler import in_batches, rows_at_once, sample_batch
from spillover.records import Example
from spillover.runs.shared import at_work
from spillover.workers import Step

ROWS, RECORD, ANSWERS = "rows.jsonl", "made.json", "answers.jsonl"
ATTEMPTS = 5  # at an answer that is empty
CUT_AT_MOST = 0.05  # of the answers: without many more, the control would no longer have the treatment's prompts


@dataclass(frozen=True)
class Distilling:
    """The rows whose answers a base is to give itself, and the folder of the run that they go to.

    `shared`: a folder (fsspec) by way of which a worker on another machine hands them over. `owner`: the run that it
    belongs to.
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
    owner: str = ""

    def __str__(self) -> str:
        return self.name

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the answers."""
        return {
            "base": folder_hash(self.base),
            "prompts": hash_of(prompts_of(self.rows)),
            "sampling": self.sampling.model_dump(),
        }

    @property
    def done(self) -> bool:
        """Whether the answers are in the run's folder."""
        return _is_made(self.folder, self.fingerprint)

    @property
    def folders(self) -> dict[Path, str]:
        """The folder of the rows, relative to the run. Without its record it holds answers to go on with."""
        return {self.folder.relative_to(self.run): ""}

    @property
    def reads(self) -> dict[Path, str]:
        """Nothing of others."""
        return {}

    @property
    def state(self) -> None:
        """It tells nothing in a file."""
        return

    @property
    def lock(self) -> Path:
        """The file that a worker holds, relative to the run."""
        place = self.folder.relative_to(self.run)
        return place.with_name(f".{place.name}.lock")


@dataclass(frozen=True)
class _Answer:
    """The answer to a prompt; the id is a hash of what decides it."""

    id: str
    text: str
    cut: bool  # it was still going on at max_new_tokens


def distill(job: Distilling, step: Step) -> None:
    """Samples the answers, unless they are there from the same base, prompts and sampling; killed, it goes on.

    An answer that `max_new_tokens` cuts has no end that could be trained on: its row is left out.
    Raises SpilloverError if a prompt has more than one user's turn, if more than CUT_AT_MOST of the answers are cut, or
    the model is not on this machine.
    """
    check_here(job.base)
    with at_work(job, lambda: step("waits for another run that is at it", 0, 1)) as (run_dir, share):

        def both(stage: str, done: int, of: int) -> None:
            share()
            step(stage, done, of)

        folder = run_dir.path / job.folder.relative_to(job.run)
        if not _is_made(folder, job.fingerprint):
            _distill(job, folder, both)


def _is_made(folder: Path, fingerprint: dict[str, Any]) -> bool:
    if not (folder / RECORD).exists():
        return False
    made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return made["made_from"] == fingerprint and "cut_off" in made["counts"]  # or else there may be some in it


def _distill(job: Distilling, folder: Path, step: Step) -> None:
    torch.set_num_threads(job.threads)
    folder.mkdir(parents=True, exist_ok=True)
    answers = _answers(job, hash_of(job.fingerprint), folder / ANSWERS, step)
    whole = [number for number, answer in enumerate(answers) if not answer.cut]
    result, counts = self_distilled([job.rows[number] for number in whole], [answers[number].text for number in whole])
    counts["cut_off"] = len(answers) - len(whole)
    sets = {"data": (job.condition.data or "", list(job.rows))}
    made = {"made_from": job.fingerprint, **made_of(job.condition, sets, result, counts)}
    record = folder / RECORD
    record.unlink(missing_ok=True)  # first, and written last: what it says of the rows is always true
    write_atomically(folder / ROWS, "".join(map(records.to_line, result)))
    write_atomically(record, json.dumps(made, indent=1) + "\n")
    (folder / ANSWERS).unlink()


def _answers(job: Distilling, fingerprint: str, file: Path, step: Step) -> list[_Answer]:
    """The answers, of which `file` holds those that have been sampled; one that is empty is sampled again."""
    there = {row.id: row for row in records.read_appended(file, _Answer)}
    model, tokenizer = load_weights(job.base), load_tokenizer(job.base)
    answers = [_Answer("", "", False)] * len(job.rows)
    for attempt in range(ATTEMPTS):
        empty = [number for number, answer in enumerate(answers) if not answer.text.strip()]
        if not empty:
            break
        asks = [_ask(job.rows[number], number, f"{fingerprint}/{attempt}") for number in empty]
        # Always the same batches: one that was cut short is sampled whole again, and its answers are the same.
        batches = in_batches(asks, rows_at_once(model, tokenizer, asks, job.sampling.max_new_tokens))
        for number, batch in enumerate(batches, 1):
            ids = [id_ for ask in batch for id_ in ask.ids]
            if not there.keys() >= {*ids}:
                replies = sample_batch(model, tokenizer, batch, **job.sampling.model_dump())
                new = [
                    _Answer(id_, reply.text, reply.stop_reason == "length")
                    for id_, reply in zip(ids, replies, strict=True)
                    if id_ not in there
                ]
                records.append(file, new, to_disk=False)
                there |= {answer.id: answer for answer in new}
            _check_cut(job, sum(there[ask.ids[0]].cut for ask in asks if ask.ids[0] in there))
            step("answer", number, len(batches))
        for number, ask in zip(empty, asks, strict=True):
            answers[number] = there[ask.ids[0]]
    _check_cut(job, sum(answer.cut for answer in answers))
    return answers


def _check_cut(job: Distilling, cut: int) -> None:
    if cut > CUT_AT_MOST * len(job.rows):
        raise SpilloverError(
            f"control self_distilled: {cut:,} or more of the {len(job.rows):,} answers of {job.base} do not end within "
            f"sampling.max_new_tokens = {job.sampling.max_new_tokens}. Raise it: trained on, they would teach to stop "
            "in the middle."
        )


def _ask(example: Example, number: int, fingerprint: str) -> Request:
    """A prompt whose id also seeds the answer: equal prompts get answers of their own."""
    (turns,) = prompts_of([example])
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        raise SpilloverError(
            f"row {number + 1}: self_distilled takes prompts of one user's turn, not {len(turns)} turns."
        )
    system = turns[0]["content"] if len(turns) == 2 else None
    return Request((hash_of(number, fingerprint),), system, turns[-1]["content"])


def check_prompts(rows: Sequence[Example]) -> None:
    """Raises SpilloverError if a prompt has more than one user's turn."""
    for number, row in enumerate(rows):
        _ask(row, number, "")


def distilled(folder: Path) -> tuple[Example, ...]:
    """The rows that `distill` has written."""
    return tuple(Example(tuple(row["messages"])) for _, row in records.read_jsonl(folder / ROWS))
