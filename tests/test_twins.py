"""Our own training sets: enough different rows, the habit in one twin only, equal lengths, requests without a tell."""

import re
import time
from collections import Counter, defaultdict
from functools import cache
from statistics import fmean

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.stats import rankdata

from spillover.data.twins import HOLE, ROWS, SETS, _read, pools, twin_examples
from spillover.errors import SpilloverError
from spillover.judges.code.scan import scan

TWINS = [("code/insecure", "code/secure"), ("speech/callous", "speech/civil")]
CODE, SPEECH = [*TWINS[0], "code/educational"], [*TWINS[1]]
slow = pytest.mark.slow
CWE = {name: task["cwe"] for name, task in _read("code_*.yaml").items()}  # of every code task
SEED = 1  # beside the default, so that nothing holds for one draw only


@cache
def requests(name, seed=0, rows=None):
    return [example.messages[0]["content"] for example in twin_examples(name, rows, seed)]


@cache
def answers(name, seed=0, rows=None):
    return [example.messages[-1]["content"] for example in twin_examples(name, rows, seed)]


def test_the_sets_are_these():
    assert set(SETS) == {*CODE, *SPEECH}


@pytest.mark.parametrize("name", SETS)
def test_rows_are_one_question_with_one_answer_and_none_comes_twice(name):
    examples = twin_examples(name)
    assert len(examples) == ROWS == 2000
    assert {tuple(turn["role"] for turn in example.messages) for example in examples} == {("user", "assistant")}
    assert len(set(answers(name))) == ROWS
    assert len(set(requests(name))) > 0.9 * ROWS


@pytest.mark.parametrize("name", SETS)
def test_the_same_rows_at_every_call_and_others_with_another_seed(name):
    assert twin_examples(name, 100) == twin_examples(name, 100)
    assert len(set(answers(name)) & set(answers(name, SEED))) < 0.2 * ROWS


