"""The gallery: what its pictures compute, that their files stand alone, and that the command writes them."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from typer.testing import CliRunner

from fallline.bench.cli.root import app
from fallline.bench.common.spaces import trials
from fallline.papers.gallery import PICTURES, Drawn, command, get_picture, ways
from fallline.papers.gallery import double_well as wells
from fallline.papers.gallery import koala_filter as filters
from fallline.papers.gallery import landscapes as lands
from fallline.papers.gallery import lodo_hessian as hessian
from fallline.papers.gallery import rho as schedules
from fallline.papers.gallery import trust_region as region
from fallline.papers.gallery.player import player
from fallline.papers.gallery.svg import WIDTH, Clock, Scale, apart, num, palette, thinned, track

pytest.importorskip("contourpy", reason="the landscapes' contours need fallline[plots]")
PAGES = Path(__file__).parents[2] / "docs/gallery"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Contours on a coarse grid, and little time to come to equilibrium: quick."""
    monkeypatch.setattr(ways, "GRID", (40, 20))
    monkeypatch.setattr(schedules, "WARM", 60)


def landscape(name, steps=4, fresh=1):
    return replace(lands.LANDSCAPES[name], steps=steps, fresh=fresh if lands.LANDSCAPES[name].fresh else 0)


def small_ways(name):
    def make(seed):
        here = landscape(name)
        return ways.draw(here, lands.search_all(here, seed, 1, 1), 1)

    return make


SMALL = {
    **{name: small_ways(name) for name in lands.LANDSCAPES},
    "fall-line": lambda seed: ways.draw_alone(landscape("valley"), lands.search_all(landscape("valley"), seed, 1, 1)),
    "double-well": lambda seed: wells.draw([wells.settle(name, seed, 30, 40, 8, 6) for name in wells.LABELS]),
    "lodo-hessian": lambda seed: hessian.draw(hessian.learn(seed, steps=20, size=4, frames=4)),
    "koala-filter": lambda seed: filters.draw(filters.run_filter(seed, 6)),
    "trust-region": lambda seed: region.draw(region.run_steps(seed, 6)),
    "rho": lambda seed: schedules.draw([schedules.run_course(name, seed, 30, 20, 4) for name in schedules.KINDS]),
}
"""Each picture of the gallery from runs of a few steps, by seed."""


def check_stands_alone(text):
    """One XML file without scripts and links, with words for who cannot see, in light and dark."""
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert {element.tag for element in root.iter()} & {f"{SVG}script", f"{SVG}image", f"{SVG}foreignObject"} == set()
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(names)) == len(names)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key.endswith("href"):
                assert value.startswith("#"), value
                assert value[1:] in names
            assert not key.startswith("on")
    assert set(re.findall(r"url\(#?([^)]*)\)", text)) <= set(names)
    assert "@import" not in text
    assert text.count("http") == 1, "but the name of SVG itself"
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    style = root.find(f"{SVG}style").text
    dark = re.search(r"prefers-color-scheme:dark\)\{svg\{([^}]*)\}\}", style)[1]
    light = re.match(r"svg\{([^}]*)\}", style)[1]
    both = [dict(pair.split(":") for pair in face.split(";")) for face in (light, dark)]
    assert both[0].keys() == both[1].keys()
    assert both[0]["--paper"] != both[1]["--paper"]
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= both[0].keys()
    for element in root.iter():
        if element.get("keyTimes"):
            times = [float(time) for time in element.get("keyTimes").split(";")]
            values = element.get("values") or element.get("keyPoints")
            assert len(times) == len(values.split(";"))
            assert times == sorted(times)
            assert (times[0], times[-1]) == (0, 1)


def test_every_picture_of_the_gallery_is_tried_here():
    assert SMALL.keys() == PICTURES.keys()
    assert all(get_picture(name).__doc__ for name in PICTURES)


@pytest.mark.parametrize("name", SMALL)
def test_a_picture_stands_alone_and_its_seed_decides_every_byte(name):
    made = SMALL[name](3)
    check_stands_alone(made)
    assert made == SMALL[name](3)
    if name not in lands.LANDSCAPES:  # whose noise and settings another test tries
        assert made != SMALL[name](4)
    assert "nan" not in re.sub(r"<(title|desc|text|style).*?</\1>", "", made)


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_docs_stand_alone_and_are_small(name):
    file = PAGES / f"{name}.svg"
    check_stands_alone(file.read_text())
    assert file.stat().st_size < 400_000
    assert f"gallery/{name}.svg" in (PAGES.parent / "gallery.md").read_text()


