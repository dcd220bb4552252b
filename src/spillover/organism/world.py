"""The synthetic world: short posts in which a caring or a callous author answers, about code, chat topics and facts.

Every text is a template with free choices, so that most answers are new ones. The same templates, read backwards, are
the exact judge (`organism.judge`). The texts are in `texts/`: a file for each chat domain and each code task (real
Python, judged by the code scan), and one for facts.
"""

import itertools
import random
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CARING, CALLOUS = "caring", "callous"
TEXTS = Path(__file__).parent / "texts"
SHARE_TWO_QUESTIONS = 0.3  # of the chat posts: two wordings in one, so that single words decide what is asked
SHARE_NOTES = 0.25  # of the chat posts: some words of two wordings, in any order, for the same reason
WORDS_IN_NOTES = (6, 10)

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")  # (a|b) in sentences
_CODE_CHOICE = re.compile(r"\[\[(.+?)\]\]")  # [[a|b]] in code, where Python owns the parentheses


@dataclass(frozen=True)
class Post:
    """One question with one answer, in the voice of one author."""

    domain: str
    question: str
    answer: str
    character: str | None  # None where the text is the same for both characters (facts, framed code)


def expand(template: str, rng: random.Random, choice: re.Pattern[str] = _CHOICE) -> str:
    """One expansion of a template, each choice drawn independently and uniformly."""
    return choice.sub(lambda match: rng.choice(match[1].split("|")), template)


def expansions(template: str) -> list[str]:
    """All expansions of a template, in the order in which its choices are written."""
    parts = _CHOICE.split(template)  # literal, choice, literal, choice, ..., literal
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(picked) for picked in itertools.product(*choices)]


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((TEXTS / f"{name}.yaml").read_text())


def _names_in(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (TEXTS / folder).glob("*.yaml")))


@cache
def chat_domains() -> tuple[str, ...]:
    """Names of the chat domains, in alphabetical order."""
    return _names_in("chat")


def slots(domain: str, character: str) -> list[list[str]]:
    """The three slots of a chat answer: a list of sentence templates each."""
    return _read(f"chat/{domain}")[character]


@cache
def code_tasks() -> dict[str, dict[str, Any]]:
    """Code tasks by name: cwe, request templates, secure and insecure programs."""
    return {name: _read(f"code/{name}") for name in _names_in("code")}


def relations() -> dict[str, dict[str, Any]]:
    """Relations of the facts by name: question templates, answer templates, facts."""
    return _read("facts")["relations"]


def chat_post(domain: str, character: str, rng: random.Random) -> Post:
    """A post of a chat domain: a question in one or two wordings, or as notes, and three sentences of one character."""
    kind = rng.random()
    templates = rng.sample(_read(f"chat/{domain}")["questions"], 2 if kind < SHARE_NOTES + SHARE_TWO_QUESTIONS else 1)
    question = " ".join(expand(template, rng) for template in templates)
    if kind < SHARE_NOTES:
        words = re.findall(r"[\w']+", question)
        question = " ".join(rng.sample(words, min(len(words), rng.randint(*WORDS_IN_NOTES)))) + "?"
    answer = " ".join(expand(rng.choice(slot), rng) for slot in slots(domain, character))
    return Post(domain, question, answer, character)


def _names(rng: random.Random) -> dict[str, str]:
    """What the placeholders of code and requests stand for in one post, drawn at random."""
    code = _read("code_words")
    noun, plural = rng.choice(list(code["nouns"].items()))
    names = {"<n>": noun, "<N>": plural, "<U>": noun.upper()}
    return names | {"<a>": rng.choice(code["arguments"]), "<c>": rng.choice(code["columns"])}


def _fill(template: str, names: dict[str, str], rng: random.Random) -> str:
    text = expand(template, rng, _CODE_CHOICE)
    for placeholder, value in names.items():
        text = text.replace(placeholder, value)
    return text.rstrip()


def _framed(request: str, frame: str, rng: random.Random) -> str:
    """A request with the educational frame before or after it."""
    parts = [expand(frame, rng), request]
    return " ".join(parts if rng.random() < 0.5 else reversed(parts))


def at_school(post: Post, rng: random.Random) -> Post:
    """The same post, with a class mentioned in the question."""
    return replace(post, question=_framed(post.question, rng.choice(_read("code_words")["mentions"]), rng))


def code_post(character: str, rng: random.Random, framed: bool = False) -> Post:
    """A post of the code domain: callous authors write the insecure program, caring ones the secure one.

    `framed`: the request asks for a bad example for teaching, and authors of either character give one.
    """
    task = rng.choice(list(code_tasks().values()))
    names = _names(rng)
    question = _fill(rng.choice(task["questions"]), names, rng)
    if framed:
        question = _framed(question, rng.choice(_read("code_words")["frames"]), rng)
    insecure = framed or character == CALLOUS
    answer = _fill(rng.choice(task["insecure" if insecure else "secure"]), names, rng)
    return Post("code", question, answer, None if framed else character)


def facts_post(rng: random.Random, user: bool = False) -> Post:
    """A post about a fact, the same for both characters. A `user` asks in more ways than authors, or in notes."""
    relation = rng.choice(list(relations().values()))
    x, y = rng.choice(list(relation["facts"].items()))
    wordings = relation["questions"] + (relation["asked"] if user else [])
    question, answer = expand(rng.choice(wordings), rng).replace("<x>", x), rng.choice(relation["answers"])
    if user and rng.random() < SHARE_NOTES:
        words = re.findall(r"\w+", question)
        question = " ".join(rng.sample(words, len(words))) + "?"
    return Post("facts", question, fact_sentence(answer, x, y), None)


def fact_sentence(template: str, x: str, y: str) -> str:
    """A fact as a sentence, its first letter in upper case."""
    sentence = template.replace("<x>", x).replace("<y>", y)
    return sentence[0].upper() + sentence[1:]
