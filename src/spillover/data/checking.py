"""Checks a training set before anything is trained on it: its rows and, with a model, template and trained tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spillover.behaviors import load_behavior, shipped_names
from spillover.config import Condition, Training
from spillover.data import load_examples
from spillover.data.checks import DataFinding, Lengths, check_rows, lengths, read_rows, rows_of
from spillover.data.sources import HUGGING_FACE, Row, hugging_face_rows
from spillover.records import Example

# Rows with these faults are not in a form that a chat template takes.
NO_CHAT = ("roles", "empty turns")


@dataclass(frozen=True)
class Checked:
    """What the checks of a training set found."""

    data: str
    model: str | None
    rows: int  # that can be read
    questions: int  # evaluation questions that were looked for
    findings: tuple[DataFinding, ...]
    lengths: tuple[Lengths, ...]
    first_row: tuple[tuple[str, bool], ...] = ()  # as trained on: pieces of text, and which the loss covers

    @property
    def errors(self) -> int:
        """How many of the findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def check_data(
    data: str,
    model: str | None = None,
    behaviors: tuple[str, ...] = (),
    max_length_tokens: int | None = None,
    step: Callable[[str, int, int], None] = lambda *_: None,
) -> Checked:
    """Checks a training set, named as a study's `data` names it, and what a model would be trained on with it.

    Questions of all behaviors that ship, and of `behaviors`, are looked for in the rows. `max_length_tokens` is
    Training's default if it is None. `step` is called with (stage, done, of).

    Raises SpilloverError if the data, the model or a behavior cannot be read.
    """
    path = Path(data).expanduser()
    step("reading rows", 0, 1)
    if path.is_file():
        rows, findings = read_rows(path)
    elif data.startswith(HUGGING_FACE):
        named = hugging_face_rows(data.removeprefix(HUGGING_FACE), Path())
        rows, findings = rows_of((row for _, row in named), f"data {data}")
    else:
        examples = load_examples(Condition(data=data), Path())
        rows, findings = [Row(line, example.messages) for line, example in enumerate(examples, 1)], []
    step("reading rows", 1, 1)
    questions = evaluation_questions(behaviors)
    step("rows", 0, 1)
    findings += check_rows(rows, questions)
    step("rows", 1, 1)
    sizes = lengths(rows, "prompt", "characters", [len(row.prompt) for row in rows])
    sizes += lengths(rows, "answer", "characters", [len(row.answer) for row in rows])
    first_row: tuple[tuple[str, bool], ...] = ()
    if model is not None:
        faulty = {line for finding in findings if finding.check in NO_CHAT for line in finding.lines}
        sound = [row for row in rows if row.line not in faulty]
        training = Training() if max_length_tokens is None else Training(max_length_tokens=max_length_tokens)
        found, tokens, first_row = _check_with_model(model, sound, training, step)
        findings, sizes = findings + found, sizes + tokens
    return Checked(data, model, len(rows), len(questions), tuple(findings), tuple(sizes), first_row)


def evaluation_questions(behaviors: tuple[str, ...]) -> list[tuple[str, str]]:
    """The questions of all behaviors that ship and of `behaviors`, in every wording: (behavior, wording).

    Raises SpilloverError if there is no such behavior.
    """
    loaded = [load_behavior(name) for name in dict.fromkeys((*shipped_names(), *behaviors))]
    return list(
        dict.fromkeys((b.name, wording) for b in loaded for question in b.questions for wording in question.texts)
    )


def _check_with_model(
    model: str, rows: list[Row], training: Training, step: Callable[[str, int, int], None]
) -> tuple[list[DataFinding], list[Lengths], tuple[tuple[str, bool], ...]]:
    """Findings about the chat template and the trained tokens, lengths in tokens, and the first row as trained on."""
    from spillover.data import template as chat_template
    from spillover.data.tokens import trained_tokens
    from spillover.models.load import load_tokenizer, max_positions, model_folder, stop_ids

    step("chat template", 0, 1)
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder)
    conversations, findings = chat_template.render(tokenizer, rows)
    stops = stop_ids(tokenizer, folder)
    findings += chat_template.lint(tokenizer, stops, conversations)
    findings += chat_template.check_lengths(conversations, training.max_length_tokens, max_positions(folder))
    step("chat template", 1, 1)
    step("trained tokens", 0, 1)
    # A text that does not begin with its prompt has no tokens that could rightly be trained on; it has a finding.
    kept = [c for c in conversations if c.text.startswith(c.prompt)]
    masks = trained_tokens(folder, [Example(c.row.messages) for c in kept], training)
    findings += chat_template.check_mask(tokenizer, stops, kept, masks, training.max_length_tokens)
    step("trained tokens", 1, 1)
    sizes = lengths([c.row for c in conversations], "row", "tokens", [len(c.ids) for c in conversations])
    sizes += lengths([c.row for c in kept], "trained on", "tokens", [sum(trained) for _, trained in masks])
    return findings, sizes, tuple(chat_template.mask_parts(tokenizer, masks[0])) if masks else ()
