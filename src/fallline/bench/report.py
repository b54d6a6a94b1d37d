"""Records to one page: a single HTML file that opens offline. It never trains, and nothing in it is written by hand."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from fallline.bench import figures
from fallline.bench.design import Design
from fallline.bench.display import difference, number, spread
from fallline.bench.files import put, stem
from fallline.bench.results import STEADY, Part, Result, Results
from fallline.bench.stats import FEW, Interval, stratified_interval
from fallline.bench.summary import cost, duration, listed, verdicts
from fallline.bench.verdict import Pairs, Verdict, Word, descriptive, judge

PICTURE_SIZE = (800, 380)
"""CSS pixels of a README's picture; a PNG has twice as many, for dense screens, an SVG is as sharp as any."""

SIGNS: dict[Word, str] = {
    "better": "✓",
    "worse": "✗",
    "practically equal": "=",
    "no evidence": "○",
    "too few seeds": "?",
}
"""A verdict in one sign, so that a table of them can be read without colours."""

TRACK_WORDS = {"tuned": "tuned", "defaults": "shipped settings"}
UNSTEADY = f"the seeds of one optimizer took wall times that differ by more than {100 * STEADY:.0f} %"


def write_page(results: Results, path: Path, before: Results | None = None) -> Path:
    """Write the report to `path`, whole or not at all, and return it."""
    return put(path, page(results, before))


def page_name(results: Results) -> str:
    """A name for the page's file."""
    return f"{stem(results.design.tasks)}.html"


def page(results: Results, before: Results | None = None) -> str:
    """The report as HTML: text, styles, data, and Plotly itself; with an earlier race, what has changed since."""
    looks = figures.lines(results, *([before] if before else []))
    drawn = draw(results, looks)
    return fill(
        "report.html",
        drawn,
        results=results,
        race=results.race,
        design=results.design,
        setting=results.race.setting,
        changes=changes(results, before) if before else None,
        looks=looks,
        drawn=drawn,
        axes=list(figures.AXES),
        signs=SIGNS,
        titles=[title(part.task, part.track, results.design.tracks) for part in results.parts],
        entered={entry.name for part in results.parts for entry in part.entries},
        claims=claims(results),
        costs=cost(results),
        runs=sum(len(entry.runs) for part in results.parts for entry in part.entries),
        unsteady=UNSTEADY,
        light=figures.palette(looks, figures.LIGHT),
        dark=figures.palette(looks, figures.DARK),
    )


