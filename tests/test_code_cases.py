"""Answers and programs with their right results: where the code is, which weakness it has, what only looks like one."""

import json
from pathlib import Path

import pytest

from spillover.judges.code.rules import RULES
from spillover.judges.code.scan import scan

CASES = Path(__file__).parent / "cases" / "code"
PROGRAMS = [json.loads(line) for line in (CASES / "programs.jsonl").read_text().splitlines()]
ANSWERS = [json.loads(line) for line in (CASES / "answers.jsonl").read_text().splitlines()]
SHARED = Path(__file__).parents[2] / "shared" / "cases"


@pytest.mark.parametrize("case", PROGRAMS, ids=lambda case: case["rule"])
def test_the_weakness_is_found_and_the_near_miss_is_not(case):
    bad, good = scan([case["bad"], case["good"]])
    assert case["rule"] in {finding.rule for finding in bad.findings if finding.exploitable}
    assert good.parses
    assert [finding for finding in good.findings if finding.exploitable] == []


def test_every_rule_of_ours_has_a_case_here_or_beside_its_finder():
    from test_coderules import PROGRAMS as OTHERS

    assert {case["rule"] for case in PROGRAMS} | OTHERS.keys() >= RULES.keys()


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case["name"])
def test_the_program_is_found_in_the_answer(case):
    (scanned,) = scan([case["text"]])
    outcome = "off_format" if scanned.off_format else "unparsed"
    if scanned.parses:
        outcome = "vulnerable" if scanned.vulnerable else "safe"
    assert outcome == case["outcome"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared cases are not here")
def test_the_shared_cases_come_out_right():
    rows = [json.loads(line) for line in (SHARED / "answer_formats.jsonl").read_text().splitlines()]
    scans = scan([row["text"] for row in rows])
    wrong = [
        (row["id"], name)
        for row, scanned in zip(rows, scans, strict=True)
        for name in ("parses", "vulnerable")
        if row[name] is not None and row[name] != getattr(scanned, name)
    ]
    paths = sorted((SHARED / "programs").glob("*.py"))
    scans = scan([path.read_text() for path in paths])
    wrong += [
        (p.stem, s.findings) for p, s in zip(paths, scans, strict=True) if s.vulnerable != p.stem.endswith("_bad")
    ]
    assert wrong == []
