"""The tables of a race. A cell is put in words once; the terminal, Markdown and the page choose their columns."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fallline.bench.common.numbers import TENTHS, describe, difference, duration, number, plural, size, spread
from fallline.bench.protocol.analysis import Aggregate, Results
from fallline.bench.protocol.changes import Change, Changes, ComparisonChange
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.stats import Interval
from fallline.bench.protocol.verdict import Verdict
from fallline.bench.report.looks import Line
from fallline.bench.report.tables import Cell, Row, Span, Table, word

Looks = Mapping[str, Line]
Columns = Mapping[str, Callable[[ContenderResult], Cell]]
"""Heading to what stands below it."""


def _table(id: str, entries: Iterable[ContenderResult], looks: Looks, columns: Columns, **rest: Any) -> Table:
    rows = [Row([cell(entry) for cell in columns.values()], looks[entry.name]) for entry in entries]
    return Table(id, list(columns), rows, **rest)


# --- a comparison ---


def terminal_results(part: Comparison, looks: Looks) -> Table:
    """A comparison in 80 columns."""
    columns: dict[str, Callable[[ContenderResult], Cell]] = {"": _label}
    columns["test loss" if part.held_out else "mean loss"] = _loss
    columns |= {"accuracy": _accuracy} if _has_accuracy(part) else {}
    columns |= {"failed": _failed_share} if part.track == "tuned" else {}
    columns |= {f"against {part.baseline.label}": _against(part, "–")} if part.baseline else {}
    return _table("", part.entries, looks, columns, brief=len(columns), right=("accuracy", "failed"))


def markdown_results(part: Comparison, looks: Looks) -> Table:
    """A comparison for a page of text."""
    tuned, baseline = part.track == "tuned", part.baseline
    columns: dict[str, Callable[[ContenderResult], Cell]] = {"optimizer": _label, part.loss_name: _loss}
    columns |= {"accuracy": _accuracy} if _has_accuracy(part) else {}
    columns |= {f"against {baseline.label}": _against(part, "baseline", p=False), "p (Holm)": _p} if baseline else {}
    columns |= {"failed trials": _failed_share} if tuned else {}
    if any(entry.relative_cpu is not None for entry in part.entries):
        columns["CPU time × SGD"] = lambda entry: number(entry.relative_cpu)
    none = "–" if tuned else "defaults"
    columns["settings"] = lambda entry: describe(entry.chosen) if entry.chosen else none
    return _table("", part.entries, looks, columns)


def page_results(i: int, part: Comparison, looks: Looks, design: Design) -> Table:
    """A comparison with all that is known of it, and under each row what weakens it."""
    tuned, baseline = part.track == "tuned", part.baseline
    columns: dict[str, Callable[[ContenderResult], Cell]] = {"Optimizer": _label, part.loss_name.capitalize(): _loss}
    columns |= {"Test accuracy, %": _accuracy_interval} if _has_accuracy(part) else {}
    columns |= {f"Against {baseline.label}": _against(part), "Detectable": _detectable} if baseline else {}
    columns |= {"Failed trials": _failed_trials} if tuned else {}
    columns |= {"CPU time a gradient": _cpu_time, "State": _state}
    columns["CPU time in all"] = lambda entry: [Span(duration(entry.cpu_seconds), "value")]
    most = f", up to {design.looks[-1]}" if design.until_decided else ""
    caption = (
        f"From the confirming runs: {plural(design.seeds, 'seed')} an optimizer{most}, the same for all. Losses and "
        "differences: means over seeds that finished, 95 % BCa bootstrap intervals. "
    )
    if baseline:
        rivals = max(1, sum(entry.verdict is not None for entry in part.entries))
        caption += (
            f"Verdict: sign-flip test over pairs of seeds, Holm over {plural(rivals, 'rival')}. Detectable: the "
            "smallest difference that these seeds find with 80 % power. "
        )
    caption += (
        "CPU time: median over those runs, training alone; in all: every run of the optimizer here"
        f"{', trials too' if tuned else ''}."
    )
    table = _table(f"result-{i}", part.entries, looks, columns, caption=caption, style="result")
    for row, entry in zip(table.rows, part.entries, strict=True):
        row.doubts.extend(alarm.text for alarm in entry.alarms)
    return table


def _label(entry: ContenderResult) -> Cell:
    return entry.label


def _loss(entry: ContenderResult) -> Cell:
    """Loss and interval, or why there is none; failed seeds are counted after it."""
    if entry.trials and entry.failed_trials == len(entry.trials):
        return [Span("every trial failed", "warn")]
    loss = entry.measure("loss")
    if loss is None:
        return [Span("every seed failed", "warn")] if entry.seeds else "–"
    cell = [Span(spread(loss), title=f"mean over {plural(loss.count, 'seed')}, 95 % BCa interval")]
    if entry.failed_seeds:
        count, of = entry.failed_seeds, len(entry.seeds)
        cell.append(Span(f"{count} of {of} seeds failed", "warn value", brief=f"{count}/{of} failed"))
    return cell


def _has_accuracy(part: Comparison) -> bool:
    return any(entry.measure("accuracy") for entry in part.entries)


def _accuracy(entry: ContenderResult) -> Cell:
    share = entry.measure("accuracy")
    return f"{100 * share.mean:.1f} %" if share else "–"


def _accuracy_interval(entry: ContenderResult) -> Cell:
    share = entry.measure("accuracy")
    return _percents(share, 1) if share else "–"


def _percents(share: Interval, places: int, unit: str = "") -> str:
    """A share with its interval, in per cent."""
    mean = f"{100 * share.mean:.{places}f}{unit}"
    if share.low is None or share.high is None:
        return mean
    return f"{mean} [{100 * share.low:.{places}f}, {100 * share.high:.{places}f}]"


def _against(part: Comparison, baseline: str = "the baseline", *, p: bool = True) -> Callable[[ContenderResult], Cell]:
    """The verdict against the baseline with the difference and `p`; the baseline's own cell says `baseline`."""
    scale = part.scale or 1.0

    def cell(entry: ContenderResult) -> Cell:
        verdict = entry.verdict
        if verdict is None:
            return baseline if entry is part.baseline else "–"
        found = [word(verdict.word, title=in_a_line(verdict, scale))]
        if gap := verdict.difference:
            found.append(Span(spread(gap, scale), "line", brief=difference(gap.mean, scale)))
        if p and verdict.adjusted is not None:
            why = f"{verdict.why}; p {verdict.p:.3g} unadjusted"
            found.append(Span(f"p {verdict.adjusted:.2g} after Holm", "small", why, brief=""))
        return found

    return cell


