"""Lints a chat template: its tokens, text that it adds, how it leads up to answers and ends them, what is trained on.

Weights are not needed: the tokenizer and its template decide.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from spillover.behaviors import Behavior
from spillover.data.findings import DataFinding, Severity, about_rows, at_lines, counted
from spillover.data.rows import SourceRow
from spillover.data.tokens import TokenRow, common_prefix_length
from spillover.models import Request
from spillover.models.prompts import TEMPLATE_ERRORS, in_template, lost_turn
from spillover.models.thoughts import is_mark, split_thought, template_thought

# What looks like a token of a template: <|im_start|>, <start_of_turn>, </s>, [INST]; DeepSeek writes wide bars.
MARKER = re.compile(r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|</?[a-z]+(?:_[a-z]+)*>|\[/?[A-Z]+(?:_[A-Z]+)*\]")
QUOTED = 60  # characters of a text that a message quotes; a system prompt may be longer
QUOTED_SYSTEM = 300


@dataclass(frozen=True)
class Conversation:
    """A row in the template: text and tokens of the whole, and of its prompt together with the generation prompt."""

    row: SourceRow
    text: str
    ids: list[int]
    prompt: str
    prompt_ids: list[int]

    @property
    def parts(self) -> tuple[str, str, str] | None:
        """Lead, answer and tail: what the template writes after the prompt. None if it does not go on from there."""
        if not self.text.startswith(self.prompt):
            return None
        rest, answer = self.text[len(self.prompt) :], self.row.answer.strip()
        lead, match, tail = rest.partition(answer)
        if match:
            return lead, answer, tail
        # Templates write a thought with white space and marks of their own, and its beginning may be in the prompt.
        thought, answer = split_thought(answer)
        before, match, tail = rest.partition(answer)
        same = split_thought(before, opened=template_thought(self.prompt) == "opened") == (thought, "")
        return ("", before + answer, tail) if match and same else None

    @property
    def merged(self) -> bool:
        """Whether the text goes on from the prompt, and the tokens do not."""
        return self.text.startswith(self.prompt) and self.ids[: len(self.prompt_ids)] != self.prompt_ids


def render(tokenizer: Any, rows: Sequence[SourceRow]) -> tuple[list[Conversation], list[DataFinding]]:
    """The rows in the template, and a finding about those that it refuses."""
    conversations = []
    refused: dict[str, list[int]] = {}
    for row in rows:
        messages = list(row.messages)
        try:
            text = in_template(tokenizer, messages)
            prompt = in_template(tokenizer, messages[:-1], prompt=True)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            refused.setdefault(f"{roles}: {error}", []).append(row.line)
        else:
            conversations.append(Conversation(row, text, _tokens(tokenizer, text), prompt, _tokens(tokenizer, prompt)))
    lines = sorted(line for group in refused.values() for line in group)
    details = [f"{reason} ({at_lines(group)})" for reason, group in refused.items()]
    advice = "Take the turns that it refuses out of the rows, or train another model."
    findings = about_rows("refused rows", "error", lines, "that the chat template refuses", advice, details)
    return conversations, findings


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text; nothing is added to them, as in `in_template`."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def lint(tokenizer: Any, stops: set[int], conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Every check of the template itself. `stops` are the ids of the tokens at which generation stops."""
    return [
        *check_markers(tokenizer),
        *check_system_prompt(tokenizer, conversations),
        *check_turns(tokenizer, conversations),
        *check_bos(tokenizer, conversations),
        *check_generation_prompt(tokenizer, conversations),
        *check_end_of_turn(tokenizer, stops, conversations),
    ]


