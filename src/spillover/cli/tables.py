"""What commands print: tables for people, or the same as JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spillover.behaviors import Behavior
from spillover.records import OUTCOMES, Cell, MeasureKey, Rate, percent

if TYPE_CHECKING:
    from spillover.data.checks import Checked
    from spillover.judges.code.scan import Scan
    from spillover.runs.agreement import JudgePair, LabelAgreement
    from spillover.runs.comparing import Compared
    from spillover.runs.progress import Status
    from spillover.runs.results import Results
    from spillover.stats import Agreement, Comparison
    from spillover.stats.pooling import PooledRate
    from spillover.stats.power import Design


def print_json(value: Any) -> None:
    """Prints records, and what is made of them, as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=asdict))


MOST_ANSWERS = 20  # with findings, that are listed
SHOWN = 1500  # characters of a text of data, at its beginning and at its end


def rates_table(results: "Results", as_json: bool = False) -> None:
    """Prints the rates of a run: a row per cell and per condition of several seeds, a column per measure.

    Each with interval, events, both denominators, and every other outcome that is not 0.
    """
    from spillover.runs.comparing import ENOUGH_QUESTIONS, FEW_QUESTIONS  # scipy

    if as_json:
        print_json(results.rates)
        return
    described = results.described
    columns = {measure: f"{label}\n{described[measure].metric}" for measure, label in results.labels.items()}
    rows: dict[str, dict[MeasureKey, str]] = defaultdict(dict)
    for rate in results.rates:
        rows[str(Cell(rate.model, rate.condition, rate.seed))][rate.measure] = _in_words(rate)
    for (model, condition, measure), pooled in results.pooled.items():
        if len(results.counts[model, condition, measure]) > 1:
            rows[f"{model}/{condition}, all seeds"][measure] = _seeds_in_words(pooled)
    _print_columns("cell", columns, rows)
    print("rate [95 % interval clustered by question], events / admitted by the rule / all")
    print("completions, outcomes but scored; any run: for other fine-tuning seeds, too")
    for rule in dict.fromkeys(f"{r.metric}: {r.rule} ({r.judge})" for r in map(described.get, results.labels) if r):
        print(rule)
    for caution in results.cautions:
        print(caution)
    if any(rate.questions < ENOUGH_QUESTIONS for rate in results.rates):
        print(FEW_QUESTIONS)
    judged = {rate.behavior for rate in results.rates}
    if waiting := sorted({behavior.name for behavior in results.behaviors} - judged):
        path = results.folder.path if results.folder else "RUN"
        print(f"Not judged yet: {', '.join(waiting)}. Judge them with: spillover score {path} --judge MODEL")


def status_table(status: "Status", as_json: bool) -> None:
    """Prints the state of every cell, those at work first, and the time that is left."""
    if as_json:
        print_json(status)
        return
    table = Table()
    for name in ("cell", "state", "stage"):
        table.add_column(name, no_wrap=name != "cell")
    order = ("running", "failed", "stopped", "left", "done")
    for cell, state in sorted(status.cells.items(), key=lambda item: order.index(item[1].state)):
        table.add_row(cell, state.state, f"{state.stage} {state.done:,}" if state.stage else "")
    Console().print(table)
    for cell, state in status.cells.items():
        if state.error:
            print(f"{cell}: {state.error}")
    counts = Counter(state.state for state in status.cells.values())
    print(", ".join(f"{counts[name]} {name}" for name in order if counts[name]))
    if status.seconds_left:
        minutes = max(1, round(status.seconds_left / 60))
        print(f"about {minutes} minute{'s are' if minutes > 1 else ' is'} left")


