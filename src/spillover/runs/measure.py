"""One target through its battery: the missing completions are sampled, the missing scores asked for."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from spillover.behaviors import Behavior
from spillover.errors import SpilloverError
from spillover.judges.scoring import judge_name, score
from spillover.models import Request
from spillover.models.endpoint import CHOICES_PER_CALL
from spillover.models.target import Battery, Target, sample_completions
from spillover.records import Completion, Score
from spillover.runs.store import AnswerStore
from spillover.workers import Step

MOST_ERRORS = 0.05  # a judge that fails on this share of the rows, or more, makes the command fail


def sample_missing(
    target: Target, battery: Battery, wanted: dict[str, Completion], store: AnswerStore, step: Step
) -> None:
    """Samples the wanted completions that are not in the store yet and adds them as they come.

    Raises SpilloverError if an endpoint kept failing on some, after keeping all the others.
    """
    missing = {id_: completion for id_, completion in wanted.items() if id_ not in store.completions}
    if not missing:
        return
    done = 0

    def take(completions: list[Completion]) -> None:
        nonlocal done
        store.add_completions(completions)
        done += len(completions)
        step("sample", done, len(missing))

    failures = sample_completions(target.loadable, wanted, battery.sampling, take, store.completions.keys() & wanted)
    if failures:
        raise SpilloverError(
            f"model {target.model}: {len(failures)} of {len(missing)} completions could not be had, even after "
            f"retries ({failures[-1]}). The others are in {store.folder.completions}; the same command asks for the "
            "rest."
        )


def missing_scores(
    behaviors: Iterable[Behavior],
    judge: str | None,
    completions: Iterable[Completion],
    store: AnswerStore,
    judge_failures: bool = False,
) -> list[tuple[Behavior, list[tuple[Completion, str]], int]]:
    """What is still to be judged: (behavior, its completions with the rubric, pairs in all) for each that has a judge.

    Completions without a score under a rubric that the rule reads; also those on which a judge could not be had, unless
    `judge_failures` count as scores.
    """
    by_behavior: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_behavior[completion.behavior].append(completion)
    missing = []
    for behavior in behaviors:
        name, rule = judge_name(behavior, judge), behavior.rubric_hash
        if name:  # without a judge: sampled now, to be judged later
            pairs = [(row, rubric) for row in by_behavior[behavior.name] for rubric in behavior.rubrics_read]
            scores = [store.scores.get((row.id, rubric, rule, name)) for row, rubric in pairs]
            todo = [
                p
                for p, row in zip(pairs, scores, strict=True)
                if row is None or (row.judge_failed and not judge_failures)
            ]
            missing.append((behavior, todo, len(pairs)))
    return missing


def score_missing(
    behaviors: Sequence[Behavior], judge: str | None, completions: Iterable[Completion], store: AnswerStore, step: Step
) -> None:
    """Judges what `missing_scores` names and adds the scores as they come.

    Raises SpilloverError if a model that judges failed on MOST_ERRORS of the rows or more, after keeping the others.
    """
    todo = missing_scores(behaviors, judge, completions, store)
    total, done = sum(len(pairs) for _, pairs, _ in todo), 0
    rows = sum(of for behavior, _, of in todo if behavior.judge == "model")
    failures: list[str] = []

    def take(scores: list[Score]) -> None:
        nonlocal done
        store.add_scores(scores)
        failures.extend(row.reply for row in scores if row.judge_failed)
        done += len(scores)
        step("score", done, total)

    step("score", 0, total)
    for behavior, pairs, _ in todo:
        if pairs:
            score(pairs, behavior, judge, take)
    if failures and len(failures) >= MOST_ERRORS * rows:
        raise SpilloverError(
            f"judge {judge}: failed on {len(failures)} of {rows} rows, even after retries ({failures[-1]}). "
            f"The other scores are in {store.folder.scores}; run the same command again for the rest."
        )


def estimate(asks: Sequence[Request], max_new_tokens: int) -> dict[str, int]:
    """What asking will take, before the first call: calls, tokens in (at four characters each), tokens out."""
    answers = sum(len(ask.ids) for ask in asks)
    calls = sum(-(-len(ask.ids) // CHOICES_PER_CALL) for ask in asks)
    characters = sum(-(-len(ask.ids) // CHOICES_PER_CALL) * len((ask.system or "") + ask.text) for ask in asks)
    return {
        "completions": answers,
        "calls_at_least": calls,
        "calls_at_most": answers,
        "tokens_in": characters // 4,
        "tokens_out_at_most": answers * max_new_tokens,
    }