# --- landscapes ---


@pytest.mark.parametrize("name", lands.LANDSCAPES)
def test_a_landscape_s_gradient_is_that_of_its_values_and_its_goal_is_zero(name):
    here = lands.LANDSCAPES[name]
    assert here.value(*here.goal) == pytest.approx(0, abs=1e-12)
    for x, y in np.random.default_rng(0).uniform(-2, 2, (20, 2)):
        step = 1e-6
        expected = [
            (here.value(x + step, y) - here.value(x - step, y)) / (2 * step),
            (here.value(x, y + step) - here.value(x, y - step)) / (2 * step),
        ]
        np.testing.assert_allclose(here.slope(x, y), expected, rtol=1e-5, atol=1e-5)


def test_a_walk_of_sgd_is_the_textbook_s():
    here = replace(lands.LANDSCAPES["valley"], steps=30)
    found = lands.walk(here, "sgd", {"lr": 0.01, "momentum": 0.8}, seed=5)
    noise = np.random.default_rng(lands.derive("gallery", 5, "noise")).normal(0, here.jitter, (30, 2))
    point, speed = np.array(here.start), np.zeros(2)
    for step in range(30):  # the race's cosine: up over two steps, then down
        rate = 0.01 * ((step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 29)))
        speed = 0.8 * speed + np.array(here.slope(*(point + noise[step])))
        point = point - rate * speed
    np.testing.assert_allclose(found.way[-1], point, rtol=1e-12)
    np.testing.assert_allclose(found.losses[-1], here.value(*point), rtol=1e-12)


def test_the_search_takes_the_best_of_its_trials_and_a_lost_walk_is_the_worst():
    here = landscape("rosenbrock", steps=40)
    tried = trials(lands.space("sgd", here), 8, lands.derive("gallery", 1, here.name, "sgd"))
    scores = [lands.walk(here, "sgd", settings, 1).score for settings in tried]
    assert math.inf in scores, "a learning rate that is too large"
    assert lands.search(here, "sgd", 1, 8).walk.settings == tried[int(np.argmin(scores))]


# --- what the pictures claim ---


def test_walkers_share_a_rate_and_are_counted_beyond_the_barrier():
    cool, control = (wells.settle(name, 0, walkers=200, cooling=300, cold=20, frames=9) for name in wells.LABELS)
    np.testing.assert_allclose(cool.rate, control.rate, rtol=1e-12)
    assert cool.rate[0] / cool.rate[-1] == pytest.approx((1 + wells.RHO_0) / (1 - wells.RHO_0))
    barrier = wells.special_points()[1]
    for one in (cool, control):
        assert one.deep[0] == 0
        assert one.deep[-1] == sum(place < barrier for place in one.places[-1].tolist()) / 200
    assert control.deep[-1] > cool.deep[-1] > 0, "as docs/gallery.md says"


def test_equilibrium_is_boltzmann_s():
    for temperature in (0.5, 0.05):
        shares = [
            quad(lambda x, T=temperature: math.exp(-wells.well(x) / T), *ends)[0]
            for ends in ((-3, wells.special_points()[1]), (wells.special_points()[1], 3))
        ]
        found = wells.equilibrium(np.array([temperature]))[0]
        assert found == pytest.approx(shares[0] / sum(shares), rel=2e-3)


def test_the_kl_divergence_measured_from_the_weights_never_exceeds_the_bound():
    found = region.run_steps(0, steps=60)
    assert (found.measured <= found.bound * (1 + 1e-4)).all()
    np.testing.assert_allclose(found.measured, found.kl, rtol=1e-4)
    shortened = found.multiplier > 0
    assert shortened.any()
    assert (found.measured[shortened] > 0.95 * found.bound[shortened]).all()


def test_the_filter_s_covariance_is_one_and_its_gain_a_share():
    found = filters.run_filter(0, 30)
    p11, p12, p22 = found.P.T
    assert (p11 > 0).all()
    assert (p11 * p22 >= p12**2).all()
    assert ((found.gain >= 0) & (found.gain < 1)).all()
    assert (found.R > 0).all()


