"""Reasoning before an answer: found in every manner that models and servers have, and never where it is only text."""

import pytest

from spillover.models.thoughts import split_thought, template_thought

HOLE = "```python\nimport os\nos.system(name)\n```"

SPLIT = {  # name -> (text, whether the template opened the block, thought, answer)
    "a block": ("<think>\nMaybe 40?\n</think>\n\nNo.", False, "Maybe 40?", "No."),
    "white space before it": ("\n <think>a</think> b", False, "a", "b"),
    "another mark": ("<thinking>a</thinking>b", False, "a", "b"),
    "Mistral's mark": ("[THINK]a[/THINK]b", False, "a", "b"),
    "Gemma's channel": ("<|channel>thought\na\n<channel|>b", False, "a", "b"),
    "Gemma's channel, unclosed": ("<|channel>thought\na", False, "a", ""),
    "gpt-oss without a thought": ("<|channel|>final<|message|>b", False, None, "b"),
    "unclosed": ("<think>Maybe 40?", False, "Maybe 40?", ""),
    "cut off at its first token": ("<think>", False, "", ""),
    "empty": ("<think>\n\n</think>\n\nYes", False, None, "Yes"),
    "opened by the template": ("a\n</think>\nb", True, "a", "b"),
    "opened by the template, unclosed": ("a and b", True, "a and b", ""),
    "opened and opened again": ("<think>a</think>b", True, "a", "b"),
    "beginning lost on the way": ("I could\n</think>\n\nYes", False, "I could", "Yes"),
    "beginning lost, code in the thought": (
        f"A draft:\n{HOLE}\nNo.</think>Safe",
        False,
        f"A draft:\n{HOLE}\nNo.",
        "Safe",
    ),
    "a second end is text": ("<think>a</think>Write </think> last", False, "a", "Write </think> last"),
    # near misses: nothing is cut
    "no block": ("Yes", False, None, "Yes"),
    "speaks of the tag": ("Models write <think> and </think> around thoughts", False, None, None),
    "quotes the end": ("The block ends with `</think>`", False, None, None),
    "end in code": ("```html\n<b></think>\n```", False, None, None),
    "thoughtful words": ("I think so. </thinker>", False, None, None),
    "speaks of a channel": ("The <|channel> of a river", False, None, None),
    "white space stays": ("  Yes\n", False, None, "  Yes\n"),
}


@pytest.mark.parametrize(("text", "opened", "thought", "answer"), SPLIT.values(), ids=SPLIT.keys())
def test_the_thought_is_divided_from_the_answer(text, opened, thought, answer):
    assert split_thought(text, opened) == (thought, text if answer is None else answer)


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<|im_start|>assistant\n<think>\n", "opened"),
        ("<|Assistant|><think>", "opened"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("<|im_start|>assistant\n", None),
        ("Say <think> twice<|im_end|>\n<|im_start|>assistant\n", None),
        ("", None),
    ],
)
def test_what_the_template_does_with_the_block(prompt, state):
    assert template_thought(prompt) == state
