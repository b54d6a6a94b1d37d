"""What was measured, in two tables and a few sentences."""

from collections.abc import Iterable, Iterator, Mapping

from rich.table import Table
from rich.text import Text

from speed.results import ClockName, Part, Ratio, Row

NONE = "–"

NAMES: Mapping[ClockName, str] = {"cpu": "CPU", "wall": "wall"}

REACH = 0.8
"""Of a copy's bandwidth so much is asked of a fused step on a GPU."""

METHODS_WIDTH = 40
"""Columns of the longest name that is not broken."""


def tables(part: Part) -> tuple[Table, Table]:
    """Times, and what else a step is; neither wider than 120 columns."""
    return time_table(part), other_table(part)


def time_table(part: Part) -> Table:
    """Milliseconds a step, ratios to those that they were timed beside, share of a copy's bandwidth."""
    other: ClockName = "wall" if part.clock == "cpu" else "cpu"
    clock = NAMES[part.clock]
    table = _table(
        f"{clock} ms\nmedian",
        f"{clock} ms\nleast",
        f"{NAMES[other]} ms\nmedian",
        "× reference\n[middle half]",
        "of\nminima",
        "\nfloor",
        "\ntarget",
        "of copy's\nbandwidth",
    )
    for against, rows in sections(part):
        titles = {row.method.name: row.method.title for row in part.rows}
        table.add_row(Text(f"beside {titles.get(against, against)}" if against else "by themselves", style="bold"))
        for row in rows:
            times = row.times[part.clock]
            table.add_row(
                Text(f"  {row.method.title}"),
                _ms(times.median),
                _ms(times.minimum),
                _ms(row.times[other].median),
                *_ratio(row.ratio),
                _number(row.floor),
                _target(row),
                f"{row.share:.0%}" if row.share is not None else NONE,
            )
    return table


def other_table(part: Part) -> Table:
    """Words, first steps, memory, launches, host reads."""
    launches = "kernels\nlaunched" if part.device == "cuda" else "operations\ndispatched"
    table = _table(
        "words\nmoved",
        "words of\nstate",
        "first step\ncold, s",
        "first step\nwarm, s",
        "temporaries\nMB",
        launches,
        "host\nreads",
    )
    for row in part.rows:
        fresh, words = row.fresh, row.method.words
        table.add_row(
            Text(row.method.title),
            f"{words.total:g}" if words else NONE,
            f"{row.state:.0f}" if row.state > 100 else f"{row.state:.3g}",
            _seconds(fresh.cold if fresh else None),
            _seconds(fresh.warm if fresh else None),
            f"{row.temporaries / 1e6:,.1f}" if row.temporaries is not None else NONE,
            f"{row.counts.launches:,}" if row.counts else NONE,
            f"{row.counts.host_reads:,}" if row.counts else NONE,
        )
    return table


def sections(part: Part) -> Iterator[tuple[str | None, list[Row]]]:
    """The rows by whom they were timed beside, in those' order."""
    for against in (None, *(row.method.name for row in part.rows)):
        rows = [row for row in part.rows if (row.method.against if row.ratios else None) == against]
        if rows:
            yield against, rows


def words(part: Part) -> list[str]:
    """What was measured and how, which targets are met, and what went wrong."""
    cpu = part.device == "cpu"
    threads = "one thread" if part.threads == 1 else f"{part.threads} threads"
    said = [
        f"{part.set}: {part.elements:,} parameters in {part.tensors:,} tensors, {part.dtype}; {part.device}, "
        f"{threads}. The largest tensor has {part.largest / 1e6:,.1f} MB.",
        f"Medians of {part.rounds} rounds in random order; a ratio is of two turns directly after each other, by "
        f"{'CPU time' if part.clock == 'cpu' else 'wall time'}. Floor: the bytes that a step must move by the other's.",
        f"Copying all parameters moves {part.copy_bandwidth / 1e9:,.1f} GB a second, two words a parameter."
        + (" (A processor also reads what it is to overwrite; in a step it has done so already.)" if cpu else ""),
    ]
    if cpu:
        said.append(
            "Operations are those of torch's dispatcher, without views; a compiled graph shows it none. Host reads are "
            "values that Python asks for, which would wait for a GPU."
        )
    else:
        for mode in ("fused", "captured"):
            shares = [
                row.share for row in part.rows if row.method.mode == mode and row.ratios and row.share is not None
            ]
            reached = sum(share >= REACH for share in shares)
            if shares:
                said.append(f"{reached} of {len(shares)} {mode} methods reach {100 * REACH:.0f} % of that.")
    judged = [row for row in part.rows if row.met is not None]
    if judged:
        missed = [row for row in judged if not row.met]
        said.append(f"{len(judged) - len(missed)} of {len(judged)} targets are met.{_missed(missed)}")
    said += [f"{name} was left out: {why}." for name, why in part.left_out.items()]
    said += [
        f"{row.method.title} told nothing of its first step: {row.fresh.failure}."
        for row in part.rows
        if row.fresh and row.fresh.failure
    ]
    return said


def _missed(rows: Iterable[Row]) -> str:
    told = [
        f"{row.method.title} {row.ratio.median:.2f} ({row.target:.2f}{_unreachable(row)})" for row in rows if row.ratio
    ]
    return f" Missed: {', '.join(told)}." if told else ""


def _unreachable(row: Row) -> str:
    """A target below the floor is told, not pursued."""
    below = row.floor is not None and row.target is not None and row.target < row.floor
    return f", below its floor of {row.floor:.2f}" if below else ""


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True, max_width=METHODS_WIDTH)
    for heading in headings:
        table.add_column(Text(heading), justify="right")  # no markup: it has brackets
    return table


def _ms(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _seconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _ratio(ratio: Ratio | None) -> tuple[Text, str]:
    if ratio is None:
        return Text(NONE), NONE
    return Text(f"{_times(ratio.median)} [{_times(ratio.low)}, {_times(ratio.high)}]"), _times(ratio.of_minima)


def _times(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 9.995 else 1}f}"


def _target(row: Row) -> Text:
    if row.target is None or row.met is None:
        return Text(NONE)
    return Text(f"{row.target:.2f} {'✓' if row.met else '✗'}", style="green" if row.met else "red")
