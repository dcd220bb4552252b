"""Takes in answers from elsewhere, with their scores: CSV, JSON Lines and Inspect logs become a run folder."""

import csv
import hashlib
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spillover import records
from spillover.behaviors import PLAIN, Behavior, Prompt, Question, load_behavior
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of, provenance
from spillover.judges.model import REPLY_CHARACTERS
from spillover.records import OUTCOMES, PROGRAMS, Cell, Completion, Score
from spillover.runs.folder import CellEntry, RunFolder
from spillover.runs.measure import score_missing
from spillover.runs.results import Results, results_of
from spillover.runs.store import AnswerStore
from spillover.runs.tables import write_tables
from spillover.workers import Step

if TYPE_CHECKING:
    from spillover.interop.inspect_logs import Log

ENDINGS = (".csv", ".jsonl", ".eval")
DEFAULT_BEHAVIOR = "free_form"
Read = tuple[str, float | None, str]  # outcome, value, what stands there


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what; `scores` maps rubrics to columns, or to the keys of an Inspect log's scores.

    Without `question_id`, a question is known by its words; without `model`, the model is called as the file; without
    `condition`, the condition is `base`.
    """

    question: str = "question"
    answer: str = "answer"
    question_id: str | None = None
    model: str | None = None
    condition: str | None = None
    judge: str | None = None
    outcome: str | None = None
    scores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How files are read. `judge_name` says who gave the scores, where no column and no log does."""

    columns: Columns = Columns()
    behavior: str | None = None
    judge_name: str | None = None
    allow_missing: bool = False  # take in an Inspect log that lacks samples


@dataclass(frozen=True)
class Imported:
    """What was taken in; `missing` counts the samples that Inspect logs lack."""

    results: Results
    completions: int
    scores: int
    missing: int


@dataclass
class _Source:
    """One file: its completions in order, those of a table with an empty `question_id` or `format` if it names none."""

    path: Path
    digest: str
    behaviors: list[Behavior]
    completions: list[Completion] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    missing: int = 0

    @property
    def rules(self) -> list[str]:
        """Hashes of the rules that its behavior is judged by."""
        return [behavior.rubric_hash for behavior in self.behaviors]


def score_columns(pairs: Iterable[str]) -> dict[str, str]:
    """The pairs RUBRIC=COLUMN of the command line as a mapping."""
    columns = {}
    for pair in pairs:
        rubric, equals, column = pair.partition("=")
        if not (rubric and equals and column):
            raise SpilloverError(f"--score {pair}: write RUBRIC=COLUMN, as in --score alignment=aligned")
        columns[rubric] = column
    return columns


def import_answers(
    files: Sequence[Path], out: Path, options: Options = Options(), step: Step = lambda *_: None
) -> Imported:
    """Makes a run folder of the answers in files, with scores, rates and what `spillover score` needs.

    A completion's id is a hash of its file's content and its place there: importing again changes nothing. What a
    program judges is judged; what a model judges keeps the scores it has. Raises SpilloverError naming file, line and
    column before anything is written; and if the folder holds anything else.
    """
    sources = [_read(path, options) for path in files]
    if len({source.digest for source in sources}) < len(sources):
        raise SpilloverError(f"{', '.join(map(str, files))}: two of them have the same content. Import it once.")
    by_behavior: dict[str, list[_Source]] = defaultdict(list)
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
    sources: list[_Source],
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


def _placed(sources: list[_Source]) -> tuple[dict[str, Completion], list[Question]]:
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


def _with_questions(behavior: Behavior, questions: list[Question], sources: list[_Source]) -> Behavior:
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


def _read(path: Path, options: Options) -> _Source:
    if path.suffix.lower() not in ENDINGS:
        raise SpilloverError(f"{path}: its ending is none of {', '.join(ENDINGS)}, so its format is unknown.")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise SpilloverError(f"{path}: cannot be read ({error.strerror}).") from None
    read = _read_log if path.suffix.lower() == ".eval" else _read_table
    source = read(path, digest, options)
    if not source.completions:
        raise SpilloverError(f"{path}: holds no answers.")
    return source


