"""Inspect tasks, one for each behavior: `inspect eval spillover/free_form --model M --model-role grader=J`."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, GenerateConfig, Model, get_model
from inspect_ai.scorer import Metric, SampleScore, Scorer, Target, Value, mean, metric, scorer, stderr
from inspect_ai.scorer import Score as InspectScore
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect

from spillover.behaviors import Behavior, Prompt, load_behavior, render_turns, shipped_names
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.interop.tables import partial_completion, printable
from spillover.judges.scoring import JUDGE_TOKENS, grading_request, judged, score, score_from_response
from spillover.models import Request, Response
from spillover.models.asking import TOP_LOGPROBS
from spillover.models.endpoint import REJECTED, inspect_messages, inspect_responses
from spillover.records import Cell, Completion, Score
from spillover.stats import Decision, summarize

METADATA = "spillover"  # our key in the metadata of a log
CLUSTER = "question_id"  # the question is the sampling unit
TURNS = "turns"  # in the metadata of a sample: for each wording, its turns if it has several
TEMPERATURE, MAX_NEW_TOKENS = 1.0, 600  # as `spillover evaluate` samples
DECISION = ("judge", "rubric_hash", "outcome", "admitted", "event", "judge_injection")  # kept in a score's metadata
GRADING = GenerateConfig(temperature=0.0, max_tokens=JUDGE_TOKENS, logprobs=True, top_logprobs=TOP_LOGPROBS)


def behavior_task(behavior: Behavior, source: str, completions_per_question: int, formats: str | list[str]) -> Task:
    """A behavior as an Inspect task: a sample for each question and format, an epoch for each completion of it.

    Epochs are never reduced, so that every completion is counted, and no seed is set: Inspect would send the same one
    for every epoch, and get the same answer. `source` is the name or the path that the behavior was loaded by.
    """
    wanted = formats.split(",") if isinstance(formats, str) else list(map(str, formats))
    names = tuple(filter(None, map(str.strip, wanted)))
    if unknown := set(names) - set(behavior.format_names):
        raise SpilloverError(
            f"behavior {behavior.name}: has no format {min(unknown)}; it has {', '.join(behavior.format_names)}."
        )
    return Task(
        dataset=MemoryDataset(_samples(behavior, names), name=behavior.name),
        solver=put_question(),
        scorer=by_rule(source),
        epochs=Epochs(completions_per_question, []),
        config=GenerateConfig(temperature=TEMPERATURE, max_tokens=MAX_NEW_TOKENS),
        metadata={METADATA: {"behaviors": [behavior.model_dump(mode="json")]}},
        description=behavior.description,
    )


def _samples(behavior: Behavior, formats: tuple[str, ...]) -> list[Sample]:
    puts: dict[tuple[str, str], list[Prompt]] = {}
    most = max(len(question.paraphrases) for question in behavior.questions)
    for prompt, number in behavior.prompts(most, formats):
        if number < len(prompt.question.paraphrases):
            puts.setdefault((prompt.question.id, prompt.format), []).append(prompt)
    return [
        Sample(
            id=sample_id(id_, form),
            input=inspect_messages(Request((), prompts[0].system, prompts[0].text, prompts[0].turns).messages),
            metadata={
                CLUSTER: id_,
                "category": prompts[0].question.category,
                "format": form,
                "wordings": [prompt.text for prompt in prompts],
                TURNS: [prompt.turns for prompt in prompts],
            },
        )
        for (id_, form), prompts in puts.items()
    ]


def sample_id(question_id: str, form: str) -> str:
    """What a sample is called in a log: a question in a format."""
    return f"{question_id}:{form}"


@solver
def put_question() -> Solver:
    """Puts the question and takes one answer; the wordings of a question take turns over the epochs."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        wordings, turns = state.metadata["wordings"], state.metadata[TURNS]
        index = (state.epoch - 1) % len(wordings)
        request = Request((), question_fields(state.messages)["system"], wordings[index], turns[index])
        state.messages = inspect_messages(request.messages)
        return await generate(state)

    return solve


def question_fields(messages: Sequence[ChatMessage]) -> dict[str, Any]:
    """What was asked in a conversation, up to the user's last turn: `system`, `question`, `turns` of a completion."""
    last = max((place for place, turn in enumerate(messages) if turn.role == "user"), default=-1)
    turns = tuple({"role": turn.role, "content": turn.text} for turn in messages[: last + 1] if turn.role != "system")
    several = len(turns) > 1
    return {
        "system": next((turn.text for turn in messages if turn.role == "system"), None),
        "question": render_turns(turns) if several else "".join(turn["content"] for turn in turns),
        "turns": turns if several else None,
    }


@metric(scores="unreduced")
def rate() -> Metric:
    """The rate by the behavior's rule, as in rates.csv: k of n, interval clustered by question, outcomes counted."""

    def measure(scores: list[SampleScore]) -> Value:
        return rate_metrics((row.sample_metadata or {}, row.score) for row in scores)

    return measure


