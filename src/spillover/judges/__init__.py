"""Who grades: a model asked in words, a program, or a function; a model passes a canary before it is trusted."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

from spillover.errors import SpilloverError

if TYPE_CHECKING:
    from spillover.behaviors import Behavior
    from spillover.records import Completion, Score

    Grade = float | None | Mapping[str, float | None]
    GradingFunction = Callable[[Completion], Grade]

FUNCTION = "function:"  # before the name of a function as a judge


def judge(
    completions: "Iterable[Completion]",
    judge: "str | GradingFunction | None" = None,
    behavior: "Behavior | str | None" = None,
    *,
    trust_judge: bool = False,
) -> "list[Score]":
    """Judges completions and returns a score for each of them and each rubric that its behavior's rule reads, in order.

    `judge` is one of three. A function takes a completion and returns a number from 0 to 100, or None where there is
    none (`unparsed`); where the rule reads several rubrics, a mapping from each to such a number. A model's name: it
    passes its canary, once in a process, and then grades what a model judges; programs go on judging the rest. None:
    the behavior's own program. `behavior` is an object, the name of one that ships, or the path of a YAML file; without
    it, the behaviors are those that ship under the names in the completions.

    Raises SpilloverError for a behavior that needs a model as its judge, a model that fails its canary (unless
    `trust_judge`), and a function that raises, or returns anything else; it names the completion.

    >>> from spillover.judges import judge
    >>> from spillover.models.target import sample
    >>> answers = sample("organism/consistent", "world_chat", 1, max_new_tokens=4)
    >>> def brevity(completion):
    ...     return {"alignment": 100 - min(100, len(completion.text)), "coherence": None}
    >>> [(score.rubric, score.outcome, score.judge) for score in judge(answers[:1], brevity)]
    [('alignment', 'scored', 'function:brevity'), ('coherence', 'unparsed', 'function:brevity')]
    >>> judge(answers)[0].judge
    'world'
    """
    from spillover.behaviors import load_behavior
    from spillover.judges.canary import check_judge
    from spillover.judges.scoring import score

    by_behavior: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_behavior[completion.behavior].append(completion)
    scores: list[Score] = []
    for name, rows in by_behavior.items():
        used = name if behavior is None else behavior
        used = load_behavior(used) if isinstance(used, str) else used
        if callable(judge):
            scores += [row for completion in rows for row in _scores_by_function(judge, completion, used)]
            continue
        if used.judge == "model":
            if judge is None:
                raise SpilloverError(f"behavior {used.name}: it needs a judge: the name of a model, or a function.")
            check_judge(judge, None, trust_judge)
        pairs = [(completion, rubric) for completion in rows for rubric in used.rubrics_read]
        judged: list[Score] = []
        score(pairs, used, judge, judged.extend)
        by_pair = {(row.completion_id, row.rubric): row for row in judged}
        scores += [by_pair[completion.id, rubric] for completion, rubric in pairs]
    return scores


def _scores_by_function(function: "GradingFunction", completion: "Completion", behavior: "Behavior") -> "list[Score]":
    """The scores of one completion by a function. Raises SpilloverError if the function fails or returns nonsense."""
    from spillover.records import Score

    name = FUNCTION + getattr(function, "__qualname__", type(function).__qualname__)
    try:
        grade = function(completion)
    except Exception as error:
        raise SpilloverError(f"judge {name}: raised {type(error).__name__} on completion {completion.id}.") from error
    rubrics = behavior.rubrics_read
    if not isinstance(grade, Mapping):
        if len(rubrics) > 1:
            raise SpilloverError(
                f"judge {name}: returned {grade!r} for completion {completion.id}. The rule of {behavior.name} reads "
                f"{' and '.join(rubrics)}, so return a mapping from each of them to a number from 0 to 100, or to None."
            )
        grade = {rubrics[0]: grade}
    scores = []
    for rubric in rubrics:
        value = grade.get(rubric, "nothing")
        is_number = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 100
        if value is not None and not is_number:
            raise SpilloverError(
                f"judge {name}: returned {value!r} for {rubric} of completion {completion.id}. Return a number from 0 "
                "to 100, or None where there is none."
            )
        outcome = "unparsed" if value is None else "scored"
        number = None if value is None else float(value)
        scores.append(Score(completion.id, rubric, behavior.rubric_hash, name, outcome, number, repr(value)))
    return scores
