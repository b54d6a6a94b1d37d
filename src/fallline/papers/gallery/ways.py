"""The ways of all optimizers on a landscape of two numbers: `rosenbrock`, `rastrigin`, `valley` with their losses,
`fall-line` without."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fallline.bench.common.names import needed
from fallline.bench.common.numbers import number
from fallline.bench.contenders import CONTENDERS
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.landscapes import LANDSCAPES, TRIALS, Found, Landscape, search_all
from fallline.papers.gallery.svg import (
    EDGE,
    WIDTH,
    Clock,
    Panel,
    apart,
    document,
    dot,
    group,
    heading,
    line,
    num,
    tag,
    thinned,
    track,
    words,
)

Array = NDArray[np.float64]

TOP, HEIGHT = 104, 316
"""Of the landscape."""

BELOW, DEPTH = 474, 168
"""Of the losses."""

COLUMNS, ROW, GAP = 3, 26, 44
"""Of the names below a landscape that stands alone."""

BEST = 3
"""How many of the losses stand out, AdamW's beside them: nine lines as strong as each other cannot be told apart."""

DASHES = {"sgd": "8 3 2 3", "adamw": "7 4"}
"""How the running medians are broken of those that are not ours."""

CLOCK = Clock(8)

GRID = (260, 130)
"""Points at which contours are sought, across and up."""


def rosenbrock(seed: int, jobs: int) -> Drawn:
    """The ways of nine optimizers through Rosenbrock's valley, and their losses."""
    return drawn("rosenbrock", seed, jobs)


def rastrigin(seed: int, jobs: int) -> Drawn:
    """The same in Rastrigin's egg box of local minima, with fresh starts on which nothing was tuned."""
    return drawn("rastrigin", seed, jobs)


def valley(seed: int, jobs: int) -> Drawn:
    """The same in a winding valley that every step sees elsewhere: gradients with noise."""
    return drawn("valley", seed, jobs)


def fall_line(seed: int, jobs: int) -> Drawn:
    """The winding valley without its chart: the picture of the README."""
    return drawn("valley", seed, jobs, alone=True)


def drawn(name: str, seed: int, jobs: int, trials: int = TRIALS, *, alone: bool = False) -> Drawn:
    """Search, then draw; alone is without the losses."""
    needed("contourpy", "the picture of a landscape", extra="plots")  # better said before the search than after it
    landscape = LANDSCAPES[name]
    found = search_all(landscape, seed, jobs, trials)
    svg = draw_alone(landscape, found) if alone else draw(landscape, found, trials)
    return Drawn(svg, tuple(summary(landscape, found)), CLOCK.total)


def summary(landscape: Landscape, found: Sequence[Found]) -> list[str]:
    """What everyone's chosen settings are, and where they lead, the best first."""
    lines = []
    for one in sorted(found, key=lambda one: one.walk.score):
        settings = ", ".join(f"{key} {value}" for key, value in one.walk.settings.items())
        who = CONTENDERS[one.walk.name].label
        text = f"{who}: mean loss of the last tenth {two_digits(one.walk.score)} ({settings})"
        if one.fresh:
            text += f"; {one.arrived(landscape)} of {len(one.fresh)} fresh starts end in the lowest minimum"
        lines.append(text)
    return lines


def draw(landscape: Landscape, found: Sequence[Found], trials: int) -> str:
    """The picture."""
    found = sorted(found, key=lambda one: -one.walk.score)  # the best on top
    names = [one.walk.name for one in found]
    searched = f"{landscape.steps} steps, everyone with the best of {trials} settings."
    if landscape.fresh:
        searched += f" Small dots: ends of the same from {landscape.fresh} other starts."
    noise = f". Every step sees it shifted by N(0, {landscape.jitter:g}²) in x and y." if landscape.jitter else ""
    body = [
        heading(landscape.title, landscape.formula + noise, searched),
        ground(landscape),
        ways(landscape, found),
        losses(landscape, found),
    ]
    description = f"{described(landscape, names)}, and below their losses against steps, the least first."
    return document(BELOW + DEPTH + 52, landscape.title, description, body, ("hill", *names))