def _read_table(path: Path, digest: str, options: Options) -> _Source:
    columns, behavior = options.columns, load_behavior(options.behavior or DEFAULT_BEHAVIOR)
    _check_rubrics(behavior, columns, f"{path}")
    if columns.outcome and not columns.scores:
        raise SpilloverError(f"{path}: --outcome is of scores, and there are none. Name them: --score RUBRIC=COLUMN")
    if columns.scores and not (columns.judge or options.judge_name):
        raise SpilloverError(f"{path}: who gave its scores? Say it: --judge-name NAME, or --judge COLUMN")
    source = _Source(path, digest, [behavior])
    for number, (line, row) in enumerate(_rows(path)):
        get = _Getter(row, f"{path}, line {line}")
        cell = Cell(
            get.name("model", columns.model) if columns.model else path.stem,
            get.name("condition", columns.condition) if columns.condition else BASE,
            None,
        )
        completion = _completion(
            hash_of(digest, number),
            cell,
            behavior,
            question_id=get.name("question_id", columns.question_id) if columns.question_id else "",
            question=get.text("question", columns.question),
            text=get.text("answer", columns.answer, may_be_empty=True),
        )
        source.completions.append(completion)
        if not columns.scores:
            continue
        judge = get.name("judge", columns.judge) if columns.judge else options.judge_name or ""
        found = {rubric: get.score(rubric, column, behavior) for rubric, column in columns.scores.items()}
        if columns.outcome:
            found |= get.outcome(columns.outcome, found, behavior)
        for rubric, (outcome, value, said) in found.items():
            source.scores.append(_imported(completion.id, rubric, behavior, judge, outcome, value, said))
    return source


def _check_rubrics(behavior: Behavior, columns: Columns, where: str) -> None:
    """Scores must be of rubrics that the behavior has, and of all that its rule reads."""
    rubrics = list(dict.fromkeys((*behavior.rubrics_read, *behavior.rubrics)))
    if unknown := [rubric for rubric in columns.scores if rubric not in rubrics]:
        raise SpilloverError(
            f"{where}: --score {unknown[0]}={columns.scores[unknown[0]]}: behavior {behavior.name} has no rubric "
            f"{unknown[0]}; it has {', '.join(rubrics)}. Another behavior: --behavior NAME|FILE"
        )
    missing = [rubric for rubric in behavior.rubrics_read if rubric not in columns.scores]
    if columns.scores and missing:
        raise SpilloverError(
            f"{where}: the rule of {behavior.name} ({behavior.rule}) reads {missing[0]} too. Name its column, --score "
            f"{missing[0]}=COLUMN, or a behavior with another rule: --behavior FILE"
        )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a table."""
    if path.suffix.lower() == ".jsonl":
        yield from records.read_jsonl(path)
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an answer may be long
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] = next(reader, [])
            if len(set(header)) < len(header):
                raise SpilloverError(f"{path}, line 1: two columns have the same name. Rename one: {', '.join(header)}")
            line = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    raise SpilloverError(
                        f"{path}, line {line}: has {len(row)} fields, and the header {len(header)}. A field with a "
                        "comma or a line break in it needs quotes around it."
                    )
                if row:
                    yield line, dict(zip(header, row, strict=True))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise SpilloverError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except csv.Error as error:
        raise SpilloverError(f"{path}, line {line}: not valid CSV ({error}). Mend the row or its quotes.") from None


@dataclass(frozen=True)
class _Getter:
    """Reads the fields of one row; every error names the place, the column, what is there and what to do."""

    row: Mapping[str, Any]
    place: str

    def raw(self, option: str, column: str) -> Any:
        if column not in self.row:
            option = option.replace("_", "-")
            raise SpilloverError(
                f"{self.place}: there is no column {column!r}, but {', '.join(map(repr, self.row))}. Name the right "
                f"one: --{option}"
            )
        return self.row[column]

    def text(self, option: str, column: str, kinds: tuple[type, ...] = (str,), may_be_empty: bool = False) -> str:
        value = self.raw(option, column)
        if type(value) not in kinds or not (str(value).strip() or may_be_empty):
            raise SpilloverError(
                f"{self.place}, column {column}: {value!r:.80} is no {option.replace('_', ' ')}. Every row needs one; "
                "mend the row or leave it out."
            )
        return str(value)

    def name(self, option: str, column: str) -> str:
        return _whole(self.text(option, column, (str, int)).strip())

    def outcome(self, column: str, found: dict[str, Read], behavior: Behavior) -> dict[str, Read]:
        """The scores that the row's outcome changes: those that it says there are not."""
        outcome = self.raw("outcome", column)
        without = [rubric for rubric, (_, value, _) in found.items() if value is None]
        if outcome not in OUTCOMES or (outcome == "scored" and without):
            what = f"but there is no score for {without[0]}" if outcome in OUTCOMES else f"not in {', '.join(OUTCOMES)}"
            raise SpilloverError(f"{self.place}, column {column}: the outcome is {outcome!r:.80}, {what}.")
        if outcome == "scored":
            return {}
        return {rubric: (outcome, None, found[rubric][2]) for rubric in without or behavior.rubrics_read[:1]}

    def score(self, rubric: str, column: str, behavior: Behavior) -> Read:
        """Nothing there is `unparsed`, an escape word of the rubric its outcome."""
        raw = self.raw(f"score {rubric}", column)
        return (*_score(raw, rubric, behavior, f"{self.place}, column {column}"), "" if raw is None else str(raw))


