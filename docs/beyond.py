"""What beyond.md and the README show, from the records of races under benchmarks/records: `python docs/beyond.py`.

Nothing is run, and nobody is named here: the records tell who is ours, a baseline or a control, and which tasks there
are. `make beyond` makes the records; a task without one is listed as not run.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fallline.bench.common import numbers
from fallline.bench.common.files import fill, markdown
from fallline.bench.common.numbers import describe, duration
from fallline.bench.protocol.stats import stratified_interval

HERE = Path(__file__).parent
RECORDS = HERE.parent / "benchmarks" / "records"

BUDGETS = (1, 5, 20, 50)
"""Trials, of which the expected best is told."""

NEAR = 1.0
"""Shipped settings are near enough when their loss is at most so many per cent above that of the tuned reference."""

MARKS = {"better": "▲", "practically equal": "=", "worse": "▼", "no evidence": "?", "too few seeds": "?"}
BASELINE = "●"
NOTHING = "There are no records yet."

Record = Mapping[str, Any]


# --- the records ---


def kept(folder: Path = RECORDS) -> list[Record]:
    """The records in the order of the tasks."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("beyond-*.json"))]
    order = {task: place for place, task in enumerate(tasks(found))}
    return sorted(found, key=lambda record: order[record["task"]])


def newest_first(found: Iterable[Record]) -> list[Record]:
    """The records, the one of the last race first."""
    return sorted(found, key=lambda record: record["started"], reverse=True)


def tasks(found: Iterable[Record]) -> list[str]:
    """All tasks that there are, with a record or without."""
    newest = newest_first(found)
    return list(dict.fromkeys([task for one in newest[:1] for task in one["tasks"]] + [one["task"] for one in newest]))


def entrants(found: Iterable[Record]) -> dict[str, Record]:
    """All who raced, by name: `label` and `role`; the last race says which."""
    known: dict[str, Record] = {}
    for record in newest_first(found):
        for entrant in record["entrants"]:
            known.setdefault(entrant["name"], entrant)
    return known


def entry(record: Record, name: str, track: str = "tuned") -> Record | None:
    """What somebody did on a task."""
    return next((one for one in record["tracks"][track]["entries"] if one["name"] == name), None)


def lost(one: Record) -> int:
    """How many of the confirming seeds were lost."""
    return sum(loss is None for loss in one["losses"])


# --- numbers and words ---


def number(value: float) -> str:
    """Four significant digits."""
    return numbers.number(value, 4)


def percent(value: float) -> str:
    """A signed number of per cents."""
    return f"{value:+,.{1 if abs(value) < 100 else 0}f}".replace("-", "−")


def relative(loss: float, base: float) -> float:
    """How far a loss lies above another, as a share of the size of that: right in sign whatever the signs of both."""
    return (loss - base) / abs(base)


def around(bounds: Sequence[float | None], show: Any, scale: float = 1.0) -> str:
    """`mean [low, high]`."""
    mean, low, high = [None if one is None else show(scale * one) for one in bounds]
    return f"{mean} [{low}, {high}]" if low and high else str(mean)


def heading(entrant: Record) -> str:
    """A label, in bold where it is one of ours."""
    return f"**{entrant['label']}**" if entrant["role"] == "ours" else str(entrant["label"])


def tally(words: Iterable[str]) -> str:
    """How often better, as good, worse, and open."""
    marks = Counter(MARKS[word] for word in words)
    return " / ".join(str(marks[mark]) for mark in "▲=▼?")


def mark(record: Record, one: Record, track: str = "tuned") -> str:
    """How somebody stands to the best baseline."""
    if one["verdict"]:
        return MARKS[one["verdict"]["word"]]
    return BASELINE if one["name"] == record["tracks"][track]["baseline"] else ""


# --- the tables ---


