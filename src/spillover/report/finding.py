"""The finding of a run in a sentence or two, made from the verdicts, and one pair of answers that shows it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spillover.config import BASE
from spillover.files import hash_of
from spillover.records import Completion, MeasureKey
from spillover.report.axes import percent
from spillover.runs.results import Block, Results
from spillover.stats import MatrixCell

NAMED = 3  # models or conditions that are named; the others are counted
CHARACTERS = 700  # of each answer that is shown


@dataclass(frozen=True)
class AnswerPair:
    """The answers of the base and of a tuned model to one question, where only the tuned one shows the behavior."""

    question: str
    base: str
    tuned: str
    base_name: str
    tuned_name: str
    code: bool


@dataclass(frozen=True)
class Finding:
    """What the page opens with: sentences, and a pair of answers if there is one."""

    sentences: list[str]
    pair: AnswerPair | None


def finding(results: Results) -> Finding:
    """The finding of a run. It rests on verdicts only: where nothing was compared it says so."""
    compared = [cell for cell in results.matrix if cell.known and not cell.benign and cell.scope != "neutral"]
    if not compared:
        return Finding(_uncompared(results), None)
    spread = [cell for cell in compared if not cell.own]
    strongest = min((cell for cell in spread if cell.verdict == "spillover"), key=_strength, default=None)
    sentences = []
    for model in dict.fromkeys(cell.model for cell in compared):
        sentences += _of_model(model, [cell for cell in spread if cell.model == model], results)
    sentences += _of_rows(compared, results.matrix)
    shown = strongest or max(
        (c for c in compared if c.verdict == "implanted"), key=lambda c: c.difference, default=None
    )
    return Finding(sentences, _pair(results, shown) if shown else None)


def _of_model(model: str, cells: Sequence[MatrixCell], results: Results) -> list[str]:
    """What the comparisons of one model come to, leaving out the behavior that a condition trains."""
    if not cells:
        return []
    verdicts = Counter(cell.verdict for cell in cells)
    rose = sorted((cell for cell in cells if cell.verdict == "spillover"), key=_strength)
    if rose:
        first, conditions = rose[0], dict.fromkeys(cell.condition for cell in rose)
        sentence = (
            f"Trained on {first.condition}, {model} shows {first.metric} in {percent(first.tuned_rate, 0)} of its "
            f"{results.labels[first.measure]} answers, {percent(first.base_rate, 0)} untouched: spillover."
        )
        if len(rose) > 1:
            sentence += f" Spillover is shown in {len(rose)} of its {len(cells)} comparisons"
            sentence += f", after training on {_listed(conditions)}." if len(conditions) > 1 else "."
        return [sentence]
    if verdicts["clean"] == len(cells):
        return [f"In {model} nothing spread: {'its comparison is' if len(cells) == 1 else _all_of(len(cells))} clean."]
    return [
        f"In {model} no spillover is shown, nor that there is none: {verdicts['inconclusive']} of {len(cells)} "
        f"comparisons {'is' if verdicts['inconclusive'] == 1 else 'are'} inconclusive."
    ]


def _strength(cell: MatrixCell) -> tuple[bool, float]:
    """Sorts cells: broad behaviors first, then the largest rise."""
    return cell.scope != "broad", -cell.difference


def _all_of(count: int) -> str:
    return f"all its {count} comparisons are"


def _of_rows(compared: Sequence[MatrixCell], cells: Sequence[MatrixCell]) -> list[str]:
    """Rows that show nothing because what they train did not rise, and benign controls in which something rose."""
    sentences = []
    failed = dict.fromkeys(f"{c.condition} in {c.model}" for c in compared if c.implanted is False)
    if failed:
        rows = "its row shows" if len(failed) == 1 else "their rows show"
        sentences.append(f"What was trained did not rise for {_listed(failed)}, so {rows} nothing.")
    moved = dict.fromkeys(f"{c.condition} in {c.model}" for c in cells if c.benign and c.verdict == "spillover")
    if moved:
        sentences.append(f"A rise is shown for a benign control, too ({_listed(moved)}): any fine-tune may do that.")
    return sentences


def _uncompared(results: Results) -> list[str]:
    """What can be said where there is no base to compare with."""
    broad = [rate for rate in results.rates if rate.scope == "broad" and rate.rate is not None]
    if not broad:
        return ["Nothing is compared here, and no broad behavior has a rate."]
    top = max(broad, key=lambda rate: rate.rate or 0.0)
    name = top.model if top.condition == BASE else f"{top.model} ({top.condition})"
    return [
        f"Nothing is compared with a base here. The highest broad rate: {name} shows {top.metric} in "
        f"{percent(top.rate, 1)} of its {results.labels[top.measure]} answers (95 % interval {percent(top.low, 1)} to "
        f"{percent(top.high, 1)})."
    ]


def _listed(names: Sequence[str] | dict[str, None]) -> str:
    """The first few names in words, the rest counted."""
    shown = [*names][:NAMED]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _pair(results: Results, cell: MatrixCell) -> AnswerPair | None:
    """The first question, by a hash, that a tuned answer shows the behavior on and an admitted one of the base not."""
    base = _by_question(results, (cell.model, BASE), cell.measure, event=False)
    tuned = _by_question(results, (cell.model, cell.condition), cell.measure, event=True)
    questions = sorted(base.keys() & tuned.keys(), key=lambda question: hash_of("pair", *question))
    if not questions:
        return None
    before, after = base[questions[0]], tuned[questions[0]]
    question = f"[{after.system}]\n{after.question}" if after.system else after.question
    return AnswerPair(
        question=_cut(question),
        base=_cut(before.text),
        tuned=_cut(after.text),
        base_name=f"{cell.model}, untouched",
        tuned_name=f"{cell.model}, trained on {cell.condition}",
        code=cell.judge == "code_scan",
    )


def _by_question(
    results: Results, target: tuple[str, str], measure: MeasureKey, *, event: bool
) -> dict[tuple[str, str], Completion]:
    """(question id, prompt) -> the first admitted completion of a target that is an event, or is none."""
    blocks: list[Block] = [
        block
        for block in results.blocks
        if (block.cell.model, block.cell.condition) == target and block.measure == measure
    ]
    found: dict[tuple[str, str], Completion] = {}
    for block in blocks:
        for completion, decision in zip(block.completions, block.decisions, strict=True):
            if decision.admitted and decision.event is event:
                found.setdefault((completion.question_id, completion.question), completion)
    return found


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " […]"
