"""The page in a browser: it draws without a complaint, asks nobody for anything, and does what its controls say."""

import shutil

import pytest
from staged import spaced, stage

from fallline.bench.protocol.comparison import Alarm
from fallline.bench.race.store import Store
from fallline.bench.report import page as report
from fallline.bench.report.looks import DARK, INK, LIGHT
from fallline.bench.report.series import AXES

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

# Every text with its contrast to what lies behind it (WCAG 2): [text, ratio]. Colours may be translucent.
CONTRASTS = """() => {
  const channels = colour => {
    const numbers = colour.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    const [red, green, blue, alpha = 1] = numbers;
    return colour.startsWith("color(") ? [255 * red, 255 * green, 255 * blue, alpha] : [red, green, blue, alpha];
  };
  const over = (front, back) => [0, 1, 2].map(i => front[3] * front[i] + (1 - front[3]) * back[i]).concat(1);
  const ground = element => {
    const mine = channels(getComputedStyle(element).backgroundColor);
    if (mine[3] === 1) return mine;
    return over(mine, element.parentElement ? ground(element.parentElement) : [255, 255, 255, 1]);
  };
  const luminance = colour => {
    const [red, green, blue] = colour.slice(0, 3).map(one => one / 255)
      .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const texts = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
    if (!text || element.closest("script, svg") || element.matches(":disabled + span")) continue;
    const behind = ground(element);
    const [a, b] = [over(channels(getComputedStyle(element).color), behind), behind].map(luminance);
    texts.push([text.slice(0, 60), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return texts;
}"""


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests."""
    with playwright.sync_playwright() as starts:
        started = starts.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A report with all that a report can have: two tasks and tracks, an earlier race, alarms, losses of every kind."""
    folder = tmp_path_factory.mktemp("page")
    with Store(folder / "records.sqlite") as store:
        losses = {"koala-m": spaced(0.4), "sgd": spaced(0.5), "adamw": [*spaced(0.5, 7), None], "radam": spaced(0.7)}
        two = {"tasks": ("hill", "dale"), "tracks": ("tuned", "defaults")}
        found = stage(store, losses, **two)
        less = {"koala-m": spaced(0.5), "sgd": spaced(0.5)}
        before = stage(store, less, name="before", environment={"torch": "2.12.0"})
    found.parts[0].steady, found.parts[1].steady = True, False
    found.parts[0].entries[0].alarms.append(Alarm("edge", "the best lr, 0.01, lies at the low edge of its range"))
    return report.write_page(found, folder / "page.html", before)


class Visit:
    """A page, and what was heard of it."""

    def __init__(self, browser, file, **settings):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        self.page = context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.context.close()

    def draw(self):
        """Have every figure drawn."""
        self.page.evaluate("dispatchEvent(new Event('beforeprint'))")

    def plot(self, name):
        """The figure of that name, in sight and drawn."""
        plot = self.page.locator(f'[data-curve="{name}"], [data-figure="{name}"]')
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        return plot

    def until(self, name, condition):
        """Wait until a condition holds of a drawn figure: a function in JavaScript."""
        find = 'document.querySelector(`[data-curve="${name}"], [data-figure="${name}"]`)'
        self.page.wait_for_function(f"name => ({condition})({find})", arg=name)


@pytest.fixture(scope="module")
def opened(browser, file):
    """The page in one tab for most tests: what takes long is to start the figures' library."""
    with Visit(browser, file) as visit:
        yield visit


@pytest.fixture
def visit(opened):
    """That tab on a wide, light screen, at the top, for whoever asks for no motion."""
    opened.page.set_viewport_size({"width": 1200, "height": 900})
    opened.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    opened.page.evaluate("scrollTo(0, 0)")
    return opened


def test_figures_are_drawn_only_as_they_come_near(browser, file):
    with Visit(browser, file) as visit:
        last = visit.page.locator(".plot").last
        assert "js-plotly-plot" not in last.get_attribute("class")
        last.scroll_into_view_if_needed()
        last.locator(".main-svg").first.wait_for()
        assert "js-plotly-plot" not in visit.page.locator(".plot").nth(4).get_attribute("class")


def test_every_figure_is_drawn_without_a_complaint_or_a_request(visit, file):
    visit.draw()
    plots, drawn = (visit.page.locator(which).count() for which in (".plot", ".plot.js-plotly-plot"))
    assert drawn == plots > 20
    empty = "plots => plots.filter(plot => !plot.querySelector('.scatterlayer path')).length"
    assert visit.page.eval_on_selector_all(".plot", empty) == 0
    visit.page.wait_for_load_state("networkidle")
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]


def test_a_complaint_and_a_request_would_be_heard(browser, file, tmp_path):
    bad = tmp_path / "bad.html"
    ending = '<img src="absent.png"><script>oh()</script></body>'
    bad.write_text(file.read_text(encoding="utf-8").replace("</body>", ending), encoding="utf-8")
    with Visit(browser, bad) as visit:
        assert any("oh is not defined" in said for said in visit.said)
        assert any(url.endswith("absent.png") for url in visit.asked)