def _p(entry: ContenderResult) -> Cell:
    return "–" if entry.verdict is None or entry.verdict.adjusted is None else f"{entry.verdict.adjusted:.3g}"


def _detectable(entry: ContenderResult) -> Cell:
    found = [Span(number(entry.verdict.detectable if entry.verdict else None))]
    if entry.verdict and entry.verdict.needed:
        found.append(Span(f"{entry.verdict.needed} seeds would tell", "small"))
    return found


def _failed_trials(entry: ContenderResult) -> Cell:
    count, of = entry.failed_trials, len(entry.trials)
    return [Span(f"{count} of {of}", "value warn" if count else "value")]


def _failed_share(entry: ContenderResult) -> Cell:
    return f"{entry.failed_trials}/{len(entry.trials)}"


def _cpu_time(entry: ContenderResult) -> Cell:
    seconds = entry.seconds()
    if not seconds:
        return "–"
    found = [Span(f"{number(1000 * seconds)} ms", "value")]
    return [*found, Span(f"{entry.relative_cpu:.1f}× SGD", "bounds")] if entry.relative_cpu else found


def _state(entry: ContenderResult) -> Cell:
    return "–" if entry.state_bytes is None else [Span(size(entry.state_bytes), "value")]


def in_a_line(verdict: Verdict, scale: float | None = None) -> str:
    """The whole of a verdict, shown on pointing at its sign."""
    parts = [f"{verdict.word}: {verdict.why}"]
    if verdict.difference:
        parts.append(f"difference {spread(verdict.difference, scale)} over {verdict.difference.count} pairs of seeds")
    if verdict.p is not None and verdict.adjusted is not None:
        parts.append(f"p {verdict.p:.3g}, after Holm {verdict.adjusted:.3g}")
    return "; ".join(parts)


