"""SVG by hand: scales, lines, words and motion, in colours that change with the reader's light or dark setting.

A picture is one file without scripts, fonts or links. What moves is SMIL (`<animate>`), which runs in an `<img>` too.
What stands in the file is the last moment: a reader who asks for less motion, or a program that knows none, sees that.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fallline.bench.report.looks import COLOURS, DARK, INK, LIGHT, SPARE_COLOURS

Array = NDArray[np.float64]

WIDTH = 800
"""Of every picture, in its own units: a column of text on a code host is about as wide in pixels."""

EDGE = 24
"""Between the rim of a picture and what it holds."""

GROUND = {"hill": ("#4a86c5", "#4f7fb0"), "shade": ("#eef0f3", "#23272d")}
"""Beside the contenders' colours and the ink: of landscapes, and of areas that lie behind all else."""

STYLE = """
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--text)}
.title{font-size:19px;font-weight:650}
.head{font-size:15px;font-weight:600}
.muted{fill:var(--muted)}
.small{font-size:13px}
.figures{font-variant-numeric:tabular-nums}
.middle{text-anchor:middle}
.end{text-anchor:end}
.grid{stroke:var(--grid);stroke-width:1;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.thin{stroke-width:1.2}
.way{stroke-width:1.8}
.case{stroke:var(--paper);stroke-width:4;stroke-opacity:.5}
.pale{stroke-width:1.1;opacity:.4}
.card{fill:var(--paper)}
.shade{fill:var(--shade)}
.ring{stroke:var(--paper);stroke-width:1.5}
.halo{paint-order:stroke;stroke:var(--paper);stroke-width:4;stroke-opacity:.7;stroke-linejoin:round}
.name{font-weight:600}
@media (prefers-reduced-motion:reduce){
.grows{stroke-dashoffset:0!important}.opens{clip-path:none!important}.arrives{opacity:1!important}.moving{display:none!important}.still{display:inline!important}
}
"""


# --- numbers and points ---


def num(value: float, digits: int = 1) -> str:
    """As few characters as the digits after the point allow: `12`, `.5`, `-3.4`."""
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    text = text.replace("-0.", "-.", 1) if text.startswith("-0.") else text
    text = text[1:] if text.startswith("0.") else text
    return "0" if text in ("", "-0", "-", "-.") else text


def track(points: ArrayLike, *, closed: bool = False) -> str:
    """The `d` of a path through points, shape (points, 2), to a tenth of a unit; steps are written, not places."""
    tenths = np.rint(np.asarray(points, dtype=np.float64) * 10).astype(int)
    steps = np.diff(tenths, axis=0)
    pairs = [f"{num(x / 10)} {num(y / 10)}" for x, y in steps[np.any(steps != 0, axis=1)]]
    start = f"M{num(tenths[0, 0] / 10)} {num(tenths[0, 1] / 10)}"
    return start + ("l" + " ".join(pairs) if pairs else "h0") + ("z" if closed else "")