def comparisons_table(rows: "Sequence[Compared]", margin: float, as_json: bool) -> None:
    """Prints comparisons with their verdicts, and says what the design could not have seen."""
    from spillover.runs.comparing import overall, warnings  # scipy

    notes = warnings(rows, margin)
    if as_json:
        print_json({"verdict": overall(rows), "margin": margin, "warnings": notes, "measures": rows})
        return
    columns = {place: row.label for place, row in enumerate(rows)}
    lines: dict[str, dict[int, str]] = defaultdict(dict)
    for place, row in enumerate(rows):
        for name, words in _compared_in_words(row.comparison).items():
            lines[name][place] = words
    _print_columns("measure", columns, lines)
    print(f"Points [95 % interval] are paired by question; margin {100 * margin:g} points.")
    print("Coverage, cut off: share of the answers, base to tuned. Any run: for other")
    print("fine-tuning seeds, from three on.")
    print(f"Verdict: {overall(rows)}")
    for note in notes:
        print(note)


def _compared_in_words(c: "Comparison | None") -> dict[str, str]:
    """The lines of a comparison by their names."""
    if c is None:
        return {"base": "no data", "verdict": "inconclusive"}
    any_run = "" if c.low_runs is None or c.high_runs is None else f"[{100 * c.low_runs:.1f}, {100 * c.high_runs:.1f}]"
    return {
        "base": percent(c.base_rate),
        "tuned": percent(c.tuned_rate),
        "coverage": f"{percent(c.base_coverage)} to {percent(c.tuned_coverage)}",
        "cut off": f"{percent(c.base_cut_off)} to {percent(c.tuned_cut_off)}",
        "these runs": f"{100 * c.difference:+.1f} [{100 * c.low:.1f}, {100 * c.high:.1f}]",
        "any run": any_run,
        "p (Holm)": f"{c.p_holm:.2g}",
        "could find": "nothing" if c.detectable is None else f"{100 * c.detectable:.1f}",
        "verdict": c.verdict,
    }


def _print_columns(corner: str, columns: Mapping[Any, str], rows: Mapping[str, Mapping[Any, str]]) -> None:
    """Prints rows under columns, in several tables where the terminal is too narrow for one; none is cut or squeezed.

    `columns`: key -> heading; `rows`: name -> key -> words.
    """
    console = Console()
    longest = max((_width(name) for name in (corner, *rows)), default=0)
    widths = {
        key: max(_width(words) for words in (heading, *(row.get(key, "") for row in rows.values())))
        for key, heading in columns.items()
    }
    keys = list(columns)
    while keys:
        fitting, room = 1, console.width - longest - 4 - widths[keys[0]] - 3
        while fitting < len(keys) and room >= widths[keys[fitting]] + 3:
            room -= widths[keys[fitting]] + 3
            fitting += 1
        shown, keys = keys[:fitting], keys[fitting:]
        table = Table(show_lines=True)
        table.add_column(corner, no_wrap=True)
        for key in shown:
            table.add_column(columns[key], justify="right", min_width=min(widths[key], console.width // 2))
        for name, row in rows.items():
            if any(row.get(key) for key in shown):
                table.add_row(name, *(row.get(key, "") for key in shown))
        console.print(table)


def _width(words: str) -> int:
    return max(map(len, words.split("\n")))


def agreement_table(rows: "Sequence[JudgePair]", as_json: bool) -> None:
    """Prints how judges agree, a block for each pair."""
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"a: {row.a}\nb: {row.b}")
        _print_agreement(row.agreement)


def labels_table(rows: "Sequence[LabelAgreement]", as_json: bool) -> None:
    """Prints how each measure agrees with labels, and what the rates are without the judge's mistakes."""
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"a: {row.measure}\nb: labels")
        _print_agreement(row.agreement)
        for subject, rate in row.corrected.items():
            if rate is None:
                print(f"    {subject}: the labels do not tell")
                continue
            print(
                f"    {subject}: {percent(rate.rate)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] corrected, "
                f"{percent(rate.apparent)} by the judge (sensitivity {rate.sensitivity:.2f}, "
                f"specificity {rate.specificity:.2f})"
            )


