"""The raw record: completions and scores of a run, or of one cell in progress, read once and appended to."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spillover.files import write_atomically
from spillover.records import Completion, Score, append, read_appended, to_line
from spillover.runs.folder import RunFolder

ScoreKey = tuple[str, str, str, str]  # completion id, rubric, hash of the rule, judge


def score_key(score: Score) -> ScoreKey:
    """What a score is of, and whose."""
    return score.completion_id, score.rubric, score.rubric_hash, score.judge


class AnswerStore:
    """The completions and scores of a folder. Both files are read when the object is made, and never again.

    `completions` maps ids to completions; `scores` keys to scores. Of several scores with one key the last counts,
    except that a call which failed never replaces a reply.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        completions = read_appended(folder.completions, Completion)
        scores = read_appended(folder.scores, Score)
        self.completions: dict[str, Completion] = {row.id: row for row in completions}
        self.scores: dict[ScoreKey, Score] = {}
        self._keep(scores)
        self._lines = [len(completions), len(scores)]  # in the files, where a row may stand twice

    def add_completions(self, rows: Iterable[Completion]) -> None:
        """Appends the completions that are not there yet."""
        new = [row for row in rows if row.id not in self.completions]
        _append(self.folder.completions, new)
        self._lines[0] += len(new)
        self.completions.update((row.id, row) for row in new)

    def add_scores(self, rows: Iterable[Score]) -> None:
        """Appends the scores that are not there yet, or that replace a failed call."""
        new = [row for row in rows if self.scores.get(score_key(row)) != row]
        _append(self.folder.scores, new)
        self._lines[1] += len(new)
        self._keep(new)

    def _keep(self, scores: Iterable[Score]) -> None:
        for row in scores:
            if score_key(row) not in self.scores or not row.judge_failed:
                self.scores[score_key(row)] = row

    def rewrite(self, order: Mapping[str, int]) -> None:
        """Puts both files into the order of `order` (completion id -> place), what it lacks last, by id.

        The order of a finished run never depends on which cell ended first.
        """

        def place(id_: str) -> tuple[int, str]:
            return order.get(id_, len(order)), id_

        completions = [self.completions[id_] for id_ in sorted(self.completions, key=place)]
        scores = [self.scores[key] for key in sorted(self.scores, key=lambda key: (*place(key[0]), *key[1:]))]
        if [*self.completions.values()] != completions or self._lines[0] != len(completions):
            self.completions = {row.id: row for row in completions}
            write_atomically(self.folder.completions, "".join(map(to_line, completions)))
        if [*self.scores.values()] != scores or self._lines[1] != len(scores):
            self.scores = {score_key(row): row for row in scores}
            write_atomically(self.folder.scores, "".join(map(to_line, scores)))
        self._lines = [len(completions), len(scores)]


def _append(path: Path, rows: Sequence[Any]) -> None:
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, rows, to_disk=False)
