"""The library's way to read results: runs and answers in, pandas frames out."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.behaviors import Behavior
from spillover.records import Completion, Rate, Score, ScoreMean
from spillover.runs.comparing import Compared, compare_targets
from spillover.runs.folder import RunFolder
from spillover.runs.results import Results, read_results, results_from
from spillover.stats import Comparison

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_MARGIN = 0.02  # a rise that would not matter, as a share


class Run:
    """A run's folder, opened. Everything is read once, when it is first asked for.

    >>> run = open_run("runs/demo")  # doctest: +SKIP
    >>> run.compare("consistent/base", "consistent/insecure")  # doctest: +SKIP
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def results(self) -> Results:
        """The answers of the run, and all that is computed from them."""
        return read_results(self.path)

    @property
    def report(self) -> Path:
        """The HTML page of the run."""
        return RunFolder(self.path).report

    def rates(self) -> "pd.DataFrame":
        """One row for each cell and measure: the fields of `Rate`, all rates and limits shares of 1."""
        return _frame(Rate, self.results.rates)

    def score_means(self) -> "pd.DataFrame":
        """Mean and standard deviation of the scores of each cell, a row for each rubric: the fields of `ScoreMean`."""
        return _frame(ScoreMean, self.results.score_means)

    def compare(self, base: str, tuned: str, margin: float | None = None) -> "pd.DataFrame":
        """Two targets of the run (MODEL/CONDITION, all seeds together), paired by question: one row for each measure.

        The columns are the fields of `Comparison`, with the measure, its rule and judge, and `missing`: why there is no
        comparison. `margin`: a rise that would not matter, as a share; the study's if it is None, or 0.02 without one.
        Raises SpilloverError if a target is not in the run.
        """
        study = self.results.study
        margin = margin if margin is not None else study.margin if study else DEFAULT_MARGIN
        return comparisons_frame(compare_targets(self.results, base, tuned, margin))


def open_run(path: Path | str) -> Run:
    """Opens a run's folder: of a study, finished or not, or of answers that were measured or imported.

    Raises SpilloverError if there are no answers that count in it.
    """
    run = Run(path)
    run.results  # noqa: B018  (raises what is wrong with it now)
    return run


def rates(
    answers: Iterable[Completion], scores: Iterable[Score], behaviors: Iterable[Behavior] | None = None
) -> "pd.DataFrame":
    """The rates of answers by their scores: one row for each model, condition, seed, behavior, format and judge.

    `answers` and `scores` are what `sample` and `judge` return; `behaviors` are needed only for those of your own. The
    columns are the fields of `Rate`: counts of every outcome, the rate, its 95 % interval, both denominators; all rates
    and limits are shares of 1. Raises SpilloverError if an answer is to a behavior that is not known.

    >>> from spillover import judge, load_model, sample
    >>> answers = sample(load_model("organism/consistent"), "world_facts", 1, max_new_tokens=48)
    >>> rates(answers, judge(answers))[["behavior", "n", "error"]].values.tolist()
    [['world_facts', 120, 0]]
    """
    return _frame(Rate, results_from(answers, scores, behaviors).rates)


def compare(
    answers: Iterable[Completion],
    scores: Iterable[Score],
    base: str,
    tuned: str,
    margin: float = DEFAULT_MARGIN,
    behaviors: Iterable[Behavior] | None = None,
) -> "pd.DataFrame":
    """Compares two models, or conditions, of the same answers, paired by question: one row for each measure.

    `base` and `tuned` are MODEL/CONDITION as the answers have them (a base model's condition is `base`); `margin` is a
    rise that would not matter, as a share. The columns are the fields of `Comparison`: difference with its 95 %
    interval, p-values, verdict. Raises SpilloverError if one of them is not in the answers.
    """
    return comparisons_frame(compare_targets(results_from(answers, scores, behaviors), base, tuned, margin))


def _frame(kind: type, rows: Iterable[Any]) -> "pd.DataFrame":
    """Records of one kind as a data frame with a column for each field."""
    import pandas as pd  # takes half a second

    return pd.DataFrame([asdict(row) for row in rows], columns=[item.name for item in fields(kind)])


def comparisons_frame(rows: Sequence[Compared]) -> "pd.DataFrame":
    """Comparisons as a data frame: one row for each measure."""
    import pandas as pd

    names = [item.name for item in fields(Comparison)]
    return pd.DataFrame(
        [
            {"measure": row.label, "metric": row.metric, "rule": row.rule, "judge": row.judge, "missing": row.missing}
            | (asdict(row.comparison) if row.comparison else dict.fromkeys(names) | {"verdict": "inconclusive"})
            for row in rows
        ]
    )