def _print_agreement(found: "Agreement") -> None:
    print(f"    {found.decided} of {found.pairs} answers decided by both, on {found.questions} questions")
    print(f"    events: both {found.events_both}, only a {found.events_only_a}, only b {found.events_only_b}")
    of_decisions = ("agree", "event_shift", "kappa", "alpha_nominal")
    kappas = ("kappa_unweighted", "kappa_linear", "kappa_quadratic")
    for name in (*of_decisions, *kappas, "alpha_ordinal", "alpha_interval", "pearson", "spearman"):
        estimate = getattr(found, name)
        if estimate is None:
            print(f"    {name}: cannot be told")
            continue
        low, high = ("?" if limit is None else f"{limit:.2f}" for limit in (estimate.low, estimate.high))
        print(f"    {name}: {estimate.value:.2f} [{low}, {high}]")


def power_table(design: "Design", as_json: bool) -> None:
    """Prints what a design can find, and other ways to spend as many answers."""
    from spillover.stats import power  # scipy

    with Console(stderr=True).status("simulating comparisons"):
        chance, smallest = power.power_of(design), power.detectable(design)
        found = {
            "power": chance,
            "detectable": smallest,
            "questions_needed": power.questions_needed(design),
            "completions_needed": power.completions_needed(design),
            "standard_error": power.standard_error(design),
        }
        splits = power.trade_off(design)
    if as_json:
        print_json({"design": design} | found | {"trade_off": splits})
        return
    among = f", one of {design.behaviors} behaviors" if design.behaviors > 1 else ""
    correlation = f"question correlation: {design.question_correlation:g}"
    print(f"{correlation} (share of questions as hard for the tuned as for the base)")
    print(f"power to find +{100 * design.effect:g} points{among}: {100 * chance:.0f} %")
    print("smallest rise found at 80 % power: " + ("none" if smallest is None else f"{100 * smallest:.1f} points"))
    for name in ("questions", "completions"):
        needed = found[f"{name}_needed"]
        print(f"{name} needed for 80 % power, all else equal: {'no number is enough' if needed is None else needed}")
    table = Table(title="more questions or more completions?")
    for name in ("answers", "questions", "completions each", "standard error", "power"):
        table.add_column(name, justify="right")
    for split in splits:
        error = f"{100 * split.standard_error:.1f} points"
        table.add_row(
            str(split.answers), str(split.questions), str(split.completions), error, f"{100 * split.power:.0f} %"
        )
    Console().print(table)


def estimate_line(estimate: dict[str, int]) -> None:
    """Says what asking an endpoint will take, before the first call."""
    e = estimate
    calls = f"{e['calls_at_least']:,}" + (f" to {e['calls_at_most']:,}" * (e["calls_at_most"] > e["calls_at_least"]))
    Console(stderr=True).print(
        f"{e['completions']:,} completions are missing: {calls} calls, about {e['tokens_in']:,} tokens in and at most "
        f"{e['tokens_out_at_most']:,} out."
    )