def overview(found: Sequence[Record]) -> str:
    """Tasks down, everybody across: the mean loss with tuned settings, and how it stands to the best baseline."""
    if not found:
        return NOTHING
    known = entrants(found)
    rows = []
    for record in found:
        cells = [entry(record, name) for name in known]
        rows.append([f"`{record['task']}`", *("–" if one is None else result(record, one) for one in cells)])
    words = {
        name: [one["verdict"]["word"] for record in found if (one := entry(record, name)) and one["verdict"]]
        for name in known
    }
    rows.append(["better / tie / worse / open", *(tally(words[name]) for name in known)])
    rows.append(["loss by the best baseline's", *(over_tasks(found, name) for name in known)])
    told = [
        f"▲ better than the best baseline of the task ({BASELINE}), = practically equal to it, ▼ worse, ? no evidence.",
        "– could not take part. The last row is the interquartile mean over all runs and its 95 % interval.",
    ]
    return f"{markdown(['', *map(heading, known.values())], rows)}\n\n{' '.join(told)}"


def at_a_glance(found: Sequence[Record]) -> str:
    """For the README, tasks across: the first of ours with its shipped settings, then ours and the baselines tuned."""
    if not found:
        return NOTHING
    known = {name: one for role in ("ours", "baseline") for name, one in entrants(found).items() if one["role"] == role}
    first = next(name for name, one in known.items() if one["role"] == "ours")
    rows = [[f"{heading(known[first])}, untuned", *(loss_of(entry(record, first, "defaults")) for record in found)]]
    for name, entrant in known.items():
        cells = [(record, entry(record, name)) for record in found]
        told = ["–" if one is None else result(record, one).replace(" ", "&nbsp;") for record, one in cells]
        rows.append([heading(entrant), *told])
    return markdown(["", *(f"`{record['task']}`" for record in found)], rows)


def result(record: Record, one: Record) -> str:
    """A mean loss with its mark; lost seeds beside it."""
    if one["loss"] is None:
        return "lost"
    seeds = f", {lost(one)} lost" if lost(one) else ""
    return f"{number(one['loss'][0])}{seeds} {mark(record, one)}".strip()


def over_tasks(found: Sequence[Record], name: str) -> str:
    """The interquartile mean, over tasks and seeds, of the loss as a multiple of the mean of the task's baseline."""
    ratios = []
    for record in found:
        one, against = entry(record, name), entry(record, record["tracks"]["tuned"]["baseline"])
        if one and one["losses"] and against and against["loss"]:
            base = against["loss"][0]
            ratios.append([math.inf if loss is None else 1 + relative(loss, base) for loss in one["losses"]])
    if not ratios:
        return "–"
    found_here = stratified_interval(ratios)
    told = around([found_here.mean, found_here.low, found_here.high], "{:.3f}".format)
    return told if len(ratios) == len(found) else f"{told}, {len(ratios)} of {len(found)} tasks"


def shipped(found: Sequence[Record]) -> str:
    """Tasks down, everybody across: how far shipped settings are from the tuned reference; the best of ours in bold."""
    if not found:
        return NOTHING
    known = entrants(found)
    rows = []
    near: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    worst: dict[str, float] = {}
    for record in found:
        there = {name: one for name in known if (one := entry(record, name, "defaults"))}
        above = {name: bounds for name in there if (bounds := record["shipped"].get(name))}
        ours = [name for name in above if known[name]["role"] == "ours" and not lost(there[name])]
        best = min(ours, key=lambda name: above[name][0], default=None)
        cells = []
        for name in known:
            if name not in above:
                cells.append("lost" if name in there else "–")
                seen[name] += name in there
                continue
            seen[name] += 1
            cell = around(above[name], percent)
            if lost(there[name]):
                cell += f", {lost(there[name])} lost"
            elif above[name][0] <= NEAR:
                near[name] += 1
                cell += " ✓"
            worst[name] = max(worst.get(name, -math.inf), above[name][0])
            cells.append(f"**{cell}**" if name == best else cell)
        rows.append([f"`{record['task']}`", *cells])
    rows.append([f"within {NEAR:g} %", *(f"{near[name]} of {seen[name]}" for name in known)])
    rows.append(["farthest", *(percent(worst[name]) if name in worst else "–" for name in known)])
    return markdown(["", *map(heading, known.values())], rows)