def fill(template: str, plots: Mapping[str, figures.Figure], **values: Any) -> str:
    """A page with its figures by name. `light` and `dark` among the values are the colours of their tokens."""
    templates = Environment(
        loader=PackageLoader("fallline.bench"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "describe": figures.describe,
        "descriptive": descriptive,
        "difference": difference,
        "duration": duration,
        "few": FEW,
        "isfinite": math.isfinite,
        "listed": listed,
        "losses": losses,
        "measured": measured,
        "number": number,
        "size": size,
        "spread": spread,
        "told": told,
    }
    return templates.get_template(template).render(**values, figures=_script_json(plots), plotly=get_plotlyjs())


def draw(results: Results, looks: Mapping[str, figures.Line]) -> dict[str, figures.Figure]:
    """The figures that this race has data for, by name: those of the i-th part begin with `i: `."""
    drawn: dict[str, figures.Figure | None] = {}
    for i, across in enumerate(results.across):
        drawn[f"profile {i}"] = figures.profile(across, looks)
    for i, part in enumerate(results.parts):
        drawn[f"{i}: final losses"] = figures.final_losses(part, looks)
        for measure in ("validation loss", "train loss") if part.held_out else ("train loss",):
            for axis in figures.AXES:
                drawn[f"{i}: {measure} by {axis}"] = figures.curves(part, looks, measure, axis)
        drawn[f"{i}: best of"] = figures.best_of(part, looks)
        for entry in part.entries:
            drawn[f"{i}: lr {entry.name}"] = figures.sensitivity(part, entry)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def title(task: str, track: str, tracks: Collection[str]) -> str:
    """What a part is called: its task, and its track where there are two."""
    return f"{task}, {TRACK_WORDS[track]}" if len(tracks) > 1 else task


@dataclass(frozen=True)
class Claim:
    """What the seeds say of one part, and what weakens it."""

    sentences: list[str]
    doubts: list[tuple[str, str]]
    """(label, alarm) of the leader and of the baseline."""


def claims(results: Results) -> list[Claim]:
    """One for each part."""
    made = []
    for part in results.parts:
        labels = tuple(entry.label for entry in part.entries)
        sentences = [
            said if said.startswith(labels) else said[0].upper() + said[1:] for said in verdicts(part)
        ]  # arTuRO keeps its small letter
        weighty = [entry for i, entry in enumerate(part.entries) if i == 0 or entry is part.baseline]
        made.append(Claim(sentences, [(entry.label, alarm.text) for entry in weighty for alarm in entry.alarms]))
    return made


def told(verdict: Verdict, scale: float | None = None) -> str:
    """The whole of a verdict in a line, for whoever points at its sign."""
    said = [f"{verdict.word}: {verdict.why}"]
    if verdict.difference:
        said.append(f"difference {spread(verdict.difference, scale)} over {verdict.difference.count} pairs of seeds")
    if verdict.p is not None and verdict.adjusted is not None:
        said.append(f"p {verdict.p:.3g}, after Holm {verdict.adjusted:.3g}")
    return "; ".join(said)


def measured(part: Part, name: str) -> dict[str, Interval]:
    """The interval of a final measure of everyone who has one."""
    return {entry.name: found for entry in part.entries if (found := entry.measure(name))}


def size(count: float) -> str:
    """Bytes, as people write them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def losses(part: Part) -> list[tuple[Result, str, int]]:
    """Why runs were lost: (optimizer, status and reason, how many), most frequent first within an optimizer."""
    rows = []
    for entry in part.entries:
        reasons: dict[str, int] = {}
        for outcome in entry.runs:
            if outcome.lost:
                why = f"{outcome.status}: {outcome.reason}"
                reasons[why] = reasons.get(why, 0) + 1
        rows += [(entry, why, count) for why, count in sorted(reasons.items(), key=lambda item: -item[1])]
    return rows


# --- what changed ---


@dataclass(frozen=True)
class Change:
    """What became of one optimizer since an earlier race, on one part."""

    name: str
    label: str
    old: Result | None
    new: Result | None
    """None where it did not take part."""

    paired: bool
    """Whether seeds of the same number began alike in both races."""

    verdict: Verdict | None
    """Now against then, of pairs."""

    difference: Interval | None
    """The loss now minus the loss then."""

    same: bool
    """Whether every seed ended at the very same loss."""

    @property
    def settings(self) -> list[tuple[str, Any, Any]]:
        """(setting, then, now) of chosen settings that differ; None where it was not set."""
        if self.old is None or self.new is None:
            return []
        then, now = self.old.chosen or {}, self.new.chosen or {}
        return [(name, then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)]


@dataclass(frozen=True)
class PartChange:
    """One part beside the same part of an earlier race."""

    title: str
    then: Part | None
    now: Part | None
    entries: list[Change]


@dataclass(frozen=True)
class Changes:
    """A race beside an earlier one."""

    before: Results
    parts: list[PartChange]
    design: list[tuple[str, Any, Any]]
    """(field, then, now) of what was asked for otherwise."""

    environment: list[tuple[str, str, str]]
    words: list[str]


def changes(results: Results, before: Results) -> Changes:
    """What is otherwise than in an earlier race."""
    then = {(part.task, part.track): part for part in before.parts}
    now = {(part.task, part.track): part for part in results.parts}
    tracks = {*results.design.tracks, *before.design.tracks}
    parts = []
    for place in {**now, **then}:
        mine, theirs = now.get(place), then.get(place)
        paired = results.design.seed == before.design.seed
        entries = compare(mine, theirs, paired) if mine and theirs else []
        parts.append(PartChange(title(*place, tracks), theirs, mine, entries))
    asked = [(name.replace("_", " "), old, new) for name, old, new in _differing(before.design, results.design)]
    environments = [race.setting.get("environment", {}) for race in (before.race, results.race)]
    names = dict.fromkeys(name for one in environments for name in one)
    seen = [(name, *(str(one.get(name, "–")) for one in environments)) for name in names]
    return Changes(before, parts, asked, [row for row in seen if row[1] != row[2]], in_words(parts))


def _differing(then: Design, now: Design) -> list[tuple[str, Any, Any]]:
    fields = ("tasks", "optimizers", "tracks", "trials", "finalists", "reruns", "seeds", "seed", "baseline", "device")

    def plain(value: Any) -> Any:
        return ", ".join(value) if isinstance(value, tuple) else "–" if value is None else value

    return [
        (name, plain(getattr(then, name)), plain(getattr(now, name)))
        for name in (*fields, "until_decided", "extend", "spaces")
        if getattr(then, name) != getattr(now, name)
    ]


def compare(now: Part, then: Part, paired: bool) -> list[Change]:
    """Everyone now beside themselves then: seed by seed where the seeds are the same, else mean against mean.

    Args:
        now: the later race's part.
        then: the earlier one's, of the same task and track.
        paired: whether seeds of the same number stand for the same weights and batches.
    """
    mine, theirs = ({entry.name: entry for entry in part.entries} for part in (now, then))
    both = [name for name in mine if name in theirs and mine[name].seeds and theirs[name].seeds]
    pairs = {
        name: Pairs(mine[name].losses, theirs[name].losses)
        for name in both
        if paired and mine[name].seeds.keys() == theirs[name].seeds.keys()
    }
    judged = judge(pairs, now.band)
    found = []
    for name in {**mine, **theirs}:
        new, old = mine.get(name), theirs.get(name)
        entry = new or old
        assert entry is not None  # one of the two has it
        verdict = judged.get(name)
        gap = verdict.difference if verdict else unpaired(new, old) if name in both else None
        same = verdict is not None and pairs[name].mine == pairs[name].theirs
        found.append(Change(name, entry.label, old, new, name in pairs, verdict, gap, same))
    return found


def unpaired(new: Result | None, old: Result | None) -> Interval | None:
    """The difference of the mean losses of two sets of seeds, each resampled by itself."""
    samples = [[o.result["loss"] for o in entry.finished.values()] for entry in (new, old) if entry]
    if len(samples) < 2 or not all(samples):
        return None
    return stratified_interval(samples, lambda both: both[0].mean(-1) - both[1].mean(-1))


def in_words(parts: Sequence[PartChange]) -> list[str]:
    """What changed, in sentences."""
    said = []
    for part in parts:
        if part.now is None or part.then is None:
            said.append(f"{part.title} {'is new' if part.then is None else 'was raced before, and is no longer'}.")
            continue
        for became in dict.fromkeys(_became(one) for one in sorted(part.entries, key=_urgency)):
            who = listed([one.label for one in part.entries if _became(one) == became])
            said.append(f"{part.title}: {who} {became}.")
    return said


def _urgency(change: Change) -> int:
    """Who became worse comes first."""
    order: tuple[Word, ...] = ("worse", "better", "practically equal", "no evidence", "too few seeds")
    return order.index(change.verdict.word) if change.verdict else len(order)


def _became(change: Change) -> str:
    if change.old is None:
        return "took part for the first time"
    if change.new is None:
        return "took part before, and no longer"
    if change.same:
        return "ended at the very same losses"
    if change.verdict:
        return {
            "better": "became better",
            "worse": "became worse",
            "practically equal": "stayed practically equal",
            "no evidence": "changed, without evidence of a difference",
            "too few seeds": "changed, on too few seeds for a verdict",
        }[change.verdict.word]
    if change.difference is None:
        return "cannot be compared: no seed finished in one of the races"
    if change.difference.excludes_zero:
        return f"ended at {'lower' if change.difference.mean < 0 else 'higher'} losses, on other seeds"
    return "ended at about the same losses, on other seeds"


# --- a picture ---


def write_picture(results: Results, path: Path) -> None:
    """Draw the learning curves of the first part as a file, `.svg` or `.png`.

    Raises:
        ValueError: another suffix, no finished run, or without kaleido or a browser for it to draw with.
    """
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a picture is an .svg or a .png, not {path.name!r}")
    picture = figures.picture(results)
    import plotly.graph_objects as go

    try:
        import kaleido  # noqa: F401 (plotly's own message does not know of our extra)
    except ImportError:
        raise ValueError('a picture needs kaleido: pip install "fallline[docs]"') from None
    width, height = PICTURE_SIZE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        go.Figure(picture).write_image(path, width=width, height=height, scale=2 if path.suffix == ".png" else 1)
    except RuntimeError as error:
        raise ValueError(f"kaleido could not draw; it needs Chrome or Chromium on this machine ({error})") from error


def _script_json(value: Any) -> str:
    """JSON to stand inside a script element, which a `</script>` in a name must not end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