# --- further tables of a comparison ---


def across_table(i: int, across: Aggregate, looks: Looks) -> Table:
    """What several tasks say together."""
    rows = []
    for name, iqm in across.iqm.items():
        chance = _percents(across.improvement[name], 0, " %")
        rows.append(Row([looks[name].label, spread(iqm, TENTHS), chance], looks[name]))
    caption = (
        "From all confirming runs of these tasks, failed ones as infinite losses; 95 % percentile intervals, "
        "resampling seeds within each task. Loss: the interquartile mean (of the middle half of all runs) of how far "
        "the loss lies above the mean of each task’s baseline, in per cent of the way from the initial to the best "
        "loss; 0 is its equal, less is better. Chance: how probably a run has a lower loss than one of the baseline; "
        "50 % is its equal."
    )
    head = ["Optimizer", "Loss above the baseline’s, % of the way", "Chance to beat the baseline"]
    short = dict(zip(head[1:], ("Loss", "Chance"), strict=True))
    return Table(f"across{i}", head, rows, caption=caption, short=short)


def targets_table(i: int, part: Comparison, looks: Looks) -> Table:
    """Gradient evaluations to each target."""

    def cell(level: float) -> Callable[[ContenderResult], Cell]:
        def reached(entry: ContenderResult) -> Cell:
            time, hits = entry.time_to(level), entry.hits[level]
            text = f"{time:,.0f}" if time is not None and math.isfinite(time) else "not reached"
            return [Span(text, "value"), Span(f"{sum(map(math.isfinite, hits))} of {len(hits)}", "bounds")]

        return reached

    columns: dict[str, Callable[[ContenderResult], Cell]] = {"Optimizer": _label}
    measure = "validation" if part.held_out else "training"
    for level, loss in part.targets.items():
        columns[f"{100 * level:.0f} %: {measure} loss {number(loss)}"] = cell(level)
    caption = (
        "Gradient evaluations until the mean of three measurements in a row is below the target: the median over all "
        "confirming seeds, where one that never is, or failed, counts as infinite; and how many seeds reached it. "
        "Targets: shares of the way from the loss before training to the baseline’s final one (median over seeds)."
    )
    short = {heading: heading.partition(":")[0] for heading in columns}
    entries = [entry for entry in part.entries if entry.seeds]
    return _table(f"targets-{i}", entries, looks, columns, caption=caption, short=short)


def failures_table(i: int, part: Comparison, looks: Looks) -> Table | None:
    """Why runs failed, the most frequent reason of an optimizer first; None where none did."""
    rows = []
    for entry in part.entries:
        reasons: dict[str, int] = {}
        for outcome in entry.runs:
            if outcome.lost:
                why = f"{outcome.status}: {outcome.reason}"
                reasons[why] = reasons.get(why, 0) + 1
        for why, count in sorted(reasons.items(), key=lambda item: -item[1]):
            rows.append(Row([entry.label, f"{count} of {len(entry.runs)}", [Span(why)]], looks[entry.name]))
    runs = "trials, reruns of the best and confirming seeds" if part.track == "tuned" else "its confirming seeds"
    head = ["Optimizer", "Runs", "What happened"]
    return Table(f"failed-{i}", head, rows, caption=f"Of all runs of an optimizer here: {runs}.") if rows else None


def spaces_table(i: int, part: Comparison, looks: Looks, design: Design) -> Table:
    """What was chosen, from which space."""
    columns: dict[str, Callable[[ContenderResult], Cell]] = {
        "Optimizer": _label,
        "Chosen": lambda entry: "–" if entry.chosen is None else _stacked(describe(entry.chosen).split(", ")),
        "Space": _space,
        "Schedule": lambda entry: [Span(entry.about["schedule"])],
        "Source": lambda entry: [Span(entry.about["source"], "note")],
    }
    caption = f"Chosen: the settings of the trial with the lowest {part.score_name}"
    if design.finalists > 1:
        caption += f", in the mean over {plural(design.reruns, 'rerun')} of each of the best {design.finalists}"
    return _table(f"spaces-{i}", part.entries, looks, columns, caption=f"{caption}.")