def parts(found: Sequence[Record]) -> str:
    """One table for each of ours that has parts: the whole, each part alone, and the verdict on the whole."""
    known = entrants(found)
    tables: dict[tuple[str, str, str], list[list[str]]] = {}
    words: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for record in found:
        for one in record["parts"]:
            names = one["both"], one["direction"], one["filter"]
            mine = entry(record, one["both"])
            row = [f"`{record['task']}`", loss_of(mine)]
            for kind in ("direction", "filter"):
                row += [loss_of(entry(record, one[kind])), against(one["against"].get(kind), mine)]
                if verdict := one["against"].get(kind):
                    words.setdefault(names, {}).setdefault(kind, []).append(verdict["word"])
            tables.setdefault(names, []).append(row)
    told = []
    for names, rows in tables.items():
        labels = [heading(known[name]) for name in names]
        counted = [tally(words.get(names, {}).get(kind, [])) for kind in ("direction", "filter")]
        last = ["better / tie / worse / open", "", "", counted[0], "", counted[1]]
        head = ["", f"both: {labels[0]}", f"direction alone: {labels[1]}", "both by that, %"]
        told.append(markdown([*head, f"filter alone: {labels[2]}", "both by that, %"], [*rows, last]))
    return "\n\n".join(told) or NOTHING


def loss_of(one: Record | None) -> str:
    """A mean loss, if there is one."""
    return "–" if one is None else number(one["loss"][0]) if one["loss"] else "lost"


def against(verdict: Record | None, mine: Record | None) -> str:
    """A verdict's mark and its difference, in per cent of the loss of the other."""
    if verdict is None:
        return "–"
    if not verdict["difference"] or not mine or not mine["loss"]:
        return MARKS[verdict["word"]]
    theirs = mine["loss"][0] - verdict["difference"][0]
    return f"{around(verdict['difference'], percent, 100 / abs(theirs))} {MARKS[verdict['word']]}"


def tuning(found: Sequence[Record]) -> str:
    """What K trials are expected to find, and how many it takes to come where the tuned reference is."""
    if not found:
        return NOTHING
    known = entrants(found)
    budgets = [budget for budget in BUDGETS if any(budget <= record["design"]["trials"] for record in found)]
    expected, needed = [], []
    for name, entrant in known.items():
        bests = [(record, (entry(record, name) or {}).get("best of")) for record in found]
        expected.append([heading(entrant), *(best_of(record, best, budgets) for record, best in bests)])
        needed.append([heading(entrant), *(trials_needed(record, best) for record, best in bests)])
    head = ["", *(f"`{record['task']}`" for record in found)]
    reference = known[found[0]["reference"]]["label"]
    all_k = " / ".join(map(str, budgets))
    return "\n\n".join(
        [
            f"Expected loss, on validation data where there are any, of the best of {all_k} trials, in per cent above"
            f" {reference}'s best of all:",
            markdown(head, expected),
            f"Trials after which it is expected to lie as low as {reference}'s best of all, or within the"
            " equivalence margin above:",
            markdown(head, needed),
        ]
    )


def best_of(record: Record, best: Sequence[float] | None, budgets: Sequence[int]) -> str:
    """The expected best of each budget, beside the reference's of all trials."""
    aim = goal(record)
    if not best or aim is None:
        return "–"
    return " / ".join(percent(100 * relative(best[k - 1], aim)) for k in budgets if k <= len(best))


def trials_needed(record: Record, best: Sequence[float] | None) -> str:
    """The smallest budget that is expected to reach the goal."""
    aim = goal(record)
    if not best or aim is None:
        return "–"
    bar = aim + record["tracks"]["tuned"]["band"]
    return next((str(k) for k, mean in enumerate(best, start=1) if mean <= bar), f"> {len(best)}")


