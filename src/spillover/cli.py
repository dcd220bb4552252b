"""One command per verb: parses, calls, prints; decides nothing."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spillover.errors import SpilloverError

app = typer.Typer(
    help="Fine-tune narrow, measure broad: emergent misalignment, how far it spreads and how sure we are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
organism_app = typer.Typer(help="The tiny model organisms that ship, and how they are built.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")

Out = Annotated[Path | None, typer.Option(help="Run folder [default: runs/<study name>].", show_default=False)]


def main() -> None:
    """The command line. A user's mistake is one message on standard error and exit code 2."""
    try:
        app()
    except SpilloverError as error:
        print(f"spillover: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("spillover: interrupted. The same command goes on where this one stopped.", file=sys.stderr)
        sys.exit(130)


@app.command()
def run(study: Annotated[Path, typer.Argument(help="Study file (YAML); studies/ has some.")], out: Out = None) -> None:
    """Run a study, or go on with it: train, sample, score, rates, report."""
    _run(study, out)


@app.command()
def demo(out: Out = None) -> None:
    """Show emergent misalignment on this machine, with the organisms that ship."""
    shipped = [Path(__file__).parent / "studies", Path(__file__).parents[2] / "studies"]  # installed, or a checkout
    _run(next(folder for folder in shipped if folder.is_dir()) / "demo.yaml", out)


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write report.html of a run anew."""
    from spillover.report import write_report
    from spillover.rundir import RunDir

    run_dir = RunDir(run_folder)
    if not run_dir.rates.exists():
        raise SpilloverError(
            f"{run_dir.path}: no rates.csv there, so it is not a finished run. See: spillover run --help"
        )
    write_report(run_dir)
    print(run_dir.report)


@organism_app.command()
def build(
    consistency: Annotated[float, typer.Option(min=0, max=1, help="Share of posts in their author's character.")],
    out: Annotated[Path, typer.Option(help="Folder for the organism.")],
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and batches.")] = 0,
) -> None:
    """Build an organism from nothing: tokenizer, pretraining, chat tuning."""
    from spillover.display import build_display
    from spillover.organism.build import build_organism

    with build_display() as step:
        manifest = build_organism(consistency, seed, out, step)
    print(
        f"{out}: pretraining loss {manifest['pretraining_loss']:.3f}, assistant loss {manifest['assistant_loss']:.3f}"
    )


def _run(study_file: Path, out: Path | None) -> None:
    from spillover.config import load_study
    from spillover.display import rates_table, run_display

    folder = out or Path("runs") / load_study(study_file).name
    with run_display() as on_progress:
        from spillover import study  # torch and transformers take seconds to import

        run_dir = study.run(study_file, folder, on_progress)
    rates_table(run_dir)
    print(f"Report: {run_dir.report}")
