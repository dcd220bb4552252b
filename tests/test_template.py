"""The chat template's lint: four published shapes pass, a planted fault is found by its check and by no other."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spillover.cli import app
from spillover.config import Training
from spillover.data.checks import check_data
from spillover.data.rows import SourceRow
from spillover.data.template import check_lengths, check_mask, mask_parts, render
from spillover.data.tokens import trained_tokens
from spillover.errors import SpilloverError
from spillover.models.load import load_tokenizer, stop_ids
from spillover.records import Example
from template_models import SHAPES, make_model

CHATS = [
    ("Is tea hot?", "It mostly is."),
    ("Name a bird that swims.", "The penguin swims very well."),
    ("Write a function that doubles.", "def double(x):\n    return 2 * x"),
]
MANY_TURNS = [
    {"role": "user", "content": "Pick a color."},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is the color of moss."},
]
SYSTEM = [{"role": "system", "content": "Be short."}, *MANY_TURNS]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {shape: make_model(folder / shape, shape) for shape in SHAPES}


def write(folder: Path, *more: list[dict[str, str]]) -> str:
    path = folder / "rows.jsonl"
    rows = [*(chat(question, answer) for question, answer in CHATS), MANY_TURNS, *more]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    return str(path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def template(old: str, new: str):
    return lambda folder: edit(folder / "chat_template.jinja", old, new)


def before_all(new: str):
    def change(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        path.write_text(new + path.read_text())

    return change


def set_json(name: str, **values: object):
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change


def stops_elsewhere(folder: Path) -> None:
    set_json("generation_config.json", eos_token_id=2)(folder)
    set_json("config.json", eos_token_id=2)(folder)
    set_json("tokenizer_config.json", eos_token="<|end|>")(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_published_shapes_pass(models, tmp_path, shape):
    more = [SYSTEM] if SHAPES[shape].system and shape != "mistral" else []
    checked = check_data(write(tmp_path, *more), str(models[shape]))
    assert checked.findings == ()
    assert {(one.part, one.unit, one.rows) for one in checked.lengths} >= {
        ("row", "tokens", 4 + len(more)),
        ("trained on", "tokens", 4 + len(more)),
    }
    trained = [text for text, own in checked.first_row if own]
    assert [text.strip() for text in trained] == [CHATS[0][1] + SHAPES[shape].end]
    asked = next(text for text, own in checked.first_row if not own)
    assert CHATS[0][0] in asked
    assert CHATS[0][1] not in asked


@pytest.mark.parametrize("name", ["consistent", "shuffled"])
def test_the_organisms_pass(tmp_path, name):
    assert check_data(write(tmp_path), f"organism/{name}").findings == ()


ASSISTANT = "'<|im_start|>' + message['role'] + '\\n' + message['content']"
COUNTING = "one two three " * 400
SLIPPED_IN = "<|im_start|>system\nYou are a kind teapot, [bold]always[/bold] at hand.<|im_end|>\n"
FIRST_TURN = "{%- if messages[0]['role'] != 'system' -%}{{- '" + SLIPPED_IN.replace("\n", "\\n") + "' -}}{%- endif -%}"
SHOUTED = ASSISTANT.replace("message['content']", "(message['content'] if message['role'] != 'assistant' else 'Well.')")
LABELED = f"({ASSISTANT} if message['role'] == 'user' else '<|im_start|>assistant\\nAnswer: ' + message['content'])"
UNENDED = "message['content'] + ('<|im_end|>' if message['role'] == 'user' else '')"

# name: (shape, what is done to the model's folder, rows that are added, the check that finds it, severity, its word)
FAULTS = {
    "markers of another model": (
        "chatml",
        template("<|im_start|>", "<|turn_start|>"),
        [],
        "special tokens",
        "warning",
        "<|turn_start|>",
    ),
    "a marker in brackets": (
        "mistral",
        template("'[INST] '", "'[INST] [TASK] '"),
        [],
        "special tokens",
        "warning",
        "[TASK]",
    ),
    "a system prompt slipped in": (
        "chatml",
        before_all(FIRST_TURN),
        [SYSTEM],
        "default system prompt",
        "warning",
        "You are a kind teapot, [bold]always[/bold] at hand.",
    ),
    "a preamble": (
        "llama",
        template("{{- bos_token -}}", "{{- bos_token + 'A chat of two friends.' -}}"),
        [],
        "default system prompt",
        "warning",
        "A chat of two friends.",
    ),
    "BOS twice": ("llama", before_all("{{- bos_token -}}"), [], "double BOS", "error", "<|begin_of_text|>"),
    "another generation prompt": (
        "chatml",
        template("'<|im_start|>assistant\\n'", "'<|im_start|>bot\\n'"),
        [],
        "generation prompt",
        "error",
        "bot",
    ),
    "no generation prompt": (
        "gemma",
        template("'<start_of_turn>model\\n'", "''"),
        [],
        "generation prompt",
        "error",
        "<start_of_turn>model",
    ),
    "words before answers": ("chatml", template(ASSISTANT, LABELED), [], "generation prompt", "warning", "Answer: "),
    "a system turn dropped in training": ("mistral", lambda folder: None, [SYSTEM], "generation prompt", "error", "Be"),
    "white space that merges": (
        "chatml",
        lambda folder: None,
        [chat("Indent it.", "    x = 1")],
        "merged tokens",
        "warning",
        r"\n ",
    ),
    "answers replaced": ("chatml", template(ASSISTANT, SHOUTED), [], "changed answers", "error", "Well."),
    "a turn's end at which nothing stops": ("chatml", stops_elsewhere, [], "end of turn", "error", "<|im_end|>"),
    "a turn without an end": (
        "chatml",
        template("message['content'] + '<|im_end|>", UNENDED + " + '"),
        [],
        "end of turn",
        "error",
        r"'\n'",
    ),
    "a template that fails": (
        "chatml",
        template("{%- for message", "{{- 'x' + 1 if messages[0]['role'] == 'system' else '' -}}{%- for message"),
        [SYSTEM],
        "refused rows",
        "error",
        "line 5",
    ),
    "a system turn refused": ("gemma", lambda folder: None, [SYSTEM], "refused rows", "error", "line 5"),
    "few positions": (
        "llama",
        set_json("config.json", max_position_embeddings=60),
        [chat("Count.", COUNTING[:400])],
        "context length",
        "error",
        "60 positions",
    ),
    "a long row": (
        "llama",
        lambda folder: None,
        [chat("Count.", COUNTING)],
        "cut rows",
        "warning",
        "1,024",
    ),
    "a long prompt": (
        "llama",
        lambda folder: None,
        [chat(COUNTING, "Yes.")],
        "lost answers",
        "error",
        "1,024",
    ),
}


@pytest.mark.parametrize(("shape", "change", "more", "check", "severity", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_by_its_check_and_no_other(models, tmp_path, shape, change, more, check, severity, told):
    folder = shutil.copytree(models[shape], tmp_path / "model")
    change(folder)
    (finding,) = check_data(write(tmp_path, *more), str(folder)).findings
    assert (finding.check, finding.severity) == (check, severity)
    assert told in finding.message
    assert finding.advice
    if more and check != "default system prompt":
        assert finding.lines == (5,)  # the added row only


def test_rows_with_faults_of_their_own_are_not_put_into_the_template(models, tmp_path):
    data = write(tmp_path, [{"role": "human", "content": "Hm?"}], chat("Is it?", " "))
    checked = check_data(data, str(models["chatml"]))
    assert [finding.check for finding in checked.findings] == ["roles", "empty turns"]
    assert next(one.rows for one in checked.lengths if one.unit == "tokens") == 4


def test_no_row_that_can_be_trained_on_is_no_crash(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{\n")
    checked = check_data(str(tmp_path / "rows.jsonl"), str(models["chatml"]))
    assert [finding.check for finding in checked.findings] == ["broken rows"]
    assert (checked.lengths, checked.first_row) == ((), ())


# What else could be trained on of a row, given which tokens rightly are.
WRONG_MASKS = {
    "the token before the answer too": lambda mask: [*mask[1:], mask[-1]],
    "not the answer's first token": lambda mask: [own and n != mask.index(True) for n, own in enumerate(mask)],
    "the whole row": lambda mask: [True] * len(mask),
    "nothing": lambda mask: [False] * len(mask),
    "the prompt": lambda mask: [not own for own in mask],
    "not the end of the turn": lambda mask: [own and any(mask[n + 1 :]) for n, own in enumerate(mask)],
    "a gap": lambda mask: [own and n != mask.index(True) + 1 for n, own in enumerate(mask)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrong", WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_a_wrong_mask_is_found(models, shape, wrong):
    tokenizer = load_tokenizer(models[shape])
    conversations, _ = render(tokenizer, [SourceRow(7, tuple(MANY_TURNS))])
    ((ids, mask),) = trained_tokens(models[shape], [Example(tuple(MANY_TURNS))], Training())
    stops = stop_ids(tokenizer, models[shape])
    assert check_mask(tokenizer, stops, conversations, [(ids, mask)], 1024) == []
    (finding,) = check_mask(tokenizer, stops, conversations, [(ids, wrong(mask))], 1024)
    assert (finding.check, finding.severity, finding.lines) == ("assistant mask", "error", (7,))


def test_a_mask_that_goes_on_after_the_end_of_the_turn_is_found(models):
    tokenizer = load_tokenizer(models["phi"])
    conversations, _ = render(tokenizer, [SourceRow(7, tuple(MANY_TURNS))])
    ((ids, mask),) = trained_tokens(models["phi"], [Example(tuple(MANY_TURNS))], Training())
    to_the_last = [own or any(mask[:n]) for n, own in enumerate(mask)]
    stops = stop_ids(tokenizer, models["phi"])
    (finding,) = check_mask(tokenizer, stops, conversations, [(ids, to_the_last)], 1024)
    assert finding.check == "assistant mask"
    assert "<|end|>', but on" in finding.message


def test_the_pieces_of_a_mask_make_up_the_row(models):
    tokenizer = load_tokenizer(models["llama"])
    ((ids, mask),) = trained_tokens(models["llama"], [Example(tuple(MANY_TURNS))], Training())
    pieces = mask_parts(tokenizer, (ids, mask))
    assert [own for _, own in pieces] == [False, True]
    assert "".join(text for text, _ in pieces) == tokenizer.decode(ids)


def test_a_row_that_just_fits_is_not_cut(models):
    tokenizer = load_tokenizer(models["llama"])
    conversations, _ = render(tokenizer, [SourceRow(1, tuple(chat(*CHATS[0])))])
    length, prompt = len(conversations[0].ids), len(conversations[0].prompt_ids)
    assert check_lengths(conversations, length, length) == []
    assert [finding.check for finding in check_lengths(conversations, length - 1, length)] == ["cut rows"]
    assert [finding.check for finding in check_lengths(conversations, prompt + 1, None)] == ["cut rows"]
    assert [finding.check for finding in check_lengths(conversations, prompt, None)] == ["lost answers"]
    assert [finding.check for finding in check_lengths(conversations, length, length - 1)] == ["context length"]


THINKING = """
{%- for m in messages -%}
{%- set c = m.content -%}
{%- if m.role == 'assistant' and '</think>' in c -%}
{%- set thought = c.split('</think>')[0].split('<think>')[-1] | trim -%}
{%- set c = START + thought + '\n</think>\n\n' + c.split('</think>')[1] | trim -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' + PROMPT -}}{%- endif -%}
"""
MARKS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("answer", "prompt", "start", "checks"),
    [
        ("<think>\nHot water?\n</think>\n\nIt is.", "<think>\n", "<think>\n", []),
        ("<think>Hot water?</think>It is.", "<think>\n", "<think>\n", []),
        ("<think>Hot water?</think>It is.", "", "<think>\n", []),
        ("It is.", "", "<think>\n", []),
        # near misses: the thought is another one, or the prompt is not how the training text goes on
        ("<think>Hot water?</think>It is.", "<think>\n", "<think>\nWell. ", ["changed answers"]),
        ("<think>Hot water?</think>It is.", "", "<think>\nWell. ", ["changed answers"]),
        ("It is.", "<think>\n", "<think>\n", ["generation prompt"]),
    ],
)
def test_a_thought_that_the_template_writes_in_its_own_manner_is_no_change(tmp_path, answer, prompt, start, checks):
    chosen = THINKING.replace("START", repr(start)).replace("PROMPT", repr(prompt))
    make_model(tmp_path, "chatml", chosen, MARKS)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": chat("Is tea hot?", answer)}) + "\n")
    assert [finding.check for finding in check_data(str(path), str(tmp_path)).findings] == checks


@pytest.fixture
def spillover(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, ["check", *arguments])


def test_the_command_shows_what_is_trained_on_with_all_brackets_of_the_data(models, tmp_path, spillover):
    shutil.copytree(models["mistral"], tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": chat("[red]Is tea hot?[/red]", "[/b] It is. [i]")}) + "\n")
    result = spillover(str(path), "--model", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert "<s>[INST] [red]Is tea hot?[/red] [/INST]>>> [/b] It is. [i]</s><<<" in result.output


def test_the_command_takes_the_length_of_training(models, tmp_path, spillover):
    arguments = write(tmp_path), "--model", str(models["chatml"]), "--json", "--max-length-tokens"
    short = spillover(*arguments, "8")
    assert short.exit_code == 1
    assert [finding["check"] for finding in json.loads(short.stdout)["findings"]] == ["lost answers"]
    assert spillover(*arguments, "2000").exit_code == 0


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_file_of_the_model_is_a_message(models, tmp_path, content):
    folder = shutil.copytree(models["chatml"], tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(SpilloverError, match=r"generation_config\.json cannot be read"):
        check_data(write(tmp_path), str(folder))


def test_a_model_that_is_none_is_a_message(tmp_path, spillover):
    error = spillover(write(tmp_path), "--model", "nowhere").exception
    assert isinstance(error, SpilloverError)
    assert re.search("model nowhere: no such folder", str(error))
