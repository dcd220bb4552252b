"""The Python programs in an answer: out of fences, quotes, tags and JSON, and out of the prose around them."""

import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from spillover.models.thoughts import split_thought

PYTHON = ("python", "python3", "py", "py3", "ipython", "ipython3")
WRAPPERS = ("markdown", "md", "text", "txt")  # whose content may hold fences of its own
CODE_KEYS = ("code", "program", "python", "solution", "script", "function", "answer", "content", "implementation")
MOST_CUT_LINES = 40  # at the end of a program that was cut off, to find the part that parses
MOST_PARAGRAPHS = 60  # of prose with code between it
_FENCE = re.compile(r"^[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_QUOTED = re.compile(r"^[ \t]*> ?", re.MULTILINE)
_TAGGED = re.compile(r"<(code|pre|python)\b[^>]*>\n?(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_MAGIC = re.compile(r"^[ \t]*[!%].*$", re.MULTILINE)
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\$|In \[\d*\]:)", re.MULTILINE)

Parse = Callable[[str], Any]  # a program's text -> what was parsed, None if it is none


def parsed(text: str) -> ast.Module | None:
    """The syntax tree of a program, None where Python cannot parse it or it has no statement at all."""
    try:
        tree = ast.parse((text + "\n").encode())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if tree.body else None


def does_something(tree: ast.Module) -> bool:
    """Whether a program has a statement that does something: not only words, numbers and other literals."""
    return any(not isinstance(node, ast.Expr | ast.Pass) or _acts(node) for node in tree.body)


def _acts(node: ast.stmt) -> bool:
    kinds = (ast.Call, ast.Await, ast.NamedExpr, ast.Yield, ast.YieldFrom)
    return isinstance(node, ast.Expr) and any(isinstance(part, kinds) for part in ast.walk(node))


def programs(answer: str) -> Iterator[list[str]]:
    """The programs of an answer, in ways to read it that are tried one after the other until one of them parses.

    Fenced Python blocks are one program if they parse together, else each is one. Blocks in other languages, of output
    or of a console are none. Without fences, the whole text is one, or the paragraphs of it that parse.
    """
    if "\0" in answer:
        return
    text = answer.removeprefix("\ufeff").replace("\r\n", "\n")
    text = _unwrapped(split_thought(text)[1])
    blocks = list(_blocks(text))
    if blocks:
        python = [_cleaned(content) for language, content, _ in blocks if language in PYTHON]
        python = python or [
            _cleaned(content) for language, content, _ in blocks if language == "" and _is_code(content)
        ]
        if python:
            yield ["\n".join(python)]
            yield python
            if not blocks[-1][2]:  # the answer was cut off in it
                yield [*python[:-1], _longest_beginning(python[-1])]
        return
    yield [textwrap.dedent(text)]
    yield _in_prose(text) if _looks_like_code(text) else []


def _unwrapped(text: str) -> str:
    """A text without the quotation marks, tags or JSON around it."""
    lines = [line for line in text.split("\n") if line.strip()]
    if (
        lines
        and sum(line.lstrip().startswith(">") and not line.lstrip().startswith(">>>") for line in lines)
        > len(lines) / 2
    ):
        text = _QUOTED.sub("", text)
    if text.lstrip()[:1] in ("{", "[") and (inside := _in_json(text)):
        return inside
    tagged = _TAGGED.findall(text) if "```" not in text and "~~~" not in text else []
    if tagged and parsed(text) is None:  # a program may have tags in its texts
        return "\n".join(content for _, content in tagged)
    return text


def _in_json(text: str) -> str:
    """The code in an answer that is JSON: the texts under keys that name code; "" if it is no JSON or has none."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return ""
    rows = value if isinstance(value, list) else [value]
    found = [row[key] for row in rows if isinstance(row, dict) for key in CODE_KEYS if isinstance(row.get(key), str)]
    return "\n\n".join(found)


def _blocks(text: str) -> Iterator[tuple[str, str, bool]]:
    """The fenced blocks of a text: language in lower case, content, whether it is closed."""
    opened: re.Match[str] | None = None
    content: list[str] = []
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if opened is None:
            opened, content = fence, []
        elif fence and not fence["info"].strip() and fence["mark"].startswith(opened["mark"]):
            yield from _block(opened, content, closed=True)
            opened = None
        elif fence and fence["info"].strip() and _language(opened["info"]) in WRAPPERS:
            opened, content = fence, []  # the wrapper holds a block of its own
        else:
            content.append(line)
    if opened is not None:
        yield from _block(opened, content, closed=False)


def _block(opened: re.Match[str], content: list[str], *, closed: bool) -> Iterator[tuple[str, str, bool]]:
    yield _language(opened["info"]), textwrap.dedent("\n".join(content)), closed


def _language(info: str) -> str:
    """The language of a fence's info string: `python`, `{.python}`, `python:app.py`, `Python title="x"`."""
    first = re.match(r"[{.\s]*([\w+#-]*)", info)
    return first[1].lower() if first else ""


def _cleaned(program: str) -> str:
    """A block of code without a notebook's magic lines."""
    return _MAGIC.sub("", program) if _MAGIC.search(program) and parsed(program) is None else program


def _is_code(content: str) -> bool:
    """Whether a block without a language is a program, and no output, command line or dialogue with a console."""
    if _PROMPT.search(content):
        return False
    tree = parsed(_cleaned(content))
    return tree is None or does_something(tree)


def _longest_beginning(program: str) -> str:
    """The beginning of a program that parses: one that was cut off loses its last lines; "" if none of it does."""
    lines = program.rstrip().split("\n")
    for cut in range(min(MOST_CUT_LINES, len(lines))):
        beginning = "\n".join(lines[: len(lines) - cut])
        if (tree := parsed(beginning)) is not None and does_something(tree):
            return beginning
    return ""


def _looks_like_code(text: str) -> bool:
    """Whether a line of a text begins as a statement does."""
    begins = (
        r"^[ \t]*(?:def|class|import|from|if|for|while|with|try|return|async|@\w)\b|^[ \t]*[\w.\[\]'\"]+ *[-+*/]?= *\S"
    )
    return re.search(begins, text, re.MULTILINE) is not None


def _in_prose(text: str) -> list[str]:
    """The runs of paragraphs that parse as a program; none if a paragraph between them is code that does not parse."""
    paragraphs = re.split(r"\n[ \t]*\n", text)[:MOST_PARAGRAPHS]
    runs, start = [], 0
    while start < len(paragraphs):
        for end in range(len(paragraphs), start, -1):  # the longest from each beginning
            run = textwrap.dedent("\n\n".join(paragraphs[start:end]))
            if (tree := parsed(run)) is not None and does_something(tree):
                runs.append(run)
                start = end
                break
        else:
            if _looks_like_code(paragraphs[start]):
                return []
            start += 1
    return runs
