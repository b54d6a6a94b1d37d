"""The table of claims, in words: for the terminal and for the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fallline.papers.claims._claim import FAILS, HOLDS, METHODS, OPEN
from fallline.papers.claims.examine import FAILED

COLOURS = {HOLDS: "green", FAILS: "red", OPEN: "yellow", FAILED: "bold red"}

Found = Mapping[str, Any]


def number(value: float) -> str:
    """Four significant digits."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}".replace("-", "−")
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def with_interval(reading: Mapping[str, Any]) -> str:
    """A value, with its interval if it has one."""
    if "low" not in reading:
        return number(reading["value"])
    return f"{number(reading['value'])} [{number(reading['low'])}, {number(reading['high'])}]"


def measurement(found: Found) -> str:
    """The worst of the readings, of how many, and the band."""
    if not found.get("headline"):
        return "–"
    more = len(found["readings"]) - 1
    return f"{with_interval(found['headline'])}{f', the worst of {more + 1}' if more else ''}; {found['band']}"


def tally(claims: Sequence[Found]) -> str:
    """How many hold, do not, and are open."""
    counted = Counter(found["verdict"] for found in claims)
    words = [f"{counted[HOLDS]} hold", f"{counted[FAILS]} do not", f"{counted[OPEN]} not decided"]
    return ", ".join(words + ([f"{counted[FAILED]} failed"] if counted[FAILED] else []))


def tables(claims: Sequence[Found]) -> list[Table]:
    """One table a method."""
    made = []
    for method, label in METHODS.items():
        mine = [found for found in claims if found["method"] == method]
        if not mine:
            continue
        table = Table(title=Text(label, style="bold"), title_justify="left", box=None, pad_edge=False)
        table.padding = (0, 2, 1, 0)
        table.add_column("claim", ratio=5)
        table.add_column("source", ratio=2, style="dim")
        table.add_column("our measurement", ratio=4)
        table.add_column("verdict", ratio=3)
        for found in mine:
            word = Text(found["verdict"], style=COLOURS[found["verdict"]])
            if found["why"]:
                word.append(f": {found['why']}", style="dim")
            sentence = Text.assemble((found["id"], "dim"), "\n", found["claim"])
            quantity = Text.assemble((f"{found['quantity']}: ", "dim"), measurement(found))
            table.add_row(sentence, Text(found["source"]), quantity, word)
        made.append(table)
    return made
