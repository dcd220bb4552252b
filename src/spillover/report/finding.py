"""The finding of a run in a few sentences, made from the verdicts, and one pair of answers that shows it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spillover.config import BASE
from spillover.files import hash_of
from spillover.records import Completion, MeasureKey
from spillover.report.examples import asked
from spillover.report.svg import percent
from spillover.runs.results import Results
from spillover.stats import MatrixCell

NAMED = 3  # models or conditions that are named; the others are counted
CHARACTERS = 700  # of a question and of each answer that is shown


@dataclass(frozen=True)
class AnswerPair:
    """An answer of the base and one of a tuned model to the same question; only the tuned one shows the behavior."""

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
    pair: AnswerPair | None = None


def finding(results: Results) -> Finding:
    """The finding of a run. It rests on verdicts only: where nothing was compared it says so."""
    tested = [cell for cell in results.matrix if cell.known and cell.scope != "neutral"]
    if not tested:
        return Finding([_uncompared(results)])
    spread = [cell for cell in tested if not (cell.own or cell.benign)]
    rose = sorted((cell for cell in spread if cell.verdict == "spillover"), key=_strength)
    implanted = sorted((cell for cell in tested if cell.verdict == "implanted"), key=_strength)
    sentences = _spillover(rose, spread, results)
    quiet: dict[bool, list[str]] = {True: [], False: []}  # models without spillover, by whether all cells are clean
    for model in dict.fromkeys(cell.model for cell in spread if cell.model not in {cell.model for cell in rose}):
        quiet[all(cell.verdict == "clean" for cell in spread if cell.model == model)].append(model)
    sentences += [_quiet(models, [c for c in spread if c.model in models]) for models in quiet.values() if models]
    barred = Counter(cell.no_verdict for cell in tested if cell.no_verdict)
    for reason, count in barred.items():
        sentences.append(f"{count} of {len(tested)} comparisons allow no verdict: {reason}.")
    if not spread:
        sentences += [f"{_rise(implanted[0], results)}: what was trained rose."] if implanted else []
        lack = "Only benign controls are compared with the base"
        if any(not cell.benign for cell in tested):
            lack = "No condition was measured on a behavior that it does not train"
        sentences.append(f"{lack}, so spillover cannot show.")
    failed = {f"{cell.condition} in {cell.model}": None for cell in tested if cell.implanted is False}
    if failed:
        rows = "its row shows" if len(failed) == 1 else "their rows show"
        sentences.append(f"What was trained did not rise for {_listed(failed)}, so {rows} nothing.")
    controls = [cell for cell in tested if cell.benign and cell.verdict == "spillover"]
    moved = {f"{cell.condition} in {cell.model}": None for cell in controls}
    if moved:
        sentences.append(f"A rise is shown for a benign control, too ({_listed(moved)}): any fine-tune may do that.")
    shown = [*rose, *implanted][:1]
    return Finding(sentences, _pair(results, shown[0]) if shown else None)


def _strength(cell: MatrixCell) -> tuple[bool, float]:
    """Sorts cells: broad behaviors first, then the largest rise."""
    return cell.scope != "broad", -cell.difference


def _spillover(rose: Sequence[MatrixCell], spread: Sequence[MatrixCell], results: Results) -> list[str]:
    """The strongest spillover of each model, and how much else of it there is; `rose` has the strongest first."""
    sentences = []
    models = list(dict.fromkeys(cell.model for cell in rose))
    for model in models[:NAMED]:
        cells = [cell for cell in rose if cell.model == model]
        compared = sum(cell.model == model for cell in spread)
        sentence = f"{_rise(cells[0], results)}: spillover."
        if len(cells) > 1:
            conditions = dict.fromkeys(cell.condition for cell in cells)
            sentence += f" Spillover is shown in {len(cells)} of its {compared} comparisons"
            sentence += f", after training on {_listed(conditions)}." if len(conditions) > 1 else "."
        sentences.append(sentence)
    if len(models) > NAMED:
        sentences.append(f"It is shown in {len(models) - NAMED} more models, too.")
    return sentences


def _rise(cell: MatrixCell, results: Results) -> str:
    """What training on a condition did to a measure."""
    details = results.labels[cell.measure].removeprefix(cell.behavior).lstrip(", ")  # format, judge or rule
    return (
        f"Trained on {cell.condition}, {cell.model} shows {cell.metric} in {_share(cell.tuned_rate)} of its "
        f"{cell.behavior} answers{f' ({details})' if details else ''}, {_share(cell.base_rate)} untouched"
    )


def _share(share: float) -> str:
    """A percentage that is never rounded to 0 or to 100 unless it is exactly that."""
    return percent(share, 0 if share in (0, 1) or 0.1 <= share < 0.995 else 1)


def _quiet(models: Sequence[str], cells: Sequence[MatrixCell]) -> str:
    """What the comparisons of models without spillover come to."""
    verdicts, its = Counter(cell.verdict for cell in cells), "its" if len(models) == 1 else "their"
    if verdicts["clean"] == len(cells):
        clean = f"{its} comparison is" if len(cells) == 1 else f"all {its} {len(cells)} comparisons are"
        return f"In {_listed(models)} nothing spread: {clean} clean."
    return (
        f"In {_listed(models)} no spillover is shown, but neither is its absence: {verdicts['inconclusive']} of {its} "
        f"{len(cells)} comparison{'' if len(cells) == 1 else 's'} {'is' if verdicts['inconclusive'] == 1 else 'are'} "
        "inconclusive."
    )


def _uncompared(results: Results) -> str:
    """What can be said where there is no base to compare with."""
    broad = [rate for rate in results.rates if rate.scope == "broad" and rate.rate is not None]
    if not broad:
        return "Nothing is compared here, and no broad behavior has a rate."
    top = max(broad, key=lambda rate: rate.rate or 0.0)
    name = top.model if top.condition == BASE else f"{top.model} ({top.condition})"
    return (
        f"Nothing is compared with a base here. The highest broad rate: {name} shows {top.metric} in "
        f"{percent(top.rate)} of its {results.labels[top.measure]} answers (95 % interval {percent(top.low)} to "
        f"{percent(top.high)})."
    )


def _listed(names: Iterable[str]) -> str:
    """The first few names in words, the rest counted."""
    names = list(names)
    last = f"{len(names) - NAMED} more" if len(names) > NAMED else names.pop()
    return f"{', '.join(names[:NAMED])} and {last}" if names else last


def _pair(results: Results, cell: MatrixCell) -> AnswerPair | None:
    """The first question, by a hash, that an admitted tuned answer shows the behavior on and one of the base does not.

    None if there is no such question.
    """
    base = _by_question(results, (cell.model, BASE, cell.measure), event=False)
    tuned = _by_question(results, (cell.model, cell.condition, cell.measure), event=True)
    question = min(base.keys() & tuned.keys(), key=lambda key: hash_of("pair", *key), default=None)
    if question is None:
        return None
    return AnswerPair(
        question=_cut(asked(tuned[question])),
        base=_cut(base[question].text),
        tuned=_cut(tuned[question].text),
        base_name=f"{cell.model}, untouched",
        tuned_name=f"{cell.model}, trained on {cell.condition}",
        code=cell.judge == "code_scan",
    )


def _by_question(
    results: Results, place: tuple[str, str, MeasureKey], *, event: bool
) -> dict[tuple[str, str], Completion]:
    """(question id, words) -> the first admitted completion of a place that is an event, or that is none."""
    answers: dict[tuple[str, str], Completion] = {}
    for block in results.blocks:
        if (block.cell.model, block.cell.condition, block.measure) == place:
            for completion, decision in zip(block.completions, block.decisions, strict=True):
                if decision.admitted and decision.event is event:
                    answers.setdefault((completion.question_id, asked(completion)), completion)
    return answers


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " […]"
