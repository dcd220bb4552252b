"""One subject through its behaviors: the completions wanted of it, the missing ones sampled and scored, the rates."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from spillover import records
from spillover.behaviors import Behavior, load_behavior
from spillover.errors import SpilloverError
from spillover.files import hash_of, write_atomically
from spillover.judges.scoring import judge_name, judged, score
from spillover.models import Request
from spillover.models.endpoint import CHOICES_PER_CALL
from spillover.models.target import Battery, Target, sample_completions
from spillover.records import Cell, Completion, QuestionCount, Rate, Score, ThresholdRate
from spillover.runs.folder import RunFolder
from spillover.stats import Decision, count, summarize_counts
from spillover.stats.thresholds import threshold_rates
from spillover.workers import Step

MOST_ERRORS = 0.05  # a judge that fails on this share of the rows, or more, makes the command fail


def write_behaviors(behaviors: Iterable[Behavior], run_dir: RunFolder) -> None:
    """Keeps the behaviors of a run in its folder: its answers can be judged and counted from the folder alone."""
    for behavior in behaviors:
        path = run_dir.behaviors / f"{behavior.name}.{behavior.rubric_hash}.yaml"
        content = behavior.model_dump(mode="json")
        if path.exists():  # questions that were asked before, and are in the file no more
            known = {question["id"] for question in content["questions"]}
            before = load_behavior(str(path)).model_dump(mode="json")["questions"]
            content["questions"] += [question for question in before if question["id"] not in known]
        write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def read_behaviors(run_dir: RunFolder) -> list[Behavior]:
    """The behaviors kept in a run folder, one for each rule they were judged by."""
    return [load_behavior(str(path)) for path in sorted(run_dir.behaviors.glob("*.yaml"))]


def keep_wanted(cell: Cell, wanted: dict[str, Completion], run_dir: RunFolder) -> None:
    """Keeps which completions count for a cell; those of earlier settings stay on file and count no more."""
    row = {"cell": asdict(cell), "completions": list(wanted)}
    write_atomically(run_dir.cells / f"{hash_of(asdict(cell))}.json", json.dumps(row, ensure_ascii=False) + "\n")


def forget_cells(run_dir: RunFolder) -> None:
    """Nothing counts any more; the completions stay."""
    for path in run_dir.cells.glob("*.json"):
        path.unlink()


def read_wanted(run_dir: RunFolder) -> dict[Cell, list[str]]:
    """The ids of the completions that count, by cell, in the order of the last rates."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run_dir.cells.glob("*.json"))]
    wanted = {Cell(**row["cell"]): row["completions"] for row in rows}
    order = list(dict.fromkeys(records.read_csv(run_dir.rates, Cell))) if run_dir.rates.exists() else []
    return dict(sorted(wanted.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def missing_completions(wanted: dict[str, Completion], run_dir: RunFolder) -> dict[str, Completion]:
    """The wanted completions that are not on disk yet."""
    done = {completion.id for completion in records.read_appended(run_dir.completions, Completion)}
    return {id_: completion for id_, completion in wanted.items() if id_ not in done}


def sample_missing(
    subject: Target, battery: Battery, wanted: dict[str, Completion], run_dir: RunFolder, step: Step
) -> None:
    """Samples the completions that are not on disk yet and appends them as they come.

    Raises SpilloverError if an endpoint kept failing on some, after keeping all the others.
    """
    missing = missing_completions(wanted, run_dir)
    if not missing:
        return
    done = 0

    def take(completions: list[Completion]) -> None:
        nonlocal done
        records.append(run_dir.completions, completions, to_disk=False)
        done += len(completions)
        step("sample", done, len(missing))

    failures = sample_completions(subject.loadable, wanted, battery.sampling, take, wanted.keys() - missing.keys())
    if failures:
        raise SpilloverError(
            f"model {subject.model}: {len(failures)} of {len(missing)} completions could not be had, even after "
            f"retries ({failures[-1]}). The others are in {run_dir.completions}; the same command asks for the rest."
        )


def score_missing(
    behaviors: Sequence[Behavior], judge: str | None, completions: Iterable[Completion], run_dir: RunFolder, step: Step
) -> None:
    """Judges the completions that have no score yet under their behavior's rubrics; those a judge failed on, again."""
    known = {
        (row.completion_id, row.rubric, row.rubric_hash, row.judge)
        for row in records.read_appended(run_dir.scores, Score)
        if not row.judge_failed
    }
    by_behavior: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_behavior[completion.behavior].append(completion)
    todo: list[tuple[Behavior, list[tuple[Completion, str]]]] = []
    rows = 0  # that a model judges, now or before
    for behavior in behaviors:
        who = judge_name(behavior, judge)
        if not who:
            continue  # sampled now, to be judged later
        pairs = [(row, rubric) for row in by_behavior[behavior.name] for rubric in behavior.rubrics_read]
        rows += len(pairs) * (behavior.judge == "model")
        rule = behavior.rubric_hash
        missing = [(row, rubric) for row, rubric in pairs if (row.id, rubric, rule, who) not in known]
        todo.append((behavior, missing))
    total, done = sum(len(pairs) for _, pairs in todo), 0
    failures: list[str] = []

    def take(scores: list[Score]) -> None:
        nonlocal done
        records.append(run_dir.scores, scores, to_disk=False)
        failures.extend(row.reply for row in scores if row.judge_failed)
        done += len(scores)
        step("score", done, total)

    step("score", 0, total)
    for behavior, pairs in todo:
        if pairs:
            score(pairs, behavior, judge, take)
    if failures and len(failures) >= MOST_ERRORS * rows:
        raise SpilloverError(
            f"judge {judge}: failed on {len(failures)} of {rows} rows, even after retries ({failures[-1]}). "
            f"The other scores are in {run_dir.scores}; run the same command again for the rest."
        )


def write_rates(cells: Iterable[Cell], run_dir: RunFolder) -> None:
    """Writes what rules and judges make of every completion that counts (judged.csv), and the rates (rates.csv).

    What became of each question goes into counts.csv, how rates move when the cuts of their rules move into
    sensitivity.csv.

    One rate for each cell, in the order given, and behavior, format, rule and judge.
    """
    wanted = read_wanted(run_dir)
    counted = set().union(*wanted.values())
    completions = {row.id: row for row in records.read_appended(run_dir.completions, Completion) if row.id in counted}
    # (behavior, judge, rule) -> scores. Behaviors may share a rule, and a judge be asked about one of them only.
    scores: dict[tuple[str, str, str], dict[tuple[str, str], Score]] = defaultdict(dict)
    for row in records.read_appended(run_dir.scores, Score):
        if row.completion_id in completions:
            name = completions[row.completion_id].behavior
            scores[name, row.judge, row.rubric_hash][row.completion_id, row.rubric] = row
    all_judged: list[Decision] = []
    rates: list[Rate] = []
    counts: list[QuestionCount] = []
    grid: list[ThresholdRate] = []
    behaviors = read_behaviors(run_dir)
    for cell in cells:
        groups: dict[tuple[str, str], list[Completion]] = defaultdict(list)
        for completion in (completions[id_] for id_ in wanted[cell] if id_ in completions):
            groups[completion.behavior, completion.format].append(completion)
        for (name, form), own in groups.items():
            for behavior in (b for b in behaviors if b.name == name):
                rule = behavior.rubric_hash
                for judge in sorted(judge for of, judge, by in scores if (of, by) == (name, rule)):
                    asked = {id_ for id_, _ in scores[name, judge, rule]}
                    if asked.isdisjoint(completion.id for completion in own):
                        continue  # this judge was never asked about this cell
                    rows = judged(own, scores[name, judge, rule], behavior, judge)
                    all_judged += rows
                    by_question = count(rows)
                    rates.append(_rate(cell, form, behavior, judge, by_question, rows))
                    place: dict[str, Any] = asdict(cell) | {"behavior": name, "format": form}
                    counts += [
                        QuestionCount(**place | own, judge=judge, rubric_hash=rule, question_id=id_)
                        for id_, own in by_question.items()
                    ]
                    grid += threshold_rates(own, scores[name, judge, rule], behavior, judge)
    write_atomically(run_dir.sensitivity, records.to_csv(ThresholdRate, grid))
    write_atomically(run_dir.judged, records.to_csv(Decision, all_judged))
    write_atomically(run_dir.counts, records.to_csv(QuestionCount, counts))
    write_atomically(run_dir.rates, records.to_csv(Rate, rates))


def _rate(
    cell: Cell, form: str, behavior: Behavior, judge: str, counts: dict[str, dict[str, int]], rows: list[Decision]
) -> Rate:
    return Rate(
        **asdict(cell),
        behavior=behavior.name,
        format=form,
        scope=behavior.scope,
        metric=behavior.metric,
        rule=behavior.rule,
        judge=judge,
        rubric_hash=behavior.rubric_hash,
        **summarize_counts(counts, sum(row.judge_injection for row in rows)),
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
