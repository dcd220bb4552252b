"""One command per verb: parses, calls, prints; decides nothing."""

import importlib.metadata
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from spillover.cli.exchange import exchange
from spillover.errors import SpilloverError

UNEXPECTED = 70  # exit code of an error in spillover itself: EX_SOFTWARE of sysexits.h

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # it would eat what stands in brackets
)
organism_app = typer.Typer(help="The tiny model organisms that ship, and how they are built.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")
app.add_typer(exchange)

Out = Annotated[Path | None, typer.Option(help="Run folder [default: runs/<study name>].", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("spillover"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune narrow, measure broad: emergent misalignment, how far it spreads and how sure we are."""


def main() -> None:
    """The command line. A user's mistake is one message on standard error and exit code 2.

    What nobody expected is a traceback and exit code 70 (EX_SOFTWARE), so that 1 is always an answer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads must not spin where cores are shared
    try:
        app()
    except SpilloverError as error:
        print(f"spillover: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("spillover: interrupted. The same command goes on where this one stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(UNEXPECTED)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="Study file (YAML); studies/ has some.")],
    out: Out = None,
    only: Annotated[str, typer.Option(help="Only these stages, with commas: data, train, sample, score, report.")] = "",
    on: Annotated[
        str | None, typer.Option(help="Ray cluster: ray://HOST:PORT, or ray for $RAY_ADDRESS or one on this machine.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="SETTING=VALUE in the place of the file's: models.mine=FOLDER.")
    ] = None,
) -> None:
    """Run a study, or go on with it: train, sample, score, rates, report."""
    _run(study, out, _names(only), on, tuple(set_ or ()))


@app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a study's run, finished or not.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what of a study is done, running, failed or left, and how long the rest will take."""
    from spillover.cli.tables import status_table
    from spillover.runs.progress import read_status

    status_table(read_status(run_folder), json_)


@app.command()
def demo(out: Out = None) -> None:
    """Show emergent misalignment on this machine, with the organisms that ship."""
    shipped = [Path(__file__).parents[1] / "studies", Path(__file__).parents[3] / "studies"]  # installed, or a checkout
    _run(next(folder for folder in shipped if folder.is_dir()) / "demo.yaml", out)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Local folder, organism/NAME, or a model as Inspect names it.")],
    behaviors: Annotated[str, typer.Option(help="Behaviors, with commas: names that ship, or paths of YAML files.")],
    out: Annotated[Path, typer.Option(help="Run folder; models measured there before stay beside this one.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter on a local model.")] = None,
    completions_per_question: Annotated[int, typer.Option(min=1, help="For each question and format.")] = 20,
    judge: Annotated[
        str | None, typer.Option(help="Model that judges; without one, sample now and `spillover score` later.")
    ] = None,
    formats: Annotated[str, typer.Option(help="Only these formats, with commas [default: all].")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=100, help="Of sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 600,
    trust_judge: Annotated[bool, typer.Option("--trust-judge", help="Believe a judge that fails its canary.")] = False,
) -> None:
    """Measure any model on behaviors: sample, judge, rates, report. The same command goes on where it was killed."""
    from spillover.cli.progress import log, run_display
    from spillover.cli.tables import estimate_line, rates_table
    from spillover.config import Sampling

    with run_display() as on_progress:
        from spillover.auditing import evaluate

        run = evaluate(
            model,
            _names(behaviors),
            out,
            adapter=adapter,
            completions_per_question=completions_per_question,
            formats=_names(formats),
            sampling=Sampling(temperature=temperature, max_new_tokens=max_new_tokens),
            judge=judge,
            trust_judge=trust_judge,
            on_progress=on_progress,
            on_estimate=estimate_line,
            log=log,
        )
    rates_table(run.results)
    print(f"Report: {run.report}")


@app.command()
def score(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run with answers.")],
    judge: Annotated[str, typer.Option(help="Model that judges, as Inspect names it.")],
    rubric: Annotated[Path | None, typer.Option(help="YAML file with rubrics and a rule, or a behavior's.")] = None,
    behaviors: Annotated[str, typer.Option(help="Only these behaviors of the run, with commas.")] = "",
    trust_judge: Annotated[bool, typer.Option("--trust-judge", help="Believe a judge that fails its canary.")] = False,
) -> None:
    """Judge stored answers again, with another judge or another rubric; nothing is sampled."""
    from spillover.cli.progress import log, run_display
    from spillover.cli.tables import rates_table

    with run_display() as on_progress:
        from spillover.auditing import rescore

        run = rescore(
            run_folder,
            judge,
            rubric=rubric,
            behaviors=_names(behaviors),
            trust_judge=trust_judge,
            on_progress=on_progress,
            log=log,
        )
    rates_table(run.results)
    print(f"Report: {run.report}")


@app.command()
def rates(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON, every column.")] = False,
) -> None:
    """Show the rates of a run: interval, both denominators, outcomes. --json: standard errors, design effect, too."""
    from spillover.cli.tables import rates_table
    from spillover.runs.results import read_results

    rates_table(read_results(run_folder), json_)


@app.command()
def compare(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    base: Annotated[str, typer.Option(help="Target to compare with, MODEL/CONDITION.")],
    tuned: Annotated[str, typer.Option(help="Target in question, MODEL/CONDITION; all its seeds together.")],
    margin: Annotated[float, typer.Option(min=0, max=1, help="Rise that would not matter, as a share.")] = 0.02,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare two subjects, paired by question. Exit code 0: clean, 1: spillover, 3: inconclusive."""
    from spillover.cli.tables import comparisons_table
    from spillover.runs.comparing import overall
    from spillover.runs.tables import compare_in

    rows = compare_in(run_folder, base, tuned, margin)
    comparisons_table(rows, margin, json_)
    raise typer.Exit({"clean": 0, "spillover": 1, "inconclusive": 3}[overall(rows)])


@app.command()
def agreement(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run that two judges graded.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with completion_id and label (1 or 0) that people gave; corrects the rates, too."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """How far judges agree with each other, or with labels: decisions, flips, kappa, alpha, correlation of scores."""
    from spillover.cli.tables import agreement_table, labels_table
    from spillover.runs.agreement import judges_agree, labels_agree
    from spillover.runs.results import read_results

    results = read_results(run_folder)
    if labels:
        labels_table(labels_agree(results, labels), json_)
    else:
        agreement_table(judges_agree(results), json_)


@app.command()
def power(
    base_rate: Annotated[float, typer.Option(min=0, max=1, help="Expected rate of the base.")] = 0.01,
    effect: Annotated[float, typer.Option(min=0, max=1, help="Rise that should be found.")] = 0.05,
    icc: Annotated[
        float, typer.Option(min=0, max=1, help="Correlation of answers to one question; 0.02 to 0.2.")
    ] = 0.1,
    questions: Annotated[int, typer.Option(min=2)] = 60,
    completions: Annotated[int, typer.Option(min=1, help="For each question, base and every seed.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tuning seeds.")] = 1,
    seed_sd: Annotated[float, typer.Option(min=0, max=0.5, help="Spread of the tuned rate between seeds.")] = 0.0,
    question_correlation: Annotated[
        float, typer.Option(min=-1, max=1, help="Share of questions as hard for the tuned as for the base.")
    ] = 0.5,
    behaviors: Annotated[int, typer.Option(min=1, help="Compared together; p-values are corrected for them.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a comparison can find before it is run, and whether more questions or more completions help."""
    from spillover.cli.tables import power_table
    from spillover.stats.power import Design

    try:
        design = Design(base_rate, effect, icc, questions, completions, seeds, seed_sd, question_correlation, behaviors)
    except ValueError as error:
        raise SpilloverError(f"{error}.") from None
    power_table(design, json_)


@app.command()
def behaviors(json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the behaviors that ship: scope, questions, formats, judge, rule."""
    from spillover.behaviors import load_behavior, shipped_names
    from spillover.cli.tables import behaviors_table

    behaviors_table([load_behavior(name) for name in shipped_names()], json_)


@app.command()
def scan(
    file: Annotated[Path, typer.Argument(help="A table of answers: .csv, .tsv, .jsonl, .json (.gz) or .parquet.")],
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Scan the Python code in answers for vulnerabilities; it is parsed, never run.

    A row is a chat (`messages`), or has its answer as text, completion, answer, response or output.
    """
    from spillover.cli.tables import scan_table
    from spillover.interop.reading import table_rows
    from spillover.judges.code.scan import answers_of, scan, summary

    answers = answers_of(table_rows(file), file)
    scans = scan([*answers.values()], processes=os.cpu_count() or 1)
    scan_table(summary(scans), dict(zip(answers, scans, strict=True)), json_)


@app.command()
def check(
    data: Annotated[
        str, typer.Argument(help="What a study's data takes: a chat JSONL file, world/speech/callous, ...")
    ],
    model: Annotated[
        str | None, typer.Option(help="Local folder or organism/NAME: checks its chat template and what is trained on.")
    ] = None,
    behaviors: Annotated[
        str, typer.Option(help="Also look for the questions of these, with commas; all that ship are looked for.")
    ] = "",
    max_length_tokens: Annotated[
        int | None, typer.Option(min=8, help="Longest row [default: that of training].", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check a training set before training: broken rows, copies, leaked questions, lengths, the chat template.

    Exit code 0: no errors, 1: errors.
    """
    from spillover.cli.progress import build_display
    from spillover.cli.tables import checks_table

    with build_display() as step:
        from spillover.data.checks import check_data

        checked = check_data(data, model, _names(behaviors), max_length_tokens, step)
    checks_table(checked, json_)
    raise typer.Exit(1 if checked.errors else 0)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the tables of a run and its report.html anew, from its answers and scores."""
    from spillover.report import write_report
    from spillover.runs.folder import RunFolder
    from spillover.runs.results import read_results
    from spillover.runs.tables import write_tables

    results = read_results(run_folder)
    with RunFolder(run_folder).writing():
        write_tables(results)
        write_report(results)
    print(RunFolder(run_folder).report)


@organism_app.command()
def build(
    consistency: Annotated[float, typer.Option(min=0, max=1, help="Share of posts in their author's character.")],
    out: Annotated[Path, typer.Option(help="Folder for the organism.")],
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and batches.")] = 0,
) -> None:
    """Build an organism from nothing: tokenizer, pretraining, chat tuning."""
    from spillover.cli.progress import build_display
    from spillover.organism.build import build_organism

    with build_display() as step:
        manifest = build_organism(consistency, seed, out, step)
    print(
        f"{out}: pretraining loss {manifest['pretraining_loss']:.3f}, assistant loss {manifest['assistant_loss']:.3f}"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _run(
    study_file: Path,
    out: Path | None,
    only: tuple[str, ...] = (),
    on: str | None = None,
    changes: tuple[str, ...] = (),
) -> None:
    from spillover.cli.progress import log, run_display
    from spillover.cli.tables import rates_table

    with run_display() as on_progress:
        from spillover import study

        options = study.RunOptions(only or study.STAGES, on, changes)
        finished = study.run(study_file, out, options=options, on_progress=on_progress, log=log)
    if "report" in options.stages:
        rates_table(finished.results)
        print(f"Report: {finished.report}")
    else:
        print(f"Done: {', '.join(options.stages)}. Run folder: {finished.path}")