def _sketch(tokenizer: Any, *turns: tuple[str, str]) -> str:
    """Turns (role, content) in the template, with the generation prompt; "" if it refuses them."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(in_template(tokenizer, messages, prompt=True))
    except TEMPLATE_ERRORS:
        return ""


def check_markers(tokenizer: Any) -> list[DataFinding]:
    """Markers in the template's text that the tokenizer does not know as one token: they would be plain text."""
    text = _sketch(tokenizer, ("user", "question"), ("assistant", "answer"), ("user", "question"))
    text += _sketch(tokenizer, ("system", "rule"), ("user", "question"))
    lengths = {marker: len(tokenizer.encode(marker, add_special_tokens=False)) for marker in MARKER.findall(text)}
    split = [f"{marker} ({length} tokens)" for marker, length in lengths.items() if length != 1]
    if not split:
        return []
    message = f"the chat template writes what the tokenizer does not know as one token: {', '.join(split)}"
    advice = "Is it another model's template? If not, add these to the tokenizer as special tokens."
    return [DataFinding("special tokens", "warning", message, advice)]


def check_system_prompt(tokenizer: Any, conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Text that the template writes before a first question and not before a second one, special tokens aside."""
    first, answer, second = "first question", "first answer", "second question"
    text = _sketch(tokenizer, ("user", first), ("assistant", answer), ("user", second))
    if not all(turn in text for turn in (first, answer, second)):
        return []
    for token in (*tokenizer.all_special_tokens, *MARKER.findall(text)):
        text = text.replace(token, "\0")
    start, between = text[: text.index(first)], text[text.index(answer) + len(answer) : text.index(second)]
    added = start[: len(start) - common_prefix_length(start[::-1], between[::-1])]
    added = " ".join(added.replace("\0", " ").split())
    if not re.search(r"\w", added):
        return []
    without = tuple(c.row.line for c in conversations if c.row.messages[0]["role"] != "system")
    message = (
        f"the chat template adds {_quoted(added, QUOTED_SYSTEM)} where there is no system turn: to "
        f"{len(without):,} of {counted(len(conversations), 'row')}, and to every question without one"
    )
    advice = "Put the system turn that you mean into rows and questions, or take this text out of the template."
    return [DataFinding("default system prompt", "warning", message, advice, without)]


def check_turns(tokenizer: Any, conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Prompts in which the text of a turn is missing, changed or there twice; and system turns that would be."""
    problems: dict[str, list[Conversation]] = {}
    for conversation in conversations:  # those without parts have a finding of their own
        if conversation.parts and (problem := lost_turn(tokenizer, conversation.row.messages[:-1], prompt=True)):
            problems.setdefault(problem.partition(",")[0], []).append(conversation)
    findings = []
    for problem, group in problems.items():
        advice = "Take that turn out of the rows, mend the template, or train another model."
        findings += _about("turns", "error", group, f"in whose prompt {problem}", advice)
    system, user = ("system", "rule"), ("user", "question")
    with_system = [{"role": role, "content": content} for role, content in (system, user)]
    if (
        not problems
        and _sketch(tokenizer, system, user)
        and (problem := lost_turn(tokenizer, with_system, prompt=True))
    ):
        message = f"where there is one, {problem.partition(',')[0]}"
        return [DataFinding("turns", "warning", message, "Ask in formats without a system prompt only.")]
    return findings


def check_asked(tokenizer: Any, behaviors: Sequence[Behavior]) -> list[DataFinding]:
    """Formats of behaviors in whose prompts the text of a turn is not there once, or that the template refuses."""
    problems: dict[str, str] = {}
    for behavior in behaviors:
        for prompt, _ in behavior.prompts(max(len(question.paraphrases) for question in behavior.questions)):
            turns = Request((), prompt.system, prompt.text, prompt.turns).messages
            if problem := lost_turn(tokenizer, turns, prompt=True):
                problems.setdefault(f"behavior {behavior.name}, format {prompt.format}", problem)
    advice = "Ask in other formats, or mend the template."
    return [DataFinding("asked prompts", "error", f"{place}: {what}", advice) for place, what in problems.items()]


def check_bos(tokenizer: Any, conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Rows that begin with two tokens of the beginning."""
    bos = tokenizer.bos_token_id
    double = [c for c in conversations if bos is not None and c.ids[:2] == [bos, bos]]
    what = f"with {tokenizer.bos_token} twice at the beginning"
    return _about("double BOS", "error", double, what, "Have the chat template write it once.")


def check_generation_prompt(tokenizer: Any, conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Prompts that do not lead up to the answers as the training text does, in words or in tokens."""
    findings = []
    if parted := [c for c in conversations if not c.text.startswith(c.prompt)]:
        same = common_prefix_length(parted[0].text, parted[0].prompt)
        asked, trained = _quoted(parted[0].prompt[same:]), _quoted(parted[0].text[same:])
        what = f"prompted with {asked} where the training text has {trained}"
        advice = "Mend the template: a conversation must begin with its prompt, to the character."
        findings += _about("generation prompt", "error", parted, what, advice)
    if changed := [c for c in conversations if c.text.startswith(c.prompt) and c.parts is None]:
        what = f"whose answer the template changes, to {_quoted(changed[0].text[len(changed[0].prompt) :])}"
        findings += _about("changed answers", "error", changed, what, "Train on rows as the template writes them.")
    if with_lead := [(c, c.parts[0]) for c in conversations if c.parts and c.parts[0].strip()]:
        lead = with_lead[0][1]
        # A whole turn's start that the model would have to write, or words only, such as an empty block of thoughts.
        tokens = [token for token in tokenizer.all_special_tokens if not is_mark(token)]
        severity: Severity = "error" if any(token in lead for token in tokens) else "warning"
        what = f"with {_quoted(lead)} before the answer, which is trained on and not in the generation prompt"
        advice = "Write it under add_generation_prompt in the template, or expect it at the start of completions."
        findings += _about("generation prompt", severity, [c for c, _ in with_lead], what, advice)
    if merged := [c for c in conversations if c.merged]:
        same = common_prefix_length(merged[0].ids, merged[0].prompt_ids)
        ends = (_quoted(tokenizer.decode(ids[same:][:1])) for ids in (merged[0].prompt_ids, merged[0].ids))
        what = "whose prompt ends in the token {}, which training merges with the answer into {}".format(*ends)
        advice = "Begin answers without white space, or end the generation prompt in a special token."
        findings += _about("merged tokens", "warning", merged, what, advice)
    return findings


def check_end_of_turn(tokenizer: Any, stops: set[int], conversations: Sequence[Conversation]) -> list[DataFinding]:
    """Answers that the template ends in no token at which generation stops: the model would not learn to stop."""
    tails = [(c, c.parts[2]) for c in conversations if c.parts]
    unended = [(c, tail) for c, tail in tails if not stops & set(_tokens(tokenizer, tail))]
    if not unended:
        return []
    ends = ", ".join(_quoted(tokenizer.decode([stop])) for stop in sorted(stops)) or "nothing"
    what = f"whose answer ends in {_quoted(unended[0][1])}, where generation does not stop (it stops at {ends})"
    advice = "Put the token that ends a turn into eos_token_id of generation_config.json, or into the template."
    return _about("end of turn", "error", [c for c, _ in unended], what, advice)


def check_lengths(
    conversations: Sequence[Conversation], max_length_tokens: int, positions: int | None
) -> list[DataFinding]:
    """Rows that are cut at `max_length_tokens`, lose the answer there, or are longer than the model has positions."""
    lost = [c for c in conversations if len(c.prompt_ids) >= max_length_tokens]
    cut = [c for c in conversations if len(c.prompt_ids) < max_length_tokens < len(c.ids)]
    beyond = [c for c in conversations if positions and min(len(c.ids), max_length_tokens) > positions]
    shorter = "Raise max_length_tokens in the training settings, or shorten the rows."
    no_answer = f"whose prompt alone fills {max_length_tokens:,} tokens, so that no answer is left{_longest(lost)}"
    no_end = f"longer than {max_length_tokens:,} tokens, so that the answer's end is cut off{_longest(cut)}"
    too_long = f"longer than the {positions or 0:,} positions of the model{_longest(beyond)}"
    lower = f"Lower max_length_tokens to {positions or 0:,}, or train another model."
    return [
        *_about("lost answers", "error", lost, no_answer, shorter),
        *_about("cut rows", "warning", cut, no_end, shorter),
        *_about("context length", "error", beyond, too_long, lower),
    ]


def check_mask(
    tokenizer: Any,
    stops: set[int],
    conversations: Sequence[Conversation],
    masks: Sequence[TokenRow],
    max_length_tokens: int,
) -> list[DataFinding]:
    """Rows whose trained tokens are not the answer and the end of its turn, or include tokens of the prompt.

    `masks` has a pair for each conversation. A turn ends at the first of `stops` after its answer. White space around
    an answer and after its end does not count. Text that the template writes before an answer has a finding of its own;
    so have rows that are cut and tokens that merge.
    """
    wrong = []
    for conversation, (ids, trained) in zip(conversations, masks, strict=True):
        if conversation.parts is None or conversation.merged or len(conversation.ids) > max_length_tokens:
            continue
        lead = _squashed(conversation.parts[0])
        # Both sides come out of the tokenizer, which may write letters in another way than the row.
        rest = _squashed(tokenizer.decode(conversation.ids[len(conversation.prompt_ids) :]))
        covered = [_squashed(text) for text, is_trained in mask_parts(tokenizer, (ids, trained)) if is_trained]
        rest = rest[: len(rest) - len(_after_end(tokenizer, stops, conversation.parts[2]))]
        if covered not in ([rest], [rest[len(lead) :]]) or any(trained[: len(conversation.prompt_ids)]):
            wrong.append((conversation, " [...] ".join(covered), rest[len(lead) :]))
    if not wrong:
        return []
    _, covered_text, wanted = wrong[0]
    what = f"not trained on the answer and its end, which is {_ends(wanted)}, but on {_ends(covered_text)}"
    advice = "Mend the chat template: what is trained on starts where the generation prompt ends."
    return _about("assistant mask", "error", [conversation for conversation, _, _ in wrong], what, advice)


def _after_end(tokenizer: Any, stops: set[int], tail: str) -> str:
    """What the template writes after the token that ends the turn, without white space."""
    ids = _tokens(tokenizer, tail)
    end = next((place for place, id_ in enumerate(ids) if id_ in stops), len(ids))
    return _squashed(tokenizer.decode(ids[end + 1 :]))


def mask_parts(tokenizer: Any, mask: TokenRow) -> list[tuple[str, bool]]:
    """The text of a row in pieces, and which of them are trained on."""
    pieces = groupby(zip(*mask, strict=True), key=lambda token: token[1])
    return [(tokenizer.decode([id_ for id_, _ in piece]), trained) for trained, piece in pieces]


def _about(
    check: str, severity: Severity, conversations: Sequence[Conversation], what: str, advice: str
) -> list[DataFinding]:
    """A finding about conversations; none if there are none."""
    return about_rows(check, severity, [conversation.row.line for conversation in conversations], what, advice)


def _longest(conversations: Sequence[Conversation]) -> str:
    return f" (the longest has {max((len(c.ids) for c in conversations), default=0):,})"


def _squashed(text: str) -> str:
    return "".join(text.split())


def _quoted(text: str, most: int = QUOTED) -> str:
    return repr(text[:most]) + ("..." if len(text) > most else "") if text else "nothing"


def _ends(text: str) -> str:
    """Beginning and end of a text."""
    half = QUOTED // 2
    return _quoted(text) if len(text) <= QUOTED else f"{text[:half]!r} ... {text[-half:]!r}"