def test_the_axis_of_the_curves_is_switched(visit):
    told = "plot => [plot.layout.xaxis.title.text, Math.max(...plot.data.flatMap(trace => trace.x))]"
    ends = {}
    for axis in ("gradient evaluations", "CPU seconds", "wall seconds", "steps"):
        visit.page.locator(f'#part-0 .segments label:has(input[value="{axis}"])').click()
        for measure in ("validation loss", "train loss"):
            plot = visit.plot(f"0: {measure}")
            visit.until(f"0: {measure}", f"plot => plot.layout.xaxis.title.text === '{axis}'")
            ends[axis] = plot.evaluate(told)[1]
            assert plot.get_attribute("aria-label").endswith(f"against {axis}")
        assert visit.plot("2: validation loss").evaluate(told)[0] == "steps"  # each part has its own
    assert ends["steps"] == ends["gradient evaluations"] == 100
    assert ends["CPU seconds"] == pytest.approx(1.7)
    assert ends["wall seconds"] == pytest.approx(3.4)


def test_the_axis_is_switched_by_keyboard_which_passes_over_one_that_is_greyed_out(visit):
    visit.page.locator('#part-1 .segments input[value="steps"]').focus()
    seen = []
    for _ in AXES:
        seen.append(visit.page.evaluate("document.activeElement.value"))
        visit.page.keyboard.press("ArrowRight")
    assert seen == ["steps", "gradient evaluations", "CPU seconds", "steps"]
    assert report.UNSTEADY in visit.page.locator("#part-1 .segments").inner_text()
    assert report.UNSTEADY not in visit.page.locator("#part-0 .segments").inner_text()


def test_a_chip_hides_its_optimizer_everywhere_and_shows_it_again(visit):
    shown = "plot => [...new Set(plot.data.filter(trace => trace.visible).map(trace => trace.meta))].sort()"
    everyone = ["adamw", "koala-m", "radam", "sgd"]
    assert visit.plot("0: validation loss").evaluate(shown) == everyone
    for rest in ([name for name in everyone if name != "sgd"], everyone):
        visit.page.locator('#part-0 .chip[data-name="sgd"]').click()
        for name in ("0: validation loss", "0: best of", "2: validation loss"):
            visit.plot(name)
            visit.until(name, f"plot => JSON.stringify(({shown})(plot)) === JSON.stringify({rest})")
        pressed = {chip.get_attribute("aria-pressed") for chip in visit.page.locator('.chip[data-name="sgd"]').all()}
        assert pressed == {"true" if rest == everyone else "false"}
        assert visit.plot("0: final losses").evaluate(shown) == everyone


def test_every_text_can_be_read_on_its_ground_and_figures_follow_the_scheme(visit):
    grounds, inks = [], []
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        texts = visit.page.evaluate(CONTRASTS)
        assert len(texts) > 300
        assert [text for text in texts if text[1] < 4.5] == []
        plot = visit.plot("0: final losses")
        if inks:
            visit.until("0: final losses", f"plot => plot.layout.yaxis.tickfont.color !== '{inks[0]}'")
        inks.append(plot.evaluate("plot => plot.layout.yaxis.tickfont.color"))
        grounds.append(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert inks == [INK["text"][LIGHT], INK["text"][DARK]]
    assert grounds[0] != grounds[1]


def test_nothing_is_wider_than_a_telephone_and_the_matrix_scrolls_in_its_own_box(visit):
    visit.page.set_viewport_size({"width": 390, "height": 844})
    visit.draw()
    beyond = """[...document.querySelectorAll("main *")].filter(element =>
        !element.closest(".scroll, .contents, svg") && element.getBoundingClientRect().right > 390)"""
    visit.page.wait_for_function(f"{beyond}.length === 0")  # figures are fitted to a new width in a moment
    visit.page.wait_for_function("document.documentElement.scrollWidth === 390")
    assert visit.page.evaluate("document.querySelector('.scroll').scrollWidth") > 390


def test_nothing_runs_out_of_its_card_on_a_wide_screen(visit):
    visit.draw()
    beyond = """[...document.querySelectorAll(".card table:not(.grid), .card .svg-container")].filter(element =>
        element.getBoundingClientRect().right > element.closest(".card").getBoundingClientRect().right - 10)"""
    visit.page.wait_for_function(f"{beyond}.length === 0")


def test_a_link_leads_to_a_heading_that_the_contents_do_not_cover(visit):
    visit.page.locator('.contents a[href="#part-1"]').click()
    heading, contents = (visit.page.locator(which).bounding_box() for which in ("#part-1 h2", ".contents"))
    assert contents["y"] == 0
    assert contents["height"] <= heading["y"] < 200


def test_a_page_scrolls_without_motion_for_whoever_asks_for_none(visit):
    for asked, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        visit.page.emulate_media(reduced_motion=asked)
        assert visit.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour
