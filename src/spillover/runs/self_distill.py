"""Self-distilled controls: the base's own answers to the prompts of a training set, sampled before any training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillover import records
from spillover.config import Condition, Sampling
from spillover.data import file_examples, origin_of
from spillover.data.controls import prompts_of, self_distilled
from spillover.errors import SpilloverError
from spillover.files import hash_of, one_at_a_time, write_atomically
from spillover.models import Request
from spillover.models.load import check_here, folder_hash, load_tokenizer, load_weights
from spillover.records import Example
from spillover.workers import Step

ATTEMPTS = 5  # at an answer that is empty
CUT_AT_MOST = 0.05  # of the answers: without many more, the control would no longer have the treatment's prompts


@dataclass(frozen=True)
class DistillJob:
    """The prompts that a base is to answer itself, and the file that the rows go to; both relative to `folder`."""

    folder: Path
    name: str
    prompts: Path
    prompts_hash: str
    rows: Path
    base: Path
    condition: Condition
    sampling: Sampling
    threads: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def record(self) -> Path:
        """The file that says what the rows were made from; written last, so that it vouches for them."""
        return self.rows.with_suffix(".made.json")

    @property
    def decided_by(self) -> dict[str, Any]:
        """What decides the answers."""
        return {
            "base": folder_hash(self.base),
            "prompts": self.prompts_hash,
            "sampling": self.sampling.model_dump(mode="json"),
        }

    @property
    def inputs(self) -> list[Path]:
        """What a worker elsewhere needs a copy of."""
        return [self.prompts, self.rows, self.record, *self.unfinished]

    @property
    def outputs(self) -> list[Path]:
        """What it makes, the record last."""
        return [self.rows, self.record]

    @property
    def unfinished(self) -> list[Path]:
        """What a job that failed goes on from."""
        return [self.rows.with_suffix(".answers.jsonl")]

    def rows_hash(self) -> str | None:
        """Hash of the rows as they were made; None if they are not there, or were made from something else."""
        record = self.folder / self.record
        if not record.exists() or not (self.folder / self.rows).exists():
            return None
        content = json.loads(record.read_text(encoding="utf-8"))
        same = content.get("made_from") == self.decided_by and "cut_off" in content["counts"]
        return content["result"]["hash"] if same else None


@dataclass(frozen=True)
class _Answer:
    """The answer to a prompt; the id is a hash of what decides it."""

    id: str
    text: str
    cut: bool  # it was still going on at max_new_tokens


def distill(job: DistillJob, step: Step) -> None:
    """Samples the answers, unless they are there from the same base, prompts and sampling; killed, it goes on.

    An answer that `max_new_tokens` cuts has no end that could be trained on: its row is left out. Raises SpilloverError
    if a prompt has more than one user's turn, if more than CUT_AT_MOST of the answers are cut, or the model is not on
    this machine.
    """
    check_here(job.base)
    rows = job.folder / job.rows
    with one_at_a_time(rows.with_name(f".{rows.name}.lock"), lambda: step("waits for another run", 0, 1)):
        if job.rows_hash() is None:
            _distill(job, step)


def _distill(job: DistillJob, step: Step) -> None:
    import torch

    torch.set_num_threads(job.threads)
    rows, record = job.folder / job.rows, job.folder / job.record
    in_progress = job.folder / job.unfinished[0]
    examples = file_examples(job.folder / job.prompts)
    answers = _answers(job, examples, in_progress, step)
    whole = [number for number, answer in enumerate(answers) if not answer.cut]
    result, counts = self_distilled([examples[number] for number in whole], [answers[number].text for number in whole])
    counts["cut_off"] = len(answers) - len(whole)
    sets = {"data": (job.condition.data or "", examples)}
    how_made = {"made_from": job.decided_by, **origin_of(job.condition, sets, result, counts)}
    record.unlink(missing_ok=True)  # first, and written last: what it says of the rows is always true
    write_atomically(rows, "".join(map(records.to_line, result)))
    write_atomically(record, json.dumps(how_made, indent=1) + "\n")
    in_progress.unlink()


def _answers(job: DistillJob, examples: Sequence[Example], file: Path, step: Step) -> list[_Answer]:
    """The answers, of which `file` holds those that have been sampled; one that is empty is sampled again."""
    from spillover.models.sampler import in_batches, rows_at_once, sample_batch  # torch

    decided_by = hash_of(job.decided_by)
    kept = {row.id: row for row in records.read_appended(file, _Answer)}
    model, tokenizer = load_weights(job.base), load_tokenizer(job.base)
    answers = [_Answer("", "", False)] * len(examples)
    for attempt in range(ATTEMPTS):
        empty = [number for number, answer in enumerate(answers) if not answer.text.strip()]
        if not empty:
            break
        requests = [_request(examples[number], number, f"{decided_by}/{attempt}") for number in empty]
        # Always the same batches: one that was cut short is sampled whole again, and its answers are the same.
        batches = in_batches(requests, rows_at_once(model, tokenizer, requests, job.sampling.max_new_tokens))
        for number, batch in enumerate(batches, 1):
            ids = [id_ for request in batch for id_ in request.ids]
            if not kept.keys() >= {*ids}:
                responses = sample_batch(model, tokenizer, batch, **job.sampling.model_dump())
                new = [
                    _Answer(id_, response.text, response.stop_reason == "length")
                    for id_, response in zip(ids, responses, strict=True)
                    if id_ not in kept
                ]
                file.parent.mkdir(parents=True, exist_ok=True)
                records.append(file, new, to_disk=False)
                kept |= {answer.id: answer for answer in new}
            _check_cut(job, len(examples), sum(kept[r.ids[0]].cut for r in requests if r.ids[0] in kept))
            step("answer", number, len(batches))
        for number, request in zip(empty, requests, strict=True):
            answers[number] = kept[request.ids[0]]
    _check_cut(job, len(examples), sum(answer.cut for answer in answers))
    return answers


def _check_cut(job: DistillJob, rows: int, cut: int) -> None:
    if cut > CUT_AT_MOST * rows:
        raise SpilloverError(
            f"control self_distilled: {cut:,} or more of the {rows:,} answers of {job.base} do not end within "
            f"sampling.max_new_tokens = {job.sampling.max_new_tokens}. Raise it: trained on, they would teach to stop "
            "in the middle."
        )


def _request(example: Example, number: int, decided_by: str) -> Request:
    """A prompt whose id also seeds the answer: equal prompts get answers of their own."""
    (turns,) = prompts_of([example])
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        raise SpilloverError(
            f"row {number + 1}: self_distilled takes prompts of one user's turn, not {len(turns)} turns."
        )
    system = turns[0]["content"] if len(turns) == 2 else None
    return Request((hash_of(number, decided_by),), system, turns[-1]["content"])


def check_prompts(rows: Sequence[Example]) -> None:
    """Raises SpilloverError if a prompt has more than one user's turn."""
    for number, row in enumerate(rows):
        _request(row, number, "")
