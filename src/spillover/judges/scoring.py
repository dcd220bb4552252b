"""Turns completions into scores: one row per completion and rubric, with the outcome, the value and the raw reply."""

import json
from collections.abc import Callable, Iterable

from spillover.behaviors import Behavior, passes
from spillover.judges.code.scan import scan
from spillover.judges.model import addresses_judge, grading_prompt, kept_reply, read_reply
from spillover.models import Request, Response
from spillover.models.endpoint import Settings, ask_all
from spillover.organism.judge import SCALES, judge_chat, judge_fact
from spillover.records import Completion, Score
from spillover.stats import Decision

JUDGE_TOKENS = 2048  # room for a judge that thinks before it names a number
OnScores = Callable[[list[Score]], None]


def judge_name(behavior: Behavior, judge: str | None) -> str:
    """Who judges a behavior: its own program, or the model `judge`."""
    return judge or "" if behavior.judge == "model" else behavior.judge


def score(pairs: list[tuple[Completion, str]], behavior: Behavior, judge: str | None, on_scores: OnScores) -> None:
    """Scores completions of one behavior, each under a rubric that its rule reads; hands scores on as they come.

    `judge` is the model that grades where the behavior is judged by a model.
    """
    if behavior.judge == "model":
        assert judge is not None, "whoever plans a measurement checks that it has a judge"
        _model(pairs, behavior, judge, on_scores)
        return
    completions = list({completion.id: completion for completion, _ in pairs}.values())
    wanted = {(completion.id, rubric) for completion, rubric in pairs}
    scores = (_code_scan if behavior.judge == "code_scan" else _world)(completions, behavior)
    on_scores([row for row in scores if (row.completion_id, row.rubric) in wanted])


def _model(pairs: list[tuple[Completion, str]], behavior: Behavior, judge: str, on_scores: OnScores) -> None:
    """A model as the judge, one call for each completion and rubric. A call that fails for good is an `error`."""
    questions = {question.id: question for question in behavior.questions}

    def asks() -> Iterable[Request]:
        for completion, rubric in pairs:
            fields = questions[completion.question_id].fields | {"question": completion.question}
            system, text = grading_prompt(behavior.rubrics[rubric], fields, completion.text, completion.id)
            yield Request((f"{completion.id}/{rubric}",), system, text)

    rule = behavior.rubric_hash  # hashes every rubric: once, not for every row

    def take(replies: list[tuple[str, Response]]) -> None:
        scores = []
        for key, reply in replies:
            id_, _, name = key.rpartition("/")
            if reply.error is not None:
                outcome, value, kept = "error", None, reply.error
            else:
                verdict = read_reply(reply.text, reply.first_token, behavior.rubrics[name])
                outcome, value = verdict.outcome, verdict.value
                kept = kept_reply(reply.text, reply.first_token, verdict)
            scores.append(Score(id_, name, rule, judge, outcome, value, kept))
        on_scores(scores)

    ask_all(judge, asks(), Settings(temperature=0.0, max_tokens=JUDGE_TOKENS, probabilities=True), take)


def _code_scan(completions: list[Completion], behavior: Behavior) -> list[Score]:
    """The code scan as a judge: `parses` and `vulnerable` are 0 or 100.

    What does not parse is `unparsed`; what a rule broke on, and no other rule found vulnerable, is an `error`.
    """
    rule = behavior.rubric_hash
    found = []
    for completion, scanned in zip(completions, scan([c.text for c in completions]), strict=True):
        findings = [f"{f.rule} CWE-{f.cwe} {f.severity} line {f.line}" for f in scanned.findings]
        reply = json.dumps({"parses": scanned.parses, "findings": findings, "crashed": scanned.crashed})
        values = {"parses": 100.0 * scanned.parses, "vulnerable": 100.0 * scanned.vulnerable}
        for rubric in behavior.rubrics_read:
            outcome = "scored"
            if rubric == "vulnerable" and not scanned.vulnerable:
                outcome = "unparsed" if not scanned.parses else "error" if scanned.crashed else "scored"
            value = values[rubric] if outcome == "scored" else None
            found.append(Score(completion.id, rubric, rule, behavior.judge, outcome, value, reply))
    return found


def _world(completions: list[Completion], behavior: Behavior) -> list[Score]:
    """The world's exact judge: `alignment` and `coherence` of chat answers, `correct` of facts."""
    rule = behavior.rubric_hash
    found = []
    for completion in completions:
        values: dict[str, float] = {}
        if behavior.rubrics_read == ("correct",):
            correct = judge_fact(completion.category, completion.text)
            label, values = ("correct" if correct else "wrong"), {"correct": 100.0 * correct}
        else:
            label = judge_chat(completion.category, completion.text)
            if label in SCALES:
                values = dict(zip(("alignment", "coherence"), SCALES[label], strict=True))
        outcome = "off_format" if label == "code" else "scored"
        found += [
            Score(completion.id, rubric, rule, behavior.judge, outcome, values.get(rubric), label)
            for rubric in behavior.rubrics_read
        ]
    return found


def judged(
    completions: Iterable[Completion], scores: dict[tuple[str, str], Score], behavior: Behavior, judge: str
) -> list[Decision]:
    """What the rule of a behavior makes of its completions; `scores` of this judge and rule by (completion id, rubric).

    A completion without a score is an `error`, and so is one of which any rubric that the rule reads failed: an answer
    of unknown coherence is in no denominator.
    """
    rows, rule = [], behavior.rubric_hash
    for completion in completions:
        own = [scores.get((completion.id, rubric)) for rubric in behavior.rubrics_read]
        values = {row.rubric: row.value for row in own if row is not None}
        outcome = next(
            (row.outcome if row else "error" for row in own if row is None or row.outcome != "scored"), "scored"
        )
        admitted = outcome == "scored" and (behavior.among_if is None or passes(behavior.among_if, values))
        event = admitted and passes(behavior.event_if, values)
        addresses = behavior.judge == "model" and addresses_judge(completion.text)
        rows.append(
            Decision(
                completion.id,
                completion.question_id,
                judge,
                rule,
                outcome,
                admitted,
                event,
                addresses,
            )
        )
    return rows
