"""Verdicts as tables: for a terminal, for a page, for machines."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from rich.table import Table
from rich.text import Text

import fallline
from fallline.bench.check.promises import GROUPS, PROMISES
from fallline.bench.check.promises._promise import Promise
from fallline.bench.check.subject import Subject
from fallline.bench.check.trial import Outcome, Verdict

Found = Mapping[Subject, Sequence[Verdict]]
"""Verdicts on each optimizer, in the order of the promises."""

MARKS = {
    Outcome.holds: ("holds", "green"),
    Outcome.refused: ("refused", "green"),
    Outcome.absent: ("–", "dim"),
    Outcome.excused: ("excused", "yellow"),
    Outcome.fails: ("FAILS", "bold red"),
}
"""How an outcome is shown in a terminal: a word and its style."""

WORDS = {
    Outcome.holds: "kept",
    Outcome.refused: "refused in words, which keeps them too",
    Outcome.fails: "broken",
    Outcome.absent: "not applicable",
    Outcome.excused: "excused",
}
"""The same in a count."""

CELLS = {
    Outcome.holds: "✓",
    Outcome.refused: "refused",
    Outcome.absent: "–",
    Outcome.excused: "excused",
    Outcome.fails: "**✗**",
}
"""The same in Markdown."""


def results_table(subject: Subject, verdicts: Sequence[Verdict]) -> Table:
    """What holds, group by group, with reasons where there are any."""
    table = Table(title=title(subject), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("promise", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("")
    last = None
    for verdict in verdicts:
        known = PROMISES[verdict.promise]
        if last not in (None, known.group):
            table.add_row("", "", "")
        last = known.group
        word, style = MARKS[verdict.outcome]
        said = Text(known.says) if verdict.outcome is Outcome.holds else Text(verdict.reason, style="dim")
        table.add_row(Text(verdict.promise), Text(word, style=style), said)
    return table


def title(subject: Subject) -> str:
    """The optimizer with its settings, and how it is given the loss."""
    return f"{subject.module}.{subject.kind}({subject.written}), loss: {subject.loss}"


def count(verdicts: Sequence[Verdict]) -> str:
    """How many promises came out in which way, in a sentence."""
    of = Counter(one.outcome for one in verdicts)
    parts = [f"{of[one]} {WORDS[one]}" for one in Outcome if of[one] or one is Outcome.fails]
    return f"{len(verdicts)} promises: {', '.join(parts)}."


def promises_table(promises: Sequence[Promise]) -> Table:
    """Every promise in a sentence."""
    table = Table(box=None, pad_edge=False, show_header=False)
    last = None
    for one in promises:
        if last not in (None, one.group):
            table.add_row("", "")
        last = one.group
        table.add_row(Text(one.path, style="bold"), Text(one.says))
    return table


def promises_markdown(promises: Sequence[Promise]) -> str:
    """Every promise with what goes wrong without it, a table for each group."""
    lines: list[str] = []
    for group, all_of_it in GROUPS.items():
        some = [one for one in all_of_it if one in promises]
        if some:
            lines += [f"### {group}", "", "| promise | what it says | why it matters |", "| --- | --- | --- |"]
            lines += [f"| `{one.name}` | {cell(one.says)} | {cell(one.why)} |" for one in some]
            lines.append("")
    return "\n".join(lines).rstrip()


def results_markdown(found: Found) -> str:
    """One row a promise, one column an optimizer; then what fails and what is excused, with the reasons."""
    subjects = list(found)
    lines = ["| promise | " + " | ".join(name_of(one) for one in subjects) + " |", "| --- |" + " --- |" * len(subjects)]
    rows = list(zip(*found.values(), strict=True))
    lines += [f"| `{row[0].promise}` | " + " | ".join(CELLS[one.outcome] for one in row) + " |" for row in rows]
    held = [sum(one.outcome in (Outcome.holds, Outcome.refused) for one in verdicts) for verdicts in found.values()]
    broken = [sum(one.broken for one in verdicts) for verdicts in found.values()]
    lines.append("| *kept, broken* | " + " | ".join(f"{a}, {b}" for a, b in zip(held, broken, strict=True)) + " |")
    reasons = [
        f"- {name_of(subject)}, `{one.promise}`{' (excused)' if one.outcome is Outcome.excused else ''}: {one.reason}"
        for subject, verdicts in found.items()
        for one in verdicts
        if one.outcome in (Outcome.fails, Outcome.excused)
    ]
    versions = f"*fallline {fallline.__version__}, torch {torch.__version__}.*"
    return "\n".join([*lines, "", *reasons, *([""] if reasons else []), versions])


def name_of(subject: Subject) -> str:
    """The class, in short."""
    return f"torch's {subject.kind}" if subject.module == "torch.optim" else subject.kind


def cell(text: str) -> str:
    """Text that stands in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def as_json(found: Found) -> str:
    """All verdicts, for machines."""
    whole = {
        "versions": {"fallline": fallline.__version__, "torch": torch.__version__},
        "optimizers": [
            {"optimizer": asdict(subject), "verdicts": [asdict(one) for one in verdicts]}
            for subject, verdicts in found.items()
        ],
    }
    return json.dumps(whole, indent=1) + "\n"