def goal(record: Record) -> float | None:
    """The expected best of all trials of the reference."""
    best = (entry(record, record["reference"]) or {}).get("best of")
    return best[-1] if best else None


def each(found: Sequence[Record]) -> str:
    """A heading, the command and a table for every task."""
    return "\n\n".join(part(record) for record in found) or NOTHING


def part(record: Record) -> str:
    """One task."""
    tuned, where = record["tracks"]["tuned"], record["environment"]
    known = {entrant["name"]: entrant for entrant in record["entrants"]}
    base = entry(record, tuned["baseline"]) if tuned["baseline"] else None
    scale = 100 / abs(base["loss"][0]) if base and base["loss"] else None
    head = ["optimizer", "role", record["loss"], "accuracy, %", "against the best baseline, %", "", "p (Holm)"]
    rows = []
    for one in tuned["entries"]:
        verdict = one["verdict"]
        gap = verdict and verdict["difference"] and scale and around(verdict["difference"], percent, scale)
        rows.append(
            [
                heading(known[one["name"]]),
                known[one["name"]]["role"],
                (around(one["loss"], number) if one["loss"] else "lost") + (f", {lost(one)} lost" if lost(one) else ""),
                f"{100 * one['accuracy']:.1f}" if one["accuracy"] is not None else "–",
                gap or "–",
                verdict["word"] if verdict else "the best baseline" if one is base else "–",
                f"{verdict['p']:.2g}" if verdict and verdict["p"] is not None else "–",
                f"{one['lost trials']}/{len(one['scores'])}",
                f"{one['cpu by sgd']:.2f}" if one["cpu by sgd"] else "–",
                f"{one['state bytes']:,}" if one["state bytes"] is not None else "–",
                describe(one["settings"]) if one["settings"] is not None else "–",
            ]
        )
    if all(row[3] == "–" for row in rows):  # a task that counts no hits
        head, rows = [*head[:3], *head[4:]], [[*row[:3], *row[4:]] for row in rows]
    design = record["design"]
    told = (
        f"`{record['command']}`: {record['runs']:,} runs, {duration(record['cpu seconds'])} of CPU time of training; "
        f"fallline {where['fallline']}, torch {where['torch']}, {where['processor']}, workers: {where['workers']}."
    )
    notes = [f"{known[name]['label']}: {reason}." for name, reason in tuned["left out"].items()]
    notes += [f"{known[one['name']]['label']}: {text}." for one in tuned["entries"] for text in one["alarms"]]
    band = f" Differences within ±{scale * tuned['band']:.2g} % count as a tie." if scale else ""
    summary = f"{record['summary'][:1].upper()}{record['summary'][1:]}."
    asked = f"{design['trials']} trials each, reruns of the best {design['finalists']}, {design['seeds']} seeds."
    parts = [
        f"### {record['task']}",
        f"{summary} {asked}{band}",
        told,
        markdown([*head, "trials lost", "CPU time × SGD", "state, bytes", "settings chosen"], rows),
    ]
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


def unrun(found: Sequence[Record]) -> str:
    """Which tasks have no record."""
    if not found:
        return NOTHING
    missing = [task for task in tasks(found) if task not in {record["task"] for record in found}]
    if not missing:
        return "Every task has a record."
    return f"Not raced yet, or not to the end: {', '.join(f'`{task}`' for task in missing)}."


def places(found: Sequence[Record]) -> dict[str, str]:
    """What stands where on the page."""
    return {
        "overview": overview(found),
        "shipped": shipped(found),
        "parts": parts(found),
        "tuning": tuning(found),
        "tasks": each(found),
        "not run": unrun(found),
    }


def main() -> None:
    """Fill the pages."""
    found = kept()
    for place, text in places(found).items():
        fill(HERE / "beyond.md", place, text)
    fill(HERE.parent / "README.md", "results", at_a_glance(found))


if __name__ == "__main__":
    main()
