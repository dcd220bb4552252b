"""Everything that follows from a run's completions and scores: decisions, rates, comparisons, the matrix; read once."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spillover.behaviors import Behavior, load_behavior
from spillover.config import BASE, Study, load_study
from spillover.errors import SpilloverError
from spillover.judges.scoring import judged
from spillover.models.effect import no_verdict
from spillover.records import Cell, Completion, MeasureKey, Rate, Score, ScoreMean, ThresholdRate, percent
from spillover.records import measure_labels as labels_of
from spillover.runs.folder import RunFolder
from spillover.runs.store import AnswerStore
from spillover.stats import Arm, Counts, Decision, MatrixCell, count, matrix, summarize_counts
from spillover.stats.compare import MOST_CUT_OFF
from spillover.stats.pooling import PooledRate, pool
from spillover.stats.thresholds import threshold_rates

SOME_CUT_OFF = 0.02  # share of a cell's answers from which it is said
Place = tuple[str, str, MeasureKey]  # model, condition, measure
Seeds = dict[int | None, Counts]  # fine-tuning seed (None: a model as it is) -> counts per question
ScoresByRubric = dict[tuple[str, str], Score]  # (completion id, rubric) -> score


@dataclass(frozen=True)
class Block:
    """One cell in one measure: its completions, and what the judge and the rule made of each (in the same order)."""

    cell: Cell
    behavior: Behavior
    format: str
    judge: str
    completions: list[Completion]
    decisions: list[Decision]
    scores: ScoresByRubric  # of this behavior, judge and rule; of other cells, too

    @property
    def measure(self) -> MeasureKey:
        """What was measured: behavior, format, rule and judge."""
        return self.behavior.name, self.format, self.behavior.rubric_hash, self.judge

    @cached_property
    def by_question(self) -> dict[str, dict[str, int]]:
        """By question id: events k, admitted completions n, completions, and each outcome."""
        return count(self.decisions)


@dataclass(frozen=True)
class Results:
    """The answers of a run and all that is computed from them, each thing once and when it is first asked for.

    `cells` maps every cell that counts, in the order of the tables, to the ids of its completions. `study` is None for
    answers that no study made: nothing is compared with a base there. `behaviors` has one entry for each rule.
    """

    cells: Mapping[Cell, Sequence[str]]
    completions: Mapping[str, Completion]
    all_scores: Iterable[Score]
    behaviors: Sequence[Behavior]
    study: Study | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    folder: RunFolder | None = None
    no_verdicts: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (model, condition) -> why there is none

    @cached_property
    def scores(self) -> dict[tuple[str, str, str], ScoresByRubric]:
        """(behavior, judge, rule) -> (completion id, rubric) -> score. Behaviors may share a rule."""
        wanted = {id_ for ids in self.cells.values() for id_ in ids}
        scores: dict[tuple[str, str, str], ScoresByRubric] = defaultdict(dict)
        for row in self.all_scores:
            if row.completion_id in wanted and row.completion_id in self.completions:
                name = self.completions[row.completion_id].behavior
                scores[name, row.judge, row.rubric_hash][row.completion_id, row.rubric] = row
        return scores

    @cached_property
    def blocks(self) -> list[Block]:
        """Every cell in every measure that a judge was asked about, in the order of the tables."""
        return [*self._blocks()]

    def _blocks(self) -> Iterator[Block]:
        scored_ids = {key: {id_ for id_, _ in rows} for key, rows in self.scores.items()}
        for cell, ids in self.cells.items():
            groups: dict[tuple[str, str], list[Completion]] = defaultdict(list)
            for completion in (self.completions[id_] for id_ in ids if id_ in self.completions):
                groups[completion.behavior, completion.format].append(completion)
            for (name, form), rows in groups.items():
                for behavior in (behavior for behavior in self.behaviors if behavior.name == name):
                    rule = behavior.rubric_hash
                    for judge in sorted(judge for of, judge, by in self.scores if (of, by) == (name, rule)):
                        if scored_ids[name, judge, rule].isdisjoint(row.id for row in rows):
                            continue  # this judge was never asked about this cell
                        scores = self.scores[name, judge, rule]
                        yield Block(cell, behavior, form, judge, rows, judged(rows, scores, behavior, judge), scores)

    @cached_property
    def rates(self) -> list[Rate]:
        """One rate for each block."""
        return [
            Rate(
                **asdict(block.cell),
                behavior=block.behavior.name,
                format=block.format,
                scope=block.behavior.scope,
                metric=block.behavior.metric,
                rule=block.behavior.rule,
                judge=block.judge,
                rubric_hash=block.behavior.rubric_hash,
                **summarize_counts(block.by_question),
                template_thought=_common([row.template_thought for row in block.completions]),
            )
            for block in self.blocks
        ]

    @cached_property
    def cautions(self) -> list[str]:
        """What a reader of the rates must know: answers that are cut off, thoughts that only some cells have."""
        sentences = []
        for rate in self.rates:
            share = rate.cut_off / rate.completions
            if share > SOME_CUT_OFF:
                no_verdict = ", too many for a verdict" if share > MOST_CUT_OFF else ""
                place = f"{Cell(rate.model, rate.condition, rate.seed)}, {self.labels[rate.measure]}"
                cut = f"{percent(share)} of the answers are cut off at max_new_tokens{no_verdict}"
                sentences.append(f"{place}: {cut}. Raise it, and sample again.")
        for (model, condition), reason in self.no_verdicts.items():
            sentences.append(f"{model}/{condition}: no verdict, {reason}.")
        for measure, label in self.labels.items():
            if differ := thoughts_differ([rate for rate in self.rates if rate.measure == measure]):
                sentences.append(f"{label}: {differ}")
        return sentences

    @cached_property
    def labels(self) -> dict[MeasureKey, str]:
        """A name for every measure, in the order of the rates."""
        return labels_of(self.rates)

    @cached_property
    def described(self) -> dict[MeasureKey, Rate]:
        """Any rate of every measure: its behavior, scope, rule and judge stand in it."""
        return {rate.measure: rate for rate in reversed(self.rates)}

    @cached_property
    def counts(self) -> dict[Place, Seeds]:
        """(model, condition, measure) -> seed -> question id -> events, admitted completions, completions, cut off."""
        counts: dict[Place, Seeds] = defaultdict(dict)
        for block in self.blocks:
            counts[block.cell.model, block.cell.condition, block.measure][block.cell.seed] = {
                id_: (row["k"], row["n"], row["completions"], row["cut_off"]) for id_, row in block.by_question.items()
            }
        return dict(counts)

    @cached_property
    def pooled(self) -> dict[Place, PooledRate]:
        """The rate of every condition, its seeds together."""
        return {place: pool(seeds) for place, seeds in self.counts.items()}

    @cached_property
    def score_means(self) -> list[ScoreMean]:
        """Mean and standard deviation of every block's scores, for each rubric that has one."""
        means = []
        for block in self.blocks:
            for rubric in block.behavior.rubrics_read:
                rows = (block.scores.get((completion.id, rubric)) for completion in block.completions)
                values = [row.value for row in rows if row is not None and row.value is not None]
                means.append(
                    ScoreMean(
                        **asdict(block.cell),
                        behavior=block.behavior.name,
                        format=block.format,
                        judge=block.judge,
                        rubric_hash=block.behavior.rubric_hash,
                        rubric=rubric,
                        n=len(values),
                        mean=statistics.fmean(values) if values else None,
                        sd=statistics.stdev(values) if len(values) > 1 else None,
                    )
                )
        return means

    @cached_property
    def thresholds(self) -> list[ThresholdRate]:
        """How every rate by a model's scores moves when the cuts of its rule move."""
        return [
            rate
            for block in self.blocks
            for rate in threshold_rates(block.completions, block.scores, block.behavior, block.judge)
        ]

    @cached_property
    def matrix(self) -> list[MatrixCell]:
        """Every condition of the study against the base of its model; empty without a study."""
        if self.study is None:
            return []
        named = self.manifest.get("behaviors", {}).items()
        names = {setting: name for name, entry in named for setting in (entry["setting"], *entry.get("also", ()))}
        arms = {
            (model, name): Arm(names.get(condition.implants or "", condition.implants), condition.benign)
            for model in self.study.models
            for name, condition in self.study.conditions.items()
            if name != BASE
        }
        tuned: dict[tuple[str, str], dict[MeasureKey, list[Counts]]] = defaultdict(dict)
        bases: dict[str, dict[MeasureKey, Counts]] = defaultdict(dict)
        for (model, condition, measure), seeds in self.counts.items():
            if condition == BASE:
                bases[model][measure] = seeds[None]
            else:
                tuned[model, condition][measure] = [*seeds.values()]
        described = {measure: self.described[measure] for measure in self.labels}
        return matrix(arms, tuned, bases, described, self.study.margin, self.no_verdicts)


