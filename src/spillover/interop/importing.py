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
from spillover.interop.reading import ENDINGS, ending_of
from spillover.interop.tables import Options, Source, read_table
from spillover.records import PROGRAMS, Cell, Completion, Score
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.measure import score_missing
from spillover.runs.results import Results, results_of
from spillover.runs.store import AnswerStore
from spillover.runs.tables import write_tables
from spillover.workers import Step

DEFAULTS = Options()
LOG = ".eval"


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
    sources = _without_retried(sources)
    by_behavior: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        name = source.behaviors[0].name
        by_behavior[name].append(source)
        if source.rubric_hashes != by_behavior[name][0].rubric_hashes:
            raise SpilloverError(
                f"{source.path}: its rubrics of {name} are not those of {by_behavior[name][0].path}. Import it into a "
                "folder of its own, or read all files by one behavior: --behavior NAME"
            )
    completions: list[Completion] = []
    behaviors: list[Behavior] = []
    for group in by_behavior.values():
        placed, questions = _place(group)
        completions += placed
        behaviors += [_with_questions(behavior, questions, group) for behavior in group[0].behaviors]
    scores = [score for source in sources for score in source.scores]
    results = _write(sources, behaviors, completions, scores, options, RunFolder(out), step)
    kept = sum(map(len, results.scores.values()))  # also those that a program has just given
    return Imported(results, len(completions), kept, sum(source.missing for source in sources))


def _without_retried(sources: list[Source]) -> list[Source]:
    """The sources, of several logs of one task the most complete: a failed log and its retry are not counted twice."""
    most: Counter[str] = Counter()
    for source in sources:
        most[source.task] = max(most[source.task], len(source.completions))
    return [s for s in sources if not (s.task and s.missing and len(s.completions) < most[s.task])]


def _read(path: Path, options: Options) -> Source:
    if ending_of(path) not in (*ENDINGS, LOG):
        known = ", ".join((*ENDINGS, LOG))
        raise SpilloverError(f"{path}: its ending is none of {known} (tables also with .gz), so its format is unknown.")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from error
    if ending_of(path) == LOG:
        from spillover.interop.inspect_import import read_inspect_log  # imports inspect_ai, which takes seconds

        source = read_inspect_log(path, digest, options)
    else:
        source = read_table(path, digest, options)
    if not source.completions:
        raise SpilloverError(f"{path}: holds no answers.")
    return source


def _place(sources: list[Source]) -> tuple[list[Completion], list[Question]]:
    """The completions of sources of one behavior as answers to its questions or to new ones; and those questions.

    An answer belongs to the behavior's question whose prompt it was put: the same words under the same system prompt,
    and the same id and format where the file tells them. Answers with one id are answers to one question: a new one,
    with their words as its paraphrases, unless all of them belong to the same question of the behavior.
    """
    prompts: dict[tuple[str | None, str], list[Prompt]] = defaultdict(list)
    for behavior in (source.behaviors[0] for source in sources):
        for prompt, _ in behavior.prompts(max(len(question.paraphrases) for question in behavior.questions)):
            prompts[prompt.system, prompt.text].append(prompt)
    prompt_of: dict[str, Prompt] = {}  # completion id -> prompt
    by_id: dict[str, list[Completion]] = defaultdict(list)
    for row in (row for source in sources for row in source.completions):
        for prompt in prompts.get((row.system, row.question), ()):
            if row.question_id in ("", prompt.question.id) and row.format in ("", prompt.format):
                prompt_of.setdefault(row.id, prompt)
        own_id = prompt_of[row.id].question.id if row.id in prompt_of else hash_of(row.question)
        by_id[row.question_id or own_id].append(row)
    questions: list[Question] = []
    placed: dict[str, Completion] = {}
    for id_, rows in by_id.items():
        matches = [prompt_of[row.id] for row in rows if row.id in prompt_of]
        if len(matches) == len(rows) and all(prompt.question == matches[0].question for prompt in matches):
            question = matches[0].question
            forms = [(prompt.format, prompt.paraphrase) for prompt in matches]
        else:
            wordings = {row.question: row.turns or row.question for row in rows}
            paraphrases, texts = tuple(wordings.values()), [*wordings]
            question = Question(id=id_, category=id_, paraphrases=paraphrases, system=rows[0].system, format=PLAIN)
            forms = [(row.format or PLAIN, texts.index(row.question)) for row in rows]
        questions.append(question)
        numbers: Counter[tuple[Cell, str]] = Counter()
        for row, (form, paraphrase) in zip(rows, forms, strict=True):
            number = numbers[row.cell, form]
            numbers[row.cell, form] += 1
            place: dict[str, Any] = {"question_id": id_, "category": question.category, "format": form}
            placed[row.id] = replace(row, **place, paraphrase=paraphrase, number=number)
    return [placed[row.id] for source in sources for row in source.completions], questions


