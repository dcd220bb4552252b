"""What a study refuses before it works, and what it says of cells that are not done; nothing here is trained."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from report_runs import made_run
from spillover import records, study
from spillover.behaviors import SHIPPED
from spillover.config import load_study
from spillover.errors import SpilloverError
from spillover.files import one_at_a_time
from spillover.models import load as models
from spillover.organism import organism_folder
from spillover.runs import progress as status
from spillover.runs import shared
from spillover.runs.cell import run_cell
from spillover.runs.comparing import write_matrix
from spillover.runs.folder import RunFolder
from spillover.runs.measure import read_wanted
from spillover.runs.progress import DONE, LEFT, RUNNING, State, read_state, read_status
from spillover.stats import MatrixCell
from spillover.workers import Failure

DATA = {"data": "world/code/callous", "rows": 2}
OWN = DATA | {"control": {"kind": "self_distilled"}}
SETTINGS = {
    "name": "small",
    "models": {"m": "organism/consistent"},
    "conditions": {"base": {}, "tuned": DATA},
    "behaviors": {"world_facts": 1},
    "training": {"rank": 2, "alpha": 2, "batch_size": 2},
    "sampling": {"max_new_tokens": 8},
}
DATA_ONLY, REPORT_ONLY = study.RunOptions(("data",)), study.RunOptions(("report",))


def written(folder, **changes):
    folder.mkdir(exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(json.dumps(SETTINGS | changes))  # JSON is YAML
    return path


def planned(folder, **changes):
    return study.plan(load_study(written(folder, **changes)), folder, RunFolder(folder / "run"))[0]


def say_done(job):
    path = job.run / job.state
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(State(DONE, seconds=60, fingerprint=job.fingerprint))))


def states(folder):
    return {cell: state.state for cell, state in read_status(folder / "run").cells.items()}


def own_behavior(folder, file="mine.yaml", name="mine"):
    content = yaml.safe_load((SHIPPED / "world_facts.yaml").read_text())
    (folder / file).write_text(yaml.safe_dump(content | {"name": name}))


def turns(*roles):
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}) + "\n"


REFUSED = {  # what is wrong -> (settings, what is said)
    "no such rows": ({"conditions": {"base": {}, "x": {"data": "not/there.jsonl"}}}, "not/there.jsonl"),
    "no such behavior": ({"behaviors": {"no_such": 1}}, "behavior no_such: unknown"),
    "no judge": ({"behaviors": {"free_form": 1}}, "needs a model as its judge"),
    "a model that is not there": ({"models": {"a": "organism/0.3", "b": "nowhere"}}, "model nowhere: no such folder"),
    "two behaviors of one name": (
        {"behaviors": {"mine.yaml": 1, "mine2.yaml": 1}},
        "behaviors mine.yaml and mine2.yaml are both called mine",
    ),
    "a behavior called like one that ships": (
        {"behaviors": {"world_facts": 1, "facts.yaml": 2}},
        "behaviors world_facts and facts.yaml are both called world_facts",
    ),
    "a prompt that its base cannot answer": (
        {"conditions": {"base": {}, "own": OWN | {"data": "turns.jsonl"}}},
        "conditions.own: row 2: self_distilled takes prompts of one user's turn, not 3 turns",
    ),
}


@pytest.mark.parametrize("model", ["organism/0.3", "organism/consistent"], ids=["to be built", "there"])
@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED)
def test_everything_is_checked_before_anything_is_built_or_answered(monkeypatch, tmp_path, changes, said, model):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(study, "run_side_by_side", lambda *_: pytest.fail("work was begun"))
    for file, name in (("mine.yaml", "mine"), ("mine2.yaml", "mine"), ("facts.yaml", "world_facts")):
        own_behavior(tmp_path, file, name)
    one = turns("user", "assistant")
    (tmp_path / "turns.jsonl").write_text(one + turns("user", "assistant", "user", "assistant"))
    path = written(tmp_path, **{"models": {"m": model}} | changes)
    with pytest.raises(SpilloverError, match=said):
        study.run(path, tmp_path / "run", how=DATA_ONLY)
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_an_organism_written_in_two_ways_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path))
    dials = {"a": "organism/0.3", "b": "organism/0.30", "c": "organism/0.5", "d": "organism/consistent"}
    ends = {"e": "organism/1", "f": "organism/0.0"}
    builds = study._builds(load_study(written(tmp_path, models=dials | ends)))
    assert [build.consistency for build in builds] == [0.3, 0.5]
    assert [models.model_folder(model).name for model in ends.values()] == ["consistent", "shuffled"]


def test_an_organism_of_another_recipe_is_not_taken_for_one_of_this(monkeypatch, tmp_path):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path / "cache"))
    built = models.model_to_build("organism/0.5").out
    shutil.copytree(organism_folder("consistent"), built)
    assert models.model_to_build("organism/0.5") is None
    assert models.model_folder("organism/0.5") == built
    other = tmp_path / "other"
    shutil.copytree(organism_folder("consistent"), other)
    made = json.loads((other / "manifest.json").read_text())
    made["recipe"]["pages"] += 1
    (other / "manifest.json").write_text(json.dumps(made))
    monkeypatch.setattr(models, "organism_folder", lambda name: other)
    assert models.model_to_build("organism/0.5").out != built


@pytest.mark.parametrize("made_by", ["import", "evaluate"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, made_by):
    run_dir = RunFolder(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.manifest.write_text(json.dumps({"name": made_by}))
    with pytest.raises(SpilloverError, match=r"holds answers that no study has put there\. Choose another --out"):
        study.run(written(tmp_path), run_dir.path, how=DATA_ONLY)
    assert json.loads(run_dir.manifest.read_text()) == {"name": made_by}


def test_the_behavior_that_a_row_implants_is_known_by_its_file(tmp_path):
    own_behavior(tmp_path)
    conditions = {"base": {}, "tuned": DATA | {"implants": "mine.yaml"}}
    run_dir = study.run(
        written(tmp_path, behaviors={"mine.yaml": 1}, conditions=conditions), tmp_path / "run", how=DATA_ONLY
    )
    names = json.loads(run_dir.behavior_names.read_text())
    assert names == {"mine.yaml": "mine"}

    measured = made_run(
        tmp_path / "made",
        ["m"],
        {"tuned": {"implants": "mine"}},
        {"mine": ("narrow", "world"), "chat": ("broad", "world")},
        lambda model, condition, behavior: 0.6 if condition == "tuned" else 0.05,
    )
    content = yaml.safe_load(measured.study.read_text())
    content["behaviors"] = {"mine.yaml": 1, "chat": 1}
    content["conditions"]["tuned"]["implants"] = "mine.yaml"
    measured.study.write_text(yaml.safe_dump(content))
    measured.behaviors.mkdir(exist_ok=True)
    measured.behavior_names.write_text(json.dumps(names))
    write_matrix(measured)
    cells = {cell.behavior: cell for cell in records.read_csv(measured.matrix, MatrixCell)}
    assert {name: cell.own for name, cell in cells.items()} == {"mine": True, "chat": False}
    assert cells["mine"].verdict == "implanted"


@pytest.mark.parametrize(
    ("change", "state"),
    {
        "the same": ({}, DONE),
        "another rank": ({"training": SETTINGS["training"] | {"rank": 4}}, LEFT),
    }.values(),
)
def test_cells_of_other_settings_are_left_as_soon_as_the_settings_change(tmp_path, change, state):
    base, tuned = planned(tmp_path)
    say_done(base)
    say_done(tuned)
    study.run(written(tmp_path, **change), tmp_path / "run", how=DATA_ONLY)
    assert states(tmp_path) == {"m/base": DONE, "m/tuned/seed-0": state}


def test_cells_whose_rows_are_answered_anew_are_left_before(monkeypatch, tmp_path):
    conditions = {"base": {}, "own": OWN}
    for job in planned(tmp_path, conditions=conditions):
        say_done(job)
    seen = []

    def begin(function, jobs, *_):
        seen.append(states(tmp_path))
        return [Failure(str(job), "as if") for job in jobs]

    monkeypatch.setattr(study, "run_side_by_side", begin)
    with pytest.raises(SpilloverError, match="m/own/seed-0: its base could not answer its prompts: as if"):
        study.run(written(tmp_path, conditions=conditions), tmp_path / "run", how=DATA_ONLY)
    assert seen == [{"m/base": DONE, "m/own/seed-0": LEFT}]


def test_answers_that_fail_are_the_failure_of_their_own_cells(tmp_path):
    conditions = {"base": {}, "tuned": DATA, "own": OWN, "own_asked": {"same_as": "own"}}
    (tmp_path / "run" / "data" / "own").mkdir(parents=True)
    (tmp_path / "run" / "data" / "own" / "m").write_text("in the way")
    with pytest.raises(SpilloverError, match="2 of 4 cells are not done") as raised:
        study.run(written(tmp_path, conditions=conditions), tmp_path / "run", how=DATA_ONLY)
    assert "m/own/seed-0, m/own_asked/seed-0: its base could not answer its prompts: " in str(raised.value)
    assert "Without --only the command goes on with these." in str(raised.value)
    assert states(tmp_path) == {
        "m/base": LEFT,
        "m/tuned/seed-0": LEFT,
        "m/own/seed-0": "failed",
        "m/own_asked/seed-0": "failed",
    }
    assert set(json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]) == {"m/tuned"}


@pytest.fixture(scope="module")
def base_done(tmp_path_factory):
    """A study of a base that has answered, and of a condition that has not been trained."""
    folder = tmp_path_factory.mktemp("base_done")
    base, _ = planned(folder)
    study.run(written(folder), folder / "run", how=DATA_ONLY)
    run_cell(replace(base, stages=study.STAGES), lambda *_: None)
    return folder


def test_a_cell_without_its_adapter_fails_alone_and_the_report_names_it(base_done, tmp_path):
    shutil.copytree(base_done, tmp_path / "study")
    folder = tmp_path / "study"
    _, tuned = planned(folder)
    say_done(tuned)
    with pytest.raises(SpilloverError, match="1 of 2 cells is not done") as raised:
        study.run(written(folder), folder / "run", how=REPORT_ONLY)
    assert "\nm/tuned/seed-0: no adapter of these rows and settings is there" in str(raised.value)
    run_dir = RunFolder(folder / "run")
    assert list(map(str, read_wanted(run_dir))) == ["m/base"]
    page = run_dir.report.read_text()
    assert "1 of 2 cells is not in this report: m/tuned/seed-0." in page
    counted = {path: path.read_bytes() for path in run_dir.cells.iterdir()}

    (run_dir.part(read_wanted(run_dir).popitem()[0]).state).unlink()
    with pytest.raises(SpilloverError, match="2 of 2 cells are not done"):
        study.run(written(folder), folder / "run", how=REPORT_ONLY)
    assert {path: path.read_bytes() for path in run_dir.cells.iterdir()} == counted  # `spillover score` still can


def test_a_cell_hands_over_its_answers_while_it_is_at_work(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "SHARE_EVERY_SECONDS", 0)
    monkeypatch.setattr(status, "WRITE_EVERY_SECONDS", 0.05)
    base, _ = planned(tmp_path)
    there = RunFolder(tmp_path / "shared").part(base.cell)
    seen = []

    def step(stage, done, of):
        deadline = time.monotonic() + 20
        while (stage, done) == ("score", 0) and not seen and time.monotonic() < deadline:
            if there.completions.exists():
                seen.append(read_state(there.state))
            time.sleep(0.05)

    run_cell(replace(base, shared=(tmp_path / "shared").as_uri(), stages=study.STAGES), step)
    assert [(state.state, state.owner) for state in seen] == [(RUNNING, base.owner)]
    assert read_state(there.state).state == DONE
    assert len(there.scores.read_text().splitlines()) == len(there.completions.read_text().splitlines()) == 120
    assert not base.run.exists()  # the run fetches it


def test_a_cell_that_another_process_is_at_waits_for_it(base_done, monkeypatch, tmp_path):
    base, _ = planned(base_done)
    steps, slept = [], []
    held = one_at_a_time(base.run / base.lock, print)
    held.__enter__()

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            held.__exit__(None, None, None)

    monkeypatch.setattr("spillover.files.time.sleep", sleep)
    monkeypatch.setattr("spillover.files.TELL_AFTER_SECONDS", 0)
    run_cell(replace(base, stages=("sample",)), lambda *step: steps.append((*step, len(slept))))
    assert steps[0] == ("waits for another run that is at it", 0, 1, 0)
    assert {at for *_, at in steps[1:]} <= {3}
    assert len(slept) == 3


@pytest.mark.parametrize(
    ("gpus", "visible", "workers", "shares"),
    [
        (0, "0", 4, []),
        (1, "0", 1, ["0"]),
        (0.5, "0", 2, ["0", "0"]),
        (0.6, "0,1", 2, ["0", "1"]),
        (0.1, "0", 4, ["0", "0", "0", "0"]),
        (2, "0", 1, ["0"]),
        (1, "0,1", 2, ["0", "1"]),
        (1, "5,GPU-7", 2, ["5", "GPU-7"]),
        (2, "0,1,2,3,4", 2, ["0,1", "2,3"]),
        (1, "", 4, []),
    ],
)
def test_cells_at_once_have_gpus_of_their_own(monkeypatch, tmp_path, gpus, visible, workers, shares):
    seen = []
    devices = len(visible.split(",")) if visible else 0
    if visible == ",".join(map(str, range(devices))):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(study, "run_side_by_side", lambda _, __, at_once, ___, gpus: seen.append((at_once, gpus)))
    monkeypatch.setattr(study.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(study.torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(study.torch.cuda, "device_count", lambda: devices)
    settings = load_study(written(tmp_path, resources={"cpus": 4, "gpus": gpus}))
    study._run_all(print, [SimpleNamespace(threads=4)] * 8, settings, study.RunOptions(), print)
    assert seen == [(workers, shares)]


def test_the_resolved_settings_are_read_back_as_they_were(tmp_path):
    conditions = {"base": {}, "1e-5": DATA | {"prefix": "2e3"}}
    path = written(tmp_path, conditions=conditions)
    run_dir = study.run(path, tmp_path / "run", how=DATA_ONLY)
    assert load_study(run_dir.study) == load_study(path)
    assert set(states(tmp_path)) == {"m/base", "m/1e-5/seed-0"}


def test_a_judge_that_fails_its_canary_is_believed_if_the_study_says_so(monkeypatch, tmp_path):
    said = []

    def check_judge(judge, run_dir, force):
        said.append((judge, force))
        raise SpilloverError("enough")

    monkeypatch.setattr(study, "check_judge", check_judge)
    settings = {"behaviors": {"free_form": 1}, "judge": "openai/x", "conditions": {"base": {}}}
    for trust in (False, True):
        with pytest.raises(SpilloverError, match="enough"):
            study.run(written(tmp_path, **settings, trust_judge=trust), tmp_path / "run")
    assert said == [("openai/x", False), ("openai/x", True)]


@pytest.mark.parametrize("missing", ["cell", "rows"])
def test_a_model_that_is_not_on_this_machine_is_named(tmp_path, missing):
    (tmp_path / "run").mkdir()
    settings = load_study(written(tmp_path, conditions={"base": {}, "own": OWN}))
    jobs, (distilling,) = study.plan(settings, tmp_path, RunFolder(tmp_path / "run"))
    job, function = (jobs[0], run_cell) if missing == "cell" else (distilling, study.distill)
    with pytest.raises(SpilloverError, match=r"/not/here is not on .*must be there on every machine"):
        function(replace(job, base=Path("/not/here")), lambda *_: None)
