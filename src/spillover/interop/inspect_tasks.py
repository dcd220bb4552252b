"""Inspect tasks, one for each behavior: `inspect eval spillover/free_form --model M --model-role grader=J`."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Scorer, Target, Value, mean, metric, scorer, stderr
from inspect_ai.scorer import Score as InspectScore
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect

from spillover.behaviors import Behavior, Prompt, load_behavior, shipped_names
from spillover.config import BASE
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.judges.model import grading_prompt, kept_reply, read_reply
from spillover.judges.scoring import JUDGE_TOKENS, judged, score
from spillover.models import Request
from spillover.models.endpoint import REJECTED, TOP_LOGPROBS, inspect_messages, inspect_responses
from spillover.records import Completion, Score
from spillover.stats import Decision, summarize

METADATA = "spillover"  # our key in the metadata of a log
CLUSTER = "question_id"  # the question is the sampling unit
TEMPERATURE, MAX_NEW_TOKENS = 1.0, 600  # as `spillover evaluate` samples
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
        wordings = state.metadata["wordings"]
        state.user_prompt.text = wordings[(state.epoch - 1) % len(wordings)]
        return await generate(state)

    return solve


@metric(scores="unreduced")
def rate() -> Metric:
    """The rate by the behavior's rule, as in rates.csv: k of n, interval clustered by question, outcomes counted."""

    def measure(scores: list[SampleScore]) -> Value:
        rows = [
            Decision(
                completion_id="",
                question_id=str((row.sample_metadata or {})[CLUSTER]),
                **{name: (row.score.metadata or {})[name] for name in VERDICT},
            )
            for row in scores
        ]
        found = summarize(rows)
        # The first is the one that Inspect shows of a log.
        return {name: math.nan if value is None else value for name, value in ({"rate": None} | found).items()}

    return measure


VERDICT = ("judge", "rubric_hash", "outcome", "admitted", "event", "judge_injection")  # of a score's metadata


@scorer(metrics=[rate(), {"*": [mean(), stderr(cluster=CLUSTER)]}])
def by_rule(behavior: str) -> Scorer:
    """Judges an answer under the rubrics that a behavior's rule reads, by its program or by the model role `grader`.

    The value maps rubrics to 0-100, NaN where there is no score; the metadata hold the outcome, and whether the rule
    admits the answer and counts it as an event.
    """
    own = load_behavior(behavior)

    async def judge(state: TaskState, target: Target) -> InspectScore:  # noqa: ARG001
        completion = _completion(state, own)
        grader = str(_grader()) if own.judge == "model" else own.judge
        rows: list[Score] = []
        if state.output.error or not state.output.choices:
            why = state.output.error or "the model gave no answer"
            rows = [_row(completion, rubric, own, grader, "error", None, why) for rubric in own.rubrics_read]
        elif own.judge == "model":
            rows += await collect(*(_graded(completion, rubric, own) for rubric in own.rubrics_read))
        else:
            score([(completion, rubric) for rubric in own.rubrics_read], own, None, rows.extend)
        return inspect_score(completion, rows, own, grader)

    return judge


def inspect_score(completion: Completion, rows: Sequence[Score], behavior: Behavior, judge: str) -> InspectScore:
    """Our scores of one completion by one judge as one of Inspect's."""
    by_rubric = {row.rubric: row for row in rows}
    verdict = judged([completion], {(row.completion_id, row.rubric): row for row in rows}, behavior, judge)[0]
    values = {name: by_rubric[name].value if name in by_rubric else None for name in behavior.rubrics_read}
    return InspectScore(
        value={name: math.nan if value is None else value for name, value in values.items()},
        answer=completion.text,
        explanation="\n".join(f"{row.rubric}: {_said(row.reply)}" for row in rows),
        metadata={name: getattr(verdict, name) for name in VERDICT}
        | {"rubrics": {row.rubric: {"outcome": row.outcome, "reply": row.reply} for row in rows}},
    )


def _said(reply: str) -> str:
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
    """One call of the grader. An answer that it cannot take (too long, filtered) is an `error`.

    Other failures are Inspect's to handle, as those of any sample.
    """
    grader, asked = _grader(), behavior.rubrics[rubric]
    question = next(question for question in behavior.questions if question.id == completion.question_id)
    fields = question.fields | {"question": completion.question}
    try:
        output = await grader.generate(
            inspect_messages(Request((), *grading_prompt(asked, fields, completion.text, completion.id)).messages)
        )
        why = output.error or ("" if output.choices else "the grader gave no answer")
    except Exception as error:
        if getattr(error, "status_code", None) not in REJECTED:
            raise
        why = f"{type(error).__name__}: {error}"[:300]
    if why:
        return _row(completion, rubric, behavior, str(grader), "error", None, why)
    reply = inspect_responses(output)[0]
    verdict = read_reply(reply.text, reply.first_token, asked)
    kept = kept_reply(reply.text, reply.first_token, verdict)
    return _row(completion, rubric, behavior, str(grader), verdict.outcome, verdict.value, kept)


def _row(
    completion: Completion, rubric: str, behavior: Behavior, judge: str, outcome: str, value: float | None, reply: str
) -> Score:
    return Score(completion.id, rubric, behavior.rubric_hash, judge, outcome, value, reply)


def _completion(state: TaskState, behavior: Behavior) -> Completion:
    """What is judged of a sample: one of our tasks, or of an export that is scored again."""
    text = state.output.completion.encode("utf-8", "replace").decode()
    return Completion(
        id=hash_of(state.sample_id, state.epoch, text),
        model=str(state.model),
        condition=BASE,
        seed=None,
        behavior=behavior.name,
        question_id=state.metadata[CLUSTER],
        category=state.metadata["category"],
        format=state.metadata["format"],
        paraphrase=0,  # no judge reads it
        number=state.epoch - 1,
        system=next((turn.text for turn in state.messages if turn.role == "system"), None),
        question=state.user_prompt.text,
        text=text,
        stop_reason=state.output.stop_reason if state.output.choices else "",
        tokens=None,
        model_hash=None,
        adapter_hash=None,
        template_hash=None,
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
