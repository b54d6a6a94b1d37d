"""The ways of all optimizers on a landscape of two numbers: `rosenbrock`, `rastrigin`, `valley` with their losses,
`fall-line` without."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fallline.bench.contenders import CONTENDERS
from fallline.bench.gallery._picture import Drawn
from fallline.bench.gallery.landscapes import LANDSCAPES, TRIALS, Found, Landscape, search_all
from fallline.bench.gallery.svg import (
    EDGE,
    WIDTH,
    Clock,
    Panel,
    apart,
    document,
    dot,
    group,
    heading,
    num,
    tag,
    thinned,
    track,
    words,
)
from fallline.bench.names import needed

TOP, HEIGHT = 104, 316
"""Of the landscape."""

BELOW, DEPTH = 474, 168
"""Of the losses."""

COLUMNS, ROW = 3, 22
"""Of the names below a landscape that stands alone."""

DASHES = {"sgd": "8 3 2 3", "adamw": "7 4"}
"""How the losses are broken of those that are not ours."""

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
    return Drawn(svg, tuple(told(landscape, found)), CLOCK.total)


def told(landscape: Landscape, found: Sequence[Found]) -> list[str]:
    """What everyone's chosen settings are, and where they lead, the best first."""
    lines = []
    for one in sorted(found, key=lambda one: one.walk.score):
        settings = ", ".join(f"{key} {value}" for key, value in one.walk.settings.items())
        line = f"{CONTENDERS[one.walk.name].label}: mean loss of the last tenth {one.walk.score:.2g} ({settings})"
        if one.fresh:
            line += f"; {one.arrived(landscape)} of {len(one.fresh)} fresh starts end in the lowest minimum"
        lines.append(line)
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
    description = (
        f"Ways of {', '.join(CONTENDERS[name].label for name in reversed(names))} over contour lines of "
        f"{landscape.formula}, and below their losses against steps, the least first."
    )
    return document(BELOW + DEPTH + 52, landscape.title, description, body, ("hill", *names))


def draw_alone(landscape: Landscape, found: Sequence[Found]) -> str:
    """The landscape and the ways on it; below them the names, by their mean losses at the end, the least first."""
    found = sorted(found, key=lambda one: -one.walk.score)
    names = [one.walk.name for one in found]
    top, across = EDGE + HEIGHT + 30, (WIDTH - 2 * EDGE) / COLUMNS
    rows = -(-len(found) // COLUMNS)
    marks = []
    for i, one in enumerate(reversed(found)):
        x, y = EDGE + across * (i // rows), top + ROW * (i % rows)
        marks.append(dot(x + 6, y - 4.5, 5, f"f-{one.walk.name}"))
        marks.append(words(x + 20, y, label(one.walk.name), f"f-{one.walk.name} name"))
        marks.append(words(x + across - 22, y, f"{one.walk.score:.2g}", "muted end figures"))
    body = [
        group(ground(landscape), ways(landscape, found), transform=f"translate(0 {EDGE - TOP})"),
        *marks,
    ]
    description = f"Ways of {', '.join(CONTENDERS[name].label for name in reversed(names))} over contour lines of "
    return document(top + ROW * rows, landscape.title, f"{description}{landscape.formula}.", body, ("hill", *names))


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
    cross = tag("path", d=f"M{num(gx - 6)} {num(gy)}h12m-6-6v12", class_="s-text line")
    return group(
        tag("clipPath", frame, id="land"),
        group(*levels, clip_path="url(#land)", class_="f-hill", fill_opacity=0.06, fill_rule="evenodd"),
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
        lines.append(CLOCK.draw(points, name, "line way"))
        heads[name] = points
        for other in one.fresh:
            if np.isfinite(other.way[-1]).all():
                x, y = other.way[-1]
                ends.append(dot(float(panel.x(x)), float(panel.y(y)), 2.5, f"f-{name}"))
    x, y = float(panel.x(landscape.start[0])), float(panel.y(landscape.start[1]))
    start = group(dot(x, y, 4, "s-text line", fill="none"), words(x, y - 12, "start", "small middle"))
    return group(group(*ends, opacity=0.8), *lines, start, CLOCK.heads(heads), clip_path="url(#land)")


def label(name: str) -> str:
    """Short enough to stand beside a curve."""
    return "KOALA, Adam’s metric" if name == "koala-adam" else CONTENDERS[name].label


def losses(landscape: Landscape, found: Sequence[Found]) -> str:
    """Loss against steps, with names and last values at the right."""
    curves = {one.walk.name: one.walk.losses for one in found}
    known = np.concatenate([curve[np.isfinite(curve)] for curve in curves.values()])
    low, high = float(max(known.min(), 1e-9)), float(min(known.max(), 1e4))
    panel = Panel.at(64, BELOW, 470, DEPTH, (0, landscape.steps), (low / 1.3, high * 1.3), log_y=True)
    lines, marks = [], []
    ends = {name: float(panel.points([0], [curve[-1]])[0, 1]) for name, curve in curves.items()}
    places = apart(list(ends.values()), 19, BELOW - 6, BELOW + DEPTH + 14)
    right = panel.x.end
    for (name, curve), place in zip(curves.items(), places, strict=True):
        points = panel.points(np.arange(len(curve)), np.nan_to_num(curve, nan=high, posinf=high))
        dash = DASHES.get(name)
        lines.append(tag("path", d=track(thinned(points)), class_=f"line s-{name}", stroke_dasharray=dash))
        leader = [(right + 4, ends[name]), (right + 22, place), (right + 28, place)]
        marks.append(tag("path", d=track(leader), class_=f"line thin s-{name}", opacity=0.6))
        marks.append(words(right + 34, place + 4.5, label(name), f"f-{name} name"))
        marks.append(words(WIDTH - EDGE, place + 4.5, f"{curve[-1]:.2g}", "muted end figures"))
    return group(panel.axes("step", name="Loss"), CLOCK.reveal(panel, "told", *lines), *marks)
