"""What the terminal shows: in 80 columns, live or in plain lines."""

import io
import re

import pytest
from referee import Inline
from rich.console import Console

from fallline.bench.common.numbers import clock
from fallline.bench.race.results import results
from fallline.bench.report.display import Display, lanes_table
from fallline.bench.report.looks import lines
from fallline.bench.report.race_tables import terminal_results
from fallline.bench.report.tables import terminal
from fallline.bench.report.words import summary


def text(console):
    """What was printed, without the terminal's codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_race_is_shown_as_it_runs(referee, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)
    with Display(console) as display:
        watch = referee.watch
        referee.watch = lambda progress: (watch(progress), display(progress))
        referee.race("coolmomentum", "sgd", task="sprint:Cliff", executor=Inline())
    shown = text(console)
    assert "8/8 runs" in shown
    assert ("Ctrl-C keeps all" in shown) == terminal
    assert all(len(line) <= 80 for line in shown.splitlines())
    console.file.truncate(0)
    console.print(lanes_table(referee.progress))
    rows = [line.split() for line in text(console).splitlines()]
    assert ["SGD", "3/3", "3", "3", "0", "–", "0"] in rows
    assert next(row for row in rows if row[0] == "CoolMomentum")[1:5] == ["5/5", "0", "3", "0"]


def test_the_result_fits_80_columns(store, referee):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    found = results(store, referee.race("coolmomentum", "sgd", "adamw", seeds=8, tracks=("defaults", "tuned")))
    looks = lines(found)
    for part in found.parts:
        console.file.seek(0)
        console.file.truncate(0)
        console.print(terminal(terminal_results(part, looks)))
        shown = text(console).splitlines()
        assert len(shown) == 4  # no cell needs a second line
        assert all(len(line) <= 80 for line in shown)
        assert part.entries[0].label in shown[1]
        assert f"against {part.baseline.label}" in shown[0]
        rivals = [entry for entry in part.entries if entry is not part.baseline]
        assert all(any(entry.verdict.word in line for line in shown) for entry in rivals)


def test_the_words_come_first_and_hold_every_verdict(store, referee):
    found = results(store, referee.race("coolmomentum", "sgd", "sprint:Still", seeds=8, finalists=2, reruns=2))
    told = " ".join(summary(found))
    (part,) = found.parts
    assert f"best baseline is {part.baseline.label}" in told
    assert "Still" in told
    assert f"worse than {part.baseline.label}" in told
    runs = sum(len(entry.runs) for entry in part.entries)
    assert f"All {runs} runs took" in told
    assert summary(results(store, referee.race("koala-v", seeds=1)))[0].startswith("KOALA-V has the lowest loss")


def test_times_are_minutes_and_seconds():
    assert [clock(seconds) for seconds in (0, 9.6, 61, 3599.9)] == ["0:00", "0:10", "1:01", "60:00"]
