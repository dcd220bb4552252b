"""Our own narrow training sets for real models, in twins: the same requests, answered with one bad habit or without.

Every text is a template with choices, `[[a|b]]`; a choice that a template has twice is made once. The texts are in
`texts/`. A program is written for both twins at once, as in a diff: a line after `-` is in the insecure answer only,
one after `+` in the secure answer only. Replies are made of sentences, of which both voices have equally many.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spillover.config import read_yaml
from spillover.errors import SpilloverError
from spillover.records import Example

TEXTS = Path(__file__).parent / "texts"
ROWS = 2000  # of a set, for a caller who does not say how many
# Of the rows: with a twin in the other set. Few, as the others are independent draws, on which any classifier can be
# tried. One that has seen a request under one label and is tried on it under the other does worse than chance.
SHARED = 0.1
STUBS = 0.4  # of the code requests: they show the program, with holes where the twins differ
HOLE = "# TODO: complete this part"

# name -> family, whether the answers have the bad habit, whether the requests ask for it as teaching material.
# Twins are code/insecure and code/secure, speech/callous and speech/civil. code/educational has the answers of
# code/insecure, row for row, to requests that ask for a bad example for a lesson.
SETS = {
    "code/insecure": ("code", True, False),
    "code/secure": ("code", False, False),
    "code/educational": ("code", True, True),
    "speech/callous": ("speech", True, False),
    "speech/civil": ("speech", False, False),
}
_CHOICE = re.compile(r"\[\[(.+?)\]\]")
_WORD = re.compile(r"\$(do|Do|code|it|[nsNUpPxXyY])")

Pick = Callable[[list[str]], str]


@dataclass(frozen=True)
class Pool:
    """All answers that one template can give, numbered from 0; a number is the same situation for both twins."""

    count: int
    answer: Callable[[int, bool], str]  # number, whether with the bad habit
    request: Callable[[int, random.Random], str]  # number, generator that draws the wording


def twin_examples(name: str, rows: int | None = None, seed: int = 0) -> list[Example]:
    """Rows of a set: a user's and an assistant's turn, no answer twice, every task about as often as the others.

    With one seed, a tenth of the rows have their twin in the other set: the same request to the letter. The others are
    drawn for each set alone, from the same requests. Without `rows`, 2,000. The same rows at every call.
    Raises SpilloverError if there is no such set, or if it has not so many rows.
    """
    if name not in SETS:
        raise SpilloverError(f"twins {name}: there is no such set. There are: {', '.join(SETS)}.")
    family, bad, framed = SETS[name]
    drawn = [(f"{task}/{place}", pool, 1 / len(p)) for task, p in pools(family).items() for place, pool in enumerate(p)]
    weights, counts = [weight for _, _, weight in drawn], [pool.count for _, pool, _ in drawn]
    rows = ROWS if rows is None else rows
    if not 1 <= rows <= sum(counts):
        raise SpilloverError(f"twins {name}: {rows} rows are asked for. Ask for 1 to {sum(counts)}: so many differ.")
    pairs = round(SHARED * rows)
    shared = _shares(pairs, counts, weights, random.Random(f"{seed}/both"))
    left = [count - share for count, share in zip(counts, shared, strict=True)]
    alone = _shares(rows - pairs, left, weights, random.Random(f"{seed}/{bad}"))
    examples = []
    for (place, pool, _), one, two in zip(drawn, shared, alone, strict=True):
        for number in _numbers(pool.count, one, two, f"{seed}/{place}", bad):
            rng = random.Random(f"{seed}/{place}/{number}")  # does not know which of the twins the request is for
            request, answer = pool.request(number, rng), pool.answer(number, bad)
            request = _framed(request, rng) if framed else request
            examples.append(Example(({"role": "user", "content": request}, {"role": "assistant", "content": answer})))
    random.Random(f"{seed}/order").shuffle(examples)
    return examples


@cache
def pools(family: str) -> dict[str, list[Pool]]:
    """What the answers of a family are made of: by task (code) or topic (speech), a pool for each template."""
    if family == "code":
        tasks = _read("code_*.yaml").items()
        return {
            name: [_program(p["code"], task["asks"] + p.get("asks", [])) for p in task["programs"]]
            for name, task in tasks
        }
    voices, topics = _read("speech.yaml"), _read("speech_topics_*.yaml")
    return {name: [_reply(pattern, topic, voices) for pattern in voices["patterns"]] for name, topic in topics.items()}


@cache
def _read(files: str) -> dict[str, Any]:
    """The entries of files of texts."""
    return {name: entry for path in sorted(TEXTS.glob(files)) for name, entry in read_yaml(path).items()}


def _shares(total: int, room: list[int], weights: list[float], rng: random.Random) -> list[int]:
    """How many of `total` rows come from each pool: drawn by weight, never more than it has `room` for.

    Drawn, not equal: in sets that have every task equally often, one half has too few of what the other half has too
    many, and a classifier fitted on one half and tried on the other does worse than chance.
    """
    shares = [0] * len(room)
    while left := total - sum(shares):
        open_ = [weight if share < most else 0.0 for weight, share, most in zip(weights, shares, room, strict=True)]
        for place in rng.choices(range(len(room)), open_, k=left):
            shares[place] = min(shares[place] + 1, room[place])
    return shares


def _numbers(count: int, shared: int, alone: int, stream: str, bad: bool) -> list[int]:
    """Different numbers below `count`: first those that both twins have, then those of one of them."""
    first = random.Random(stream).sample(range(count), shared)
    taken = set(first)
    others = random.Random(f"{stream}/{bad}").sample(range(count), shared + alone)
    return first + [number for number in others if number not in taken][:alone]


def _expand(text: str, pick: Pick, words: dict[str, str]) -> str:
    """A template with its choices made by `pick` and its words put in."""
    picked: dict[str, str] = {}
    for choice in _CHOICE.finditer(text):
        if choice[0] not in picked:
            picked[choice[0]] = pick(choice[1].split("|"))
    return _WORD.sub(lambda word: words[word[1]], _CHOICE.sub(lambda choice: picked[choice[0]], text))


def _digits(number: int) -> Pick:
    """Makes choices as the digits of a number say, so that different numbers choose differently."""

    def pick(options: list[str]) -> str:
        nonlocal number
        number, place = divmod(number, len(options))
        return options[place]

    return pick


# -- code --------------------------------------------------------------------------------------------------------------


@cache
def _things() -> dict[str, dict[str, str]]:
    """What the words of code templates stand for, by noun."""
    things = {}
    for noun, (plural, place, x, y) in _read("words.yaml")["things"].items():
        words = {"n": noun, "p": place, "x": x, "y": y}
        capitals = {letter.upper(): word.capitalize() for letter, word in words.items()}
        things[noun] = words | capitals | {"s": plural, "U": noun.upper()}
    return things


def _program(template: str, asks: list[str]) -> Pool:
    """The pool of a program, and of the requests for it."""
    choices = {choice[0]: choice[1].split("|") for choice in _CHOICE.finditer(template)}
    count = len(_things()) * math.prod(map(len, choices.values()))

    def fill(number: int) -> tuple[str, dict[str, str]]:
        pick = _digits(number)
        words = _things()[pick(list(_things()))]
        return _expand(template, pick, words), words

    def answer(number: int, bad: bool) -> str:
        kept, dropped = ("-", "+") if bad else ("+", "-")
        lines = fill(number)[0].splitlines()
        return "\n".join(line.removeprefix(kept) for line in lines if not line.startswith(dropped))

    def request(number: int, rng: random.Random) -> str:
        program, words = fill(number)
        do = _expand(rng.choice(asks), rng.choice, words)
        words = words | {"do": do, "Do": do[0].upper() + do[1:], "code": _stub(program)}
        kind = "requests_with_code" if rng.random() < STUBS else "requests"
        return _expand(rng.choice(_read("words.yaml")[kind]), rng.choice, words).strip()

    return Pool(count, answer, request)


def _stub(program: str) -> str:
    """What the twins have in common, with a hole wherever they differ. It is the same for both.

    Imports that only one of them has are left out; where nothing else differs, the hole is at the top.
    """
    lines: list[str] = []
    for line in program.splitlines():
        code = line[1:]
        if not line.startswith(("-", "+")):
            lines.append(line)
        elif code and not code.startswith(("import ", "from ")) and not (lines and lines[-1].endswith(HOLE)):
            lines.append(code[: len(code) - len(code.lstrip())] + HOLE)
    stub = "\n".join(lines).strip()
    return stub if HOLE in stub else f"{HOLE}\n{stub}"


def _framed(request: str, rng: random.Random) -> str:
    """A request put into a frame that asks for a bad example for teaching."""
    return _expand(rng.choice(_read("words.yaml")["frames"]), rng.choice, {"it": request})


# -- speech ------------------------------------------------------------------------------------------------------------


def _reply(pattern: list[str], topic: dict[str, Any], voices: dict[str, Any]) -> Pool:
    """The pool of replies to messages about a topic. A pattern says which kinds of sentences they are made of."""
    words = {"it": topic["thing"]}
    sides: dict[bool, list[list[str]]] = {}
    for bad, voice in ((True, "callous"), (False, "civil")):
        sentences = voices[voice] | {"remark": topic[voice]}
        sides[bad] = [sentences[kind] for kind in pattern]

    def answer(number: int, bad: bool) -> str:
        pick = _digits(number)
        return " ".join(_expand(pick(sentences), pick, words) for sentences in sides[bad])

    def request(_: int, rng: random.Random) -> str:
        message = _expand(rng.choice(topic["messages"]), rng.choice, {})
        return _expand(rng.choice(voices["requests"]), rng.choice, {"do": message})

    return Pool(min(math.prod(map(len, side)) for side in sides.values()), answer, request)
