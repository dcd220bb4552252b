"""The answers that the example browser shows: of each model, condition, measure and kind the first few by a hash."""

from collections import defaultdict
from typing import Any

from spillover.files import hash_of
from spillover.records import Completion
from spillover.runs.results import Block, Results
from spillover.stats import Decision

GROUPS = ("event", "no event", "not admitted")
PER_GROUP = 20  # of each model, condition, measure and group
BUDGET = 900_000  # characters of all; with more groups there are fewer of each, and beyond that they are cut shorter
MOST_CHARACTERS, FEWEST_CHARACTERS = 6000, 600  # of one answer


def examples(results: Results) -> dict[str, Any]:
    """What browser.js reads. `each`: at most so many of a group; `of`: all answers there are."""
    groups: dict[Any, list[tuple[Block, Completion, Decision]]] = defaultdict(list)
    for block in results.blocks:
        for completion, decision in zip(block.completions, block.decisions, strict=True):
            key = block.cell.model, block.cell.condition, block.measure, _group(decision)
            groups[key].append((block, completion, decision))
    longest = max(FEWEST_CHARACTERS, min(MOST_CHARACTERS, BUDGET // max(1, len(groups))))
    by_group = [
        [
            _row(results, *answer, longest)
            for answer in sorted(group, key=lambda answer: hash_of(answer[1].id))[:PER_GROUP]
        ]
        for group in groups.values()
    ]
    each, size = 0, 0
    while level := [rows[each] for rows in by_group if len(rows) > each]:
        size += sum(len(key) + len(str(value)) + 6 for row in level for key, value in row.items())
        if each and size > BUDGET:
            break
        each += 1
    rows = [row for group in by_group for row in group[:each]]
    return {"groups": GROUPS, "each": each, "rows": rows, "of": sum(map(len, groups.values()))}


def _group(decision: Decision) -> str:
    event, no_event, not_admitted = GROUPS
    return not_admitted if not decision.admitted else event if decision.event else no_event


def asked(completion: Completion) -> str:
    """The words of a question, after its system prompt if it has one."""
    return f"[{completion.system}]\n{completion.question}" if completion.system else completion.question


def _row(results: Results, block: Block, completion: Completion, decision: Decision, longest: int) -> dict[str, Any]:
    rubrics = dict.fromkeys((*block.behavior.rubrics_read, *block.behavior.rubrics))
    scores = [block.scores[completion.id, rubric] for rubric in rubrics if (completion.id, rubric) in block.scores]
    return {
        "model": completion.model,
        "condition": completion.condition,
        "seed": completion.seed,
        "measure": results.labels[block.measure],
        "group": _group(decision),
        "outcome": decision.outcome.replace("_", "-"),
        "scores": ", ".join(f"{score.rubric} {score.value:.0f}" for score in scores if score.value is not None),
        "reply": scores[0].reply[:500] if scores else "no score",
        "question": asked(completion),
        "thought": completion.thought and completion.thought[:longest],
        "text": completion.text[:longest] + (" […]" if len(completion.text) > longest else ""),
        "code": block.judge == "code_scan" or decision.outcome == "off_format",
    }
