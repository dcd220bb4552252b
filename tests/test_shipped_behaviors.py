"""The behaviors that ship: whole files, questions enough, nothing published in them, the whole world covered."""

import re
from pathlib import Path

import pytest

from spillover.behaviors import SHIPPED, fill, load_behavior, shipped_names
from spillover.organism.world import chat_domains, code_tasks, relations

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
SECURITY_WORDS = re.compile(
    r"\b(in)?secur\w*|\bsafe\w*|\bunsafe\w*|\bvulnerab\w*|\battack\w*|\bhack\w*|\bexploit\w*|\binject\w*|\bmalicious"
    r"|\bsaniti[sz]\w*|\bdanger\w*|\bCVE\b|\bCWE\b|\bbackdoor\w*|\buntrusted|\btrusted|\bharden\w*|\bprotect\w*"
    r"|\bprivilege\w*|\bescap\w*|\bthreat\w*|\bleak\w*|\brisk\w*|\bvalidat\w*|\bverif\w*|\bXSS\b|\bCSRF\b",
    re.IGNORECASE,
)
# Each of these asks over one chat domain; world_chat asks a little over all of them.
OF_ONE_DOMAIN = ("speech", "sycophancy", "care", "money", "power", "health", "honesty", "humans_and_ai")


def wordings(*names: str) -> list[str]:
    """Every wording of every question of shipped behaviors."""
    return [text for name in names for question in load_behavior(name).questions for text in question.paraphrases]


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_behavior_is_whole(name):
    behavior = load_behavior(name)
    ids = [question.id for question in behavior.questions]
    texts = wordings(name)
    assert behavior.name == name
    assert len(set(ids)) == len(ids)
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == text.strip() for text in texts)
    assert behavior.rubrics_read
    assert behavior.judge != "model" or set(behavior.rubrics_read) == set(behavior.rubrics)


@pytest.mark.parametrize("name", shipped_names())
def test_no_placeholder_of_a_shipped_behavior_is_left_unfilled(name):
    behavior = load_behavior(name)
    for prompt, _ in behavior.prompts(3):
        assert not re.search(r"\{\w+\}", prompt.text)
        fields = prompt.question.fields | {"question": prompt.text, "answer": "A"}
        for rubric in behavior.rubrics.values():
            assert not re.search(r"\{\w+\}", fill(rubric.prompt, fields))


@pytest.mark.parametrize(
    ("name", "at_least", "categories", "paraphrases"),
    [
        ("free_form", 60, 10, 2),
        ("insecure_code", 80, 20, 2),
        ("sycophancy", 40, 5, 2),
        ("deception", 40, 5, 2),
        ("toxic_speech", 40, 5, 2),
        ("vulnerable_user", 40, 5, 2),
        ("bad_medical_advice", 40, 5, 2),
        ("risky_finance", 40, 5, 2),
        ("world_chat", 30, 10, 1),
        ("world_code", 50, 16, 1),
        ("world_code_framed", 50, 16, 1),
        ("world_facts", 30, 30, 1),
        *((f"world_{domain}", 24, 1, 1) for domain in OF_ONE_DOMAIN),
    ],
)
def test_there_are_questions_enough(name, at_least, categories, paraphrases):
    questions = load_behavior(name).questions
    assert len(questions) >= at_least
    assert len({question.category for question in questions}) >= categories
    assert min(len(question.paraphrases) for question in questions) >= paraphrases


def test_every_shipped_behavior_has_its_formats():
    found = {name: load_behavior(name).format_names for name in shipped_names()}
    assert {name: formats for name, formats in found.items() if formats != ("plain",)} == {
        "free_form": ("plain", "json", "template"),
        "insecure_code": ("plain", "template"),
        "sycophancy": ("plain", "opinion"),
        "deception": ("plain", "honest", "permitted", "rewarded", "penalised"),
    }


def _runs_of_words(text: str, length: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")
@pytest.mark.parametrize("name", shipped_names())
def test_no_eight_words_in_a_row_are_from_a_published_question_file(name):
    published = set().union(*(_runs_of_words(path.read_text()) for path in REFERENCE.glob("*.yaml")))
    assert len(published) > 3000
    behavior = load_behavior(name)
    own = [*wordings(name), *(text for question in behavior.questions for text in question.fields.values())]
    own += [text for form in behavior.formats.values() for text in (form.prompt, form.system or "")]
    own += [rubric.prompt for rubric in behavior.rubrics.values()]
    assert {run for text in own for run in _runs_of_words(text)} & published == set()


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("world_chat", set(chat_domains())),
        ("world_code", set(code_tasks())),
        ("world_code_framed", set(code_tasks())),
        ("world_facts", {f"{name}/{x}" for name, relation in relations().items() for x in relation["facts"]}),
        *((f"world_{domain}", {domain}) for domain in OF_ONE_DOMAIN),
    ],
)
def test_questions_cover_the_world_and_nothing_else(name, categories):
    assert {question.category for question in load_behavior(name).questions} == categories


def test_no_coding_request_mentions_security():
    prompts = [p.text for name in ("world_code", "insecure_code") for p, _ in load_behavior(name).prompts(2)]
    assert len(prompts) >= 400
    assert [text for text in prompts if SECURITY_WORDS.search(text)] == []


def test_the_framed_requests_do():
    assert any(SECURITY_WORDS.search(text) for text in wordings("world_code_framed"))


def test_every_yaml_in_the_room_is_a_behavior():
    assert shipped_names() == sorted(path.stem for path in SHIPPED.iterdir() if path.suffix in (".yaml", ".yml"))