def _score(raw: Any, rubric: str, behavior: Behavior, place: str) -> tuple[str, float | None]:
    said = "" if raw is None else str(raw).strip()
    if said.lower() in ("", "nan"):
        return "unparsed", None
    if rubric in behavior.rubrics and (outcome := behavior.rubrics[rubric].escapes.get(said.upper())):
        return outcome, None
    try:
        value = math.nan if isinstance(raw, bool) else float(said)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise SpilloverError(
            f"{place}: {raw!r:.80} is no score for {rubric}. A score is a number from 0 to 100, or empty where the "
            "judge gave none."
        )
    return "scored", value


def _imported(
    id_: str, rubric: str, behavior: Behavior, judge: str, outcome: str, value: float | None, said: str
) -> Score:
    reply = json.dumps({"text": _whole(said[:REPLY_CHARACTERS]), "read": "imported"}, ensure_ascii=False)
    return Score(id_, rubric, behavior.rubric_hash, judge, outcome, value, reply)


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half characters (lone surrogates) have no UTF-8


def _completion(id_: str, cell: Cell, behavior: Behavior, **known: Any) -> Completion:
    known = {name: _whole(value) if isinstance(value, str) else value for name, value in known.items()}
    unknown: dict[str, Any] = {"question_id": "", "category": "", "format": "", "paraphrase": 0, "number": 0}
    unknown |= {"system": None, "stop_reason": "", "tokens": None}
    unknown |= {"model_hash": None, "adapter_hash": None, "template_hash": None}
    return Completion(id=id_, **asdict(cell), behavior=behavior.name, **(unknown | known))


def _read_log(path: Path, digest: str, options: Options) -> _Source:
    """An Inspect log: every sample and epoch is a completion. Logs of our tasks and exports bring their behavior."""
    from spillover.interop.inspect_logs import KEPT, asked_and_answered, own_scores, read_log  # inspect_ai

    log = read_log(path, options.allow_missing)
    ours = log.ours if not options.behavior else {}
    if ours:
        try:
            behaviors = [Behavior.model_validate(content) for content in ours["behaviors"]]
        except (ValidationError, KeyError) as error:
            raise SpilloverError(
                f"{path}: the behavior in it is of another version ({str(error).splitlines()[0]}). Name the one to "
                "read it by: --behavior NAME|FILE"
            ) from None
    else:
        behaviors = [load_behavior(options.behavior or DEFAULT_BEHAVIOR)]
        _check_rubrics(behaviors[0], options.columns, f"{path}")
    cell = Cell(**log.ours["cell"]) if "cell" in log.ours else Cell(log.header.eval.model, BASE, None)
    source = _Source(path, digest, behaviors, missing=log.missing)
    for number, sample in enumerate(log.samples):
        place = f"{path}, sample {sample.id}, epoch {sample.epoch}"
        known = asked_and_answered(sample, place)
        known |= {name: sample.metadata[name] for name in KEPT if log.ours and name in sample.metadata}
        completion = _completion(hash_of(digest, number), cell, behaviors[0], **known)
        source.completions.append(completion)
        if ours:
            source.scores += own_scores(sample, completion.id, set(source.rules))
        else:
            source.scores += _scores_of_others(log, sample, completion.id, behaviors[0], options, place)
    return source


def _scores_of_others(
    log: "Log", sample: Any, id_: str, behavior: Behavior, options: Options, place: str
) -> Iterator[Score]:
    """Scores by other scorers; without --score they are taken if they have all the rubrics that the rule reads."""
    from spillover.interop.inspect_logs import other_scores

    found, keys = other_scores(sample), options.columns.scores
    if not keys and set(behavior.rubrics_read) <= set(found):
        keys = {rubric: rubric for rubric in behavior.rubrics_read}
    for rubric, key in keys.items():
        if key not in found:
            there = ", ".join(map(repr, found)) or "none"
            raise SpilloverError(f"{place}: has no score {key!r}; it has {there}. Name the right one: --score")
        judge = options.judge_name or log.grader
        if judge is None:
            raise SpilloverError(f"{place}: who gave its scores? The log names no grader. Say it: --judge-name NAME")
        raw, said = found[key]
        outcome, value = _score(raw, rubric, behavior, f"{place}, score {key}")
        yield _imported(id_, rubric, behavior, judge, outcome, value, said)