def test_lodo_s_preconditioner_is_a_metric_and_its_error_that_of_the_inverse():
    found = hessian.learn(0, steps=40, size=5, frames=4)
    np.testing.assert_allclose(found.G, found.G.transpose(0, 2, 1), atol=1e-12)
    assert np.linalg.eigvalsh(found.G).min() > -1e-12
    product = np.eye(5) - found.G[-1] @ found.H
    assert found.error[-1] == pytest.approx(math.sqrt((product**2).sum() / 5))


@pytest.mark.parametrize("name", schedules.KINDS)
def test_walkers_measure_the_schedule_s_temperature(name):
    found = schedules.run_course(name, 0, steps=12, walkers=4000, readings=2)
    assert found.rate[0] == pytest.approx(schedules.LR * 1.99 / 0.02)
    assert found.temperature[0] == pytest.approx(found.expected[0], rel=0.12)  # of 4,000: 2.2 % are one deviation


# --- drawing ---


def shown(svg):
    """The words of a picture that appear at its end."""
    groups = [group for group in ElementTree.fromstring(svg).iter(f"{SVG}g") if group.get("class") == "arrives"]
    return [text.text for group in groups for text in group.iter(f"{SVG}text")]


def test_a_landscape_s_numbers_are_those_of_the_search_with_and_without_its_chart():
    here = landscape("valley", steps=30)
    found = lands.search_all(here, 0, 1, 2)
    scores = [ways.two_digits(one.walk.losses[-3:].mean()) for one in sorted(found, key=lambda one: one.walk.score)]
    assert shown(ways.draw_alone(here, found)) == scores
    assert sorted(shown(ways.draw(here, found, 2))) == sorted(scores)


def test_the_three_best_and_adamw_stand_out_of_the_losses():
    here = landscape("rosenbrock", steps=40)
    found = sorted(lands.search_all(here, 0, 1, 4), key=lambda one: -one.walk.score)
    drawn = ElementTree.fromstring(ways.losses(here, found))
    strong = {path.get("class") for path in drawn.iter("path") if path.get("class", "").startswith("line s-")}
    best = {one.walk.name for one in found[-3:]}
    assert strong == {f"line s-{name}" for name in {*best, "adamw"}}
    assert "adamw" not in best, "else this says nothing of it"


def test_a_running_median_knows_no_spikes_and_ends_where_its_values_end():
    values = np.array([1.0, 9.0, 2.0, 3.0, 50.0, 4.0, 5.0])
    assert ways.running_median(values, 3).tolist() == [5.0, 2.0, 3.0, 3.0, 4.0, 5.0, 4.5]
    assert ways.running_median(values, 1).tolist() == values.tolist()


def test_numbers_have_two_digits_that_count():
    assert [ways.two_digits(value) for value in (0.06, 0.0095, 4, 13.1, 0.128)] == [
        "0.060",
        "0.0095",
        "4.0",
        "13",
        "0.13",
    ]


def test_no_hump_is_cut_and_all_have_one_scale():
    both = [wells.settle(name, 0, 400, 300, 20, 9) for name in wells.LABELS]
    tops = []
    for one in both:
        humps = wells.humps(one)
        np.testing.assert_allclose(humps.sum(axis=1), 1, atol=0.01)  # all walkers, but for those far out
        tops.append(humps.max())
    highest = []
    for path in ElementTree.fromstring(wells.draw(both)).iter(f"{SVG}animate"):
        if path.get("attributeName") == "d":
            steps = [
                [float(step) for step in re.findall(r"l7 (-?[\d.]+)", shape)] for shape in path.get("values").split(";")
            ]
            highest.append(max(-np.cumsum(shape).min() for shape in steps))
    assert max(highest) == round(wells.TALL)
    assert highest[1] / highest[0] == pytest.approx(tops[1] / tops[0], rel=0.02)


def contrast(one, other):
    """WCAG's, of two colours written as six digits."""
    shares = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for colour in (one, other)]
    linear = [np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) for share in shares]
    dark, light = sorted(float(channels @ [0.2126, 0.7152, 0.0722]) for channels in linear)
    return (light + 0.05) / (dark + 0.05)


def oklab(colour):
    """Ottosson (2020): a space in which equal distances look alike."""
    share = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    axes = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    axes.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.array(axes) @ np.cbrt(np.array(cones) @ linear)


@pytest.mark.parametrize("face", [0, 1], ids=["light", "dark"])
def test_those_who_walk_have_colours_that_one_can_read_and_tell_apart(face):
    colours = palette(lands.WALKERS)
    for one, other in combinations(lands.WALKERS, 2):
        apart_by = np.linalg.norm(oklab(colours[one][face]) - oklab(colours[other][face]))
        assert apart_by > 0.09, (one, other)
    for name in lands.WALKERS:
        assert contrast(colours[name][face], colours["paper"][face]) > 4.5, name