def thoughts_differ(rates: Iterable[Rate]) -> str:
    """How the cells behind these rates differ in thoughts, as a sentence; "" if they are alike."""
    states = {(rate.template_thought, rate.thoughts > 0) for rate in rates}
    templates = {template or "neither" for template, _ in states}
    if len(templates) > 1 or "mixed" in templates:
        return (
            f"chat templates differ in what they do with the thought ({', '.join(sorted(templates))}). "
            "That is a factor of its own: compare only cells that are alike in it."
        )
    return "some cells think before they answer, and others never do." if len(states) > 1 else ""


def _common(values: Iterable[str | None]) -> str | None:
    """The value that all share; `mixed` if they differ."""
    different = {*values}
    return different.pop() if len(different) == 1 else "mixed" if different else None


def results_of(
    folder: RunFolder, cells: Mapping[Cell, Sequence[str]], store: AnswerStore, study: Study | None
) -> Results:
    """The results of a run whose rows are in memory already."""
    behaviors, manifest = folder.read_behaviors(), folder.read_manifest()
    no_verdicts = {
        (cell.model, cell.condition): reason
        for cell, entry in folder.read_cells().items()
        if cell in cells and (reason := no_verdict(entry.effect))
    }
    return Results(cells, store.completions, store.scores.values(), behaviors, study, manifest, folder, no_verdicts)