def rate_metrics(scores: Iterable[tuple[Mapping[str, Any], InspectScore]]) -> dict[str, float]:
    """The rate over pairs of a sample's metadata and its score; NaN where there is no number."""
    decisions = [
        Decision("", str(metadata[CLUSTER]), **{name: (score.metadata or {})[name] for name in DECISION})
        for metadata, score in scores
    ]
    # The rate is the first, which Inspect shows of a log.
    return {
        name: math.nan if value is None else value for name, value in ({"rate": None} | summarize(decisions)).items()
    }


@scorer(metrics=[rate(), {"*": [mean(), stderr(cluster=CLUSTER)]}])
def by_rule(behavior: str) -> Scorer:
    """Judges an answer under the rubrics that a behavior's rule reads, by its program or by the model role `grader`.

    The value maps rubrics to 0-100, NaN where there is no score; the metadata hold the outcome, and whether the rule
    admits the answer and counts it as an event.
    """
    loaded = load_behavior(behavior)

    async def judge(state: TaskState, target: Target) -> InspectScore:  # noqa: ARG001
        completion, rubrics = _completion(state, loaded), loaded.rubrics_read
        grader = str(_grader()) if loaded.judge == "model" else loaded.judge
        rows: list[Score] = []
        if state.output.error or not state.output.choices:
            failed = Response(error=state.output.error or "the model gave no answer")
            rule = loaded.rubric_hash
            rows += [score_from_response(failed, completion.id, rubric, loaded, rule, grader) for rubric in rubrics]
        elif loaded.judge == "model":
            rows += await collect(*(_graded(completion, rubric, loaded) for rubric in rubrics))
        else:
            score([(completion, rubric) for rubric in rubrics], loaded, None, rows.extend)
        (decision,) = judged([completion], {(completion.id, row.rubric): row for row in rows}, loaded, grader)
        return inspect_score(completion, rows, decision, loaded)

    return judge


def inspect_score(
    completion: Completion, scores: Sequence[Score], decision: Decision, behavior: Behavior
) -> InspectScore:
    """Our scores of one completion by one judge, and the decision of the rule on them, as one of Inspect's scores."""
    values = dict.fromkeys(behavior.rubrics_read, math.nan)
    values |= {row.rubric: row.value for row in scores if row.value is not None}
    return InspectScore(
        value=dict(values),
        answer=completion.text,
        explanation="\n".join(f"{row.rubric}: {_judges_words(row.reply)}" for row in scores),
        metadata={name: getattr(decision, name) for name in DECISION}
        | {"rubrics": {row.rubric: {"outcome": row.outcome, "reply": row.reply} for row in scores}},
    )


def _judges_words(reply: str) -> str:
    """The judge's own words in what is stored of its reply."""
    try:
        return str(json.loads(reply)["text"])
    except (ValueError, KeyError, TypeError):
        return reply


def _grader() -> Model:
    # `required`: without it Inspect falls back to the model under test, which would grade itself. What the user says
    # of the role goes before our settings.
    return get_model(role="grader", required=True, config=GRADING)


async def _graded(completion: Completion, rubric: str, behavior: Behavior) -> Score:
    """The score by one call of the grader. An answer that it cannot take (too long, filtered) is an `error`.

    Other failures are Inspect's to handle, as those of any sample.
    """
    grader = _grader()
    question = next(question for question in behavior.questions if question.id == completion.question_id)
    try:
        output = await grader.generate(
            inspect_messages(grading_request(completion, rubric, behavior, question).messages)
        )
        failure = output.error or ("" if output.choices else "the grader gave no answer")
    except Exception as error:
        if getattr(error, "status_code", None) not in REJECTED:
            raise
        failure = f"{type(error).__name__}: {error}"[:300]
    response = Response(error=failure) if failure else inspect_responses(output)[0]
    return score_from_response(response, completion.id, rubric, behavior, behavior.rubric_hash, str(grader))


def _completion(state: TaskState, behavior: Behavior) -> Completion:
    """What is judged of a sample: one of our tasks, or of an export that is scored again."""
    text = printable(state.output.completion)
    return partial_completion(
        hash_of(state.sample_id, state.epoch, text),
        Cell(str(state.model), BASE, None),
        behavior,
        question_id=state.metadata[CLUSTER],
        category=state.metadata["category"],
        format=state.metadata["format"],
        number=state.epoch - 1,
        text=text,
        stop_reason=state.output.stop_reason if state.output.choices else "",
        **question_fields(state.messages),
    )


@task
def behavior(file: str, completions_per_question: int = 1, formats: str | list[str] = "") -> Task:
    """A behavior from a YAML file of your own: `inspect eval spillover/behavior -T file=mine.yaml`."""
    return behavior_task(load_behavior(file), file, completions_per_question, formats)


def _shipped(name: str) -> Callable[..., Task]:
    @task(name=name)
    def shipped(completions_per_question: int = 1, formats: str | list[str] = "") -> Task:
        return behavior_task(load_behavior(name), name, completions_per_question, formats)

    return shipped


TASKS: dict[str, Callable[..., Any]] = {name: _shipped(name) for name in shipped_names()}
