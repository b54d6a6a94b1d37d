"""How each optimizer looks, on the page and in print: one colour, one dash, everywhere.

Colours are written as tokens, `@koala-v` or, translucent, `@koala-v/20`. The page replaces them by those of its light
or dark theme, a picture by those that both can bear.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fallline.bench.contenders import CONTENDERS
from fallline.bench.protocol.analysis import Results

Figure = dict[str, Any]
"""A figure as Plotly's JSON: data and layout."""

COLOURS = {name: card.colour for name, card in CONTENDERS.items() if card.colour}
"""The colours of the methods that this package ships: on white, on black, on either."""

# The last two differ from the rest in lightness too, for readers who see fewer hues.
SPARE_COLOURS = (
    ("#c800c8", "#f25cff", "#d81be0"),
    ("#0a14e6", "#7d8cff", "#3b46ff"),
    ("#5a1f00", "#d98a4f", "#a04a10"),
)
INK = {
    "text": ("#1d2127", "#e8eaed", "#757f8a"),
    "muted": ("#5d6570", "#a2abb6", "#757f8a"),
    "grid": ("#e6e4df", "#30353c", "#7d859033"),
    "paper": ("#ffffff", "#191c20", "#ffffff00"),
    "warn": ("#9a4a00", "#ffb066", "#b86a1a"),
}
LIGHT, DARK, EITHER = 0, 1, 2
KEY_WIDTH = 1.75
"""Pixels that a dash in the key has for each line width, so that the longest pattern fits into it."""

HEX = re.compile("#[0-9a-fA-F]{6}")

STROKES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "dash": (4, 2),
    "dashdot": (4.4, 1.6, 1.2, 1.6),
    "dot": (1, 1.3),
    "longdash": (7, 2),
    "longdashdot": (7, 1.6, 1.2, 1.6),
}
"""Plotly's names for broken lines, as strokes and gaps in line widths."""

DASHES = {name: card.dash for name, card in CONTENDERS.items() if not card.ours}
"""The dashes of optimizers from elsewhere; "longdash" for all others."""


@dataclass(frozen=True)
class Line:
    """How one optimizer looks: its colour on white, on black and on either, and its dash."""

    name: str
    label: str
    colour: tuple[str, str, str]
    dash: str = "solid"
    width: float = 2.0
    ours: bool = True
    turn: int = 0
    """How many others have had this colour before: what tells strangers apart once the spare colours are used up."""

    @property
    def dasharray(self) -> str:
        """As SVG wants it in the key, in pixels; empty for a whole line."""
        if self.dash not in STROKES:
            return self.dash.replace("px", "")
        return " ".join(f"{KEY_WIDTH * length:g}" for length in STROKES[self.dash])

    @property
    def style(self) -> Figure:
        """As Plotly wants it."""
        return {"color": f"@{self.name}", "width": self.width, "dash": self.dash}


def lines(*races: Results) -> dict[str, Line]:
    """How each optimizer in these races looks, by name, in order of appearance; no two look the same.

    An optimizer without a colour of its own, such as the variant `sgd@linear`, shares a spare one. Then its dash and
    its marker differ.
    """
    entries = {entry.name: entry for race in races for part in race.parts for entry in part.entries}
    known = {name: COLOURS.get(name) or recorded_colour(entry.about) for name, entry in entries.items()}
    strangers = sorted(name for name, colour in known.items() if colour is None)
    found = {}
    for name, entry in entries.items():
        colour, turn = known[name], 0
        dash = "solid" if entry.ours else DASHES.get(name) or recorded_dash(entry.about)
        if colour is None:
            turn, which = divmod(strangers.index(name), len(SPARE_COLOURS))
            colour = SPARE_COLOURS[which]
            dash = dash if turn == 0 else "12px,3px" + ",2px,3px" * turn  # a dash and so many dots
        found[name] = Line(name, entry.label, colour, dash, 2.5 if entry.ours else 2.0, entry.ours, turn)
    return found


def recorded_colour(about: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The colour that a card from elsewhere gave; None for none, and for text that is no colour."""
    match about.get("colour"):
        case [str(light), str(dark), str(either)] if all(map(HEX.fullmatch, (light, dark, either))):
            return light, dark, either
    return None


def recorded_dash(about: Mapping[str, Any]) -> str:
    """The dash that a card from elsewhere gave."""
    return dash if (dash := about.get("dash")) in STROKES else "longdash"


def palette(looks: Mapping[str, Line], face: int) -> dict[str, str]:
    """Token to colour, for `LIGHT`, `DARK` or `EITHER` ground."""
    return {name: faces[face] for name, faces in {**INK, **{n: one.colour for n, one in looks.items()}}.items()}


def coloured(figure: Figure, colours: Mapping[str, str]) -> Figure:
    """The figure with its tokens replaced; a share after a slash, in percent, becomes the alpha channel."""

    def colour(match: re.Match[str]) -> str:
        alpha = match["alpha"]
        return colours[match["name"]] + (f"{round(int(alpha) * 2.55):02x}" if alpha else "")

    painted: Figure = json.loads(re.sub(r'(?<=")@(?P<name>[^"/]+)(/(?P<alpha>\d+))?(?=")', colour, json.dumps(figure)))
    return painted