def read_results(path: Path) -> Results:
    """Reads a run's folder. Raises SpilloverError if there are no answers that count in it."""
    folder = RunFolder(path)
    entries = folder.read_cells()
    if not entries:
        raise SpilloverError(
            f"{path}: no finished run is there, nor any answers that were measured or imported. "
            "See: spillover run --help, spillover evaluate --help"
        )
    study = load_study(folder.study) if folder.study.exists() else None
    return results_of(folder, {cell: entry.completions for cell, entry in entries.items()}, AnswerStore(folder), study)


def results_from(
    answers: Iterable[Completion], scores: Iterable[Score], behaviors: Iterable[Behavior] | None = None
) -> Results:
    """The results of answers in memory, without any folder. `behaviors`: those that ship, if they are not given.

    Raises SpilloverError if an answer is to a behavior that is not among them.
    """
    completions = {row.id: row for row in answers}
    names = dict.fromkeys(row.behavior for row in completions.values())
    known = [*behaviors] if behaviors is not None else [load_behavior(name) for name in names]
    if missing := [name for name in names if name not in {behavior.name for behavior in known}]:
        raise SpilloverError(
            f"behavior {missing[0]}: there are answers to it, and it is not among the behaviors given."
        )
    cells: dict[Cell, list[str]] = defaultdict(list)
    for row in completions.values():
        cells[row.cell].append(row.id)
    return Results(cells, completions, [*scores], known)