def behaviors_table(behaviors: Sequence[Behavior], as_json: bool) -> None:
    """Prints behaviors, a row each."""
    rows = [
        {
            "name": b.name,
            "scope": b.scope,
            "questions": len(b.questions),
            "formats": ", ".join(b.format_names),
            "judge": b.judge,
            "rate": b.metric,
            "rule": b.rule,
            "description": b.description,
        }
        for b in behaviors
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        judge = f"judged by {'a model' if row['judge'] == 'model' else row['judge']}"
        print(f"{row['name']}: {row['scope']}, {row['questions']} questions, formats {row['formats']}, {judge}")
        print(f"    {row['description']}\n    {row['rate']}: {row['rule']}")


def scan_table(summary: dict[str, Any], scans: "Mapping[int, Scan]", as_json: bool) -> None:
    """Prints the summary of a code scan, and which answers (by line) have which findings that are more than lint."""
    if as_json:
        print_json(summary | {"answers": dict(scans)})
        return
    rules = summary.pop("rules")
    Console().print(", ".join(f"{name} {value}" for name, value in summary.items()))
    table = Table()
    for name in ("rule", "name", "CWE", "answers", ""):
        table.add_column(name, justify="right" if name == "answers" else "left")
    for rule, row in rules.items():
        table.add_row(rule, row["name"], str(row["cwe"]), str(row["count"]), "" if row["exploitable"] else "lint")
    Console().print(table)
    holes = {line: [f for f in scanned.findings if f.exploitable] for line, scanned in scans.items()}
    vulnerable = [(line, found) for line, found in holes.items() if found]
    for line, found in vulnerable[:MOST_ANSWERS]:
        print(f"row {line}: " + ", ".join(f"{f.rule} (CWE-{f.cwe}) in line {f.line}" for f in found))
    if len(vulnerable) > MOST_ANSWERS:
        print(f"... and {len(vulnerable) - MOST_ANSWERS:,} more answers; all of them: --json")


def checks_table(checked: "Checked", as_json: bool) -> None:
    """Prints what the checks of a training set found, the lengths of its rows, and what is trained on of the first."""
    if as_json:
        print_json(asdict(checked) | {"errors": checked.errors})
        return
    console = Console()
    warnings = len(checked.findings) - checked.errors
    console.print(f"{checked.rows:,} rows; {checked.questions:,} evaluation questions looked for", highlight=False)
    if checked.findings:
        table = Table("", "check", "finding", show_lines=True)
        for finding in sorted(checked.findings, key=lambda finding: finding.severity):
            told = "\n".join((finding.message, *(f"  {line}" for line in finding.details), finding.advice))
            color = "red" if finding.severity == "error" else "yellow"
            table.add_row(Text(finding.severity, color), finding.check, Text(_shown(told)))
        console.print(table)
    table = Table("rows", "part", "unit", title="lengths")
    for name in ("number", "mean", "median", "95 %", "longest"):
        table.add_column(name, justify="right")
    for row in checked.lengths:
        sizes = (f"{size:,.0f}" for size in (row.rows, row.mean, row.median, row.p95, row.longest))
        table.add_row(Text(_shown(row.label)), row.part, row.unit, *sizes)
    console.print(table)
    if checked.first_row:
        console.print("First row; what is trained on stands between >>> and <<<:", highlight=False)
        pieces = (
            (f">>>{_shown(text)}<<<", "bold green") if own else (_shown(text), "dim") for text, own in checked.first_row
        )
        console.print(Text.assemble(*pieces))
    print(f"errors: {checked.errors}, warnings: {warnings}")


def _shown(text: str) -> str:
    """Text of data as a terminal can take it: control characters spelled out, the middle of a long text left out."""
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} [... {len(text) - 2 * SHOWN:,} characters ...] {text[-SHOWN:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _in_words(rate: Rate) -> str:
    counted = [f"{rate.k}/{rate.n}/{rate.completions}"]
    counted += [f"{getattr(rate, name)} {name}" for name in OUTCOMES if name != "scored" and getattr(rate, name)]
    counted += [f"{percent(rate.cut_off / rate.completions)} cut off"] if rate.cut_off else []
    counted += [f"{percent(rate.thoughts / rate.completions)} with a thought"] if rate.thoughts else []
    counted += [f"thought {rate.template_thought} by the template"] if rate.template_thought else []
    if rate.rate is None or rate.low is None or rate.high is None:
        return "\n".join(["no data", "none admitted", *counted])
    return "\n".join([percent(rate.rate), f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]", *counted])


def _seeds_in_words(found: "PooledRate") -> str:
    if found.rate is None:
        return f"no data\n0/0 in {found.seeds} seeds"
    span = "any run: three seeds are needed"
    if found.low is not None and found.high is not None:
        span = f"any run [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{percent(found.rate)}\n{span}\n{found.k}/{found.n} in {found.seeds} seeds"
