"""What a study refuses before it works, what its jobs carry, and what it says of cells that are not done."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from spillover import study
from spillover.behaviors import SHIPPED
from spillover.config import load_study
from spillover.errors import SpilloverError
from spillover.files import one_at_a_time
from spillover.models import load as models
from spillover.organism import dial, organism_folder
from spillover.runs.cell import run_cell
from spillover.runs.folder import RunFolder
from spillover.runs.frames import open_run
from spillover.runs.inputs import builds_of, read_inputs
from spillover.runs.progress import DONE, LEFT, read_status

STUDIES = Path(__file__).parents[1] / "studies"
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
    inputs = read_inputs(load_study(written(folder, **changes)), folder)
    return study.plan(inputs, RunFolder(folder / "run"))


def states(folder):
    return {cell: state.state for cell, state in read_status(folder / "run").cells.items()}


def write_behavior(folder, file="mine.yaml", name="mine"):
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
    monkeypatch.setattr(study, "run_side_by_side", lambda *_, **__: pytest.fail("work was begun"))
    for file, name in (("mine.yaml", "mine"), ("mine2.yaml", "mine"), ("facts.yaml", "world_facts")):
        write_behavior(tmp_path, file, name)
        path = tmp_path / file
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(content | {"description": file}))  # not the same by another path
    one = turns("user", "assistant")
    (tmp_path / "turns.jsonl").write_text(one + turns("user", "assistant", "user", "assistant"))
    path = written(tmp_path, **{"models": {"m": model}} | changes)
    with pytest.raises(SpilloverError, match=said):
        study.run(path, tmp_path / "run", options=DATA_ONLY)
    assert not (tmp_path / "run" / "study.yaml").exists()


def test_an_organism_written_in_two_ways_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path))
    dials = {"a": "organism/0.3", "b": "organism/0.30", "c": "organism/0.5", "d": "organism/consistent"}
    ends = {"e": "organism/1", "f": "organism/0.0"}
    builds = builds_of(load_study(written(tmp_path, models=dials | ends)))
    assert [build.consistency for build in builds] == [0.3, 0.5]
    assert [models.model_folder(model).name for model in ends.values()] == ["consistent", "shuffled"]


def test_an_organism_of_another_recipe_is_not_taken_for_one_of_this(monkeypatch, tmp_path):
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path / "cache"))
    built = dial.model_to_build("organism/0.5").out
    shutil.copytree(organism_folder("consistent"), built)
    assert dial.model_to_build("organism/0.5") is None
    assert models.model_folder("organism/0.5") == built
    other = tmp_path / "other"
    shutil.copytree(organism_folder("consistent"), other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["recipe"]["pages"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(dial, "organism_folder", lambda name: other)
    assert dial.model_to_build("organism/0.5").out != built


@pytest.mark.parametrize("made_by", ["import", "evaluate"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, made_by):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.manifest.write_text(json.dumps({"name": made_by}))
    with pytest.raises(SpilloverError, match=r"holds answers that no study has put there\. Choose another --out"):
        study.run(written(tmp_path), folder.path, options=DATA_ONLY)
    assert json.loads(folder.manifest.read_text()) == {"name": made_by}


def test_a_job_names_files_and_carries_no_rows(tmp_path):
    study_ = load_study(STUDIES / "transfer.yaml")
    jobs, distill_jobs = study.plan(read_inputs(study_, STUDIES), RunFolder(tmp_path))
    assert len(jobs) == 56
    assert len(pickle.dumps([*jobs, *distill_jobs])) < 1_000_000
    assert len(pickle.dumps(jobs[1])) < 5_000


def test_a_fingerprint_changes_with_what_decides_the_results_and_with_nothing_else(tmp_path):
    def fingerprints(**changes):
        return [job.fingerprint for job in planned(tmp_path, **changes)[0]]

    base, tuned = fingerprints()
    assert fingerprints(name="other", description="words", margin=0.3, resources={"cpus": 1}) == [base, tuned]
    same = {
        "training": {"training": SETTINGS["training"] | {"rank": 4}},
        "rows": {"conditions": {"base": {}, "tuned": DATA | {"rows": 3}}},
        "seed": {"seeds": [1]},
    }
    for change in same.values():  # the base is not trained
        assert fingerprints(**change)[0] == base
        assert fingerprints(**change)[1] != tuned
    for change in ({"sampling": {"max_new_tokens": 9}}, {"behaviors": {"world_facts": 2}}, {"formats": ["plain"]}):
        assert not {base, tuned} & {*fingerprints(**change)}


def test_the_behavior_that_a_condition_implants_is_known_by_its_file(tmp_path):
    write_behavior(tmp_path)
    conditions = {"base": {}, "tuned": DATA | {"implants": "mine.yaml"}}
    run = study.run(written(tmp_path, behaviors={"mine.yaml": 1}, conditions=conditions), tmp_path / "run")
    behaviors = run.results.manifest["behaviors"]
    assert {name: entry["setting"] for name, entry in behaviors.items()} == {"mine": "mine.yaml"}
    assert [(cell.behavior, cell.own) for cell in run.results.matrix] == [("mine", True)]


def test_answers_that_fail_are_the_failure_of_their_own_cells(tmp_path):
    conditions = {"base": {}, "tuned": DATA, "own": OWN, "own_asked": {"same_as": "own"}}
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "own").write_text("in the way")
    with pytest.raises(SpilloverError, match="2 of 4 cells are not done") as raised:
        study.run(written(tmp_path, conditions=conditions), tmp_path / "run", options=DATA_ONLY)
    assert "m/own/seed-0, m/own_asked/seed-0: its base could not answer its prompts: " in str(raised.value)
    assert "Without --only the command goes on with these." in str(raised.value)
    failed = {"m/own/seed-0": "failed", "m/own_asked/seed-0": "failed"}
    assert states(tmp_path) == {"m/base": LEFT, "m/tuned/seed-0": LEFT} | failed
    assert set(json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]) == {"m/tuned"}


def test_a_cell_without_its_adapter_fails_alone_and_the_report_names_it(run_copy):
    study_file = run_copy.parent / "study.yaml"
    shutil.rmtree(run_copy / "adapters" / "consistent" / "secure" / "seed-1")
    with pytest.raises(SpilloverError, match="1 of 5 cells is not done") as raised:
        study.run(study_file, run_copy, options=REPORT_ONLY)
    assert "\nconsistent/secure/seed-1: not done yet. Run the stages train, sample and score first." in str(
        raised.value
    )
    assert len(open_run(run_copy).results.cells) == 4
    assert "consistent/secure/seed-1" in (run_copy / "report.html").read_text()
    assert states(run_copy.parent)["consistent/secure/seed-1"] == "failed"
    study.run(study_file, run_copy)
    assert set(states(run_copy.parent).values()) == {DONE}


def test_stages_can_be_done_one_after_the_other(finished_run, tmp_path):
    path = tmp_path / "study.yaml"
    settings = yaml.safe_load((finished_run.parent / "study.yaml").read_text())
    conditions = {name: settings["conditions"][name] for name in ("base", "secure")}
    path.write_text(yaml.safe_dump(settings | {"conditions": conditions, "seeds": [0]}))
    for stage in ("data", "train", "sample", "score"):
        study.run(path, tmp_path / "run", options=study.RunOptions((stage,)))
        assert set(states(tmp_path).values()) <= {LEFT, DONE, "stopped"}
    run = study.run(path, tmp_path / "run", options=REPORT_ONLY)
    whole = {(rate.condition, rate.seed, rate.behavior): rate for rate in open_run(finished_run).results.rates}
    assert len(run.results.rates) == 6
    for rate in run.results.rates:
        assert rate == whole[rate.condition, rate.seed, rate.behavior]


def test_a_stage_without_the_one_before_says_which(tmp_path):
    with pytest.raises(
        SpilloverError, match=r"no adapter of these rows and settings is there\. Run the stage train first"
    ):
        study.run(written(tmp_path), tmp_path / "run", options=study.RunOptions(("sample",)))
    with pytest.raises(SpilloverError, match=r"120 of 120 answers are not there\. Run the stage sample first"):
        study.run(written(tmp_path, conditions={"base": {}}), tmp_path / "run2", options=study.RunOptions(("score",)))
    with pytest.raises(
        SpilloverError, match=r"--only nap: no such stage\. There are: data, train, sample, score, report"
    ):
        study.run(written(tmp_path), tmp_path / "run3", options=study.RunOptions(("nap",)))


def test_rows_that_change_while_the_run_goes_on_are_refused(tmp_path):
    study.run(written(tmp_path), tmp_path / "run", options=DATA_ONLY)
    (_, tuned), _ = planned(tmp_path)
    path = tmp_path / "run" / tuned.tuning.rows
    path.write_text(path.read_text() * 2)
    with pytest.raises(SpilloverError, match=r"tuned\.jsonl: was changed while the run was going on"):
        run_cell(replace(tuned, stages=("train",)), lambda *_: None)


def test_a_cell_that_another_process_is_at_waits_for_it(monkeypatch, tmp_path):
    study.run(written(tmp_path), tmp_path / "run", options=DATA_ONLY)
    (base, _), _ = planned(tmp_path)
    steps, slept = [], []
    lock = RunFolder(base.folder).part(base.cell).path / ".lock"
    held = one_at_a_time(lock, print)
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
    monkeypatch.setattr(
        study, "run_side_by_side", lambda _, __, at_once, ___, gpus, *____: seen.append((at_once, gpus))
    )
    monkeypatch.setattr(study.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(study, "gpu_count", lambda: devices)
    inputs = read_inputs(load_study(written(tmp_path, resources={"cpus": 4, "gpus": gpus})), tmp_path)
    jobs, _ = study.plan(inputs, RunFolder(tmp_path / "run"))
    study._run_all(print, jobs, inputs, None, print, print)
    assert seen == [(workers, shares)]


def test_the_resolved_settings_are_read_back_as_they_were(tmp_path):
    conditions = {"base": {}, "1e-5": DATA | {"prompt_prefix": "2e3"}}
    path = written(tmp_path, conditions=conditions)
    study.run(path, tmp_path / "run", options=DATA_ONLY)
    assert load_study(tmp_path / "run" / "study.yaml") == load_study(path)
    assert set(states(tmp_path)) == {"m/base", "m/1e-5/seed-0"}


def test_a_judge_that_fails_its_canary_is_believed_if_the_study_says_so(monkeypatch, tmp_path):
    calls = []

    def check_judge(judge, path, trust_judge, log):
        calls.append((judge, trust_judge))
        raise SpilloverError("enough")

    monkeypatch.setattr(study, "check_judge", check_judge)
    settings = {"behaviors": {"free_form": 1}, "judge": "openai/x", "conditions": {"base": {}}, "formats": ["plain"]}
    for trust in (False, True):
        with pytest.raises(SpilloverError, match="enough"):
            study.run(written(tmp_path, **settings, trust_judge=trust), tmp_path / "run")
    assert calls == [("openai/x", False), ("openai/x", True)]


@pytest.mark.parametrize("missing", ["cell", "rows"])
def test_a_model_that_is_not_on_this_machine_is_named(tmp_path, missing):
    jobs, (distill_job,) = planned(tmp_path, conditions={"base": {}, "own": OWN})
    job, function = (jobs[0], run_cell) if missing == "cell" else (distill_job, study.distill)
    with pytest.raises(SpilloverError, match=r"/not/here is not on .*must be there on every machine"):
        function(replace(job, base=Path("/not/here")), lambda *_: None)