def thinned(points: ArrayLike, tolerance: float = 0.15) -> Array:
    """The points without which a line would change by more than the tolerance (Ramer, Douglas and Peucker)."""
    points = np.asarray(points, dtype=np.float64)
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, -1]] = True
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        chord = points[last] - points[first]
        away = points[first + 1 : last] - points[first]
        square = float(chord @ chord)
        along = np.clip(away @ chord / square, 0, 1) if square > 0 else np.zeros(len(away))
        far = np.linalg.norm(away - along[:, None] * chord, axis=1)
        worst = int(far.argmax())
        if far[worst] > tolerance:
            keep[first + 1 + worst] = True
            spans += [(first, first + 1 + worst), (first + 1 + worst, last)]
    return points[keep]


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near the wanted ones, in their order, at least a gap apart, between low and high."""
    order = np.argsort(places, kind="stable")
    found = np.clip(np.asarray(places, dtype=np.float64)[order], low, high)
    for _ in range(200):  # neighbours push each other until nobody is too near
        for i in range(1, len(found)):
            near = gap - (found[i] - found[i - 1])
            if near > 0:
                found[i - 1] -= near / 2
                found[i] += near / 2
        shift = max(0.0, low - float(found[0])) - max(0.0, float(found[-1]) - high)
        found = found + shift
    settled = np.empty(len(found))
    settled[order] = found
    return [float(place) for place in settled]


# --- scales ---

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """From values to places: linear, or over the logarithm."""

    low: float
    high: float
    start: float
    """Where `low` lies."""

    end: float
    """Where `high` lies."""

    log: bool = False

    def __call__(self, values: ArrayLike) -> Array:
        """Places; on a logarithmic scale what is less than `low` lies there."""
        known: Array = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            known, low, high = np.log10(np.maximum(known, low)), math.log10(low), math.log10(high)
        places: Array = self.start + (known - low) / (high - low) * (self.end - self.start)
        return places

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """At most so many round values and how they are written."""
        if self.log:
            low, high = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((high - low + 1) / most))
            return [(10.0**power, power_of_ten(power)) for power in range(low, high + 1) if power % every == 0]
        for unit in (m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)):
            first, last = math.ceil(self.low / unit - 1e-9), math.floor(self.high / unit + 1e-9)
            if last - first + 1 <= most:
                return [(i * unit, f"{i * unit:,.10g}".replace("-", "−")) for i in range(first, last + 1)]
        return []


def power_of_ten(power: int) -> str:
    """`10⁻³`; near 1 as a number: `0.1`, `1`, `10`."""
    return f"{10.0**power:g}" if -1 <= power <= 1 else "10" + str(power).translate(SUPERSCRIPTS)


# --- elements ---


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An element; `class_` is its class, other underscores are hyphens, numbers are rounded to a tenth."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{num(value) if isinstance(value, float) else value}"'
        for key, value in attributes.items()
        if value not in (None, "")
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def words(x: float, y: float, text: str, classes: str = "", **attributes: object) -> str:
    """Text at a baseline."""
    return tag("text", html.escape(text, quote=False), x=float(x), y=float(y), class_=classes, **attributes)


def line(points: ArrayLike, name: str, classes: str = "line", tolerance: float = 0.15, **attributes: object) -> str:
    """A line in the colour of that name."""
    return tag("path", d=track(thinned(points, tolerance)), class_=f"{classes} s-{name}", **attributes)


def area(points: ArrayLike, classes: str, **attributes: object) -> str:
    """What a line encloses."""
    return tag("path", d=track(thinned(points), closed=True), class_=classes, **attributes)


def dot(x: float, y: float, radius: float, classes: str, content: str = "", **attributes: object) -> str:
    """A circle."""
    return tag("circle", content, cx=float(x), cy=float(y), r=float(radius), class_=classes, **attributes)


def group(*elements: str, **attributes: object) -> str:
    """Elements together."""
    return tag("g", "".join(elements), **attributes)


# --- motion ---

FADE = 0.4
"""Seconds in which appears what is known at the end."""


@dataclass(frozen=True)
class Clock:
    """The time of an animation: it runs, rests at its end, and begins anew."""

    seconds: float
    """Of the run."""

    rest: float = 4.0
    """Seconds at the end."""

    @property
    def total(self) -> float:
        """Seconds until it begins anew."""
        return self.seconds + self.rest

    def animate(self, attribute: str, values: Sequence[str], *, motion: str = "animate", **attributes: object) -> str:
        """Values of an attribute, evenly over the run, the last kept through the rest."""
        if len(set(values)) == 1:
            return ""  # what does not change is what stands there
        spare = self.spare(len(values))
        return tag(
            motion,
            attributeName=attribute,
            values=";".join([*values, *[values[-1]] * max(1, spare)]),
            keyTimes="" if spare else self.times(len(values)),
            dur=f"{num(self.total, 2)}s",
            repeatCount="indefinite",
            **attributes,
        )

    def spare(self, frames: int) -> int:
        """How many frames the rest is long, if that is a whole number; else 0, and times must be written."""
        rest = (frames - 1) * self.rest / self.seconds
        return round(rest) if abs(rest - round(rest)) < 1e-9 else 0

    def times(self, frames: int) -> str:
        """When each frame is due, as shares of the whole, and the end of the rest."""
        shares = np.linspace(0, self.seconds / self.total, frames)
        return ";".join([*(num(share, 3) for share in shares), "1"])

    def move(self, points: ArrayLike) -> str:
        """Through points, shape (frames, 2)."""
        values = [f"{num(x)} {num(y)}" for x, y in np.asarray(points, dtype=np.float64)]
        return self.animate("transform", values, motion="animateTransform", type="translate")

    def along(self, name: str, shares: ArrayLike) -> str:
        """Along the path of that name, at these shares of its length, one a frame."""
        places = [num(share, 3) for share in np.asarray(shares, dtype=np.float64)]
        return tag(
            "animateMotion",
            tag("mpath", href=f"#{name}"),
            keyPoints=";".join([*places, places[-1]]),
            keyTimes=self.times(len(places)),
            calcMode="linear",
            dur=f"{num(self.total, 2)}s",
            repeatCount="indefinite",
        )

    def either(self, moving: str, still: str, **attributes: object) -> str:
        """What moves, or where nothing does, what stands still."""
        shown = tag("set", attributeName="display", to="inline", begin="0s")
        hidden = tag("set", attributeName="display", to="none", begin="0s")
        return group(
            group(shown, moving, display="none", class_="moving"), group(hidden, still, class_="still"), **attributes
        )

    def cursor(self, panel: "Panel") -> str:
        """A line that goes through a panel with time."""
        left, top, width, height = panel.box
        return tag(
            "path",
            self.move([(left, 0), (left + width, 0)]),
            d=f"M0 {num(top)}v{num(height)}",
            class_="grid moving s-muted",
            transform=f"translate({num(left + width)} 0)",
        )

    def reveal(self, panel: "Panel", name: str, *elements: str) -> str:
        """What a panel holds, shown from left to right with the run; the name is for the clip path."""
        left, top, width, height = panel.box
        opens = self.animate("width", ["2", num(width + 2)])
        box = tag("rect", opens, x=left - 2, y=top - 8, width=width + 2, height=height + 16)
        path = tag("clipPath", box, id=name)
        return path + group(*elements, clip_path=f"url(#{name})", class_="opens") + self.cursor(panel)

    def arrive(self, *elements: str) -> str:
        """What is known at the end alone: it appears there, so that nobody takes it for the state on the way."""
        done = self.seconds / self.total
        appears = tag(
            "animate",
            attributeName="opacity",
            values="0;0;1;1",
            keyTimes=f"0;{num(done, 3)};{num(min(1.0, done + FADE / self.total), 3)};1",
            dur=f"{num(self.total, 2)}s",
            repeatCount="indefinite",
        )
        return group(appears, *elements, class_="arrives")

    def progress(self, left: float, top: float, width: float) -> str:
        """A bar that grows with the run; where nothing moves there is none."""
        grows = self.animate("width", ["0", num(width)])
        return self.either(tag("rect", grows, x=left, y=top, width=width, height=3.0, class_="f-text"), "", opacity=0.6)

    def heads(self, courses: Mapping[str, ArrayLike], radius: float = 5) -> str:
        """A dot in the colour of each name, through its points, shape (frames, 2)."""
        moving, still = [], []
        for name, course in courses.items():
            points = np.asarray(course, dtype=np.float64)
            colour = f"f-{name.partition('/')[0]} ring"
            moving.append(tag("circle", self.move(points), r=float(radius), class_=colour))
            still.append(dot(points[-1, 0], points[-1, 1], radius, colour))
        return self.either(group(*moving), group(*still))

    def draw(self, points: ArrayLike, name: str, frames: int = 161) -> str:
        """A way that grows through points, one a frame at an even pace, however far they lie apart.

        It is drawn twice: broader in the colour of the ground, so that it stands out from those below, then itself.
        """
        points = np.rint(np.asarray(points, dtype=np.float64) * 10) / 10
        done = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
        at = np.linspace(0, len(points) - 1, min(frames, len(points)))
        shown = np.interp(at, np.arange(len(points)), done)
        whole = max(float(done[-1]), 0.1)
        offsets = [num(whole - length) for length in shown]
        # One dash as long as the way, which slides in; the gap is longer, so that the next dash stays out of sight.
        way = tag(
            "path",
            self.animate("stroke-dashoffset", offsets),
            d=track(points),
            id=f"way-{name}",
            class_="grows",
            stroke_dasharray=f"{num(whole)} {num(whole + 20)}",
        )
        looks = ("line case", f"line way s-{name}")
        return tag("defs", way) + "".join(tag("use", href=f"#way-{name}", class_=classes) for classes in looks)


# --- axes ---


@dataclass(frozen=True)
class Panel:
    """A rectangle with two scales."""

    x: Scale
    y: Scale

    @classmethod
    def at(
        cls,
        left: float,
        top: float,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        log_x: bool = False,
        log_y: bool = False,
    ) -> "Panel":
        """A panel with these corners, and the values at its ends."""
        return cls(Scale(*x, left, left + width, log_x), Scale(*y, top + height, top, log_y))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height."""
        return self.x.start, self.y.end, self.x.end - self.x.start, self.y.start - self.y.end

    def points(self, x: ArrayLike, y: ArrayLike) -> Array:
        """Places, shape (points, 2); values outside are set to the nearer end."""
        inside = [
            scale(np.clip(np.asarray(values, dtype=np.float64), scale.low, scale.high))
            for scale, values in ((self.x, x), (self.y, y))
        ]
        return np.stack(np.broadcast_arrays(*inside), axis=1)

    def axes(self, across: str = "", *, x_ticks: int = 6, y_ticks: int = 5, name: str = "") -> str:
        """Lines of the grid with their values, what goes across below, and above what goes up."""
        left, top, width, height = self.box
        drawn = []
        for value, text in self.y.ticks(y_ticks):
            place = float(self.y(value))
            drawn.append(tag("path", d=f"M{num(left)} {num(place)}h{num(width)}", class_="grid"))
            drawn.append(words(left - 8, place + 4, text, "small muted end figures"))
        if across:
            for value, text in self.x.ticks(x_ticks):
                drawn.append(words(float(self.x(value)), top + height + 17, text, "small muted middle figures"))
            drawn.append(words(left + width / 2, top + height + 35, across, "small muted middle"))
        if name:
            drawn.append(words(left, top - 10, name, "head"))
        return group(*drawn)