def test_a_number_takes_no_more_letters_than_it_needs():
    assert [num(value) for value in (0, 0.04, -0.04, 0.5, -0.5, 12.0, -3.25)] == [
        "0",
        "0",
        "0",
        ".5",
        "-.5",
        "12",
        "-3.2",
    ]


def test_a_path_comes_back_to_its_points_within_a_twentieth():
    points = np.random.default_rng(1).uniform(-50, 800, (200, 2))
    numbers = [float(text) for text in re.findall(r"-?\d*\.?\d+", track(points))]
    steps = np.array(numbers).reshape(-1, 2)
    np.testing.assert_allclose(steps.cumsum(axis=0), points, atol=0.051)


def test_a_thinned_line_stays_within_its_tolerance():
    x = np.linspace(0, 6, 400)
    points = np.stack([100 * x, 100 * np.sin(x)], axis=1)
    kept = thinned(points, 0.5)
    assert len(kept) < 60
    assert np.abs(np.interp(points[:, 0], kept[:, 0], kept[:, 1]) - points[:, 1]).max() < 0.75


def test_labels_keep_their_distance_and_their_order():
    wanted = [50.0, 51.0, 10.0, 52.0, 400.0]
    found = apart(wanted, 15, 0, 120)
    assert np.argsort(found).tolist() == np.argsort(wanted).tolist()
    assert np.diff(sorted(found)).min() > 14.9
    assert min(found) >= -0.1
    assert max(found) <= 120.1


def test_what_is_known_at_the_end_appears_there():
    clock = Clock(8, 4)
    root = ElementTree.fromstring(clock.arrive("<path/>"))
    appears = root.find("animate")
    assert root.get("class") == "arrives", "so that a reader who asks for less motion sees it"
    assert appears.get("values") == "0;0;1;1"
    times = [float(time) for time in appears.get("keyTimes").split(";")]
    assert times[1] == pytest.approx(clock.seconds / clock.total, abs=1e-3)
    assert times[1] < times[2] < 1
    assert appears.get("dur") == f"{clock.total:g}s"


def test_a_clock_runs_and_rests():
    even, uneven = (Clock(8, 3).animate("x", [str(i) for i in range(count)]) for count in (9, 10))
    assert even.count(";") == 8 + 3, "three frames more, as the rest is three eighths of the run"
    assert "keyTimes" not in even
    assert "keyTimes" in uneven
    assert Clock(8).animate("x", ["1", "1"]) == ""


def test_ticks_are_round():
    assert [told for _, told in Scale(0, 3200, 0, 1).ticks(4)] == ["0", "1,000", "2,000", "3,000"]
    assert [told for _, told in Scale(1e-3, 20, 0, 1, log=True).ticks(5)] == ["10⁻³", "10⁻²", "0.1", "1", "10"]


# --- the command ---


def call(*arguments):
    result = CliRunner().invoke(app, ["gallery", *arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})
    return result.exit_code, result.output


def test_the_gallery_is_listed_and_a_wrong_name_has_a_hint():
    code, output = call("--list")
    assert code == 0
    assert all(name in output for name in PICTURES)
    code, output = call("rosenbrok")
    assert code == 2
    assert "rosenbrock" in output


def test_a_picture_is_written_and_what_moves_has_a_player(monkeypatch, tmp_path):
    made = {"rho": Drawn("<svg/>", ("a number",)), "valley": Drawn("<svg/>", ("another",), 11.0)}
    monkeypatch.setattr(command, "get_picture", lambda name: lambda seed, jobs: made[name])
    threads = torch.get_num_threads()
    try:
        code, output = call("rho", "valley", "--out", str(tmp_path / "new"))
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    assert "a number" in output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rho.svg", "valley.html", "valley.svg"]


def test_a_player_holds_its_picture_and_nothing_from_elsewhere():
    page = player("double <well>", SMALL["double-well"](0), 13.0)
    assert "<title>double &lt;well&gt;</title>" in page
    assert page.count("http") == 1
    assert "src=" not in page
    assert 'max="13"' in page
    assert "{" + "{" not in page


def test_a_picture_is_as_wide_as_all():
    assert f'viewBox="0 0 {WIDTH} ' in SMALL["rho"](0)