def draw_alone(landscape: Landscape, found: Sequence[Found]) -> str:
    """The landscape and the ways on it; below them the names, by their mean losses at the end, the least first."""
    found = sorted(found, key=lambda one: -one.walk.score)
    names = [one.walk.name for one in found]
    top, rows = EDGE + HEIGHT + 34, -(-len(found) // COLUMNS)
    best_first = [label(name) for name in reversed(names)]
    letters = [max(map(len, best_first[i : i + rows])) + 12 for i in range(0, len(found), rows)]  # 12: dot and number
    edges = EDGE + np.cumsum([0, *letters]) / sum(letters) * (WIDTH - 2 * EDGE + GAP)
    marks, scores = [], []
    for i, one in enumerate(reversed(found)):
        x, y = float(edges[i // rows]), top + ROW * (i % rows)
        marks.append(dot(x + 6, y - 5, 5.5, f"f-{one.walk.name}"))
        marks.append(words(x + 20, y, label(one.walk.name), f"head f-{one.walk.name}"))
        scores.append(words(float(edges[i // rows + 1]) - GAP, y, two_digits(one.walk.score), "end figures"))
    left, low, width, height = plane(landscape).box
    bar = group(CLOCK.progress(left, low + height - 3, width), clip_path="url(#land)")
    tail = len(found[0].walk.tail)
    about = f"Mean loss over the last {tail} of {landscape.steps} steps"
    about += ", each of which sees the ground shifted at random." if landscape.jitter else "."
    body = [
        group(ground(landscape), ways(landscape, found), bar, transform=f"translate(0 {EDGE - TOP})"),
        *marks,
        CLOCK.arrive(*scores),
        words(EDGE, top + ROW * rows + 2, about, "small muted"),
    ]
    return document(top + ROW * rows + 22, landscape.title, f"{described(landscape, names)}.", body, ("hill", *names))


def described(landscape: Landscape, names: Sequence[str]) -> str:
    """What is seen, for who cannot see it; the names in the order in which they are drawn."""
    best_first = ", ".join(CONTENDERS[name].label for name in reversed(names))
    return f"Ways of {best_first} over contour lines of {landscape.formula}"


def plane(landscape: Landscape) -> Panel:
    """Where the landscape lies."""
    return Panel.at(EDGE, TOP, WIDTH - 2 * EDGE, HEIGHT, *landscape.bounds)


def ground(landscape: Landscape) -> str:
    """High ground is tinted, a little more at every level; a mark at the goal."""
    contourpy = needed("contourpy", "the picture of a landscape", extra="plots")
    panel = plane(landscape)
    x, y = (np.linspace(*bounds, count) for bounds, count in zip(landscape.bounds, GRID, strict=True))
    values = landscape.value(*np.meshgrid(x, y))
    contours = contourpy.contour_generator(x, y, values, fill_type="OuterOffset")
    levels = []
    for level in landscape.levels:
        rings = []
        for points, offsets in zip(*contours.filled(level, np.inf), strict=True):
            for first, last in pairwise(offsets.tolist()):
                ring = points[first:last]
                rings.append(track(thinned(np.stack([panel.x(ring[:, 0]), panel.y(ring[:, 1])], 1), 0.3), closed=True))
        levels.append(tag("path", d="".join(rings)))
    left, top, width, height = panel.box
    frame = tag("rect", x=left, y=top, width=width, height=height, rx=6)
    gx, gy = float(panel.x(landscape.goal[0])), float(panel.y(landscape.goal[1]))
    cross = tag("path", d=f"M{num(gx - 9)} {num(gy)}h18m-9-9v18", class_="s-text line")
    return group(
        tag("clipPath", frame, id="land"),
        group(*levels, clip_path="url(#land)", class_="f-hill", fill_opacity=0.05, fill_rule="evenodd"),
        group(cross),
    )


def ways(landscape: Landscape, found: Sequence[Found]) -> str:
    """Everyone's way grows, step by step, with its head; the ends of fresh walks as small dots."""
    panel = plane(landscape)
    lines, heads, ends = [], {}, []
    for one in found:
        name = one.walk.name
        points = np.stack([panel.x(one.walk.way[:, 0]), panel.y(one.walk.way[:, 1])], 1)
        points = points[np.isfinite(points).all(axis=1)]  # a lost walk ends where it was lost
        points = np.clip(points, -WIDTH, 2 * WIDTH)  # far outside is outside
        lines.append(CLOCK.draw(points, name))
        heads[name] = points
        for other in one.fresh:
            if np.isfinite(other.way[-1]).all():
                x, y = other.way[-1]
                ends.append(dot(float(panel.x(x)), float(panel.y(y)), 3.2, f"f-{name} ring"))
    x, y = float(panel.x(landscape.start[0])), float(panel.y(landscape.start[1]))
    start = group(dot(x, y, 4, "s-text line", fill="none"), words(x, y - 12, "start", "small middle halo"))
    return group(CLOCK.arrive(*ends) if ends else "", *lines, start, CLOCK.heads(heads), clip_path="url(#land)")


def label(name: str) -> str:
    """Short enough to stand beside a curve."""
    return "KOALA, Adam’s metric" if name == "koala-adam" else CONTENDERS[name].label


def two_digits(value: float) -> str:
    """Two digits that count, also where the second is a zero: `0.060`, `4.0`, `13`."""
    return number(value, 2)


def losses(landscape: Landscape, found: Sequence[Found]) -> str:
    """Loss against steps, with running medians of the best and of AdamW; names and means of the last tenth."""
    walks = [one.walk for one in found]
    known = np.concatenate([walk.losses[np.isfinite(walk.losses)] for walk in walks])
    low, high = float(max(known.min(), 1e-9)), float(min(known.max(), 1e4))
    panel = Panel.at(64, BELOW, 440, DEPTH, (0, landscape.steps), (low / 1.3, high * 1.3), log_y=True)
    right, strong = panel.x.end, {"adamw", *(walk.name for walk in walks[-BEST:])}
    first = float(panel.x(landscape.steps + 1 - len(walks[0].tail)))
    tail = tag("rect", x=first, y=BELOW, width=right - first, height=DEPTH, class_="shade")
    ends = [float(panel.points([0], [min(walk.score, high)])[0, 1]) for walk in walks]
    places = apart(ends, 20, BELOW + 10, BELOW + DEPTH + 20)
    lines, marks, scores = [], [], []
    for walk, end, place in sorted(zip(walks, ends, places, strict=True), key=lambda one: one[0].name in strong):
        name = walk.name
        curve = np.nan_to_num(walk.losses, nan=high, posinf=high)
        steps = np.arange(len(curve))
        lines.append(line(panel.points(steps, curve), name, "line pale"))
        if name in strong:
            smooth = panel.points(steps, running_median(curve, len(walk.tail)))
            lines.append(line(smooth, name, "line", stroke_dasharray=DASHES.get(name)))
        leader = [(right + 4, end), (right + 22, place), (right + 28, place)]
        marks.append(tag("path", d=track(leader), class_=f"line thin s-{name}", opacity=0.6))
        marks.append(words(right + 34, place + 4.5, label(name), f"f-{name} name" if name in strong else f"f-{name}"))
        scores.append(words(WIDTH - EDGE, place + 4.5, two_digits(walk.score), "muted end figures"))
    legend = [
        words(panel.x.start + 44, BELOW - 10, "thick: running medians of the three best and AdamW", "small muted"),
        words(WIDTH - EDGE, BELOW - 10, "mean of the last tenth", "small muted end"),
    ]
    return group(
        tail,
        panel.axes("step", name="Loss"),
        CLOCK.reveal(panel, "told", *lines),
        *marks,
        *legend,
        CLOCK.arrive(*scores),
    )


def running_median(values: Array, window: int) -> Array:
    """Over so many values around each, of which there are fewer at either end."""
    half = window // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