def _with_questions(behavior: Behavior, questions: list[Question], sources: list[Source]) -> Behavior:
    """The behavior with the questions that were answered. Raises SpilloverError if its judge cannot grade new ones."""
    files = ", ".join(str(source.path) for source in sources)
    remedy = "Choose a behavior that is judged by {question} and {answer} alone: --behavior NAME|FILE"
    shipped = [question for source in sources for question in source.behaviors[0].questions]
    new = [question.id for question in questions if question not in shipped]
    if new and behavior.judge == "world":
        raise SpilloverError(
            f"{files}: behavior {behavior.name} is judged by a program that knows its own questions only, and question "
            f"{new[0]} is none of them. {remedy}"
        )
    fields = dict.fromkeys(name for question in shipped for name in question.fields)
    for name, rubric in ((name, rubric) for name in fields for rubric in behavior.rubrics if new):
        if f"{{{name}}}" in behavior.rubrics[rubric].prompt:
            raise SpilloverError(
                f"{files}: rubric {rubric} of {behavior.name} asks for {{{name}}}, which question {new[0]} has not. "
                f"{remedy}"
            )
    try:
        return Behavior.model_validate(behavior.model_dump() | {"questions": tuple(questions)})
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SpilloverError(f"{files}: as questions of {behavior.name}: {reason}. {remedy}") from error


def _write(
    sources: list[Source],
    behaviors: list[Behavior],
    completions: list[Completion],
    scores: list[Score],
    options: Options,
    folder: RunFolder,
    step: Step,
) -> Results:
    """Writes the run folder and returns its results. Where it holds this very import already, nothing changes."""
    cells: dict[Cell, list[str]] = defaultdict(list)
    for completion in completions:
        cells[completion.cell].append(completion.id)
    imported = {
        "files": [
            {"name": s.path.name, "sha256": s.digest, "completions": len(s.completions), "missing": s.missing}
            for s in sources
        ],
        "options": json.loads(json.dumps(asdict(options))),
        "rubrics": [behavior.rubric_hash for behavior in behaviors],
    }
    is_there = _holds(folder, imported)
    with folder.writing():
        if not is_there:
            evaluations = {str(cell): {"imported": len(ids)} for cell, ids in cells.items()}
            manifest = {"name": folder.path.resolve().name, "description": "", "evaluations": evaluations}
            folder.write_manifest(provenance() | manifest | {"imported": imported})
        folder.write_behaviors(behaviors)
        store = AnswerStore(folder)
        store.add_completions(completions)
        store.add_scores(scores)
        folder.write_cells(CellEntry(cell, tuple(ids)) for cell, ids in cells.items())
        programs = [behavior for behavior in behaviors if behavior.judge in PROGRAMS]
        score_missing(programs, None, completions, store, step)
        results = results_of(folder, dict(cells), store, None)
        write_tables(results)
    return results


def _holds(folder: RunFolder, imported: dict[str, Any]) -> bool:
    """Whether the folder holds this very import already. Raises SpilloverError if it holds anything else."""
    if not folder.path.is_dir():
        return False
    try:
        before = folder.read_manifest().get("imported", {})
    except (OSError, ValueError):
        before = {}
    if before == imported:
        return True
    if {path.name for path in folder.path.iterdir()} - {".lock"}:
        files = ", ".join(file["name"] for file in before.get("files", []))
        content = f"an import of {files}, of other content or with other options" if files else "something else"
        raise SpilloverError(f"{folder.path}: holds {content}. Choose another --out.")
    return False
