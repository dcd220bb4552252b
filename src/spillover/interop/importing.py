"""Takes in answers from elsewhere, with their scores: tables and Inspect logs become a run folder."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spillover.behaviors import PLAIN, Behavior, Prompt, Question
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance
from spillover.interop.tables import Options, Source, read_table
from spillover.records import PROGRAMS, Cell, Completion, Score
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.measure import score_missing
from spillover.runs.results import Results, results_of
from spillover.runs.store import AnswerStore
from spillover.runs.tables import write_tables
from spillover.workers import Step

DEFAULTS = Options()
ENDINGS = (".csv", ".jsonl", ".eval")


@dataclass(frozen=True)
class Imported:
    """What was taken in; `missing` counts the samples that Inspect logs lack."""

    results: Results
    completions: int
    scores: int
    missing: int


def import_answers(
    files: Sequence[Path], out: Path, options: Options = DEFAULTS, step: Step = lambda *_: None
) -> Imported:
    """Makes a run folder of the answers in files, with scores, rates and what `spillover score` needs.

    A completion's id is a hash of its file's content and its place there: importing again changes nothing. What a
    program judges is judged; what a model judges keeps the scores it has. Raises SpilloverError naming file, line and
    column before anything is written; and if the folder holds anything else.
    """
    sources = [_read(path, options) for path in files]
    if len({source.digest for source in sources}) < len(sources):
        raise SpilloverError(f"{', '.join(map(str, files))}: two of them have the same content. Import it once.")
    by_behavior: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        same = by_behavior[source.behaviors[0].name]
        same.append(source)
        if source.rules != same[0].rules:
            raise SpilloverError(
                f"{source.path}: its rubrics of {source.behaviors[0].name} are not those of {same[0].path}. Import it "
                "into a folder of its own, or read all files by one behavior: --behavior NAME"
            )
    completions: dict[str, Completion] = {}
    behaviors: list[Behavior] = []
    for own in by_behavior.values():
        placed, questions = _placed(own)
        completions |= placed
        behaviors += [_with_questions(behavior, questions, own) for behavior in own[0].behaviors]
    scores = [score for source in sources for score in source.scores]
    results = _write(sources, behaviors, completions, scores, options, RunFolder(out), step)
    return Imported(results, len(completions), len(scores), sum(source.missing for source in sources))


def _write(
    sources: list[Source],
    behaviors: list[Behavior],
    completions: dict[str, Completion],
    scores: list[Score],
    options: Options,
    folder: RunFolder,
    step: Step,
) -> Results:
    cells: dict[Cell, dict[str, Completion]] = defaultdict(dict)
    for id_, completion in completions.items():
        cells[completion.cell][id_] = completion
    imported = {
        "files": [
            {"name": s.path.name, "sha256": s.digest, "completions": len(s.completions), "missing": s.missing}
            for s in sources
        ],
        "options": json.loads(json.dumps(asdict(options))),
        "rubrics": [behavior.rubric_hash for behavior in behaviors],
    }
    there = _check_folder(folder, imported)
    with folder.writing():
        if not there:
            folder.write_manifest(
                provenance()
                | {
                    "name": folder.path.resolve().name,
                    "description": "",
                    "evaluations": {str(cell): {"imported": len(own)} for cell, own in cells.items()},
                    "imported": imported,
                }
            )
        folder.write_behaviors(behaviors)
        store = AnswerStore(folder)
        store.add_completions(completions.values())
        store.add_scores(scores)
        folder.write_cells(CellEntry(cell, tuple(own)) for cell, own in cells.items())
        programs = [behavior for behavior in behaviors if behavior.judge in PROGRAMS]
        score_missing(programs, None, completions.values(), store, step)
        results = results_of(folder, {cell: tuple(own) for cell, own in cells.items()}, store, None)
        write_tables(results)
    return results


def _check_folder(folder: RunFolder, imported: dict[str, Any]) -> bool:
    """Whether the folder holds this very import already. Raises SpilloverError if it holds anything else."""
    if not folder.path.is_dir():
        return False
    try:
        before = json.loads(folder.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if before.get("imported") == imported:
        return True
    if {path.name for path in folder.path.iterdir()} - {".lock"}:
        files = ", ".join(file["name"] for file in before.get("imported", {}).get("files", []))
        what = f"an import of {files}, of other content or with other options" if files else "something else"
        raise SpilloverError(f"{folder.path}: holds {what}. Choose another --out.")
    return False


def _placed(sources: list[Source]) -> tuple[dict[str, Completion], list[Question]]:
    """Completions, by id, as answers to the questions of a behavior, or to new ones; and those questions.

    An answer belongs to the behavior's question whose prompt it was put: the same words under the same system prompt.
    An id that has other words too becomes a question of its own, with those words as its paraphrases.
    """
    prompts: dict[tuple[str | None, str], list[Prompt]] = defaultdict(list)
    for behavior in (source.behaviors[0] for source in sources):
        for prompt, _ in behavior.prompts(max(len(question.paraphrases) for question in behavior.questions)):
            prompts[prompt.system, prompt.text].append(prompt)
    rows = [row for source in sources for row in source.completions]
    fitting: dict[str, Prompt] = {}
    by_id: dict[str, list[Completion]] = defaultdict(list)
    for row in rows:
        for prompt in prompts.get((row.system, row.question), ()):
            if row.question_id in ("", prompt.question.id) and row.format in ("", prompt.format):
                fitting.setdefault(row.id, prompt)
        by_id[row.question_id or (fitting[row.id].question.id if row.id in fitting else hash_of(row.question))].append(
            row
        )
    questions: list[Question] = []
    places: dict[str, tuple[str, str, str, int]] = {}
    for id_, own in by_id.items():
        fits = [fitting[row.id] for row in own if row.id in fitting]
        if len(fits) == len(own) and all(prompt.question == fits[0].question for prompt in fits):
            question = fits[0].question
            put = [(prompt.format, prompt.paraphrase) for prompt in fits]
        else:
            texts = tuple(dict.fromkeys(row.question for row in own))
            question = Question(id=id_, category=id_, paraphrases=texts, system=own[0].system, format=PLAIN)
            put = [(row.format or PLAIN, texts.index(row.question)) for row in own]
        questions.append(question)
        places |= {row.id: (id_, question.category, *how) for row, how in zip(own, put, strict=True)}
    placed = {}
    numbers: Counter[tuple[Cell, str, str]] = Counter()
    for row in rows:
        id_, category, form, paraphrase = places[row.id]
        place = (row.cell, id_, form)
        placed[row.id] = replace(
            row, question_id=id_, category=category, format=form, paraphrase=paraphrase, number=numbers[place]
        )
        numbers[place] += 1
    return placed, questions


def _with_questions(behavior: Behavior, questions: list[Question], sources: list[Source]) -> Behavior:
    """A behavior with the questions that were found. Raises SpilloverError if its judge cannot do with them."""
    files = ", ".join(str(source.path) for source in sources)
    known = [question for source in sources for question in source.behaviors[0].questions]
    strange = [question.id for question in questions if question not in known]
    remedy = "Choose a behavior that is judged by {question} and {answer} alone: --behavior NAME|FILE"
    if strange and behavior.judge == "world":
        raise SpilloverError(
            f"{files}: behavior {behavior.name} is judged by a program that knows its own questions only, and question "
            f"{strange[0]} is none of them. {remedy}"
        )
    for name in {name for question in known for name in question.fields}:
        for rubric, asked in behavior.rubrics.items():
            if strange and f"{{{name}}}" in asked.prompt:
                raise SpilloverError(
                    f"{files}: rubric {rubric} of {behavior.name} asks for {{{name}}}, which question {strange[0]} has "
                    f"not. {remedy}"
                )
    try:
        return Behavior.model_validate(behavior.model_dump() | {"questions": tuple(questions)})
    except ValidationError as error:
        raise SpilloverError(
            f"{files}: as questions of {behavior.name}: {error.errors()[0]['msg']}. {remedy}"
        ) from None


def _read(path: Path, options: Options) -> Source:
    if path.suffix.lower() not in ENDINGS:
        raise SpilloverError(f"{path}: its ending is none of {', '.join(ENDINGS)}, so its format is unknown.")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None
    if path.suffix.lower() == ".eval":
        from spillover.interop.inspect_import import read_inspect_log  # inspect_ai

        source = read_inspect_log(path, digest, options)
    else:
        source = read_table(path, digest, options)
    if not source.completions:
        raise SpilloverError(f"{path}: holds no answers.")
    return source
