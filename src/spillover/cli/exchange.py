"""The commands that take answers in from elsewhere, and give them out."""

from pathlib import Path
from typing import Annotated

import typer

from spillover.errors import SpilloverError

exchange = typer.Typer()


@exchange.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="Answers: .csv, .tsv, .jsonl, .json (.gz), .parquet, or an Inspect log (.eval)."),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    behavior: Annotated[
        str | None,
        typer.Option(help="Behavior to judge by: a name or a YAML file [default: the log's own, or free_form]."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="OURS=THEIRS, again for each column. OURS: question, answer, question_id, model, condition, seed, "
            "system, format, stop_reason, judge, outcome, or a rubric (scores 0-100; of a log: the score's key)."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model that answered, where no column says.")] = None,
    condition: Annotated[str | None, typer.Option(help="Name of its condition, where no column says.")] = None,
    scale: Annotated[
        list[str] | None, typer.Option(help="RUBRIC=LOW:HIGH, again for each: a scale that is not 0:100.")
    ] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="WORD=SCORE, again for each: what a word or a letter stands for.")
    ] = None,
    judge_name: Annotated[str | None, typer.Option(help="Who gave the scores.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Take in an Inspect log that lacks samples.")
    ] = False,
) -> None:
    """Make a run folder of answers from elsewhere, with their scores; `spillover score` judges them again."""
    from spillover.cli.progress import build_display
    from spillover.cli.tables import rates_table

    with build_display() as step:
        from spillover.interop.importing import import_answers
        from spillover.interop.tables import Options, column_pairs, scale_pairs, word_pairs
        from spillover.report import write_report

        options = Options(
            column_pairs(column or []),
            behavior,
            judge_name,
            allow_missing,
            model,
            condition,
            scale_pairs(scale or []),
            word_pairs(word or []),
        )
        found = import_answers(files, out, options, step)
        write_report(found.results)
    rates_table(found.results)
    missing = f"; {found.missing} samples are MISSING from the logs" if found.missing else ""
    print(f"{found.completions} completions, {found.scores} scores{missing}")
    print(f"Report: {out / 'report.html'}")


@exchange.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run with answers.")],
    format_: Annotated[str, typer.Option("--format", help="inspect: an .eval log per cell and behavior.")] = "inspect",
) -> None:
    """Write a run as Inspect logs, for `inspect view`, into its folder inspect/."""
    if format_ != "inspect":
        raise SpilloverError(f"--format {format_}: unknown. There is inspect.")
    from spillover.interop.inspect_logs import export_inspect

    for path in export_inspect(run_folder):
        print(path)