def _stacked(texts: Iterable[str], style: str = "value") -> list[Span]:
    """One below the other."""
    return [Span(text, f"{style} next" if i else style) for i, text in enumerate(texts)]


def _space(entry: ContenderResult) -> Cell:
    about, found = entry.about, list[Span]()
    for name, space in about["space"].items():
        found.append(Span(f"{name} {space}", "value next" if found else "value"))
        if longer := about.get("extended", {}).get(name):
            found.append(Span(f"extended to {longer['low']} … {longer['high']}", "bounds"))
    if about["fixed"]:
        found.append(Span(f"fixed: {describe(about['fixed'])}", "bounds next"))
    return found


# --- what changed ---


def changes_table(i: int, part: ComparisonChange, looks: Looks) -> Table:
    """A comparison and the same one of an earlier race."""
    scale = (part.now.scale if part.now else None) or 1.0
    rows = []
    for one in part.entries:
        losses = [spread(side.measure("loss")) if side else "–" for side in (one.old, one.new)]
        cells = [one.label, *losses, _change(one, scale), _verdicts(one, part), _new_settings(one)]
        rows.append(Row(cells, looks[one.name]))
    caption = (
        "Losses: means over the confirming seeds that finished, with 95 % BCa intervals. Where seeds are the same, "
        "differences are taken seed by seed, and the verdict is on now against then (sign-flip test, Holm over the "
        "optimizers here); else each race’s seeds are resampled by themselves (95 % percentile interval)."
    )
    head = ["Optimizer", "Then", "Now", "Now minus then", "Against the baseline, then and now", "Settings that changed"]
    short = dict(zip(head[-2:], ("Verdicts", "Settings"), strict=True))
    return Table(f"changes-{i}", head, rows, caption=caption, style="changes", short=short)


def _change(one: Change, scale: float) -> Cell:
    if one.same:
        return "the same numbers"
    if one.difference is None:
        return "–"
    found = [word(one.verdict.word)] if one.verdict else []
    how = "seed by seed" if one.paired else "seeds unpaired"
    if one.verdict and one.verdict.adjusted is not None:
        how += f"; p {one.verdict.adjusted:.2g} after Holm"
    return [*found, Span(spread(one.difference, scale), "line"), Span(how, "small")]


def _verdicts(one: Change, part: ComparisonChange) -> Cell:
    found: list[Span] = []
    for side, whole in ((one.old, part.then), (one.new, part.now)):
        if side and side.verdict:
            found.append(word(side.verdict.word, "next" if found else ""))
        else:
            text = "the baseline" if side and whole and side is whole.baseline else "–"
            found.append(Span(text, "next" if found else ""))
    return [found[0], Span("→"), found[1]]


def _new_settings(one: Change) -> Cell:
    if not one.settings:
        return "none" if one.old and one.new else "–"
    return _stacked(f"{name} {_setting(old)} → {_setting(new)}" for name, old, new in one.settings)


def _setting(value: object) -> str:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return "–" if value is None else f"{value:g}" if plain else str(value)


def around_table(found: Changes) -> Table | None:
    """Design and environment of the two races, where they differ; None where they do not."""
    rows = [Row([name, [Span(str(old))], [Span(str(new))]]) for name, old, new in [*found.design, *found.environment]]
    caption = "Design and environment of the two races, where they differ."
    return Table("changes-around", ["What", "Then", "Now"], rows, caption=caption) if rows else None


def page_tables(results: Results, looks: Looks, changes: Changes | None) -> dict[str, Table]:
    """All tables of the page, by their ids."""
    design = results.design
    made: list[Table | None] = [across_table(i, across, looks) for i, across in enumerate(results.across)]
    for i, part in enumerate(results.parts):
        made += [page_results(i, part, looks, design), failures_table(i, part, looks)]
        made += [targets_table(i, part, looks)] if part.targets else []
    tuned = [part for part in results.parts if part.track == "tuned"]
    made += [spaces_table(i, part, looks, design) for i, part in enumerate(tuned)]
    if changes:
        made += [changes_table(i, part, looks) for i, part in enumerate(p for p in changes.parts if p.entries)]
        made.append(around_table(changes))
    return {table.id: table for table in made if table}
