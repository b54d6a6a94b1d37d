"""The page of an experiment that trains tasks: results and curves of each case; settings; what differs."""

import re
from typing import Any

import numpy as np

from fallline.bench.common.numbers import describe, number, plural
from fallline.bench.protocol.stats import FEW, Interval
from fallline.bench.report.looks import COLOURS, DASHES, SPARE_COLOURS
from fallline.papers.experiments.page import (
    Line,
    Page,
    Plot,
    Row,
    Section,
    Table,
    curve_trace,
    layout,
    lost_of,
    value_axis,
)
from fallline.papers.records import Record

NAMES = {"accuracy": "Test accuracy", "error": "Test error", "loss": "Test loss", "perplexity": "Test perplexity"}
SCALES = {"cpu": "at CPU scale", "full": "at the published size"}
CURVES = ("train loss", "validation loss")


class CasePage:
    """Builds the page from the record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.results = record["results"]
        self.cases: list[dict[str, Any]] = self.results["cases"]
        self.scale: str = "in a few steps" if record["design"]["quick"] else SCALES[self.results["scale"]]
        self.lines = looks(self.cases)

    def page(self) -> Page:
        """All of it."""
        sections = [self.case(place, case) for place, case in enumerate(self.cases)]
        summary = [self.words(case) for case in self.cases]
        if deviations := self.results["deviations"]:
            sections.append(Section("How this differs from the paper", points=deviations))
            summary += ["Differs from the paper:", *(f"- {sentence}" for sentence in deviations)]
        problem = f"{self.results['summary'][:1].upper()}{self.results['summary'][1:]}."
        return Page(
            self.record["experiment"],
            [problem, f"{self.results['paper'].rstrip('.')}.", self.size()],
            [*sections, self.settings()],
            list(self.lines.values()),
            tables=len(self.cases),
            summary=summary,
        )

    def size(self) -> str:
        """What was run, and what its numbers can say."""
        seeds, count = self.record["design"]["seeds"], self.results["trials"]
        search = (
            f"the best of {count} settings each, chosen on validation data with one seed"
            if count > 1
            else ("everyone with the published setting")
        )
        text = f"Run here {self.scale}: {search}, then confirmed on {plural(seeds, 'fresh seed')}, the same for all. "
        if self.scale != SCALES["full"]:
            full = self.results["full scale"]
            text += (
                "The published numbers stand beside it for reference: they are of the published size, and nothing here "
                f"repeats or refutes them. That takes --scale full (CPU: {full['cpu']}; GPU: {full['gpu']}). "
            )
        if 1 < seeds < FEW:
            text += f"Intervals over {seeds} seeds describe what was seen, and promise nothing."
        return text

    # --- a case ---

    def case(self, place: int, case: dict[str, Any]) -> Section:
        """The table, and the curves below it."""
        unit = f", {case['unit']}" if case["unit"] else ""
        here = f"{NAMES[case['measure']]}{unit}, {self.scale}"
        published = f"Published: {case['beside']}" if case["beside"] not in (None, case["name"]) else "Published"
        time = "CPU time of training" if self.record["design"]["device"] == "cpu" else "Time of training"
        head = ["Optimizer", here, published, "Setting chosen", "Lost trials", time]
        table = Table(f"case-{place}", head, [self.row(case, entry) for entry in case["entries"]])
        note = f"{case['task']}: {case['steps']:,} steps."
        if case["trial task"] != case["task"]:
            note += f" The settings were tried on {case['trial task']}."
        if case["source"]:
            note += f" Published numbers, of {case['beside'] or 'this'}: {case['source']}."
        plots = [plot for measure in CURVES if (plot := self.curves(place, case, measure))]
        return Section(case["name"], note, table, plots)

    def row(self, case: dict[str, Any], entry: dict[str, Any]) -> Row:
        """One optimizer."""
        if entry["result"]:
            result = figures(Interval(**entry["result"]), case["measure"])
        else:
            result = "every trial lost" if entry["chosen"] is None else "every seed lost"
        if entry["result"]:
            result += lost_of(entry["lost seeds"], entry["seeds"])
        published = "–" if entry["published"] is None else f"{entry['published']:g}"
        if entry["chosen"] is None:
            chosen = "–"
        elif entry["chosen"] == entry["settings"]:
            chosen = "as published"
        else:
            chosen = describe({name: entry["chosen"][name] for name in entry["searched"]})
        lost = f"{entry['lost trials']} of {entry['trials']}" if entry["trials"] else "–"
        seconds = entry["cpu seconds" if self.record["design"]["device"] == "cpu" else "wall seconds"]
        time = f"{number(seconds)} s" if seconds else "–"
        return Row([entry["label"], result, published, chosen, lost, time], self.lines[entry["label"]])

    def words(self, case: dict[str, Any]) -> str:
        """As published, and here."""
        unit = f" {case['unit']}" if case["unit"] else ""
        published = [
            f"{one['label']} {one['published']:g}{unit}" for one in case["entries"] if one["published"] is not None
        ]
        here = [
            f"{one['label']} {figures(Interval(**one['result']), case['measure'])}{unit}"
            for one in case["entries"]
            if one["result"]
        ]
        about = f"{case['name']}, {NAMES[case['measure']].lower()}, {self.scale}: {', '.join(here) or 'all lost'}."
        if not published:
            return f"{about} Published: no numbers for these."
        where = "As published" if case["beside"] == case["name"] else f"As published for {case['beside']}"
        source = f" ({case['source']})" if case["source"] else ""
        return f"{about} {where}{source}: {', '.join(published)}."

    def curves(self, place: int, case: dict[str, Any], measure: str) -> Plot | None:
        """A measure against steps: the median over the seeds of the chosen settings; None without any curve."""
        courses = {entry["label"]: self.course(case, entry, measure) for entry in case["entries"]}
        data = [curve_trace(self.lines[label], *found, measure) for label, found in courses.items() if found]
        values = [value for trace in data for value in trace["y"]]
        if not values:
            return None
        drawn = layout("step", measure)
        drawn["yaxis"] |= value_axis(min(values), max(values))
        note = f"Median over the seeds, {self.scale}."
        return Plot(f"{measure.split()[0]}-{place}", measure.capitalize(), {"data": data, "layout": drawn}, note)

    def course(
        self, case: dict[str, Any], entry: dict[str, Any], measure: str
    ) -> tuple[list[float], np.ndarray[Any, Any]] | None:
        """Steps, and the median at each; None where no run has two points of that measure."""
        curves = [
            one["outcome"]["curve"]
            for one in self.record["runs"]
            if one["run"]["test"]
            and one["outcome"]["status"] == "finished"
            and (one["run"]["task"], one["run"]["optimizer"]) == (case["task"], entry["optimizer"])
            and one["run"]["settings"] == entry["chosen"]
        ]
        known = [curve for curve in curves if measure in curve]
        if not known:
            return None
        steps = known[0]["step"]
        same = [curve[measure] for curve in known if curve["step"] == steps]
        points = [(step, at) for step, *at in zip(steps, *same, strict=True) if None not in at]
        if len(points) < 2:
            return None
        return [step for step, _ in points], np.median([at for _, at in points], axis=1)

    # --- beside the numbers ---

    def settings(self) -> Section:
        """Who ran with what published setting, from where, and what the trials varied."""
        rows = {}
        for case in self.cases:
            for entry in case["entries"]:
                searched = "; ".join(f"{name} {space}" for name, space in entry["searched"].items()) or "nothing"
                cells = [
                    entry["label"],
                    entry["optimizer"],
                    describe(entry["settings"]),
                    searched,
                    entry["source"] or "–",
                ]
                rows[tuple(cells)] = Row(cells, self.lines[entry["label"]])
        head = ["Optimizer", "With its schedule", "Published setting", "Varied by the trials", "From"]
        note = "What is not named is at its default."
        return Section("Settings", note, Table("settings", head, list(rows.values())))


def looks(cases: list[dict[str, Any]]) -> dict[str, Line]:
    """How each label looks: the colour of its method, for the first label that has it; for others a spare one."""
    optimizers = {entry["label"]: entry for case in cases for entry in case["entries"]}
    taken: set[str] = set()
    spare = 0
    found: dict[str, Line] = {}
    for label, entry in optimizers.items():
        method = re.split("[@#]", entry["optimizer"])[0]
        known = {"adam": "adamw"}.get(method, method)
        dash = "solid" if entry["ours"] else DASHES.get(known, "longdash")
        if known in COLOURS and known not in taken:
            taken.add(known)
            colour = COLOURS[known]
        else:
            colour = SPARE_COLOURS[spare % len(SPARE_COLOURS)]
            dash = dash if spare < len(SPARE_COLOURS) else "dot"
            spare += 1
        token = re.sub(r"\W+", "-", f"{label} {len(found)}".lower())
        found[label] = Line(token, label, colour, dash, 2.5 if entry["ours"] else 2.0, entry["ours"])
    return found


def figures(value: Interval, measure: str) -> str:
    """`mean [low, high]`: percentages to two decimals, others to four digits."""
    ends = [value.mean, value.low, value.high]
    said = [f"{one:.2f}" if measure in ("accuracy", "error") else f"{one:#.4g}" for one in ends if one is not None]
    return said[0] if len(said) < 3 else f"{said[0]} [{said[1]}, {said[2]}]"