# --- the whole ---


def palette(names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Light and dark colour by name: contenders, ink and grounds."""
    spare = {f"spare-{i}": faces for i, faces in enumerate(SPARE_COLOURS)}
    known = {name: (faces[LIGHT], faces[DARK]) for name, faces in {**COLOURS, **INK, **spare}.items()} | GROUND
    return {name: known[name] for name in dict.fromkeys(("text", "muted", "grid", "paper", "shade", *names))}


def css(names: Iterable[str]) -> str:
    """Colours for light and dark, and the classes that use them: `s-NAME` strokes, `f-NAME` fills."""
    colours = palette(names)
    light, dark = (";".join(f"--{name}:{faces[face]}" for name, faces in colours.items()) for face in (0, 1))
    classes = "".join(f".s-{name}{{stroke:var(--{name})}}.f-{name}{{fill:var(--{name})}}" for name in colours)
    return f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}{STYLE}{classes}"


def document(
    height: float, title: str, description: str, body: Iterable[str], colours: Iterable[str], extra: str = ""
) -> str:
    """The file: title and description for who cannot see it, style, a ground of its own, and what is drawn."""
    card = tag("rect", width=WIDTH, height=num(height), rx=10, class_="card")
    parts = [
        tag("title", html.escape(title, quote=False), id="t"),
        tag("desc", html.escape(description, quote=False), id="d"),
        tag("style", css(colours) + extra),
        card,
        *body,
    ]
    attributes = f'width="{WIDTH}" height="{num(height)}" viewBox="0 0 {WIDTH} {num(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {attributes} role="img" aria-labelledby="t d">'
    return head + "\n".join(part for part in parts if part) + "</svg>\n"


def heading(title: str, *lines: str) -> str:
    """The title at the top, and muted lines below it."""
    below = [words(EDGE, 60 + 19 * i, text, "muted") for i, text in enumerate(lines)]
    return group(words(EDGE, 38, title, "title"), *below)