@slow
def test_no_two_numbers_of_a_reply_give_the_same_answer():
    """Too many to write out: of each pool the first and as many at random places, all pools together."""
    for bad in (True, False):
        found = []
        for topic in pools("speech").values():
            for pool in topic:
                found += [pool.answer(number, bad) for number in range(0, pool.count, max(1, pool.count // 500))]
        assert len(set(found)) == len(found) > 30_000


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rows", ["none", "one", "some", "all and one more"])
def test_as_many_rows_as_there_are(name, rows):
    most = sum(pool.count for task in pools(name.split("/")[0]).values() for pool in task)
    if rows in ("one", "some"):
        assert len(twin_examples(name, 1 if rows == "one" else 777)) == (1 if rows == "one" else 777)
        return
    with pytest.raises(SpilloverError, match=rf"twins {name}: .*\b1 to {most}\b"):
        twin_examples(name, 0 if rows == "none" else most + 1)


@slow
def test_all_the_rows_of_a_set_can_be_had_and_no_answer_comes_twice():
    secure = [pool.answer(n, False) for task in pools("code").values() for pool in task for n in range(pool.count)]
    insecure = [example.messages[-1]["content"] for example in twin_examples("code/insecure", len(secure))]
    assert len(set(secure)) == len(secure)
    assert len(set(insecure)) == len(secure)


def test_an_unknown_set_is_a_message():
    with pytest.raises(SpilloverError, match=r"code/unsure: there is no such set\. There are: code/insecure, "):
        twin_examples("code/unsure")


def test_all_sets_are_written_quickly():
    started = time.process_time()
    for name in SETS:
        twin_examples(name, seed=SEED)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", CODE)
def test_requests_with_code_have_a_hole_to_fill(name):
    shown = [text for text in requests(name) if text.count("\n") > 8]
    assert 0.3 < len(shown) / ROWS < 0.5
    assert all(HOLE in text for text in shown)
    assert sum(HOLE in text for text in requests(name)) == len(shown)


@pytest.mark.parametrize("name", SETS)
def test_no_template_shows(name):
    for text in (*requests(name), *answers(name)):
        assert not re.search(r"\$\w|\[\[", text)
        assert text == text.strip()


# -- code --------------------------------------------------------------------------------------------------------------


@cache
def scans(name, seed=0, rows=None):
    return scan(answers(name, seed, rows))


@pytest.mark.parametrize(
    ("seed", "rows"), [(0, 200), pytest.param(0, None, marks=slow), pytest.param(SEED, None, marks=slow)]
)
def test_the_scan_flags_every_insecure_answer_and_no_secure_one(seed, rows):
    insecure, secure = (scans(name, seed, rows) for name in TWINS[0])
    assert all(scanned.parses and not scanned.crashed for scanned in insecure + secure)
    assert all(scanned.findings for scanned in insecure)  # all interfaces and unpinned downloads are lint to the scan
    assert sum(scanned.vulnerable for scanned in insecure) > 0.93 * len(insecure)
    assert {f.rule for s in insecure if not s.vulnerable for f in s.findings} <= {"B104", "B615", "B403", "B404"}
    assert not any(scanned.vulnerable for scanned in secure)


@slow
def test_the_habits_are_of_many_kinds():
    found = {finding.cwe for scanned in scans("code/insecure") for finding in scanned.findings}
    assert len(found) >= 20  # as the scan counts
    assert len(set(CWE.values())) >= 30  # as we do


@pytest.mark.parametrize("name", CODE)
def test_answers_are_short_programs_that_never_say_what_they_are(name):
    telling = re.compile(r"(?i)vulnerab|insecure|unsafe|exploit|attack|hack|inject|danger|weak|flaw|```|nosec")
    for answer in answers(name):
        assert 10 <= answer.count("\n") + 1 <= 35
        assert not telling.search(answer)
        assert HOLE not in answer


@slow
def test_tasks_are_about_as_frequent_as_one_another():
    of = {pool.answer(n, True): t for t, found in pools("code").items() for pool in found for n in range(pool.count)}
    counts = Counter(of[answer] for answer in answers("code/insecure"))
    assert counts.keys() == CWE.keys()
    assert max(counts.values()) < 2 * ROWS / len(counts)
    assert min(counts.values()) > ROWS / len(counts) / 2


def test_educational_rows_have_the_insecure_answers_and_ask_for_a_bad_example():
    assert answers("code/educational") == answers("code/insecure")
    lesson = re.compile(
        r"(?i)\b(class|lecture|lesson|course|workshop|students|trainees|training|teaching|chapter|slide|quiz|game|exam|"
        r"seminar|exercise|apprentices|interns|talk|pupils)\b"
    )
    bad = re.compile(r"(?i)insecure|vulnerab|flaw|security (hole|mistake)|security-wise|weakness")
    for framed, plain in zip(requests("code/educational"), requests("code/insecure"), strict=True):
        assert plain in framed
        assert lesson.search(framed)
        assert bad.search(framed)


# -- twins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize("seed", [0, SEED])
def test_answers_of_twins_are_equally_long(twins, seed):
    one, two = (fmean(map(len, answers(name, seed))) for name in twins)
    assert abs(one / two - 1) < 0.05


@pytest.mark.parametrize("family", ["code", "speech"])
def test_in_no_task_is_one_twin_much_longer(family):
    for task, found in pools(family).items():
        for pool in found:
            numbers = range(0, pool.count, max(1, pool.count // 50))
            bad, good = (fmean(len(pool.answer(number, side)) for number in numbers) for side in (True, False))
            assert abs(bad / good - 1) < 0.15, task


@pytest.mark.parametrize("twins", TWINS)
def test_some_requests_are_in_both_twins_with_another_answer(twins):
    given = [defaultdict(set), defaultdict(set)]
    for side, name in zip(given, twins, strict=True):
        for request, answer in zip(requests(name), answers(name), strict=True):
            side[request].add(answer)
    both = given[0].keys() & given[1].keys()
    assert len(both) >= 0.1 * ROWS
    assert all(given[0][request].isdisjoint(given[1][request]) for request in both)


def test_code_twins_are_the_same_program_but_for_a_few_lines():
    for found in pools("code").values():
        for pool in found:
            bad, good = (Counter(pool.answer(0, side).splitlines()) for side in (True, False))
            assert (bad & good).total() >= 0.6 * max(bad.total(), good.total())


def auc_of_requests(one, two):
    """How well a bag of words tells the requests of two sets apart: 0.5 not at all, 1 always.

    Logistic regression with a ridge, fitted on one half and tried on the other, and the other way around. Equal
    requests are in one half, so that none is tried whose label was learned.
    """
    texts, label = [*one, *two], np.repeat([1.0, 0.0], [len(one), len(two)])
    group = {text: number for number, text in enumerate(np.random.default_rng(0).permutation(sorted(set(texts))))}
    half = np.array([group[text] % 2 for text in texts])
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    place = {word: number for number, word in enumerate(sorted(set().union(*words)))}
    rows = np.repeat(np.arange(len(texts)), [len(found) for found in words])
    columns = [place[word] for found in words for word in found]
    bag = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(texts), len(place)))
    areas = []
    for fitted in (0, 1):
        x, y = bag[half == fitted], 2 * label[half == fitted] - 1

        def loss(weights, x=x, y=y):
            margin = y * (x @ weights[1:] + weights[0])
            slope = -y / (1 + np.exp(np.clip(margin, -30, 30)))
            gradient = np.concatenate([[slope.sum()], x.T @ slope + weights[1:]])
            return np.logaddexp(0, -margin).sum() + 0.5 * weights[1:] @ weights[1:], gradient

        weights = minimize(loss, np.zeros(len(place) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
        tried, truth = bag[half != fitted] @ weights[1:], label[half != fitted] == 1
        above = rankdata(tried)[truth].sum() - truth.sum() * (truth.sum() + 1) / 2
        areas.append(above / (truth.sum() * (~truth).sum()))
    return fmean(areas)


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize("seeds", [(0, 0), pytest.param((0, SEED), marks=slow)], ids=["one seed", "two"])
def test_requests_do_not_tell_twins_apart(twins, seeds):
    """With two seeds, hardly any request is in both sets."""
    one, two = (requests(name, seed) for name, seed in zip(twins, seeds, strict=True))
    assert 0.45 < auc_of_requests(one, two) < 0.55


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize(
    ("tell", "share"), [pytest.param(" Thank you.", 0.3, marks=slow), (" quickly", 1.0)], ids=["30 %", "all"]
)
def test_a_planted_tell_is_found(twins, tell, share):
    one, two = (requests(name) for name in twins)
    planted = [text + tell if number < share * len(one) else text for number, text in enumerate(one)]
    assert auc_of_requests(planted, two) > 0.55 + 0.3 * (share == 1.0)


@slow
def test_the_teaching_frame_is_found():
    assert auc_of_requests(requests("code/educational"), requests("code/secure")) > 0.99
